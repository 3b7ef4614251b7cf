"""Where metrics go: metrics.jsonl always, TensorBoard where it is installed.

A line of metrics.jsonl is `{"step": 200, "train/loss": ..., "lr": ...}`: training lines hold means over the steps since
the line before, evaluation lines what the evaluation returned. A value that is not finite is null. Every step occurs
once, also after a resume: lines beyond the checkpoint it starts from are dropped, they will be written again.
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from heedful.files import write_text_atomically


class MetricsWriter:
    """Appends metrics to a run folder after the steps it went on from: `last_step`, evaluated up to `last_evaluation`.

    A context manager.

    Raises:
        ValueError: the folder's metrics.jsonl has a line that is not JSON, other than a half-written last one.
    """

    def __init__(self, folder: Path, last_step: int, last_evaluation: int) -> None:
        self._folder = folder
        self._last_step = last_step
        self._wants_board = importlib.util.find_spec("tensorboard") is not None
        self._board: Any = None
        path = folder / "metrics.jsonl"
        kept = [
            line
            for line in _lines(path)
            if line["step"] <= last_step and ("train/loss" in line or line["step"] <= last_evaluation)
        ]
        write_text_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one line, and one TensorBoard point for each finite value."""
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()
        if not self._wants_board:
            return
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self._folder / "tensorboard"), purge_step=self._last_step + 1)
        for name, value in finite.items():
            if value is not None:
                self._board.add_scalar(name, value, step)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl, oldest first; empty when there is none.

    Raises:
        ValueError: a line is not JSON, other than a half-written last one.
    """
    return _lines(Path(folder) / "metrics.jsonl")


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    texts = path.read_text(encoding="utf-8").splitlines()
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
