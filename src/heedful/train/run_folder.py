"""The folder of a run: what it says the run is, and whether a run may start or go on in it.

config.json        what is trained: training configuration, model configuration, data
environment.json   where and with what, one entry for each time it was started
source.diff        how the source differed from its commit, where it did
metrics.jsonl      one line per log interval, probe and evaluation
checkpoints/       step-00000500/ ..., last.json and best.json pointing to two of them
result.json        how it ended
tensorboard/       the same metrics, where TensorBoard is installed; trackers.json, what other trackers call the run
.lock              held by the process that trains
"""

from __future__ import annotations

import json
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heedful.files import write_json_atomically
from heedful.schema import to_mapping
from heedful.train.environment import record_process

if TYPE_CHECKING:
    import torch
    from torch import nn

    from heedful.data.batches import TrainingData
    from heedful.train.config import TrainConfig
    from heedful.train.processes import Processes

# More would bury the reason; another mechanism differs in dozens of fields.
SHOWN_DIFFERENCES = 8

# These change how a run is watched, spread and kept, not what is computed beyond rounding.
MAY_CHANGE_ON_RESUME = (
    "train.device",
    "train.accumulation",
    "train.parallel",
    "train.compile",
    "train.log_every",
    "train.probe_every",
    "train.checkpoint_every",
    "train.keep",
    "train.keep_last",
    "train.asynchronous_checkpoints",
    "train.trackers",
    "train.loss.chunk_tokens",
)


def describe_run(model: nn.Module, data: TrainingData, config: TrainConfig) -> dict[str, Any]:
    """Return what config.json holds: equal descriptions, and only these, are the same run."""
    model_config = getattr(model, "config", None)
    description = {
        "train": to_mapping(config),
        "model": to_mapping(model_config) if is_dataclass(model_config) else None,
        "data": {"fingerprint": data.fingerprint, "tokens_per_batch": data.tokens_per_batch},
    }
    return json.loads(json.dumps(description))  # as it will be read back, tuples as lists


def require_same_run(found: Any, expected: dict[str, Any], where: Path) -> None:
    """Compare the description read from `where` with the one of the run that is to go on.

    Raises:
        ValueError: they differ; the fields that do are named with both values.
    """
    differences = _differences(found, expected, may_differ=MAY_CHANGE_ON_RESUME)
    if differences:
        raise ValueError(
            f"{where} belongs to another run: {differences}. Resume with the same settings or use another folder."
        )


def require_same_everywhere(processes: Processes, description: dict[str, Any]) -> None:
    """Refuse processes that were not given the same: they would train on different data, or wait for each other.

    Raises:
        ValueError: what differs from the first process, in the process that does.
    """

    def compare() -> None:
        differences = _differences(first, description, may_differ=())
        if differences:
            raise ValueError(
                f"the processes of a run must be given the same: {differences}, the first process being there. Start "
                "them with the same arguments, and the same files on all machines."
            )

    first = processes.from_first(lambda: description)
    processes.together(compare)


def _differences(found: Any, expected: Any, *, may_differ: tuple[str, ...]) -> str:
    """Return which fields differ, with both values, as one text; empty where none does."""
    there, here = _flatten(found), _flatten(expected)
    differences = [
        f"{name} is {there.get(name, 'absent')!r} there and {here.get(name, 'absent')!r} here"
        for name in dict.fromkeys([*there, *here])
        if not any(name == may or name.startswith(f"{may}.") for may in may_differ)
        and there.get(name) != here.get(name)
    ]
    more = len(differences) - SHOWN_DIFFERENCES
    return "; ".join(differences[:SHOWN_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")


def claim_folder(folder: Path, description: dict[str, Any], *, resume: bool) -> None:
    """Check that the run may start in `folder` or, with `resume`, go on there; nothing is written.

    Raises:
        ValueError: the folder is a file, or holds a run and `resume` is off, or holds another run.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; the folder of a run was expected.")
    present = [name for name in ("metrics.jsonl", "checkpoints", "result.json") if _holds_something(folder / name)]
    if not present:  # nothing, or the beginning of a run that failed before it got anywhere
        return
    if not resume:
        raise ValueError(
            f"{folder} already holds a run ({', '.join(present)}). "
            "Pass --resume (resume=True) to go on with it, or use another folder."
        )
    require_same_run(read_json(folder / "config.json"), description, folder / "config.json")


def record_start(
    folder: Path, description: dict[str, Any], device: torch.device, step: int, *, processes: int, strategy: str
) -> None:
    """Write config.json and add this process to environment.json."""
    write_json_atomically(folder / "config.json", description)
    record_process(folder, device, step, processes=processes, strategy=strategy)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: it is missing or is not JSON; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing.") from None
    except ValueError as error:  # bad UTF-8 as well as bad JSON
        raise ValueError(f"{path} is damaged: {error}.") from None


def _holds_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists() and path.stat().st_size > 0


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flatten(item, f"{prefix}.{key}" if prefix else key)
    return flat
