"""Faults that must be made inside of the process: a loss that is not a number, and many starts in one process.

python -m benchmarks.fault_worker nan STEP RANK MARKER train ...    the batch after STEP steps gives NaN in process
                                                                    RANK; only once, if MARKER is a file to be made
python -m benchmarks.fault_worker many FILE                         runs the lists of arguments in a JSON file and
                                                                    writes exit statuses and messages beside it
"""

from __future__ import annotations

import io
import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from torch import Tensor

from heedful.cli import _run, main
from heedful.data import LanguageModelBatches
from heedful.train.loss import TrainingLoss
from heedful.train.processes import environment_rank


def poison(step: int, rank: int, marker: str) -> None:
    """Make the loss of one step NaN."""
    batch, forward, current = LanguageModelBatches.batch, TrainingLoss.forward, [0]

    def watched(self: LanguageModelBatches, step: int, rows: range | None = None) -> Any:
        current[0] = step
        return batch(self, step, rows)

    def poisoned(self: TrainingLoss, tokens: Tensor, targets: Tensor, document_ids: Tensor | None) -> Any:
        objective, cross_entropy = forward(self, tokens, targets, document_ids)
        if current[0] != step or environment_rank() != rank or (marker and Path(marker).exists()):
            return objective, cross_entropy
        if marker:
            Path(marker).touch()
        return objective * float("nan"), cross_entropy * float("nan")

    LanguageModelBatches.batch, TrainingLoss.forward = watched, poisoned


def many(file: Path) -> None:
    """Run jobs one after the other, as several starts would, without the time these take."""
    rank = environment_rank()
    found = []
    for arguments in json.loads(file.read_text()):
        said = io.StringIO()
        with redirect_stderr(said), redirect_stdout(io.StringIO()):
            status = _run(arguments)
        found.append({"status": status, "said": said.getvalue()})
    file.with_suffix(f".{rank}.json").write_text(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    if sys.argv[1] == "many":
        many(Path(sys.argv[2]))
    poison(int(sys.argv[2]), int(sys.argv[3]), "" if sys.argv[4] == "-" else sys.argv[4])
    sys.exit(main(sys.argv[5:]))
