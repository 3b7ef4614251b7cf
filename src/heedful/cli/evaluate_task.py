"""`heedful evaluate --task`: what is scored, on which task, and what comes out; the tasks are in two further files."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heedful.models import DecoderLM
    from heedful.tasks.scoring import TextTokenizer

# Where the function of each task is; it takes a `TaskInput` and returns a `TaskReport`.
TASKS = {
    "lambada": "heedful.cli.evaluate_zero_shot:lambada",
    "blimp": "heedful.cli.evaluate_zero_shot:blimp",
    "needles": "heedful.cli.evaluate_long_context:needles",
    "long-babi": "heedful.cli.evaluate_long_context:long_babi",
}


@dataclass(frozen=True, kw_only=True)
class TaskInput:
    """What every task is given.

    Attributes:
        model: on the device it computes on.
        tokenizer: that of its training.
        max_context: how many tokens it reads at a time.
        separator: whether it was trained with end of text between documents; None where that is not known.
        data: the file or folder that was given.
        options: the task's own settings, by name.
        limit, seed: as in `heedful evaluate`.
    """

    model: DecoderLM
    tokenizer: TextTokenizer
    max_context: int
    separator: bool | None
    data: Path
    options: dict[str, Any]
    limit: int | None
    seed: int


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """What a task found, for programs and, in lines, for people."""

    values: dict[str, Any]
    lines: list[str]


def evaluate_task(name: str, given: TaskInput) -> TaskReport:
    """Run a task.

    Raises:
        ValueError: data that are not those of the task, or a setting that it does not have.
    """
    from heedful.train.device import computing_on

    module, _, function = TASKS[name].partition(":")
    with computing_on(next(given.model.parameters()).device):
        report: TaskReport = getattr(importlib.import_module(module), function)(given)
    head = {"task": name, "data": given.data.name, "options": given.options, "limit": given.limit, "seed": given.seed}
    return TaskReport(values=_finite({**head, **report.values}), lines=report.lines)


def open_model(folder: Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """Load what is scored, as the fields of `TaskInput` of that name.

    Args:
        folder: a run of `heedful train`, a run of a comparison, or a folder that `heedful export --hf` wrote.
        overrides: changes to the recipe of a run.

    Raises:
        ValueError: nothing that can be scored.
    """
    if (folder / "config.json").is_file() and not (folder / "checkpoints").exists():
        from heedful.cli.overrides import refuse_overrides
        from heedful.hf.export import import_native
        from heedful.hf.text_ids import open_text_ids

        refuse_overrides(overrides, "evaluate")
        model = import_native(folder).eval()
        most = model.config.max_positions
        return {"model": model, "tokenizer": open_text_ids(folder), "max_context": most, "separator": None}
    from heedful.cli.run_folder import open_run

    trained = open_run(folder, overrides)
    return {
        "model": trained.model,
        "tokenizer": trained.tokenizer(),
        # Later rows of a table of learned positions may never have been trained.
        "max_context": min(trained.model.config.max_positions, trained.recipe.train.context_length),
        "separator": trained.recipe.data.separator,
    }


def _finite(value: Any) -> Any:
    """Replace numbers that JSON has no word for, such as a perplexity beyond all floats, by None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
