"""Token shards on disk: written by the stream, opened memory-mapped, checked against their manifest.

A data set is a folder: `manifest.json`, the tokenizer, and for each split `<split>.tokens` (uint16 or uint32,
little-endian, one document after the other) with `<split>.starts` (int64: where in it each document begins).
"""

from __future__ import annotations

import hashlib
import json
from array import array
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from heedful.data.splitting import SPLITS
from heedful.data.tokenizers import Tokenizer, open_tokenizer
from heedful.files import file_sha256
from heedful.schema import from_mapping, to_mapping

FORMAT = 1
MANIFEST = "manifest.json"
_BUFFERED_TOKENS = 1 << 20
_STARTS_DTYPE = np.dtype("<i8")


@dataclass(frozen=True, kw_only=True)
class SplitRecord:
    """What the manifest says of one split: `bytes` are the UTF-8 bytes of the text that its tokens stand for."""

    documents: int
    tokens: int
    bytes: int
    tokens_sha256: str
    starts_sha256: str


@dataclass(frozen=True, kw_only=True)
class CorpusRecord:
    """What the manifest says of one corpus: the name asked for, what it was, its document rule, what it held."""

    name: str
    description: str
    documents_rule: str
    documents: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder of shards holds.

    `key` is the hash of whatever determined the content, `corpus_sha256` that of the text of all corpora.
    """

    format: int
    key: str
    corpora: tuple[CorpusRecord, ...]
    corpus_sha256: str
    tokenizer: str
    tokenizer_sha256: str
    vocab_size: int
    lossless: bool
    separator: bool
    dtype: str
    splits: dict[str, SplitRecord]


@dataclass(frozen=True, kw_only=True)
class TokenSplit:
    """The tokens of one split, in the order of its documents.

    Attributes:
        name: `"train"`, `"valid"` or `"test"`.
        tokens: memory-mapped uint16 or uint32 (num_tokens,).
        document_starts: memory-mapped int64 (num_documents,), index of each document's first token, increasing from 0.
        num_bytes: UTF-8 bytes of the text, separators not counted: the unit of bits per byte.
        sha256: hash of the tokens and of where documents start, in hexadecimal.
    """

    name: str
    tokens: np.ndarray
    document_starts: np.ndarray
    num_bytes: int
    sha256: str

    @property
    def num_tokens(self) -> int:
        """Number of tokens, separators included."""
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        """Number of documents that at least one token is kept of."""
        return len(self.document_starts)

    def document_ids(self, positions: np.ndarray) -> np.ndarray:
        """Return the number of the document that each position belongs to, int64 of the same shape.

        A separator belongs to the document before it.
        """
        return np.searchsorted(self.document_starts, positions, side="right") - 1


@dataclass(frozen=True, kw_only=True)
class TokenDataset:
    """A tokenizer and three splits of tokens, opened from `folder`; `manifest` is `Manifest` in plain form."""

    tokenizer: Tokenizer
    train: TokenSplit
    valid: TokenSplit
    test: TokenSplit
    manifest: dict[str, Any]
    folder: Path

    @property
    def vocab_size(self) -> int:
        """Entries of the tokenizer's vocabulary: what a model's `vocab_size` must be."""
        return self.tokenizer.vocab_size


class SplitWriter:
    """Appends documents to the shard of one split, up to `max_tokens`; to be used as a context manager."""

    def __init__(
        self, folder: Path, name: str, tokenizer: Tokenizer, *, separator: bool, max_tokens: int | None
    ) -> None:
        """Create the two files of split `name` in `folder`."""
        self.name = name
        self._tokenizer = tokenizer
        self._separator = separator
        self._max_tokens = max_tokens
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._tokens, self._starts = array("I"), array("q")
        self._tokens_file = open(folder / f"{name}.tokens", "wb")  # noqa: SIM115, closed by __exit__
        self._starts_file = open(folder / f"{name}.starts", "wb")  # noqa: SIM115
        self._tokens_digest, self._starts_digest = hashlib.sha256(), hashlib.sha256()
        self._num_tokens = self._num_documents = self._num_bytes = 0
        self._inside_document = False

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files, whatever happened."""
        self._tokens_file.close()
        self._starts_file.close()

    @property
    def full(self) -> bool:
        """Whether no further token will be kept."""
        return self._max_tokens is not None and self._num_tokens >= self._max_tokens

    def add(self, text: str, ids: list[int], *, ends_document: bool) -> None:
        """Append a piece of a document with its ids; a document of which no id is left is not counted."""
        if self.full:
            return
        if self._max_tokens is not None and self._num_tokens + len(ids) > self._max_tokens:
            ids = ids[: self._max_tokens - self._num_tokens]
            self._num_bytes += self._tokenizer.prefix_bytes(text, len(ids))
        else:
            self._num_bytes += len(text.encode("utf-8"))
        if ids and not self._inside_document:
            self._starts.append(self._num_tokens)
            self._num_documents += 1
            self._inside_document = True
        self._append(ids)
        if ends_document:
            if self._separator and self._inside_document and not self.full:
                self._append([self._tokenizer.end_of_text])
            self._inside_document = False

    def finish(self) -> SplitRecord:
        """Write what is buffered and return the split's record."""
        self._flush()
        return SplitRecord(
            documents=self._num_documents,
            tokens=self._num_tokens,
            bytes=self._num_bytes,
            tokens_sha256=self._tokens_digest.hexdigest(),
            starts_sha256=self._starts_digest.hexdigest(),
        )

    def _append(self, ids: list[int]) -> None:
        self._tokens.extend(ids)
        self._num_tokens += len(ids)
        if len(self._tokens) >= _BUFFERED_TOKENS:
            self._flush()

    def _flush(self) -> None:
        tokens = np.array(self._tokens, dtype=np.uint32)
        if len(tokens) and tokens.max() >= self._tokenizer.vocab_size:
            raise ValueError(
                f"the {self._tokenizer.kind} tokenizer gave id {tokens.max()}, beyond its vocabulary of "
                f"{self._tokenizer.vocab_size}: {self._dtype.name} shards cannot be written."
            )
        for file, digest, data in (
            (self._tokens_file, self._tokens_digest, tokens.astype(self._dtype).tobytes()),
            (self._starts_file, self._starts_digest, np.array(self._starts, dtype=_STARTS_DTYPE).tobytes()),
        ):
            file.write(data)
            digest.update(data)
        del self._tokens[:], self._starts[:]


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the smallest of uint16 and uint32 that holds every id of a vocabulary, little-endian."""
    if vocab_size > 2**32:
        raise ValueError(f"vocab_size={vocab_size} does not fit the uint32 of a token shard (at most {2**32}).")
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def open_dataset(folder: str | Path) -> TokenDataset:
    """Open a folder of shards, memory-mapped, after checking every file's size and SHA-256 against the manifest.

    Raises:
        ValueError: something is missing, truncated or changed; the message says how to build it anew.
    """
    folder = Path(folder)
    try:
        manifest = _read_manifest(folder / MANIFEST)
        tokenizer = open_tokenizer(folder)
        if tokenizer.sha256 != manifest.tokenizer_sha256:
            raise ValueError("its tokenizer is not the one in the manifest.")
        splits = {name: _open_split(folder, name, manifest) for name in SPLITS}
    except (ValueError, OSError) as error:
        reason = str(error).rstrip(".")
        raise ValueError(
            f"token shards {folder} cannot be used: {reason}. Delete that folder to have it built anew."
        ) from error
    return TokenDataset(tokenizer=tokenizer, manifest=to_mapping(manifest), folder=folder, **splits)


def _read_manifest(path: Path) -> Manifest:
    try:
        mapping = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON or of UTF-8
        raise ValueError(f"{path.name} is damaged ({error})") from error
    if isinstance(mapping, dict) and mapping.get("format") != FORMAT:
        raise ValueError(f"{path.name} has format {mapping.get('format')}, this version reads {FORMAT}")
    manifest = from_mapping(Manifest, mapping, path.name)
    if set(manifest.splits) != set(SPLITS):
        raise ValueError(f"{path.name} describes the splits {', '.join(manifest.splits)}, expected {', '.join(SPLITS)}")
    return manifest


def _open_split(folder: Path, name: str, manifest: Manifest) -> TokenSplit:
    record = manifest.splits[name]
    tokens = _open_array(
        folder / f"{name}.tokens", token_dtype(manifest.vocab_size), record.tokens, record.tokens_sha256
    )
    starts = _open_array(folder / f"{name}.starts", _STARTS_DTYPE, record.documents, record.starts_sha256)
    sha256 = hashlib.sha256(f"{record.tokens_sha256} {record.starts_sha256}".encode()).hexdigest()
    return TokenSplit(name=name, tokens=tokens, document_starts=starts, num_bytes=record.bytes, sha256=sha256)


def _open_array(path: Path, dtype: np.dtype, length: int, sha256: str) -> np.ndarray:
    expected, actual = length * dtype.itemsize, path.stat().st_size
    if actual != expected:
        raise ValueError(f"{path.name} has {actual} bytes instead of {expected}")
    if file_sha256(path) != sha256:
        raise ValueError(f"{path.name} is not what was written (its SHA-256 differs)")
    return np.memmap(path, dtype=dtype, mode="r", shape=(length,))
