"""What `heedful train` leaves for `heedful evaluate` and `heedful generate`, and how they find it again.

A run inside a comparison's folder is found as well: its recipe lies in the comparison's folder above it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heedful.files import write_json_atomically

if TYPE_CHECKING:
    from heedful.data import Tokenizer
    from heedful.models import DecoderLM
    from heedful.study.plan import Plan, PlannedArm
    from heedful.study.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A trained model with the recipe that it came from."""

    folder: Path
    recipe: Recipe
    model: DecoderLM

    def tokenizer(self) -> Tokenizer:
        """Return the run's own tokenizer.

        Raises:
            ValueError: the recipe's task has none, or it does not fit the model.
        """
        from heedful.data import open_tokenizer, prepare

        if self.recipe.task.kind != "language-modelling":
            raise ValueError(f"{self.folder} was trained on {self.recipe.task.kind}, which has no tokenizer.")
        saved = self.folder / "tokenizer"
        tokenizer = open_tokenizer(saved) if saved.is_dir() else prepare(self.recipe.data).tokenizer
        if tokenizer.vocab_size != self.model.config.vocab_size:
            raise ValueError(
                f"the model in {self.folder} has a vocabulary of {self.model.config.vocab_size}, its tokenizer one of "
                f"{tokenizer.vocab_size}: the data has changed since; train again."
            )
        return tokenizer


def describe_arm(planned: PlannedArm, learning_rate: float, seed: int) -> str:
    """Return one line about a run for people."""
    return (
        f"{planned.name}: {planned.parameters:,} parameters, {planned.train.steps:,} steps of "
        f"{planned.train.batch_size} x {planned.train.context_length} tokens, learning rate {learning_rate:g}, seed "
        f"{seed}"
    )


def write_run_description(folder: Path, plan: Plan, planned: PlannedArm, seed: int) -> None:
    """Write the recipe, and for text the tokenizer, into the run's folder."""
    from heedful.study.recipe_file import recipe_mapping

    write_json_atomically(
        folder / "recipe.json", {"recipe": recipe_mapping(plan.recipe), "arm": planned.name, "seed": seed}
    )
    dataset = getattr(plan.workload, "dataset", None)
    if dataset is not None:
        dataset.tokenizer.save(folder / "tokenizer")


def open_run(folder: Path, overrides: dict[str, Any]) -> TrainedRun:
    """Load the best checkpoint of a run of `heedful train`, or of a run in a comparison's folder.

    Raises:
        ValueError: not a run, a run without a checkpoint, or damaged files.
    """
    from heedful.study.recipe_file import load_recipe
    from heedful.train import load_best

    if not folder.is_dir():
        raise ValueError(f"there is no folder {str(folder)!r}; give the folder of a run of heedful train.")
    places = [folder, *folder.resolve().parents]
    recipe_file = next((place / "recipe.json" for place in places if (place / "recipe.json").is_file()), None)
    if recipe_file is None:
        raise ValueError(
            f"{folder} holds no recipe.json; give the folder of a run of heedful train or heedful compare."
        )
    if not (folder / "checkpoints").is_dir():
        runs = sorted(str(path.parent) for path in folder.glob("runs/**/checkpoints"))
        hint = f" It holds runs such as {runs[0]}." if runs else ""
        raise ValueError(f"{folder} holds no checkpoints; give the folder of one run.{hint}")
    try:
        recipe = load_recipe(recipe_file, overrides)
    except json.JSONDecodeError as error:
        raise ValueError(f"{recipe_file} is damaged: {error}.") from error
    return TrainedRun(folder=folder, recipe=recipe, model=load_best(folder).eval())
