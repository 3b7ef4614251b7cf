"""`heedful runs`: every run in a folder and where it stands."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from heedful.train.run_state import RunState

STYLES = {
    "running": "green",
    "finished": "",
    "interrupted": "cyan",
    "stopped": "yellow",
    "diverged": "red",
    "damaged": "red",
    "not started": "dim",
}


@dataclass(frozen=True)
class Runs:
    """List runs with their state, those inside comparisons too.

    A run is running (with an estimate of the time left), finished, interrupted by a signal with everything saved,
    stopped (its process was killed or failed), diverged, not started, or damaged.
    """

    folder: Annotated[Path, tyro.conf.Positional] = Path("runs")
    """Where to look for runs."""

    json: bool = False
    """Print JSON."""

    def run(self, overrides: dict[str, Any]) -> None:
        """Print."""
        from heedful.cli.overrides import refuse_overrides
        from heedful.train.run_state import find_runs, run_state

        refuse_overrides(overrides, "runs")
        if not self.folder.is_dir():
            raise ValueError(f"there is no folder {str(self.folder)!r}; give the one that your runs are in.")
        states = [run_state(place) for place in find_runs(self.folder)]
        if self.json:
            print(json.dumps([_mapping(state) for state in states], indent=2))
        elif not states:
            print(f"There are no runs in {self.folder}.")
        else:
            self._print_table(states)

    def _print_table(self, states: list[RunState]) -> None:
        from rich.console import Console
        from rich.table import Table

        console = Console(highlight=False)
        if not console.is_terminal:  # in a pipe or a file a line may be as long as it needs
            console.width = 240
        table = Table(box=None, pad_edge=False)
        for name in ("run", "state"):
            table.add_column(name, overflow="fold")
        for name in ("step", "ETA", "train", "val", "best", "tokens/s"):
            table.add_column(name, justify="right", no_wrap=True)
        for name in ("mechanism", "changed"):
            table.add_column(name, overflow="fold")
        for state in states:
            table.add_row(*(_cell(text) for text in _row(state, self.folder)), style=STYLES[state.state])
        console.print(table)
        for state in states:
            if state.state == "damaged":
                console.print(f"{state.folder}: {state.reason}", style="red", markup=False, soft_wrap=True)


def _row(state: RunState, root: Path) -> list[str]:
    from heedful.study.wording import count
    from heedful.train.progress import format_duration

    name = state.folder.relative_to(root).as_posix()
    left = "" if state.seconds_left is None else format_duration(state.seconds_left)
    return [
        root.name if name == "." else name,
        state.state,
        "" if state.steps is None else f"{state.step}/{state.steps}",
        left,
        *("" if loss is None else f"{loss:.4f}" for loss in (state.train_loss, state.val_loss, state.best_loss)),
        "" if state.tokens_per_second is None else count(state.tokens_per_second),
        _mechanism(state),
        _age(state.changed),
    ]


def _cell(text: str) -> Any:
    from rich.text import Text

    return Text(text)  # a folder may be called what would be markup


def _mechanism(state: RunState) -> str:
    """Return the arm, and what its attention is where the name does not say that."""
    from heedful.study.run_facts import arm_of, mechanism_of
    from heedful.train.run_folder import read_json

    if state.steps is None:
        return ""
    arm, mechanism = arm_of(state.folder), mechanism_of(read_json(state.folder / "config.json"))
    return mechanism if arm is None or arm == mechanism else f"{arm}: {mechanism}"


def _age(changed: str | None) -> str:
    from datetime import UTC, datetime

    from heedful.train.progress import format_duration

    if changed is None:
        return ""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(changed)).total_seconds()
    return f"{format_duration(max(seconds, 0.0))} ago"


def _mapping(state: RunState) -> dict[str, Any]:
    from heedful.schema import to_mapping

    return {**to_mapping(state), "folder": str(state.folder), "mechanism": _mechanism(state)}
