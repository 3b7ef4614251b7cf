"""`heedful evaluate`: score a trained run on its own splits, on any text, or on a published task."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro


@dataclass(frozen=True)
class Evaluate:
    """Score the best checkpoint of a run, on a whole split, on a text of your own, or on a task.

    Every token is scored once; for find-the-block, every test sample.
    """

    run_folder: Annotated[Path, tyro.conf.Positional]
    """Folder of a run of `heedful train`, or of one run inside a comparison's folder; with --task also a folder that
    `heedful export --hf` wrote."""

    split: Literal["test", "valid"] = "test"
    """Which split of the run's own data."""

    text: Path | None = None
    """Score this file or folder of text with the run's tokenizer instead."""

    task: Literal["lambada", "blimp", "needles", "long-babi"] | None = None
    """Score a published task on --task-data instead. Its own settings are dotted options: --task.start "." for blimp,
    the fields of the `[task]` table for needles and long-babi."""

    task_data: Path | None = None
    """Its data, files also compressed (.xz, .gz). lambada: one {"text": ...} per line, whose last word is asked for.
    blimp: a table with tabs and the columns uid, field, term, sentence_good, sentence_bad, or the folder of the
    published .jsonl files. needles: a text to hide them in. long-babi: a tar archive of bAbI, and the text between as
    --task.filler."""

    limit: int | None = None
    """Draw so many examples by --seed: of blimp of each phenomenon, of needles and long-babi of each cell."""

    context_length: int | None = None
    """How many tokens the model reads at a time in a task; the training's context by default."""

    seed: int = 0
    """Seed of the samples of a task that makes its own, and of the draw of --limit."""

    json: bool = False
    """Print JSON."""

    def run(self, overrides: dict[str, Any]) -> None:
        """Score and print."""
        if self.task is not None:
            self._run_task(self.task, overrides)
            return
        for name in ("task_data", "limit", "context_length"):
            if getattr(self, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} belongs to --task; say which, such as --task lambada.")
        from heedful.cli.run_folder import open_run
        from heedful.study.workloads import open_workload

        trained = open_run(self.run_folder, overrides)
        if self.text is not None:
            metrics = _score_text(trained, self.text)
        else:
            workload = open_workload(trained.recipe, lambda line: None)
            trained.require_same_data(workload)
            metrics = (
                workload.test(trained.model, self.seed) if self.split == "test" else workload.validate(trained.model)
            )
        if self.json:
            print(json.dumps(metrics, indent=2))
            return
        for key, value in metrics.items():
            shown = f"{value:.4f}" if isinstance(value, float) else value
            print(f"{key:<16} {shown}")

    def _run_task(self, name: str, overrides: dict[str, Any]) -> None:
        from heedful.cli.evaluate_task import TaskInput, evaluate_task, open_model

        if self.task_data is None:
            raise ValueError(f"--task {name} needs --task-data with the path of its data.")
        if not self.task_data.exists():
            raise ValueError(f"there is nothing at {str(self.task_data)!r}; give the data of {name} as --task-data.")
        if self.text is not None or self.split != "test":
            raise ValueError("--task scores a task alone; leave out --text and --split.")
        options = {key[5:]: value for key, value in overrides.items() if key.startswith("task.")}
        opened = open_model(self.run_folder, {key: value for key, value in overrides.items() if key[:5] != "task."})
        if self.context_length is not None:
            opened["max_context"] = self.context_length
        given = TaskInput(**opened, data=self.task_data, options=options, limit=self.limit, seed=self.seed)
        report = evaluate_task(name, given)
        if self.json:
            print(json.dumps({"run": str(self.run_folder), **report.values}, indent=2))
            return
        print("\n".join(report.lines))


def _score_text(trained: Any, path: Path) -> dict[str, Any]:
    from heedful.data.corpora import open_corpus
    from heedful.data.memory import split_in_memory
    from heedful.train import evaluate_perplexity

    tokenizer, train = trained.tokenizer(), trained.recipe.train
    split = split_in_memory(open_corpus(str(path)), tokenizer, separator=trained.recipe.data.separator)
    result = evaluate_perplexity(
        trained.model,
        split,
        context_length=train.context_length,
        batch_size=train.batch_size,
        device=next(trained.model.parameters()).device,
        precision=train.precision,
        mask_documents=trained.recipe.task.mask_documents,
        end_of_text=tokenizer.end_of_text,
    )
    names = ("perplexity", "bits_per_byte", "loss", "tokens", "bytes", "context_rule")
    return {name: getattr(result, name) for name in names}
