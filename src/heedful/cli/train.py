"""`heedful train`: one arm of a recipe, in a folder of its own, by one process or by those that torchrun started."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro


@dataclass(frozen=True)
class Train:
    """Train one arm of a recipe.

    The run's folder then serves `heedful evaluate` and `heedful generate`. A value of the recipe can be changed by its
    dotted name, such as --train.steps 50 or --train.optimizer.weight_decay 0.01. On several GPUs or machines start it
    with torchrun: torchrun --nproc_per_node 8 -m heedful train RECIPE --train.parallel.strategy fsdp2.
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

    checkpoint: str | None = None
    """With --resume: go back to the checkpoint of this name, such as step-00000500; later starts go on from there."""

    hf: bool = False
    """Write every checkpoint's model for transformers, too: a folder `hf` beside its other files."""

    dry_run: bool = False
    """Check everything, say what would be trained and stop."""

    def run(self, overrides: dict[str, Any]) -> None:
        """Train, then print the result and where it is."""
        from contextlib import nullcontext
        from functools import partial

        import torch

        from heedful.cli.run_folder import describe_arm, write_run_description
        from heedful.models import DecoderLM
        from heedful.schema import did_you_mean
        from heedful.study.plan import make_plan
        from heedful.study.recipe_file import load_recipe
        from heedful.train import train
        from heedful.train.processes import environment_rank, restarted_by_torchrun

        first = environment_rank() == 0
        say = print if first else _silent
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
        plan = make_plan(recipe, say)
        planned = next(arm for arm in plan.arms if arm.name == name)
        config = planned.train_config(learning_rate, seed)
        folder = self.folder or Path("runs") / f"{recipe.name}-{name}-seed-{seed}"
        say(describe_arm(planned, learning_rate, seed))
        if self.dry_run:
            return
        torch.manual_seed(seed)
        with nullcontext() if first else torch.device("meta"):  # the first process sends its initial weights
            model = DecoderLM(planned.config)
        result = train(
            model,
            plan.workload.training_data(seed),
            config,
            folder,
            evaluate=plan.workload.validate,
            resume=self.resume,
            checkpoint=None if restarted_by_torchrun() else self.checkpoint,
            on_start=lambda: write_run_description(folder, plan, planned, seed),
            export=partial(_export, model, plan.workload.tokenizer) if self.hf else None,
        )
        if result.interrupted:
            raise KeyboardInterrupt
        say(f"Best of {result.steps:,} steps, at step {result.best_step:,}:")
        for key, value in result.best.items():
            say(f"  {key:<20} {value:.4f}")
        say(f"{result.tokens_per_second:,.0f} tokens/s; run in {folder}")


def _silent(line: str) -> None:
    """Say nothing: the first process does."""


def _export(model: Any, tokenizer: Any, folder: Path, weights: dict[str, Any]) -> None:
    """Write a checkpoint's model in both forms."""
    from heedful.hf.export import export_pretrained
    from heedful.models.decoder import assemble_decoder

    model.save(folder, weights)
    export_pretrained(assemble_decoder(model.config, weights), folder / "hf", tokenizer=tokenizer)
