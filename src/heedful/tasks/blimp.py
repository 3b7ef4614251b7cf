"""BLiMP: which of two sentences is English (Warstadt et al., 2020). 67 phenomena of 1,000 pairs in the published set.

    Who should Derek hug after shocking Richard?   >   Who should Derek hug Richard after shocking?

A pair is right if the model finds the good sentence likelier than the bad one, both as a whole. Guessing gives 50 %.
As in lm-eval, a space stands before the sentence, also where nothing but end of text is before it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from heedful.models import DecoderLM
from heedful.tasks.intervals import Interval, mean_interval, mean_of_shares_interval, wilson_interval
from heedful.tasks.scoring import (
    TextTokenizer,
    encode_continuations,
    is_cut,
    lost_characters,
    room,
    score_continuations,
)
from heedful.tasks.task_files import content_sha256, draw, json_lines, read_text

CHANCE = 0.5
COLUMNS = ("uid", "field", "term", "sentence_good", "sentence_bad")
ORIGINAL_NAMES = {"uid": "UID", "term": "linguistics_term"}
_JSON_LINES = (".jsonl", ".jsonl.xz", ".jsonl.gz")


@dataclass(frozen=True, kw_only=True)
class MinimalPair:
    """Two sentences that differ in one point of grammar: `uid` names the phenomenon, `term` the group it belongs to."""

    uid: str
    field: str
    term: str
    good: str
    bad: str


@dataclass(frozen=True, kw_only=True)
class PhenomenonResult:
    """One phenomenon: `correct` of `pairs`, with Wilson's 95 % interval of `accuracy`."""

    uid: str
    field: str
    term: str
    pairs: int
    correct: int
    accuracy: float
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class TermResult:
    """A group of phenomena: the mean of their accuracies, its 95 % interval over the draw of pairs."""

    term: str
    phenomena: int
    pairs: int
    accuracy: float
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class BlimpResult:
    """How well a model tells sentences apart.

    Attributes:
        accuracy: mean over phenomena.
        interval: 95 % of it over other pairs of the same phenomena.
        interval_over_phenomena: 95 % of it over other phenomena, Student's t; wider. None for one phenomenon.
        chance: 0.5.
        pairs: how many were scored.
        start: the text before each sentence; empty for end of text.
        max_context: how many tokens the model read at a time.
        cut: pairs with a sentence longer than that, of which later tokens were predicted without the first.
        indistinguishable: pairs whose sentences the tokenizer makes equal; they count as wrong.
        incomplete: pairs of which the tokenizer lost characters other than white space.
        terms: by group.
        phenomena: by phenomenon.
    """

    accuracy: float
    interval: Interval
    interval_over_phenomena: Interval | None
    chance: float
    pairs: int
    start: str
    max_context: int
    cut: int
    indistinguishable: int
    incomplete: int
    terms: tuple[TermResult, ...]
    phenomena: tuple[PhenomenonResult, ...]


