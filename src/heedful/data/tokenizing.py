"""From the documents of a source to its splits: cut into parts, tokenized by workers, put together in order.

The loop reads, hands out and puts together; only so many parts are under way at a time, so memory stays constant. A
part that an earlier, interrupted preparation finished is not tokenized again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from heedful.data.parts import PART_BYTES, TokenizedDocuments, read_part
from heedful.data.sources import Source
from heedful.data.split_writer import SplitWriter
from heedful.data.splitting import SPLITS
from heedful.data.tokenizers import Tokenizer, pieces
from heedful.data.workers import Workers

_REPORT_EVERY_SECONDS = 5.0


@dataclass
class _Part:
    """Documents `first` to `last` of a source, those that are still wanted by split."""

    path: Path
    first: int
    last: int = -1
    num_bytes: int = 0
    texts: dict[str, list[str]] = field(default_factory=dict)
    written: Future[None] | None = None


class Progress:
    """Says every few seconds how far it is, how fast, and how long it will take."""

    def __init__(self, total_bytes: int, report: Callable[[str], None]) -> None:
        """Begin to count."""
        self._total, self._report = total_bytes, report
        self._done = self._tokenized = 0
        self._began = self._reported = time.monotonic()

    def advance(self, num_bytes: int, *, tokenized: bool) -> None:
        """Count text that is done with; what was found finished does not count for the speed."""
        self._done += num_bytes
        self._tokenized += num_bytes if tokenized else 0
        now = time.monotonic()
        if now - self._reported >= _REPORT_EVERY_SECONDS:
            self._reported = now
            speed = self._tokenized / (now - self._began)
            left = f", {speed / 1e6:.1f} MB/s, {(self._total - self._done) / speed:,.0f} s left" if speed else ""
            self._report(f"tokenized {self._done / 1e6:,.0f} of {self._total / 1e6:,.0f} MB{left}")


def tokenize_source(
    source: Source,
    tokenizer: Tokenizer,
    writers: dict[str, SplitWriter],
    workers: Workers,
    folder: Path,
    progress: Progress,
) -> None:
    """Stream the documents of a source into the writers of their splits; `folder` keeps its parts.

    Raises:
        ValueError: the corpus changed since it was surveyed, or a worker found something wrong.
        OSError: a file cannot be read or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fed = [writers[SPLITS[split]] for split in np.unique(source.splits)]
    under_way: deque[_Part] = deque()

    def put_together() -> None:
        part = under_way.popleft()
        if part.written is not None:
            part.written.result()
        found = read_part(part.path, tokenizer.sha256)
        if found is None:
            raise ValueError(f"{part.path} is not what was written to it: run again.")
        for split, documents in found.items():
            _append(documents, source, part, writers[split], tokenizer)
        progress.advance(part.num_bytes, tokenized=part.written is not None)

    for part in _parts(source, writers, folder):
        if read_part(part.path, tokenizer.sha256) is None:
            part.written = workers.submit(part.path, part.texts)
        part.texts = {}
        under_way.append(part)
        while len(under_way) >= workers.capacity:
            put_together()
        if all(writer.full for writer in fed):
            break
    while under_way:
        put_together()


def _parts(source: Source, writers: dict[str, SplitWriter], folder: Path) -> Iterator[_Part]:
    """Yield the parts of a source: documents that begin within the same `PART_BYTES` of its text.

    Documents of a split that is full when they are read are left out. A split is full once and for all, and before the
    part is put together, so nothing that is left out is ever missed.
    """
    part, offset = None, 0
    for number, document in source.documents():
        index = offset // PART_BYTES
        if part is None or part.path.name != str(index):
            if part is not None:
                yield part
            part = _Part(path=folder / str(index), first=number)
        size = int(source.surveyed.num_bytes[number])
        split = SPLITS[source.splits[number]]
        if not writers[split].full:
            part.texts.setdefault(split, []).append(document)
        part.last = number
        part.num_bytes += size
        offset += size
    if part is not None:
        yield part


def _append(
    documents: TokenizedDocuments, source: Source, part: _Part, writer: SplitWriter, tokenizer: Tokenizer
) -> None:
    if writer.full:
        return
    if writer.has_room_for(documents):
        writer.extend(documents)
        return
    # Where a split ends inside a part, the bytes of its last tokens are only known from the text: read once more.
    for number, text in source.documents():
        if number > part.last or writer.full:
            break
        if number >= part.first and SPLITS[source.splits[number]] == writer.name:
            cut = list(pieces(text))
            for last, (piece, ids) in enumerate(zip(cut, tokenizer.encode_many(cut), strict=True), start=1):
                writer.add(piece, ids, ends_document=last == len(cut))
