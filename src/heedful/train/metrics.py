"""Where metrics go: metrics.jsonl always, and the trackers beside it.

A line of metrics.jsonl is `{"step": 200, "train/loss": ..., "lr": ...}`: training lines hold means over the steps since
the line before, evaluation lines what the evaluation returned, lines of "probe/..." what a look into the model showed.
A value that is not finite is null. Every step occurs once in each kind, also after a resume: lines beyond the
checkpoint it starts from are dropped, they will be written again.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from heedful.files import write_text_atomically
from heedful.train.state import DivergenceError
from heedful.train.trackers import Ending, Trackers, open_trackers


class MetricsWriter:
    """Appends metrics to a run folder after the steps it went on from: `last_step`, evaluated up to `last_evaluation`.

    A context manager.

    Attributes:
        ending: what the trackers are told at the end when no error says otherwise; set it to "interrupted" when a
            signal ended the run.
    """

    def __init__(
        self,
        folder: Path,
        last_step: int,
        last_evaluation: int,
        *,
        trackers: Trackers | None = None,
        run: Mapping[str, Any] | None = None,
    ) -> None:
        """Drop the lines that will be written again, and start the trackers unless the run is over.

        Args:
            folder: the run folder.
            last_step: the step of the checkpoint that the run goes on from, 0 without one.
            last_evaluation: the last step whose evaluation that checkpoint knows.
            trackers: from `open_trackers`; None is TensorBoard where it is installed.
            run: what config.json holds.

        Raises:
            ValueError: the folder's metrics.jsonl has a line that is not JSON, other than a half-written last one, or
                a tracker cannot start.
        """
        self.ending: Ending = "finished"
        self._trackers = open_trackers(None) if trackers is None else trackers
        self._path = path = folder / "metrics.jsonl"
        kept, dropped = [], []
        for line in _lines(path):
            is_training = "train/loss" in line or any(name.startswith("probe/") for name in line)
            stays = line["step"] <= (last_step if is_training else min(last_step, last_evaluation))
            (kept if stays else dropped).append(line)
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_text_atomically(path, text)
        if run is None or last_step < run["train"]["steps"]:
            self._trackers.start(folder, run or {}, last_step, dropped)
        self._size = len(text)
        # Without a buffer of Python's, a line that failed is not tried again behind our back.
        self._file = path.open("ab", buffering=0)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one line, and show the finite values to the trackers.

        Raises:
            OSError: the line cannot be written, as on a full disk; the file is as before.
        """
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        line = json.dumps({"step": step, **{name: finite.get(name) for name in metrics}}) + "\n"
        self._append(line.encode("ascii"))
        self._trackers.write(step, finite)

    def sync(self) -> None:
        """Make what was written survive a power cut, as the checkpoint that follows it does."""
        os.fsync(self._file.fileno())

    def _append(self, data: bytes) -> None:
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):  # a half-written last line is also understood
                self._file.truncate(self._size)
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        self._size += len(data)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if isinstance(error, DivergenceError):
            self.ending = "diverged"
        elif error is not None:
            self.ending = "failed"
        self._trackers.finish(self.ending)


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl, oldest first; empty when there is none.

    Raises:
        ValueError: a line is not JSON, other than a half-written last one.
    """
    return _lines(Path(folder) / "metrics.jsonl")


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = [_parse(text) for text in texts]
    if lines and lines[-1] is None:
        lines.pop()  # the process was killed while it wrote this line
    if None in lines:
        number = lines.index(None)
        raise ValueError(f"{path}:{number + 1} is damaged: {texts[number][:60]!r} is no line of metrics.")
    return [line for line in lines if line is not None]


def _parse(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None
