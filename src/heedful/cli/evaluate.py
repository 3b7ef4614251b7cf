"""`heedful evaluate`: score a trained run on its own splits or on any text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro


@dataclass(frozen=True)
class Evaluate:
    """Score the best checkpoint of a run, on a whole split or on a text of your own.

    Every token is scored once; for find-the-block, every test sample.
    """

    run_folder: Annotated[Path, tyro.conf.Positional]
    """Folder of a run of `heedful train`, or of one run inside a comparison's folder."""

    split: Literal["test", "valid"] = "test"
    """Which split of the run's own data."""

    text: Path | None = None
    """Score this file or folder of text with the run's tokenizer instead."""

    seed: int = 0
    """Seed of the samples of a task that makes its own."""

    json: bool = False
    """Print JSON."""

    def run(self, overrides: dict[str, Any]) -> None:
        """Score and print."""
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
