"""Writing files so that a reader never sees half of one, and hashing them.

Everything is first written beside its target and then renamed, which POSIX makes atomic; `fsync` comes before the
rename so that a power cut cannot leave an empty file under the final name.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_bytes_atomically(path: str | Path, data: bytes) -> None:
    """Write `data` to `path`: afterwards the file holds either its old content or all of the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 is for secrets
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:  # what the system says names no file when there is no room to write
        Path(temporary).unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text_atomically(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, as `write_bytes_atomically` does."""
    write_bytes_atomically(path, text.encode("utf-8"))


def write_json_atomically(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, as `write_bytes_atomically` does."""
    write_text_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path` that takes its place on success and vanishes on failure.

    An existing folder at `path` is moved aside for the moment of the exchange and removed afterwards, so at any time at
    least one complete folder exists, under `path` or (after a crash between the two renames) under `.{name}.old`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.new."))
    os.chmod(temporary, 0o755)
    old = path.parent / f".{path.name}.old"
    try:
        yield temporary
        for inside in [*temporary.rglob("*"), temporary]:
            if inside.is_file():
                with open(inside, "rb") as opened:
                    os.fsync(opened.fileno())
            else:
                _sync_folder(inside)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(path, old)
        os.replace(temporary, path)
        _sync_folder(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder last: a renamed file is safe only when the folder that names it is."""
    if os.name == "nt":
        return  # folders cannot be opened there
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_model_destination(folder: str | Path, *, force: bool, source: str | Path | None = None) -> None:
    """Refuse to write a model's folder where something else would be lost.

    Args:
        folder: where the model shall be written; it need not exist.
        force: replace a model that is there, and nothing but a model.
        source: the folder that is read for it, which must stay.

    Raises:
        ValueError: with what is there and what to do.
    """
    folder = Path(folder)
    if source is not None:
        read, written = Path(source).resolve(), folder.resolve()
        if read == written or read in written.parents or written in read.parents:
            raise ValueError(f"{folder} and {source} overlap; choose a destination of its own.")
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir() or folder.is_symlink():
        raise ValueError(f"{folder} exists and is not a folder; choose another place.")
    if not any(folder.iterdir()):
        return
    if not force:
        raise ValueError(f"{folder} exists; choose another folder, or replace it with --force (force=True).")
    if not ((folder / "config.json").is_file() and any(folder.glob("*.safetensors"))):
        raise ValueError(f"{folder} is not the folder of a model, so it is not replaced; choose another folder.")


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal, reading it in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
