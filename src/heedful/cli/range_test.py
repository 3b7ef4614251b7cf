"""`heedful range-test`: around which learning rate an arm of a recipe can be trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro


@dataclass(frozen=True)
class RangeTest:
    """Suggest a learning rate: train an arm of a recipe for a few steps while the rate rises exponentially.

    It writes range-test.json and the picture range-test.png into a folder, and nothing else. The suggestion is a place
    to begin a sweep, not the best rate.
    """

    recipe: Annotated[Path, tyro.conf.Positional]
    """Recipe in TOML, such as recipes/demo.toml."""

    arm: str | None = None
    """Name of the arm; the recipe's baseline by default."""

    lowest: float = 1e-5
    """The rate of the first step."""

    highest: float = 1.0
    """The rate of the last step; the test ends earlier when the loss explodes."""

    steps: int = 100
    """How many steps, at most."""

    seed: int | None = None
    """Seed of the initial weights, the batches and the dropout; the recipe's first by default."""

    folder: Path | None = None
    """Where the two files go; runs/RECIPE-ARM-range-test by default."""

    def run(self, overrides: dict[str, Any]) -> None:
        """Test, write the two files and print the suggestion."""
        from heedful.files import write_bytes_atomically, write_json_atomically
        from heedful.models import DecoderLM
        from heedful.schema import did_you_mean, to_mapping
        from heedful.study.plan import make_plan
        from heedful.study.range_test_plot import range_test_png
        from heedful.study.recipe_file import load_recipe, recipe_mapping
        from heedful.train.range_test import learning_rate_range_test

        recipe = load_recipe(self.recipe, overrides)
        name = self.arm or recipe.baseline
        names = [arm.name for arm in recipe.arms]
        if name not in names:
            raise ValueError(f"{self.recipe} has no arm {name!r}.{did_you_mean(name, names)}")
        folder = self.folder or Path("runs") / f"{recipe.name}-{name}-range-test"
        written = folder / "range-test.json"
        if written.exists():
            raise ValueError(f"{written} exists already; choose another --folder, or remove it.")
        seed = recipe.seeds[0] if self.seed is None else self.seed
        plan = make_plan(recipe, print)
        planned = next(arm for arm in plan.arms if arm.name == name)
        result = learning_rate_range_test(
            lambda: DecoderLM(planned.config),
            plan.workload.training_data(seed),
            planned.train_config(planned.learning_rates[0], seed),
            self.lowest,
            self.highest,
            self.steps,
        )
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes_atomically(folder / "range-test.png", range_test_png(result, f"{recipe.name}: {name}"))
        write_json_atomically(
            written, {"recipe": recipe_mapping(recipe), "arm": name, "seed": seed, **to_mapping(result)}
        )
        ended = "until the loss exploded" if result.exploded else "to the end of the range"
        print(f"{len(result.rates)} steps from {result.rates[0]:.2g} to {result.rates[-1]:.2g}, {ended}")
        if result.suggestion is None:
            print(f"No suggestion: {result.reason}.")
        else:
            print(f"Suggested learning rate: {result.suggestion:.2g} ({result.reason})")
        print(f"in {folder}")
