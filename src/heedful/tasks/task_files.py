"""Reading the files of published tasks, and drawing some of their examples."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
_OPENERS = {".xz": lzma.open, ".gz": gzip.open}


def read_text(path: str | Path) -> str:
    """Return the text of a UTF-8 file, decompressed where its name ends in .xz or .gz; line ends as they are.

    Raises:
        ValueError: there is no such file, it is not UTF-8, or its compression is damaged.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}; give the path of the task's data.")
    try:
        with _OPENERS.get(path.suffix, open)(path, "rb") as file:
            return file.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason}); compressed files end in .xz or .gz.") from error
    except (lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} is damaged or not really {path.suffix[1:]}: {error}.") from error


def json_lines(text: str, path: str | Path) -> list[dict[str, Any]]:
    """Return the objects of a text of JSON lines, empty lines left out.

    Raises:
        ValueError: a line is not a JSON object; the message names `path` and the line.
    """
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: expected a JSON object, got {line[:60]!r}.") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected a JSON object, got {type(row).__name__}.")
        rows.append(row)
    return rows


def content_sha256(parts: Iterable[str]) -> str:
    """Return one SHA-256 over some texts, the same however they were compressed and split into files."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part}\n".encode())
    return digest.hexdigest()


def draw(items: Sequence[T], limit: int | None, seed: int, stream: str) -> list[T]:
    """Return `limit` of some items, drawn by `seed`, in their order; all of them where there are no more.

    With the same seed fewer are some of more. The draw depends on the seed, the `stream` and the places of the items
    only, not on the version of any library.

    Raises:
        ValueError: `limit` is below 1.
    """
    if limit is None:
        return list(items)
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}; leave it out to score everything.")

    def place(index: int) -> bytes:
        return hashlib.sha256(f"{seed}\0{stream}\0{index}".encode()).digest()

    return [items[index] for index in sorted(sorted(range(len(items)), key=place)[:limit])]
