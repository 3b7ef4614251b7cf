"""Token shards on disk: opened memory-mapped, checked against their manifest.

A data set is a folder: `manifest.json`, the tokenizer, and for each split `<split>.tokens` (uint16 or uint32,
little-endian, one document after the other) with `<split>.starts` (int64: where in it each document begins).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from heedful.data.parts import STARTS_DTYPE, token_dtype
from heedful.data.splitting import SPLITS
from heedful.data.stamps import FileHashes
from heedful.data.tokenizers import Tokenizer, open_tokenizer
from heedful.schema import from_mapping, to_mapping

FORMAT = 1
MANIFEST = "manifest.json"
VERIFIED = "verified.json"


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
class SourceRecord:
    """What the manifest says of one of several sources: how many tokens of the train split are its own.

    The sources stand there one after the other, in the order of the manifest.
    """

    name: str
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a folder of shards holds.

    `key` is the hash of whatever determined the content, `corpus_sha256` that of the text of all corpora. `sources` is
    empty for a single corpus.
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
    sources: tuple[SourceRecord, ...] = ()


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
    """A tokenizer and three splits of tokens, opened from `folder`; `manifest` is `Manifest` in plain form.

    `sources` are the tokens of the train split that belong to each of several sources, by name; empty for one corpus.
    """

    tokenizer: Tokenizer
    train: TokenSplit
    valid: TokenSplit
    test: TokenSplit
    manifest: dict[str, Any]
    folder: Path
    sources: dict[str, range] = field(default_factory=dict)

    @property
    def vocab_size(self) -> int:
        """Entries of the tokenizer's vocabulary: what a model's `vocab_size` must be."""
        return self.tokenizer.vocab_size


def open_dataset(folder: str | Path, *, verify: bool = False) -> TokenDataset:
    """Open a folder of shards, memory-mapped, after checking every file's size and SHA-256 against the manifest.

    Large shards are read whole once; afterwards a file that the system says nobody has written to since counts as
    checked, see `heedful.data.stamps`. `verify` reads everything again.

    Raises:
        ValueError: something is missing, truncated or changed; the message says how to build it anew.
    """
    folder = Path(folder)
    try:
        manifest = _read_manifest(folder / MANIFEST)
        tokenizer = open_tokenizer(folder)
        if tokenizer.sha256 != manifest.tokenizer_sha256:
            raise ValueError("its tokenizer is not the one in the manifest.")
        files = [folder / f"{name}.{kind}" for name in SPLITS for kind in ("tokens", "starts")]
        hashes = FileHashes(folder / VERIFIED, files, verify=verify)
        splits = {name: _open_split(folder, name, manifest, hashes) for name in SPLITS}
        hashes.save()
    except (ValueError, OSError) as error:
        reason = str(error).rstrip(".")
        raise ValueError(
            f"token shards {folder} cannot be used: {reason}. Delete that folder to have it built anew."
        ) from error
    sources = _source_ranges(manifest)
    return TokenDataset(tokenizer=tokenizer, manifest=to_mapping(manifest), folder=folder, sources=sources, **splits)


def _source_ranges(manifest: Manifest) -> dict[str, range]:
    ranges, end = {}, 0
    for source in manifest.sources:
        ranges[source.name] = range(end, end := end + source.tokens)
    return ranges


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
    if manifest.sources and sum(source.tokens for source in manifest.sources) != manifest.splits["train"].tokens:
        raise ValueError(f"the sources in {path.name} do not add up to its train split")
    return manifest


def _open_split(folder: Path, name: str, manifest: Manifest, hashes: FileHashes) -> TokenSplit:
    record = manifest.splits[name]
    tokens = _open_array(
        folder / f"{name}.tokens", token_dtype(manifest.vocab_size), record.tokens, record.tokens_sha256, hashes
    )
    starts = _open_array(folder / f"{name}.starts", STARTS_DTYPE, record.documents, record.starts_sha256, hashes)
    sha256 = hashlib.sha256(f"{record.tokens_sha256} {record.starts_sha256}".encode()).hexdigest()
    return TokenSplit(name=name, tokens=tokens, document_starts=starts, num_bytes=record.bytes, sha256=sha256)


def _open_array(path: Path, dtype: np.dtype, length: int, sha256: str, hashes: FileHashes) -> np.ndarray:
    expected, actual = length * dtype.itemsize, path.stat().st_size
    if actual != expected:
        raise ValueError(f"{path.name} has {actual} bytes instead of {expected}")
    if hashes.sha256(path) != sha256:
        raise ValueError(f"{path.name} is not what was written (its SHA-256 differs)")
    return np.memmap(path, dtype=dtype, mode="r", shape=(length,))
