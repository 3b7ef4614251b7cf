"""What `heedful train` leaves for `heedful evaluate` and `heedful generate`, and how they find it again.

A run inside a comparison's folder is found as well: its recipe lies in the comparison's folder above it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heedful.files import write_json_atomically

if TYPE_CHECKING:
    from heedful.data import Tokenizer
    from heedful.models import DecoderLM
    from heedful.study.plan import Plan, PlannedArm
    from heedful.study.recipe import Recipe
    from heedful.study.workloads import Workload


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A trained model with the recipe that it came from."""

    folder: Path
    home: Path
    recipe: Recipe
    data: dict[str, Any]
    model: DecoderLM

    def tokenizer(self) -> Tokenizer:
        """Return the run's own tokenizer.

        Raises:
            ValueError: the recipe's task has none, or the run was not left by this version.
        """
        from heedful.data import open_tokenizer

        if self.recipe.task.kind == "find-the-block":
            raise ValueError(f"{self.folder} was trained on {self.recipe.task.kind}, which has no tokenizer.")
        return open_tokenizer(self.home / "tokenizer")

    def require_same_data(self, workload: Workload) -> None:
        """Refuse data that are not those of the training: a test on them would not be one.

        Raises:
            ValueError: with what differs.
        """
        changed = [key for key, value in workload.hashes().items() if self.data.get(key) != value]
        if changed:
            raise ValueError(
                f"the data are not those that {self.folder} was trained with ({', '.join(changed)} differs), so "
                "splits and tokens may have moved; score a text of its own with --text."
            )


def describe_arm(planned: PlannedArm, learning_rate: float, seed: int) -> str:
    """Return one line about a run for people."""
    return (
        f"{planned.name}: {planned.parameters:,} parameters, {planned.train.steps:,} steps of "
        f"{planned.train.batch_size} x {planned.train.context_length} tokens, learning rate {learning_rate:g}, seed "
        f"{seed}"
    )


def write_run_description(folder: Path, plan: Plan, planned: PlannedArm, seed: int) -> None:
    """Write the recipe, what the data are, and for text the tokenizer, into the run's folder.

    data.json is what the data set says of itself, its manifest included: corpora, splits and all their hashes.
    """
    from heedful.study.recipe_file import recipe_mapping

    plan.workload.save_tokenizer(folder)
    description = {
        "recipe": recipe_mapping(plan.recipe),
        "data": plan.workload.hashes(),
        "arm": planned.name,
        "seed": seed,
    }
    write_json_atomically(folder / "recipe.json", description)
    dataset = getattr(plan.workload, "dataset", None)  # of a task that makes its samples there is none
    manifest = {} if dataset is None else {"manifest": dataset.manifest}
    write_json_atomically(folder / "data.json", {**plan.workload.describe(), **manifest})


def open_run(folder: Path, overrides: dict[str, Any]) -> TrainedRun:
    """Load the best checkpoint of a run of `heedful train`, or of a run in a comparison's folder.

    Raises:
        ValueError: not a run, a run without a checkpoint, or damaged files.
    """
    from heedful.study.recipe_file import load_recipe
    from heedful.train import load_best
    from heedful.train.device import resolve_device
    from heedful.train.run_folder import read_json

    if not folder.is_dir():
        raise ValueError(f"there is no folder {str(folder)!r}; give the folder of a run of heedful train.")
    # A run of a comparison lies in COMPARISON/runs/ARM/lr-RATE/seed-SEED.
    above = folder.resolve().parents
    places = [folder, *(above[3:4] if len(above) > 3 and above[2].name == "runs" else ())]
    home = next((place for place in places if (place / "recipe.json").is_file()), None)
    if home is None:
        raise ValueError(
            f"{folder} holds no recipe.json; give the folder of a run of heedful train or heedful compare."
        )
    if not (folder / "checkpoints").is_dir():
        runs = sorted(str(path.parent) for path in folder.glob("runs/**/checkpoints"))
        hint = f" It holds runs such as {runs[0]}." if runs else ""
        raise ValueError(f"{folder} holds no checkpoints; give the folder of one run.{hint}")
    recipe = load_recipe(home / "recipe.json", overrides)
    model = load_best(folder, device=resolve_device(recipe.train.device)).eval()
    data = read_json(home / "recipe.json").get("data", {})
    return TrainedRun(folder=folder, home=home, recipe=recipe, data=data, model=model)
