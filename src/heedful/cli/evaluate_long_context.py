"""Needles and long bAbI for `heedful evaluate`, in a text of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from heedful.cli.evaluate_task import TaskInput, TaskReport
from heedful.data import Tokenizer
from heedful.data.corpora import open_corpus
from heedful.data.memory import split_in_memory
from heedful.data.tokenizers import BpeTokenizer, ByteTokenizer
from heedful.schema import from_mapping, to_mapping
from heedful.tasks.long_babi import LongBabiConfig, evaluate_long_babi
from heedful.tasks.needles import NeedlesConfig, evaluate_needles

SAMPLES_PER_CELL = 500  # as in the paper


def needles(given: TaskInput) -> TaskReport:
    """Hide needles in the text that was given; the samples are as long as the model reads, unless told otherwise."""
    config = from_mapping(NeedlesConfig, {"lengths": [given.max_context], **given.options}, "--task")
    _require_room(max(config.lengths), given.max_context, "task.lengths")
    tokenizer, tokens = _filler(given, given.data)
    found = evaluate_needles(
        given.model,
        tokenizer,
        tokens,
        config,
        seed=given.seed,
        samples_per_cell=SAMPLES_PER_CELL if given.limit is None else given.limit,
        device=next(given.model.parameters()).device,
    )
    cells = [cell.facts() for cell in found.cells]
    values = {"config": to_mapping(config), "cells": cells, "total": found.total.facts()}
    return TaskReport(values=values, lines=_lines("Needles", cells, ("needles", "length", "depth")))


def long_babi(given: TaskInput) -> TaskReport:
    """Spread stories through the text of `--task.filler`; without one, only stories as they are can be asked about."""
    options = dict(given.options)
    filler = options.pop("filler", None)
    if filler is None:
        options = {"distractions": [0], **options}
    config = from_mapping(LongBabiConfig, {"archive": str(given.data), **options}, "--task")
    if filler is None and any(config.distractions):
        raise ValueError("text between the facts needs --task.filler with a file or folder of text.")
    tokenizer, tokens = _filler(given, None if filler is None else Path(str(filler)))
    found = evaluate_long_babi(
        given.model,
        tokenizer,
        tokens,
        config,
        context_length=given.max_context,
        seed=given.seed,
        samples_per_cell=SAMPLES_PER_CELL if given.limit is None else given.limit,
        device=next(given.model.parameters()).device,
    )
    cells = [cell.facts() for cell in found.cells]
    questions = {str(task): list(counts) for task, counts in found.questions.items()}
    values = {"config": to_mapping(config), "questions": questions, "cells": cells, "total": found.total.facts()}
    lines = _lines("Long bAbI", cells, ("task", "distraction"))
    lines += [
        f"Task {task}: {fitting:,} of {all_of_them:,} questions fit beside the most text."
        for task, (all_of_them, fitting) in found.questions.items()
        if fitting < all_of_them
    ]
    return TaskReport(values=values, lines=lines)


def _require_room(needed: int, length: int, name: str) -> None:
    if needed > length:
        raise ValueError(
            f"{name} = {needed} is more than the {length} tokens that the model reads at a time; ask for less, or for "
            "more with --context-length where the model has the positions."
        )


def _filler(given: TaskInput, text: Path | None) -> tuple[Tokenizer, np.ndarray]:
    """Return the tokenizer, and the tokens of the text."""
    tokenizer: Any = given.tokenizer
    if not isinstance(tokenizer, ByteTokenizer | BpeTokenizer):
        raise ValueError("this task needs a tokenizer of heedful; score the run itself instead of its export.")
    if text is None:
        return tokenizer, np.empty(0, dtype=np.uint32)
    separator = given.separator is not False
    return tokenizer, split_in_memory(open_corpus(str(text)), tokenizer, separator=separator).tokens


def _lines(title: str, cells: Sequence[dict[str, Any]], names: Iterable[str]) -> list[str]:
    names = list(names)
    lines = [f"{title}, {sum(cell['samples'] for cell in cells):,} samples, per cent right (95 %)"]
    for cell in cells:
        place = ", ".join(f"{name} {cell[name]}" for name in names)
        frequent = f", most frequent answer {cell['most_frequent']:.1f}" if "most_frequent" in cell else ""
        lines.append(
            f"{place:<36} {cell['accuracy']:.1f} ({cell['low']:.1f} to {cell['high']:.1f}); chance "
            f"{cell['chance']:.1f}{frequent}"
        )
    return lines