def read_blimp(path: str | Path) -> list[MinimalPair]:
    """Read BLiMP from a table or in the form it was published in; compressed files (.xz, .gz) as well.

    Args:
        path: a file with a header and tabs between its columns, among them uid, field, term, sentence_good and
            sentence_bad; or a file or folder of `.jsonl` with UID, field, linguistics_term and the two sentences.

    Raises:
        ValueError: nothing there, a column or a value is missing, a sentence is empty.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.endswith(_JSON_LINES))
        if not files:
            raise ValueError(f"{path} holds no .jsonl file; give the folder of BLiMP's data or a table of its pairs.")
        pairs = [pair for file in files for pair in _published(file)]
    elif path.name.endswith(_JSON_LINES):
        pairs = list(_published(path))
    else:
        pairs = list(_table(path))
    if not pairs:
        raise ValueError(f"{path} holds no pairs of sentences.")
    return pairs


def draw_pairs(pairs: Sequence[MinimalPair], limit: int | None, seed: int) -> list[MinimalPair]:
    """Return at most `limit` pairs of each phenomenon, drawn by `seed`, see `heedful.tasks.task_files.draw`."""
    return [pair for uid, own in _by_uid(pairs).items() for pair in draw(own, limit, seed, uid)]


def pairs_sha256(pairs: Iterable[MinimalPair]) -> str:
    """Return a hash of all pairs in their order, the same in whichever form they were stored."""
    return content_sha256("\t".join((pair.uid, pair.field, pair.term, pair.good, pair.bad)) for pair in pairs)


def evaluate_blimp(
    model: DecoderLM,
    tokenizer: TextTokenizer,
    pairs: Sequence[MinimalPair],
    *,
    start: str = "",
    max_context: int | None = None,
    tokens_per_batch: int = 8192,
) -> BlimpResult:
    """Score a model on minimal pairs.

    Args:
        model: computes where it is, in float32 or what its weights are.
        tokenizer: that of its training.
        pairs: what `read_blimp` returns, or some of it.
        start: what stands before each sentence and its space. Empty is end of text, as in lm-eval; a model that was
            trained without that token knows "." better.
        max_context: None is the model's max_positions.
        tokens_per_batch: changes speed and memory only.

    Raises:
        ValueError: no pairs, or a sentence of which the tokenizer leaves nothing.
    """
    if not pairs:
        raise ValueError("there is no pair to score.")
    texts = [f" {text}" for pair in pairs for text in (pair.good, pair.bad)]
    sentences = encode_continuations(tokenizer, [(start, text) for text in texts])
    for text, sentence in zip(texts, sentences, strict=True):
        if not sentence.target:
            raise ValueError(
                f"the tokenizer leaves nothing of the sentence {text.strip()!r}: it knows none of its characters. "
                "Leave this pair out, or use a model whose tokenizer loses nothing."
            )
    found = score_continuations(model, sentences, max_context=max_context, tokens_per_batch=tokens_per_batch)
    likelihoods = [score.log_likelihood for score in found]
    equal = [good.target == bad.target for good, bad in _twos(sentences)]
    # Equal ids may get scores that differ by rounding.
    right = [good > bad and not same for (good, bad), same in zip(_twos(likelihoods), equal, strict=True)]
    length = room(model, max_context)
    cut = [is_cut(sentence, length) for sentence in sentences]
    lost = [lost_characters(tokenizer, sentence, text) for sentence, text in zip(sentences, texts, strict=True)]
    phenomena = _phenomena(pairs, right)
    return BlimpResult(
        accuracy=fmean(phenomenon.accuracy for phenomenon in phenomena),
        interval=_interval(phenomena),
        interval_over_phenomena=mean_interval([phenomenon.accuracy for phenomenon in phenomena]),
        chance=CHANCE,
        pairs=len(pairs),
        start=start,
        max_context=length,
        cut=sum(map(any, _twos(cut))),
        indistinguishable=sum(equal),
        incomplete=sum(map(any, _twos(lost))),
        terms=_terms(phenomena),
        phenomena=phenomena,
    )


def _phenomena(pairs: Sequence[MinimalPair], right: Sequence[bool]) -> tuple[PhenomenonResult, ...]:
    hits: dict[str, list[bool]] = {}
    for pair, hit in zip(pairs, right, strict=True):
        hits.setdefault(pair.uid, []).append(hit)
    first = {uid: own[0] for uid, own in _by_uid(pairs).items()}
    return tuple(
        PhenomenonResult(
            uid=uid,
            field=first[uid].field,
            term=first[uid].term,
            pairs=len(own),
            correct=sum(own),
            accuracy=sum(own) / len(own),
            interval=wilson_interval(sum(own), len(own)),
        )
        for uid, own in hits.items()
    )


def _terms(phenomena: Sequence[PhenomenonResult]) -> tuple[TermResult, ...]:
    groups: dict[str, list[PhenomenonResult]] = {}
    for phenomenon in phenomena:
        groups.setdefault(phenomenon.term, []).append(phenomenon)
    return tuple(
        TermResult(
            term=term,
            phenomena=len(own),
            pairs=sum(phenomenon.pairs for phenomenon in own),
            accuracy=fmean(phenomenon.accuracy for phenomenon in own),
            interval=_interval(own),
        )
        for term, own in groups.items()
    )


def _interval(phenomena: Sequence[PhenomenonResult]) -> Interval:
    if len(phenomena) == 1:
        return phenomena[0].interval
    return mean_of_shares_interval([(phenomenon.correct, phenomenon.pairs) for phenomenon in phenomena])


def _by_uid(pairs: Iterable[MinimalPair]) -> dict[str, list[MinimalPair]]:
    groups: dict[str, list[MinimalPair]] = {}
    for pair in pairs:
        groups.setdefault(pair.uid, []).append(pair)
    return groups


def _twos(items: Sequence) -> zip:
    """Return the items of good and bad sentences as pairs."""
    return zip(items[::2], items[1::2], strict=True)


def _table(path: Path) -> Iterable[MinimalPair]:
    # Sentences hold quotation marks of their own: tabs alone separate.
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    _require_columns(reader.fieldnames or (), COLUMNS, path)
    for row in reader:
        yield _pair(row, {name: name for name in COLUMNS}, f"{path}, line {reader.line_num}")


def _published(path: Path) -> Iterable[MinimalPair]:
    names = {name: ORIGINAL_NAMES.get(name, name) for name in COLUMNS}
    for number, row in enumerate(json_lines(read_text(path), path), start=1):
        _require_columns(row, tuple(names.values()), path)
        yield _pair(row, names, f"{path}, pair {number}")


def _require_columns(found: Iterable[str], needed: Sequence[str], path: Path) -> None:
    found = list(found)
    missing = [name for name in needed if name not in found]
    if missing:
        raise ValueError(
            f"{path} has no {', '.join(missing)}; expected {', '.join(needed)}, got "
            f"{', '.join(map(str, found)) or 'nothing'}."
        )


def _pair(row: dict[str, str], names: dict[str, str], place: str) -> MinimalPair:
    values = {name: row[original] for name, original in names.items()}
    for name, value in values.items():
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{place}: {names[name]} is empty; every pair needs it.")
    return MinimalPair(
        uid=values["uid"],
        field=values["field"],
        term=values["term"],
        good=values["sentence_good"],
        bad=values["sentence_bad"],
    )
