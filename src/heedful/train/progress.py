"""How a run shows itself: a live bar on a terminal, plain lines everywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol


class Reporter(Protocol):
    """What a run tells about itself while it goes on."""

    def start(self, step: int, steps: int) -> None:
        """The run begins after `step` of `steps`."""
        ...

    def advance(self, step: int) -> None:
        """`step` steps are done; called after each, so it must be cheap."""
        ...

    def training(self, step: int, metrics: Mapping[str, float]) -> None:
        """A training line was logged."""
        ...

    def message(self, text: str) -> None:
        """Something worth a line of its own: an evaluation, an interruption, the end."""
        ...

    def close(self) -> None:
        """The run is over, by success or by failure."""
        ...


class LineReporter:
    """Writes lines through `write`: every message, and training lines at most once in `pause_seconds`."""

    def __init__(self, write: Callable[[str], object] | None = None, pause_seconds: float = 5.0) -> None:
        self._write = write or (lambda line: print(line, file=sys.stderr, flush=True))
        self._pause_seconds = pause_seconds
        self._quiet_until = 0.0
        self._steps = 0

    def start(self, step: int, steps: int) -> None:
        self._steps = steps

    def advance(self, step: int) -> None:
        pass

    def training(self, step: int, metrics: Mapping[str, float]) -> None:
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + self._pause_seconds
            self._write(f"step {step}/{self._steps}  {_shown(metrics, 'train/loss', 'lr', 'tokens_per_second')}")

    def message(self, text: str) -> None:
        self._write(text)

    def close(self) -> None:
        pass


class BarReporter:
    """A rich progress bar on stderr with the newest training metrics; messages scroll by above it."""

    def __init__(self, console: Any = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.description}", markup=False),
            console=console or Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task("", total=None)

    def start(self, step: int, steps: int) -> None:
        self._bar.update(self._task, completed=step, total=steps)
        self._bar.start()

    def advance(self, step: int) -> None:
        self._bar.update(self._task, completed=step)

    def training(self, step: int, metrics: Mapping[str, float]) -> None:
        self._bar.update(self._task, description=_shown(metrics, "train/loss", "tokens_per_second"))

    def message(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._bar.stop()


def choose_reporter(report: Reporter | Callable[[str], object] | None) -> Reporter:
    """Return the reporter asked for: itself, lines through a function, or for None what suits stderr."""
    if report is None:
        return BarReporter() if sys.stderr.isatty() else LineReporter()
    return report if not callable(report) else LineReporter(report)


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Return metrics as one readable line, in their order."""
    return "  ".join(f"{name} {_format(value)}" for name, value in metrics.items())


def _shown(metrics: Mapping[str, float], *names: str) -> str:
    """Return the few of the metrics that fit into a line of a terminal."""
    return format_metrics({name: metrics[name] for name in names})


def _format(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}"
    return f"{value:.3g}" if abs(value) < 1e-2 else f"{value:.4f}"
