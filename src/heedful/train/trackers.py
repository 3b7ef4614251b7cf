"""Where metrics go besides metrics.jsonl: TensorBoard, trackio and Weights & Biases, behind the same three calls.

A tracker is a window on the run and never its record. What goes wrong in one while the training goes on is said once,
and it is left out from then on; metrics.jsonl stays complete.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from heedful.files import write_json_atomically
from heedful.train.config import Tracker

Ending = Literal["finished", "interrupted", "diverged", "failed"]
"""How a process of a run ended; all but the first can be gone on from."""

IDENTITIES = "trackers.json"
"""The file of a run folder that says under which name each tracker knows the run."""


class MetricsTracker(Protocol):
    """Something that shows metrics to people."""

    name: str

    def start(
        self, folder: Path, configuration: Mapping[str, Any], resume_step: int, sent: Sequence[Mapping[str, Any]]
    ) -> None:
        """Begin, or go on with, the run in `folder`.

        Args:
            folder: the run folder.
            configuration: what config.json holds.
            resume_step: the step the run goes on from, 0 at its beginning.
            sent: lines of metrics after that step that an earlier process wrote; they will be written again.
        """
        ...

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of a step, all of them finite."""
        ...

    def finish(self, ending: Ending) -> None:
        """Show what is still on its way and let go."""
        ...


class TensorBoardTracker:
    """Event files in the run's folder `tensorboard`; what a resume writes again replaces what was there."""

    name = "tensorboard"

    def __init__(self) -> None:
        self._board: Any = None

    def start(
        self, folder: Path, configuration: Mapping[str, Any], resume_step: int, sent: Sequence[Mapping[str, Any]]
    ) -> None:
        self._options = {"log_dir": str(folder / "tensorboard"), "purge_step": resume_step + 1}

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._board is None:  # not before there is something to show: the import takes a second
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(**self._options)
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def finish(self, ending: Ending) -> None:
        if self._board is not None:
            self._board.close()


class ExperimentTracker:
    """trackio or Weights & Biases: a module with `init`, `log` and `finish`.

    The name under which the tracker knows the run is kept in the run folder, so a resumed run goes on in the same
    curves. Such a tracker cannot take back a point; a line that it already has is not sent again.
    """

    def __init__(self, name: Tracker, load: Callable[[], Any]) -> None:
        """Set up the tracker `name`; `load` returns its module."""
        self.name: str = name
        self._load = load

    def start(
        self, folder: Path, configuration: Mapping[str, Any], resume_step: int, sent: Sequence[Mapping[str, Any]]
    ) -> None:
        from heedful.train.run_folder import read_json

        file = folder / IDENTITIES
        known = read_json(file) if file.exists() else {}
        identity = known.get(self.name) or uuid.uuid4().hex[:8]
        write_json_atomically(file, {**known, self.name: identity})
        self._sent = {(line["step"], _finite_names(line)) for line in sent}
        options: dict[str, Any] = {
            "project": os.environ.get(f"{self.name.upper()}_PROJECT", "heedful"),
            "config": dict(configuration),
            "resume": "allow",
        }
        if self.name == "wandb":
            # Its files lie in the run folder. It does not capture the terminal, which belongs to the progress bar.
            options |= {"id": identity, "name": _title(folder), "dir": str(folder), "settings": {"console": "off"}}
        else:
            options["name"] = f"{_title(folder)} {identity}"  # trackio finds a run again by its name
        with _talking_on_stderr():
            self._module = self._load()
            self._module.init(**options)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        if (step, frozenset(metrics)) not in self._sent:
            self._module.log(dict(metrics), step=step)

    def finish(self, ending: Ending) -> None:
        failed = ending in ("diverged", "failed")
        with _talking_on_stderr():
            self._module.finish(**({"exit_code": int(failed)} if self.name == "wandb" else {}))


class Trackers:
    """The trackers of a run, kept apart from its fate: what fails in one of them is told to `report` once."""

    def __init__(self, trackers: Sequence[MetricsTracker], report: Callable[[str], object]) -> None:
        self._trackers = list(trackers)
        self._report = report

    def start(
        self,
        folder: Path,
        configuration: Mapping[str, Any],
        resume_step: int,
        sent: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Start each of them; see `MetricsTracker.start`.

        Raises:
            ValueError: one cannot start and the run is at its beginning. A run that goes on does so without it.
        """
        for tracker in tuple(self._trackers):
            try:
                tracker.start(folder, configuration, resume_step, sent)
            except Exception as error:
                self._trackers.remove(tracker)
                if resume_step == 0:
                    self.finish("failed")
                    raise ValueError(
                        f"{tracker.name} cannot start: {_said(error)}. Set it up, or leave it out of train.trackers."
                    ) from error
                self._report(f"{tracker.name} cannot start and is left out: {_said(error)}.")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of a step, all of them finite."""
        for tracker in tuple(self._trackers):
            try:
                tracker.write(step, metrics)
            except Exception as error:
                self._trackers.remove(tracker)
                self._report(f"{tracker.name} failed at step {step} and is left out from now on: {_said(error)}.")

    def finish(self, ending: Ending) -> None:
        """End each of them; a second call does nothing."""
        while self._trackers:
            tracker = self._trackers.pop()
            try:
                tracker.finish(ending)
            except Exception as error:
                self._report(f"{tracker.name} could not finish: {_said(error)}.")


def open_trackers(names: Sequence[Tracker] | None, report: Callable[[str], object] | None = None) -> Trackers:
    """Return the trackers of these names, not started yet; nothing is imported.

    Args:
        names: None is TensorBoard where it is installed.
        report: takes a line about a tracker that failed; None writes it to standard error.

    Raises:
        ValueError: one is not installed.
    """
    report = report or (lambda line: print(line, file=sys.stderr, flush=True))
    if names is None:
        names = ("tensorboard",) if importlib.util.find_spec("tensorboard") is not None else ()
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(
                f"train.trackers names {name}, which is not installed: pip install 'heedful[track]', or leave it out."
            )
    return Trackers([_tracker(name) for name in dict.fromkeys(names)], report)


def _tracker(name: Tracker) -> MetricsTracker:
    if name == "tensorboard":
        return TensorBoardTracker()
    return ExperimentTracker(name, lambda: importlib.import_module(name))


def _title(folder: Path) -> str:
    """Return what a run is called among others: its folder's name, in a comparison arm, learning rate and seed."""
    place = folder.resolve()
    in_comparison = place.parts[-4:-3] == ("runs",)
    return " ".join(place.parts[-3:]) if in_comparison else place.name


def _finite_names(line: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(name for name, value in line.items() if name != "step" and value is not None)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(".")


def _talking_on_stderr() -> contextlib.AbstractContextManager[Any]:
    """Standard output belongs to results; trackers greet there."""
    return contextlib.redirect_stdout(sys.stderr)
