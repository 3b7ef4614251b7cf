"""Checkpoints on disk: complete or absent, found by their pointers, checked before they are used.

    checkpoints/step-00000500/   config.json, model.safetensors   the model, as `model.save` writes it
                                 state/shard-....safetensors      a distributed checkpoint, one file from each process:
                                                                  weights, optimiser, average, random states
                                 training.safetensors             durations of the steps
                                 training.json                    everything else, and the SHA-256 of the other files
    checkpoints/last.json        which folder a resumed run starts from, and the SHA-256 of its training.json
    checkpoints/best.json        which folder holds the weights with the lowest "val/loss"

A folder is renamed into place when it is complete, and the pointers are replaced after that, best before last, so a
crash at any moment leaves a run that can be resumed.
"""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path
from typing import Any

from heedful.files import file_sha256, write_json_atomically
from heedful.train.run_folder import read_json

FORMAT = 2
STATE = "state"
TRAINING = "training.json"


def new_folder(checkpoints: Path, step: int) -> Path:
    """Return a name for the checkpoint of a step that no folder has.

    A folder that a pointer names is never touched: what is written again (an evaluation came later, or a resumed run
    took another way) gets a new name.
    """
    names = (f"step-{step:08d}{f'.{again}' if again else ''}" for again in itertools.count())
    return next(checkpoints / name for name in names if not (checkpoints / name).exists())


def files_of(folder: Path) -> list[Path]:
    """Return the files of a checkpoint that training.json vouches for, in the order of their names."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != TRAINING)


def point_to(checkpoints: Path, folder: Path, step: int, *, is_best: bool) -> None:
    """Make a complete folder the last checkpoint and, if it is, the best one."""
    pointer = {"folder": folder.name, "step": step, "sha256": file_sha256(folder / TRAINING)}
    if is_best:
        write_json_atomically(checkpoints / "best.json", pointer)
    write_json_atomically(checkpoints / "last.json", pointer)


def read_pointer(checkpoints: Path, name: str) -> dict[str, Any]:
    """Return what last.json or best.json holds.

    Raises:
        ValueError: it is missing or damaged.
    """
    file = checkpoints / f"{name}.json"
    pointer = read_json(file)
    if not isinstance(pointer, dict) or not {"folder", "sha256"} <= pointer.keys():
        raise ValueError(f"{file} is damaged: it names no checkpoint folder.")
    return pointer


def best_step_on_disk(checkpoints: Path) -> int:
    """Return the step of the checkpoint that best.json names, 0 where there is none."""
    return read_pointer(checkpoints, "best").get("step", 0) if _exists(checkpoints, "best") else 0


def open_checkpoint(checkpoints: Path, name: str) -> tuple[Path, dict[str, Any]]:
    """Return the folder that last.json or best.json points to, and its training.json, which is checked.

    The other files are checked by `check_files`.

    Raises:
        ValueError: something is missing, damaged or of another format; the message says what else could be used.
    """
    pointer = read_pointer(checkpoints, name)
    folder = checkpoints / Path(str(pointer["folder"])).name
    moved_aside = checkpoints / f".{folder.name}.old"
    if moved_aside.is_dir() and not folder.exists():  # a crash while `atomic_folder` exchanged the two
        os.replace(moved_aside, folder)
    _require_hash(folder / TRAINING, pointer["sha256"], checkpoints / f"{name}.json")
    return folder, _read_training(folder)


def open_named(checkpoints: Path, name: str) -> tuple[Path, dict[str, Any]]:
    """Return the folder called `name` and its training.json.

    Raises:
        ValueError: there is no such checkpoint, or it is of another format; those there are are listed.
    """
    folder = checkpoints / name
    if Path(name).name != name or not (folder / TRAINING).is_file():
        there = sorted(path.name for path in checkpoints.glob("step-*"))
        raise ValueError(f"{checkpoints} holds no checkpoint {name!r}; there are {', '.join(there) or 'none'}.")
    return folder, _read_training(folder)


def newest_complete(checkpoints: Path) -> str | None:
    """Return the name of the newest checkpoint that is there, whatever points to it; None where there is none.

    For a run whose last.json is missing: the process was killed between its first checkpoint and its first pointer, or
    somebody lost the pointer.
    """
    complete = [path for path in checkpoints.glob("step-*") if (path / TRAINING).is_file()]
    newest = max(complete, key=lambda path: (path / TRAINING).stat().st_mtime_ns, default=None)
    return None if newest is None else newest.name


def _read_training(folder: Path) -> dict[str, Any]:
    training = read_json(folder / TRAINING)
    found = training.get("format") if isinstance(training, dict) else None
    if found != FORMAT:
        raise ValueError(
            f"{folder / TRAINING} is of format {found}, and this version reads format {FORMAT}. Its model.safetensors "
            "can still be loaded; to go on with the training use the version that wrote it."
        )
    return training


def check_files(folder: Path, training: dict[str, Any], part: int = 0, parts: int = 1) -> None:
    """Compare the files of a checkpoint with their hashes; of several processes each takes a part of them.

    Raises:
        ValueError: a file is missing or damaged; the message says what else could be used.
    """
    for name in sorted(training["sha256"])[part::parts]:
        _require_hash(folder / name, training["sha256"][name], folder / TRAINING)


def remove_unused(checkpoints: Path, keep_last: int) -> None:
    """Remove what no pointer names but the newest `keep_last` folders, and what a crash left half-written."""
    used = {read_pointer(checkpoints, name)["folder"] for name in ("best", "last") if _exists(checkpoints, name)}
    complete = sorted((path for path in checkpoints.glob("step-*")), key=lambda path: path.stat().st_mtime_ns)
    kept = used | {path.name for path in complete[-keep_last:]}
    for leftover in checkpoints.glob(".step-*"):
        shutil.rmtree(leftover)
    for folder in complete:
        if folder.name not in kept:  # hidden first: a crash halfway leaves nothing that looks like a checkpoint
            hidden = checkpoints / f".{folder.name}.removed"
            os.replace(folder, hidden)
            shutil.rmtree(hidden)


def _exists(checkpoints: Path, name: str) -> bool:
    return (checkpoints / f"{name}.json").exists()


def _require_hash(file: Path, expected: str, source: Path) -> None:
    if not file.is_file():
        raise ValueError(
            f"{file} is missing, although {source} names it; the checkpoint is incomplete.{_others(source)}"
        )
    found = file_sha256(file)
    if found != expected:
        raise ValueError(
            f"{file} is damaged: its SHA-256 begins {found[:12]} and {source} says {str(expected)[:12]}. "
            f"Put back the file from a copy, or start again in another folder.{_others(source)}"
        )


def _others(source: Path) -> str:
    """Say which other checkpoints are there and how to go on from one of them."""
    checkpoints = source.parent if source.name != TRAINING else source.parent.parent
    damaged = source.parent.name if source.name == TRAINING else read_pointer(checkpoints, source.stem)["folder"]
    others = sorted(path.name for path in checkpoints.glob("step-*") if path.name != damaged and path.is_dir())
    if not others:
        return ""
    return f" Or go on from another checkpoint with --checkpoint NAME (checkpoint=...): there are {', '.join(others)}."
