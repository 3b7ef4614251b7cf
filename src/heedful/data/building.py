"""From a `DataConfig` to an open `TokenDataset`: build the shards once, afterwards only open them.

The shards' folder is named by a key over everything that determines their content (the stored bytes of the corpora,
document and split rules, tokenizer, limits, versions), so nothing stale is ever opened. They are built in a temporary
folder that is renamed when complete, under a lock, so that of two processes one builds and the other waits.

What takes long is kept beside it until then, in a folder named by the same key: the first reading of each corpus, the
trained tokenizer, and the tokenized parts. So a preparation that was stopped or killed goes on, and since a corpus that
changes has another key, parts of two corpora never meet.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path

from heedful.data.config import DataConfig
from heedful.data.corpora import Corpus
from heedful.data.parts import PART_BYTES, PART_FORMAT, token_dtype
from heedful.data.shards import FORMAT, MANIFEST, CorpusRecord, Manifest, SourceRecord, TokenDataset, open_dataset
from heedful.data.sources import OpenCorpora, Source, open_corpora, survey_sources
from heedful.data.split_writer import SplitWriter
from heedful.data.splitting import SPLITS
from heedful.data.stamps import FileHashes
from heedful.data.surveying import changed
from heedful.data.tokenizer_choice import make_tokenizer, tokenizer_facts
from heedful.data.tokenizing import Progress, tokenize_source
from heedful.data.workers import NoWorkers, WorkerProcesses, default_workers
from heedful.files import atomic_folder, write_json_atomically
from heedful.schema import to_mapping

_WORK_RECORD = "work.json"


def _silent(message: str) -> None:
    pass


def prepare(
    config: DataConfig,
    report: Callable[[str], None] = _silent,
    *,
    workers: int | None = None,
    verify: bool = False,
) -> TokenDataset:
    """Return the token data set of a configuration, building its shards where the cache does not hold them.

    A build that was stopped, killed or ran out of disk goes on where it was; a corpus that changed meanwhile is built
    from its beginning. The shards do not depend on the number of workers.

    Memory: one document, some tens of megabytes for each worker, and less than 40 bytes for each document of the
    corpus, most of them while the splits are drawn.

    Args:
        config: what to read and how.
        report: called with one line of text at each stage of a build.
        workers: processes that tokenize, 0 for none but this one; None is one for each core where the corpus is large
            and none where starting them would take longer than it saves.
        verify: read all shards and corpora to check them, also those that nobody has written to since they were read.

    Raises:
        ValueError: an unusable corpus or tokenizer, a split without tokens, damaged shards in the cache, or a file that
            cannot be read or written.
    """
    if workers is not None and workers < 0:
        raise ValueError(f"workers must be 0 or more, got {workers}.")
    try:
        corpora = open_corpora(config)
        state = corpora.state()
        key = _cache_key(config, corpora, verify=verify)
        folder = config.resolved_cache_folder / "shards" / f"{_readable_name(config)}-{key[:16]}"
        if folder.exists():
            shutil.rmtree(_work_of(folder), ignore_errors=True)  # of a build that was killed when it was complete
        else:
            _build_once(config, corpora, state, key, folder, report, workers)
    except OSError as error:  # a full disk, a file that may not be read, a worker that was killed
        place = f": {error.filename}" if error.filename else ""
        raise ValueError(
            f"the data could not be prepared: {error.strerror or error}{place}. What is finished is kept (cache "
            f"{config.resolved_cache_folder}); the same command goes on from there."
        ) from error
    return open_dataset(folder, verify=verify)


def _build_once(
    config: DataConfig,
    corpora: OpenCorpora,
    state: tuple[str, ...],
    key: str,
    folder: Path,
    report: Callable[[str], None],
    workers: int | None,
) -> None:
    with _lock(folder, report):
        if folder.exists():  # the process that was waited for has built it
            return
        for orphan in folder.parent.glob(f".{folder.name}.new.*"):  # of a build that was killed
            shutil.rmtree(orphan, ignore_errors=True)
        work = _work_folder(folder, key, report)
        try:
            with atomic_folder(folder) as temporary:
                _build(config, corpora, key, temporary, work, report, workers)
                if corpora.state() != state:
                    raise changed(
                        next(corpus for corpus, old in zip(corpora, state, strict=True) if corpus.state() != old)
                    )
        except ValueError:  # of the corpus or the tokenizer, so nothing here is worth keeping
            shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(work, ignore_errors=True)
        report(f"wrote {folder}")


def _work_of(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.work"


def _work_folder(folder: Path, key: str, report: Callable[[str], None]) -> Path:
    """Return the folder of what a build keeps until it is complete, emptied where an unlike version left it."""
    work = _work_of(folder)
    facts = {"key": key, "parts": PART_FORMAT, "part_bytes": PART_BYTES, "tokenizers": version("tokenizers")}
    record = work / _WORK_RECORD
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = None
    if known == facts:
        report(f"going on with what an earlier preparation left in {work}")
    else:
        for other in folder.parent.glob(f".{folder.name.rpartition('-')[0]}-*.work"):
            report(f"{other} is of a preparation from other text or settings: delete it unless that shall go on")
        shutil.rmtree(work, ignore_errors=True)
        write_json_atomically(record, facts)
    return work


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


def _cache_key(config: DataConfig, corpora: OpenCorpora, *, verify: bool) -> str:
    by_role = {} if config.sources else {"train": corpora.train[0][1]}
    facts = {
        "format": FORMAT,
        "corpora": {
            role: _fingerprint(corpus, config, verify=verify) for role, corpus in (by_role | corpora.held_out).items()
        },
        "split_fractions": config.split_fractions,
        "max_tokens": (config.max_train_tokens, config.max_eval_tokens),
        "separator": config.separator,
        "tokenizer": config.tokenizer,
        **tokenizer_facts(config),
    }
    if config.sources:
        # Weights decide about the sample of a trained tokenizer and about the lengths of held-out splits, else only
        # about batches: trying other weights need not tokenize everything again.
        weighted = config.tokenizer in ("bpe", "bpe-whitespace") or config.max_eval_tokens is not None
        facts["sources"] = [
            (
                source.name,
                _fingerprint(corpus, config, verify=verify),
                source.max_tokens,
                source.weight if weighted else None,
            )
            for source, corpus in corpora.train
        ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _fingerprint(corpus: Corpus, config: DataConfig, *, verify: bool) -> str:
    files = getattr(corpus, "files", ())
    name = hashlib.sha256(f"{corpus.name} {corpus.rule}".encode()).hexdigest()[:16]
    hashes = FileHashes(config.resolved_cache_folder / "hashes" / f"{name}.json", files, verify=verify)
    fingerprint = corpus.fingerprint(hashes.sha256)
    hashes.save()
    return fingerprint


def _readable_name(config: DataConfig) -> str:
    if config.sources:
        name = "-".join(source.name for source in config.sources)
    elif config.corpus.startswith("hf:"):
        name = config.corpus[3:]
    else:
        name = Path(config.corpus).expanduser().resolve().name
    stem = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[:40]
    size = str(config.vocab_size) if config.tokenizer.startswith("bpe") else ""
    return f"{stem or 'corpus'}-{config.tokenizer}{size}"


def _build(
    config: DataConfig,
    corpora: OpenCorpora,
    key: str,
    folder: Path,
    work: Path,
    report: Callable[[str], None],
    workers: int | None,
) -> None:
    sources = survey_sources(config, corpora, work, report)
    tokenizer = make_tokenizer(config, sources, work / "tokenizer", report)
    tokenizer.save(folder)
    total = sum(source.num_bytes for source in sources)
    count = default_workers(total) if workers is None else workers
    progress = Progress(total, report)
    trained: list[SourceRecord] = []
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(SplitWriter(folder, name, tokenizer, separator=config.separator, max_tokens=None))
            for name in SPLITS
        }
        crew = stack.enter_context(
            WorkerProcesses(count, folder, separator=config.separator)
            if count
            else NoWorkers(tokenizer, separator=config.separator)
        )
        for number, source in enumerate(sources):
            before = writers["train"].num_tokens
            for name, writer in writers.items():
                writer.allow(source.max_tokens[name])
            tokenize_source(source, tokenizer, writers, crew, work / f"parts-{number}", progress)
            if source.trained_on:
                trained.append(SourceRecord(name=source.name, tokens=writers["train"].num_tokens - before))
        records = {name: writer.finish() for name, writer in writers.items()}
    for name, record in records.items():
        if record.tokens == 0:
            raise ValueError(f"the {name} split has no tokens: its documents hold nothing that the tokenizer knows.")
        report(f"{name}: {record.tokens:,} tokens in {record.documents:,} documents, {record.bytes:,} bytes")
    for source in trained:
        if source.tokens == 0:
            raise ValueError(f"source {source.name!r} has no tokens to train on: give it more text or take it out.")
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
        sources=tuple(trained) if config.sources else (),
    )
    write_json_atomically(folder / MANIFEST, to_mapping(manifest))


def _describe(source: Source) -> CorpusRecord:
    return CorpusRecord(
        name=source.corpus.name,
        description=source.corpus.description,
        documents_rule=source.corpus.rule,
        documents=len(source.splits),
        bytes=source.num_bytes,
        sha256=source.surveyed.sha256,
    )
