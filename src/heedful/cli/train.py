"""`heedful train`: one arm of a recipe, in a folder of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro


@dataclass(frozen=True)
class Train:
    """Train one arm of a recipe.

    The run's folder then serves `heedful evaluate` and `heedful generate`. A value of the recipe can be changed by its
    dotted name, such as --train.steps 50 or --train.optimizer.weight_decay 0.01.
    """

    recipe: Annotated[Path, tyro.conf.Positional]
    """Recipe in TOML, such as recipes/demo.toml."""

    arm: str | None = None
    """Name of the arm; the recipe's baseline by default."""

    learning_rate: float | None = None
    """Peak learning rate; needed where the recipe gives the arm several."""

    seed: int | None = None
    """Seed of the initial weights, the batches and the dropout; the recipe's first by default."""

    folder: Path | None = None
    """The run's folder; runs/RECIPE-ARM-seed-SEED by default."""

    resume: bool = False
    """Go on with the run in the folder, bit for bit as if it had not been stopped; start it if there is none."""

    dry_run: bool = False
    """Check everything, say what would be trained and stop."""

    def run(self, overrides: dict[str, Any]) -> None:
        """Train, then print the result and where it is."""
        import torch

        from heedful.cli.run_folder import describe_arm, write_run_description
        from heedful.models import DecoderLM
        from heedful.schema import did_you_mean
        from heedful.study.plan import make_plan
        from heedful.study.recipe_file import load_recipe
        from heedful.train import train

        recipe = load_recipe(self.recipe, overrides)
        name = self.arm or recipe.baseline
        names = [arm.name for arm in recipe.arms]
        if name not in names:
            raise ValueError(f"{self.recipe} has no arm {name!r}.{did_you_mean(name, names)}")
        rates = recipe.rates(recipe.arm(name)) if self.learning_rate is None else (self.learning_rate,)
        learning_rate, *others = rates
        if others:
            raise ValueError(
                f"arm {name!r} has several learning rates, {list(rates)}; choose one with --learning-rate."
            )
        seed = recipe.seeds[0] if self.seed is None else self.seed
        plan = make_plan(recipe, print)
        planned = next(arm for arm in plan.arms if arm.name == name)
        config = planned.train_config(learning_rate, seed)
        folder = self.folder or Path("runs") / f"{recipe.name}-{name}-seed-{seed}"
        print(describe_arm(planned, learning_rate, seed))
        if self.dry_run:
            return
        torch.manual_seed(seed)
        result = train(
            DecoderLM(planned.config),
            plan.workload.training_data(seed),
            config,
            folder,
            evaluate=plan.workload.validate,
            resume=self.resume,
            on_start=lambda: write_run_description(folder, plan, planned, seed),
        )
        if result.interrupted:
            raise KeyboardInterrupt
        print(f"Best of {result.steps:,} steps, at step {result.best_step:,}:")
        for key, value in result.best.items():
            print(f"  {key:<20} {value:.4f}")
        print(f"{result.tokens_per_second:,.0f} tokens/s; run in {folder}")
