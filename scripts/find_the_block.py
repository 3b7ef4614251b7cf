"""Run find-the-block for blocks of five and eight letters and all three answers, one comparison after the other.

python -m scripts.find_the_block                  recipes/find-the-block.toml, and results/find-the-block-*.json from it
python -m scripts.find_the_block --paper-size     recipes/papers/find-the-block.toml, for a GPU
python -m scripts.find_the_block --dry-run        print the commands that can be known before anything has run

At laptop size the first comparison chooses a learning rate for each arm, and the others are given those. The same
command goes on where it was stopped, and comparisons that are finished are not touched again.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import tyro

from heedful.files import write_json_atomically
from heedful.study.compare import load_result, require_same_comparison
from heedful.study.recipe_file import load_recipe, parse_overrides
from heedful.tasks.find_the_block import Answer

ROOT = Path(__file__).parent.parent
Length = Literal[5, 8]


@dataclass(frozen=True, kw_only=True)
class Size:
    """A recipe, what its comparisons are called, and how many steps each block length takes (None: the recipe's)."""

    recipe: Path
    prefix: str
    steps: Mapping[int, int | None]
    choose_once: bool


LAPTOP = Size(
    recipe=Path("recipes/find-the-block.toml"),
    prefix="find-the-block",
    steps={5: None, 8: 1_800},
    choose_once=True,
)
PAPER = Size(
    recipe=Path("recipes/papers/find-the-block.toml"),
    prefix="find-the-block-paper",
    steps={5: None, 8: None},
    choose_once=False,
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One of the six comparisons."""

    block_length: Length
    answer: Answer

    def name(self, size: Size) -> str:
        """Return the name of the comparison, of its folder below runs/ and of its result."""
        return f"{size.prefix}-{self.block_length}-{self.answer}"

    def changes(self, size: Size, rates: Mapping[str, float]) -> dict[str, str]:
        """Return what this comparison changes in the recipe, by dotted name; `rates` are learning rates by arm."""
        found = {
            "name": self.name(size),
            "task.answer": self.answer,
            "task.block_length": str(self.block_length),
            "arms.multi-token-toy.attention.rule.key_kernel_size": str(2 * self.block_length - 1),
        }
        steps = size.steps[self.block_length]
        if steps is not None:
            found["train.steps"] = str(steps)
        return found | {f"arms.{arm}.learning_rates": f"[{rate}]" for arm, rate in rates.items()}


# The first one chooses the learning rates.
SETTINGS = (
    Setting(block_length=5, answer="first"),
    *(
        Setting(block_length=length, answer=answer)
        for length in get_args(Length)
        for answer in get_args(Answer)
        if (length, answer) != (5, "first")
    ),
)


@dataclass(frozen=True)
class Options:
    """Run find-the-block for both block lengths and all three answers."""

    paper_size: bool = False
    """The published model and length of training, for a GPU."""

    workers: int = 1
    """As of heedful compare."""

    minutes: float | None = None
    """As of heedful compare, for each comparison; one that is not finished ends this command."""

    dry_run: bool = False
    """Print the commands and stop."""


def command(setting: Setting, size: Size, rates: Mapping[str, float], options: Options) -> list[str]:
    """Return the arguments of `heedful` for one comparison."""
    arguments = ["compare", str(size.recipe), "--folder", f"runs/{setting.name(size)}"]
    if options.workers != 1:
        arguments += ["--workers", str(options.workers)]
    if options.minutes is not None:
        arguments += ["--minutes", str(options.minutes)]
    for key, value in setting.changes(size, rates).items():
        arguments += [f"--{key if '.' in key else f'recipe.{key}'}", value]
    return arguments


def chosen_rates(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the learning rate that each arm of a result chose; arms that diverged with every rate have none."""
    return {arm["name"]: arm["learning_rate"] for arm in result["arms"] if arm["learning_rate"] is not None}


def is_finished(setting: Setting, size: Size, rates: Mapping[str, float]) -> bool:
    """Return whether the comparison has its result.

    Raises:
        ValueError: there is one of another recipe.
    """
    folder = ROOT / "runs" / setting.name(size)
    changes = parse_overrides(f"{key}={value}" for key, value in setting.changes(size, rates).items())
    require_same_comparison(folder, load_recipe(ROOT / size.recipe, changes))
    return (folder / "result.json").exists()


def main(options: Options) -> int:
    """Run what is not finished, and keep each result."""
    size = PAPER if options.paper_size else LAPTOP
    rates: dict[str, float] = {}
    for number, setting in enumerate(SETTINGS):
        arguments = command(setting, size, rates, options)
        if options.dry_run:
            print(f"heedful {shlex.join(arguments)}")
        elif not is_finished(setting, size, rates):
            # Not `python -m heedful`: results record the command by the name it was started with.
            code = subprocess.call([Path(sys.executable).with_name("heedful"), *arguments], cwd=ROOT)
            if code != 0:
                return code
        folder = ROOT / "runs" / setting.name(size)
        if not (folder / "result.json").exists():
            continue
        result = load_result(folder)
        if number == 0 and size.choose_once:
            rates = chosen_rates(result)
        if not options.dry_run:
            write_json_atomically(ROOT / "results" / f"{setting.name(size)}.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
