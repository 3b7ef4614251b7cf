"""`heedful prepare`: the token shards of a recipe, before anything is trained on them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro


@dataclass(frozen=True)
class Prepare:
    """Turn the text of a recipe into token shards.

    Training does this by itself where it is missing; a large corpus is better prepared first, on a machine with many
    cores. Whatever stops it, the same command goes on from there. A value of the recipe can be changed by its dotted
    name, such as --data.corpus my-texts/.
    """

    recipe: Annotated[Path, tyro.conf.Positional]
    """Recipe in TOML, such as recipes/demo.toml."""

    workers: int | None = None
    """Processes that tokenize, 0 for none beside this one; for a large corpus one for each core by default."""

    verify: bool = False
    """Read corpus and shards whole to check them, also where nobody has written to them since they were read."""

    def run(self, overrides: dict[str, Any]) -> None:
        """Prepare, then say where the shards are and what they hold."""
        import time

        from heedful.data import prepare
        from heedful.study.recipe import FindTheBlockTask
        from heedful.study.recipe_file import load_recipe

        recipe = load_recipe(self.recipe, overrides)
        if isinstance(recipe.task, FindTheBlockTask):
            raise ValueError(f"{self.recipe} makes its own samples, so there is no text to prepare.")
        began = time.monotonic()
        dataset = prepare(
            recipe.data,
            lambda line: print(line, file=sys.stderr, flush=True),
            workers=self.workers,
            verify=self.verify,
        )
        seconds = time.monotonic() - began
        for name, record in dataset.manifest["splits"].items():
            print(
                f"{name:<6} {record['tokens']:>15,} tokens {record['documents']:>12,} documents "
                f"{record['bytes']:>16,} bytes of text"
            )
        for name, tokens in dataset.sources.items():
            print(f"  {len(tokens):,} tokens of train from {name}")
        print(f"{seconds:.1f} s; token shards in {dataset.folder}")
