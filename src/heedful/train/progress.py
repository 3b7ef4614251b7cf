"""How a run shows itself: a live bar on a terminal, plain lines everywhere else."""

from __future__ import annotations

import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

# The first steps of a process fill caches and compile; they say nothing about those to come.
UNTIMED_STEPS = 3

# So many of the latest steps tell how long one takes: enough to hold evaluations, few enough to look at often.
TIMED_STEPS = 10_000

# A step that took so many times the median one was held up by an evaluation, a checkpoint or a wait for the device.
PAUSE_FACTOR = 3.0


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


class SilentReporter:
    """Says nothing: for all but the first of several processes."""

    def start(self, step: int, steps: int) -> None:
        pass

    def advance(self, step: int) -> None:
        pass

    def training(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def message(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class LineReporter:
    """Writes lines through `write`: every message, and training lines at most once in `pause_seconds`.

    A training line ends with the estimated time to the end of the run, evaluations and checkpoints included, as soon
    as this process has done a few steps.
    """

    def __init__(self, write: Callable[[str], object] | None = None, pause_seconds: float = 5.0) -> None:
        self._write = write or (lambda line: print(line, file=sys.stderr, flush=True))
        self._pause_seconds = pause_seconds
        self._quiet_until = 0.0
        self._steps = 0
        self._timed_from = 0
        self._moment = 0.0
        self._durations: deque[float] = deque(maxlen=TIMED_STEPS)

    def start(self, step: int, steps: int) -> None:
        self._steps = steps
        self._timed_from = step + UNTIMED_STEPS
        self._durations.clear()

    def advance(self, step: int) -> None:
        moment = time.monotonic()
        if step > self._timed_from:
            self._durations.append(moment - self._moment)  # with what came between the two steps
        self._moment = moment

    def training(self, step: int, metrics: Mapping[str, float]) -> None:
        if time.monotonic() < self._quiet_until:
            return
        self._quiet_until = time.monotonic() + self._pause_seconds
        each = seconds_per_step(self._durations)
        left = "" if each is None else f"  ETA {format_duration(each * (self._steps - step))}"
        self._write(f"step {step}/{self._steps}  {_shown(metrics, 'train/loss', 'lr', 'tokens_per_second')}{left}")

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
            speed_estimate_period=3600,  # long steps and the pauses between them need more than rich's half a minute
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


def seconds_per_step(durations: Sequence[float]) -> float | None:
    """Return what a step takes in the long run, from the times between the ends of steps; None without any.

    That is the median, and the share of every step in the pauses (evaluations, checkpoints): times above three medians,
    less the median. Single steps that were a little slow or fast move it little, pauses count in full.
    """
    if not durations:
        return None
    median = statistics.median(durations)
    pauses = sum(duration - median for duration in durations if duration > PAUSE_FACTOR * median)
    return median + pauses / len(durations)


def format_duration(seconds: float) -> str:
    """Return a duration in its two largest units: `45 s`, `12 min 5 s`, `3 h 20 min`, `2 d 4 h`."""
    whole = round(seconds)
    for size, unit, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller_size} {smaller}"
    return f"{whole} s"


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
