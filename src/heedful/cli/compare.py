"""`heedful compare`: several mechanisms under equal budgets, and a report that says which is better and how surely."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro


@dataclass(frozen=True)
class Compare:
    """Train the arms of a recipe under equal budgets and write a report.

    The folder keeps everything that is finished: the same command goes on where it was stopped. A value of the recipe
    can be changed by its dotted name, such as --train.steps 50, --recipe.seeds "[1, 2]" or
    --arms.boosted.learning_rates "[1e-3, 2e-3]".
    """

    recipe: Annotated[Path, tyro.conf.Positional]
    """Recipe in TOML, such as recipes/demo.toml, or the recipe.json of an earlier comparison."""

    folder: Path | None = None
    """Where runs, result.json and report.html go; runs/RECIPE-NAME by default."""

    workers: int = 1
    """Runs to train at a time, each in a process of its own on the same device: faster for small models on a GPU."""

    minutes: float | None = None
    """Stop after so many minutes as Ctrl-C would (exit status 130); the same command goes on from there."""

    dry_run: bool = False
    """Check everything, build the token shards, list what would run and stop."""

    def run(self, overrides: dict[str, Any]) -> None:
        """Run the comparison, print its table and where the report is."""
        from heedful.study.compare import load_result, run_comparison
        from heedful.study.plan import make_plan
        from heedful.study.recipe_file import load_recipe
        from heedful.study.table import render_terminal
        from heedful.train.processes import environment_world_size

        if environment_world_size() > 1:
            raise ValueError(
                "heedful compare trains its arms one after the other in one process; start it without torchrun, or "
                "train single arms with torchrun -m heedful train."
            )
        recipe = load_recipe(self.recipe, overrides)
        if self.dry_run:
            for line in make_plan(recipe, lambda line: print(line, file=sys.stderr)).lines():
                print(line)
            return
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes must be above 0, got {self.minutes}.")
        folder = self.folder or Path("runs") / recipe.name
        with _interrupted_after(self.minutes):
            page = run_comparison(recipe, folder, workers=self.workers)
        render_terminal(load_result(folder))
        print(f"\nReport: {page}\nTo go on or to see this table again: heedful {shlex.join(sys.argv[1:])}")


@contextmanager
def _interrupted_after(minutes: float | None) -> Iterator[None]:
    """Send this process a SIGINT after some minutes: every way to stop is then the same way."""
    if minutes is None:
        yield
        return
    timer = threading.Timer(60 * minutes, os.kill, (os.getpid(), signal.SIGINT))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
