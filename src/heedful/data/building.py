"""From a `DataConfig` to an open `TokenDataset`: build the shards once, afterwards only open them.

The shards' folder is named by a key over everything that determines their content (the stored bytes of the corpora,
document and split rules, tokenizer, limits, versions), so nothing stale is ever opened. They are built in a temporary
folder that is renamed when complete, under a lock, so that of two processes one builds and the other waits.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from heedful.data.config import DataConfig
from heedful.data.corpora import Corpus, open_corpus
from heedful.data.shards import (
    FORMAT,
    MANIFEST,
    CorpusRecord,
    Manifest,
    SplitWriter,
    TokenDataset,
    open_dataset,
    token_dtype,
)
from heedful.data.splitting import SPLITS, Survey, assign_splits, document_hash, sample_for_tokenizer, survey
from heedful.data.tokenizers import (
    ByteTokenizer,
    Tokenizer,
    gpt2_files,
    load_gpt2,
    pieces,
    train_bpe,
    train_whitespace_bpe,
)
from heedful.files import atomic_folder, file_sha256, write_json_atomically
from heedful.schema import to_mapping

# Enough for stable merges up to some ten thousand entries, little enough to train on in seconds.
TOKENIZER_SAMPLE_BYTES = 16 << 20
# The paper's own sample for its whitespace BPE.
WHITESPACE_SAMPLE_LINES = 100_000
_CHARACTERS_AT_A_TIME = 4 << 20
_REPORT_EVERY_BYTES = 32 << 20


@dataclass(frozen=True, kw_only=True)
class _Source:
    """One corpus after its first reading, with the split of each of its documents as an index into `SPLITS`."""

    corpus: Corpus
    surveyed: Survey
    splits: np.ndarray

    def documents(self) -> Iterator[tuple[int, str]]:
        """Yield every document with its number; a corpus that changed since it was surveyed is an error."""
        count = -1
        for count, document in enumerate(self.corpus.documents()):
            if count >= len(self.splits) or document_hash(document) != self.surveyed.hashes[count]:
                raise ValueError(f"corpus {self.corpus.name!r} changed while it was being read: run again.")
            yield count, document
        if count + 1 != len(self.splits):
            raise ValueError(f"corpus {self.corpus.name!r} changed while it was being read: run again.")


def _silent(message: str) -> None:
    pass


def prepare(config: DataConfig, report: Callable[[str], None] = _silent) -> TokenDataset:
    """Return the token data set of a configuration, building its shards where the cache does not hold them.

    Memory: one document, a few million characters and tokens at a time, and 17 bytes for each document of the corpus.

    Args:
        config: what to read and how.
        report: called with one line of text at each stage of a build.

    Raises:
        ValueError: an unusable corpus or tokenizer, a split without tokens, or damaged shards in the cache.
    """
    corpora = _open_corpora(config)
    key = _cache_key(config, corpora)
    folder = config.resolved_cache_folder / "shards" / f"{_readable_name(config)}-{key[:16]}"
    if folder.exists():
        return open_dataset(folder)
    with _lock(folder, report):
        if not folder.exists():  # the process that was waited for may have built it
            for orphan in folder.parent.glob(f".{folder.name}.new.*"):  # of a build that was killed
                shutil.rmtree(orphan, ignore_errors=True)
            with atomic_folder(folder) as temporary:
                _build(config, corpora, key, temporary, report)
            report(f"wrote {folder}")
    return open_dataset(folder)


@contextmanager
def _lock(folder: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a folder that is to be built; the system frees it when its holder dies."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        report(f"another process is building {folder}: waiting for it")
        lock.acquire()
    except OSError as error:
        raise ValueError(
            f"token shards cannot be kept in {folder.parent} ({error.strerror}): set cache_folder or $HEEDFUL_CACHE."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _open_corpora(config: DataConfig) -> dict[str, Corpus]:
    """Return the corpora by role; `train` also feeds the splits that have none of their own."""
    names = {"train": config.corpus, "valid": config.valid_corpus, "test": config.test_corpus}
    return {role: open_corpus(name, config.documents) for role, name in names.items() if name is not None}


def _cache_key(config: DataConfig, corpora: dict[str, Corpus]) -> str:
    facts = {
        "format": FORMAT,
        "corpora": {role: corpus.fingerprint() for role, corpus in corpora.items()},
        "split_fractions": config.split_fractions,
        "max_tokens": (config.max_train_tokens, config.max_eval_tokens),
        "separator": config.separator,
        "tokenizer": config.tokenizer,
    }
    if config.tokenizer in ("bpe", "bpe-whitespace"):
        facts["trained"] = (config.vocab_size, TOKENIZER_SAMPLE_BYTES, WHITESPACE_SAMPLE_LINES, version("tokenizers"))
    if config.gpt2_folder is not None and config.tokenizer == "gpt2":
        facts["gpt2"] = [file_sha256(path) for path in gpt2_files(config.gpt2_folder)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _readable_name(config: DataConfig) -> str:
    hub, path = config.corpus.startswith("hf:"), Path(config.corpus).expanduser()
    stem = re.sub(r"[^A-Za-z0-9.]+", "-", config.corpus[3:] if hub else path.resolve().name).strip("-.")[:40]
    size = str(config.vocab_size) if config.tokenizer.startswith("bpe") else ""
    return f"{stem or 'corpus'}-{config.tokenizer}{size}"


def _build(
    config: DataConfig, corpora: dict[str, Corpus], key: str, folder: Path, report: Callable[[str], None]
) -> None:
    sources = _survey(config, corpora, report)
    tokenizer = _make_tokenizer(config, sources[0], report)
    tokenizer.save(folder)
    limits = {"train": config.max_train_tokens, "valid": config.max_eval_tokens, "test": config.max_eval_tokens}
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(
                SplitWriter(folder, name, tokenizer, separator=config.separator, max_tokens=limits[name])
            )
            for name in SPLITS
        }
        for source in sources:
            _tokenize(source, tokenizer, writers, report)
        records = {name: writer.finish() for name, writer in writers.items()}
    for name, record in records.items():
        if record.tokens == 0:
            raise ValueError(f"the {name} split has no tokens: its documents hold nothing that the tokenizer knows.")
        report(f"{name}: {record.tokens:,} tokens in {record.documents:,} documents, {record.bytes:,} bytes")
    manifest = Manifest(
        format=FORMAT,
        key=key,
        corpora=tuple(_describe(source) for source in sources),
        corpus_sha256=hashlib.sha256("".join(source.surveyed.sha256 for source in sources).encode()).hexdigest(),
        tokenizer=tokenizer.kind,
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        lossless=tokenizer.lossless,
        separator=config.separator,
        dtype=token_dtype(tokenizer.vocab_size).name,
        splits=records,
    )
    write_json_atomically(folder / MANIFEST, to_mapping(manifest))


def _survey(config: DataConfig, corpora: dict[str, Corpus], report: Callable[[str], None]) -> list[_Source]:
    """Read every corpus once and say which split each document belongs to; the one of the train split comes first."""
    sources = []
    for role, corpus in corpora.items():
        report(f"reading {corpus.name} ({corpus.description}; documents: {corpus.rule})")
        surveyed = survey(corpus)
        if role == "train":
            valid_fraction, test_fraction = config.split_fractions
            splits = assign_splits(surveyed.hashes, valid_fraction=valid_fraction, test_fraction=test_fraction)
        else:
            splits = np.full(len(surveyed.hashes), SPLITS.index(role), dtype=np.uint8)
        sources.append(_Source(corpus=corpus, surveyed=surveyed, splits=splits))
    return sources


def _make_tokenizer(config: DataConfig, source: _Source, report: Callable[[str], None]) -> Tokenizer:
    if config.tokenizer == "bytes":
        return ByteTokenizer()
    if config.tokenizer == "gpt2":
        assert config.gpt2_folder is not None  # DataConfig saw to that
        return load_gpt2(config.gpt2_folder)
    report(f"training the {config.tokenizer} tokenizer with {config.vocab_size} entries")
    if config.tokenizer == "bpe":
        chosen = sample_for_tokenizer(source.surveyed, source.splits, TOKENIZER_SAMPLE_BYTES)
        return train_bpe((document for number, document in source.documents() if chosen[number]), config.vocab_size)
    return train_whitespace_bpe(_first_lines(source, WHITESPACE_SAMPLE_LINES), config.vocab_size)


def _first_lines(source: _Source, count: int) -> Iterator[str]:
    """Yield the first lines of the train split that are not blank, as the paper's tokenizer was trained on."""
    for number, document in source.documents():
        if source.splits[number] != SPLITS.index("train"):
            continue
        for line in document.split("\n"):
            if count == 0:
                return
            if line.strip():
                count -= 1
                yield line


