"""Hashes of large files, remembered as long as the system says that nobody has written to the file.

A stamp is size, modification time, status-change time and inode. The status-change time is the system's own: no program
can set it back, so an edit that restores the modification time shows. Two things could still slip through. A write in
the same clock tick as the hash: a file is only remembered once its last change lies `SETTLED_NANOSECONDS` before the
hash began, and if it looks the same afterwards. And storage that decays without a write: only reading everything finds
that, which `verify` asks for. Below `WORTH_REMEMBERING` bytes reading everything is quicker than arguing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from heedful.files import file_sha256, write_json_atomically

WORTH_REMEMBERING = 256 << 20
# Clocks of file systems tick every 10 ms at worst on disks, every 2 s on FAT and some network mounts.
SETTLED_NANOSECONDS = 3_000_000_000


class FileHashes:
    """SHA-256 of a fixed set of files, read again only where a file may have changed since it was last read."""

    def __init__(self, memory: Path, files: Iterable[Path], *, verify: bool = False) -> None:
        """Look the files up.

        Args:
            memory: JSON file that keeps the stamps; damaged or missing, everything is read.
            files: the files that will be asked for.
            verify: read everything whatever the stamps say.
        """
        self._memory = memory
        self._total = sum(file.stat().st_size for file in files if file.exists())
        self._known: dict[str, list[int | str]] = {}
        self._changed = False
        if self._total >= WORTH_REMEMBERING and not verify:
            self._known = _read(memory)

    def sha256(self, file: Path) -> str:
        """Return the SHA-256 of a file in hexadecimal."""
        name, stamp = str(file.absolute()), file_stamp(file)
        known = self._known.get(name)
        if known is not None and known[:-1] == stamp:
            return str(known[-1])
        settled = time.time_ns() - max(stamp[1], stamp[2]) > SETTLED_NANOSECONDS
        sha256 = file_sha256(file)
        if settled and file_stamp(file) == stamp:
            self._known[name] = [*stamp, sha256]
            self._changed = True
        return sha256

    def save(self) -> None:
        """Keep the stamps where that is worth it and the folder can be written to."""
        if self._changed and self._total >= WORTH_REMEMBERING:
            with suppress(OSError):  # shards on a medium that is only read: they are checked each time
                write_json_atomically(self._memory, self._known)


def file_stamp(file: Path) -> list[int]:
    """Return size in bytes, modification and status-change time in nanoseconds, and inode of a file."""
    found = file.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _read(memory: Path) -> dict[str, list[int | str]]:
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {name: stamp for name, stamp in known.items() if isinstance(stamp, list) and len(stamp) == 5}
