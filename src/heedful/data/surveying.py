"""The first reading of a corpus: how many documents, how long, and what each of them is known by.

What it finds is written to disk as it goes and read back memory-mapped, so that memory does not grow with the corpus,
and kept until the shards are complete, so that a preparation that was killed need not read the corpus again.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from heedful.data.corpora import Corpus
from heedful.files import file_sha256, write_json_atomically

_BUFFERED_DOCUMENTS = 1 << 16
_HASHES, _SIZES, _RECORD = "hashes", "sizes", "survey.json"


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What one reading of a corpus says about its documents, in their order.

    Attributes:
        hashes: uint64 (documents,), the first 64 bits of each document's SHA-256.
        num_bytes: int64 (documents,), UTF-8 bytes of each document.
        sha256: hash of the whole corpus in hexadecimal: over the SHA-256 of its documents in order, so that neither
            file names nor compression matter.
    """

    hashes: np.ndarray
    num_bytes: np.ndarray
    sha256: str


def survey(corpus: Corpus, folder: Path) -> Survey:
    """Read a corpus once, or what an earlier reading left in `folder`: 16 bytes a document on disk, none in memory.

    Raises:
        ValueError: the corpus has no document, or was written to meanwhile.
    """
    kept = _kept(folder)
    if kept is not None:
        return kept
    state = corpus.state()
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    hashes, sizes = array("Q"), array("q")
    with open(folder / _HASHES, "wb") as hashes_file, open(folder / _SIZES, "wb") as sizes_file:
        for document in corpus.documents():
            encoded = document.encode("utf-8")
            document_digest = hashlib.sha256(encoded).digest()
            digest.update(document_digest)
            hashes.append(int.from_bytes(document_digest[:8], "big"))
            sizes.append(len(encoded))
            if len(hashes) == _BUFFERED_DOCUMENTS:
                _empty(hashes, hashes_file)
                _empty(sizes, sizes_file)
        _empty(hashes, hashes_file)
        _empty(sizes, sizes_file)
    if not (folder / _HASHES).stat().st_size:
        raise ValueError(f"corpus {corpus.name!r} is empty: it has no document with text in it.")
    if corpus.state() != state:
        raise changed(corpus)
    record = {"sha256": digest.hexdigest(), "files": {name: file_sha256(folder / name) for name in (_HASHES, _SIZES)}}
    write_json_atomically(folder / _RECORD, record)
    return _opened(folder, record["sha256"])


def document_hash(document: str) -> int:
    """Return the first 64 bits of a document's SHA-256, as in `Survey.hashes`."""
    return int.from_bytes(hashlib.sha256(document.encode("utf-8")).digest()[:8], "big")


def changed(corpus: Corpus) -> ValueError:
    """Return the error of a corpus that was written to while it was read."""
    return ValueError(f"corpus {corpus.name!r} changed while it was being read: run again.")


def _empty(numbers: array, file) -> None:
    numbers.tofile(file)
    del numbers[:]


def _kept(folder: Path) -> Survey | None:
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        intact = all(file_sha256(folder / name) == record["files"][name] for name in (_HASHES, _SIZES))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return _opened(folder, record["sha256"]) if intact else None


def _opened(folder: Path, sha256: str) -> Survey:
    hashes, sizes = (
        np.memmap(folder / name, dtype=dtype, mode="r") for name, dtype in ((_HASHES, np.uint64), (_SIZES, np.int64))
    )
    return Survey(hashes=hashes, num_bytes=sizes, sha256=sha256)