def _tokenize(
    source: _Source, tokenizer: Tokenizer, writers: dict[str, SplitWriter], report: Callable[[str], None]
) -> None:
    """Stream the documents of a source into the writers of their splits."""
    total, done, reported = int(source.surveyed.num_bytes.sum()), 0, 0
    fed = [writers[SPLITS[split]] for split in np.unique(source.splits)]
    waiting: list[tuple[SplitWriter, str, bool]] = []
    waiting_characters = 0

    def write_waiting() -> None:
        encoded = tokenizer.encode_many([text for _, text, _ in waiting])
        for (writer, text, ends_document), ids in zip(waiting, encoded, strict=True):
            writer.add(text, ids, ends_document=ends_document)
        waiting.clear()

    for number, document in source.documents():
        writer = writers[SPLITS[source.splits[number]]]
        done += int(source.surveyed.num_bytes[number])
        if not writer.full:
            parts = list(pieces(document))
            waiting += [(writer, part, last == len(parts)) for last, part in enumerate(parts, start=1)]
            waiting_characters += len(document)
        if waiting_characters >= _CHARACTERS_AT_A_TIME:
            write_waiting()
            waiting_characters = 0
            if done - reported >= _REPORT_EVERY_BYTES:
                report(f"tokenized {done / 1e6:.0f} of {total / 1e6:.0f} MB")
                reported = done
            if all(writer.full for writer in fed):
                return
    write_waiting()


def _describe(source: _Source) -> CorpusRecord:
    return CorpusRecord(
        name=source.corpus.name,
        description=source.corpus.description,
        documents_rule=source.corpus.rule,
        documents=len(source.splits),
        bytes=int(source.surveyed.num_bytes.sum()),
        sha256=source.surveyed.sha256,
    )
