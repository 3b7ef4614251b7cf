"""The corpora of one data set after their first reading: which documents, which splits, how much of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from heedful.data.config import CorpusSource, DataConfig
from heedful.data.corpora import Corpus, open_corpus
from heedful.data.splitting import SPLITS, assign_splits, hold_out_together
from heedful.data.surveying import Survey, changed, document_hash, survey


@dataclass(frozen=True, kw_only=True)
class OpenCorpora:
    """The corpora of a configuration, opened but not read.

    Attributes:
        train: what is trained on, with the settings it came with; one corpus is a mixture of one.
        held_out: corpora of the validation and the test split, where they have one of their own.
    """

    train: tuple[tuple[CorpusSource, Corpus], ...]
    held_out: dict[str, Corpus]

    def __iter__(self) -> Iterator[Corpus]:
        """Iterate over all corpora, those of the train split first."""
        yield from (corpus for _, corpus in self.train)
        yield from self.held_out.values()

    def state(self) -> tuple[str, ...]:
        """Return what changes whenever somebody writes to one of them."""
        return tuple(corpus.state() for corpus in self)


@dataclass(frozen=True, kw_only=True)
class Source:
    """One corpus after its first reading.

    Attributes:
        name: of the source, `"train"` for a single corpus, or the split that it is whole.
        corpus: the documents.
        surveyed: what the first reading found.
        splits: uint8 (documents,), the split of each document as an index into `SPLITS`.
        share: of the training tokens, 0 for a corpus that is not trained on.
        max_tokens: how many tokens each split takes of it, None for all.
    """

    name: str
    corpus: Corpus
    surveyed: Survey
    splits: np.ndarray
    share: float
    max_tokens: dict[str, int | None]

    @property
    def trained_on(self) -> bool:
        """Whether it feeds the train split."""
        return self.share > 0

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of all its documents."""
        return int(self.surveyed.num_bytes.sum())

    def documents(self) -> Iterator[tuple[int, str]]:
        """Yield every document with its number; a corpus that changed since it was surveyed is an error."""
        count = -1
        for count, document in enumerate(self.corpus.documents()):
            if count >= len(self.splits) or document_hash(document) != self.surveyed.hashes[count]:
                raise changed(self.corpus)
            yield count, document
        if count + 1 != len(self.splits):
            raise changed(self.corpus)


def open_corpora(config: DataConfig) -> OpenCorpora:
    """Open what a configuration names.

    Raises:
        ValueError: there is no such corpus, or it is not text.
    """
    single = CorpusSource(
        name="train", corpus=config.corpus, documents=config.documents, max_tokens=config.max_train_tokens
    )
    train = tuple((source, open_corpus(source.corpus, source.documents)) for source in config.sources or (single,))
    named = {"valid": config.valid_corpus, "test": config.test_corpus}
    held_out = {split: open_corpus(name, config.documents) for split, name in named.items() if name is not None}
    return OpenCorpora(train=train, held_out=held_out)


def survey_sources(
    config: DataConfig, corpora: OpenCorpora, folder: Path, report: Callable[[str], None]
) -> list[Source]:
    """Read every corpus once, or what `folder` keeps of an earlier reading, and say which split each document is of.

    Raises:
        ValueError: a corpus is empty, too small to split, or was written to meanwhile.
    """
    everything = list(corpora)
    surveys = []
    for number, corpus in enumerate(everything):
        report(f"reading {corpus.name} ({corpus.description}; documents: {corpus.rule})")
        surveys.append(survey(corpus, folder / f"survey-{number}"))
    valid_fraction, test_fraction = config.split_fractions
    trained = surveys[: len(corpora.train)]
    splits = [
        assign_splits(found.hashes, valid_fraction=valid_fraction, test_fraction=test_fraction) for found in trained
    ]
    if len(splits) > 1:
        hold_out_together([found.hashes for found in trained], splits)
    shares = token_shares([source.weight for source, _ in corpora.train])
    allowances = eval_allowances(config.max_eval_tokens, shares)
    sources = []
    for number, (settings, corpus) in enumerate(corpora.train):
        limits = {"train": settings.max_tokens, "valid": allowances[number], "test": allowances[number]}
        sources.append(
            Source(
                name=settings.name,
                corpus=corpus,
                surveyed=surveys[number],
                splits=splits[number],
                share=shares[number],
                max_tokens=limits,
            )
        )
    for number, (split, corpus) in enumerate(corpora.held_out.items(), start=len(corpora.train)):
        sources.append(
            Source(
                name=split,
                corpus=corpus,
                surveyed=surveys[number],
                splits=np.full(len(surveys[number].hashes), SPLITS.index(split), dtype=np.uint8),
                share=0.0,
                max_tokens=dict.fromkeys(SPLITS, config.max_eval_tokens),
            )
        )
    return sources


def token_shares(weights: list[float]) -> list[float]:
    """Return each source's share of the training tokens."""
    return [weight / sum(weights) for weight in weights]


def eval_allowances(max_eval_tokens: int | None, shares: list[float]) -> list[int | None]:
    """Return how many tokens of a held-out split each source may give: its share, at least one, all of them in all."""
    if max_eval_tokens is None:
        return [None for _ in shares]
    spare = max_eval_tokens - len(shares)
    ends = [round(spare * sum(shares[: number + 1])) for number in range(len(shares))]
    return [1 + end - start for start, end in zip([0, *ends], ends, strict=False)]
