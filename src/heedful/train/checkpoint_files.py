"""Checkpoints on disk: complete or absent, found by their pointers, checked before they are used.

    checkpoints/step-00000500/   config.json, model.safetensors   the model, as `model.save` writes it
                                 state/shard-....safetensors      a distributed checkpoint, one file from each process:
                                                                  weights, optimiser, average, random states
                                 training.safetensors             durations of the steps
                                 training.json                    everything else, and the SHA-256 of the other files
                                 training.json.sha256             that of training.json
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

from heedful.files import file_sha256, write_json_atomically, write_text_atomically
from heedful.train.run_folder import read_json

FORMAT = 2
STATE = "state"
TRAINING = "training.json"
TRAINING_HASH = "training.json.sha256"


def new_folder(checkpoints: Path, step: int) -> Path:
    """Return a name for the checkpoint of a step that no folder has.

    A folder that a pointer names is never touched: what is written again (an evaluation came later, or a resumed run
    took another way) gets a new name.
    """
    names = (f"step-{step:08d}{f'.{again}' if again else ''}" for again in itertools.count())
    return next(checkpoints / name for name in names if not (checkpoints / name).exists())


def files_of(folder: Path) -> list[str]:
    """Return the names of the files in a folder, in their order, relative to it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def hash_files(folder: Path, names: list[str]) -> dict[str, str]:
    """Return the SHA-256 of some files of a folder by name."""
    return {name: file_sha256(folder / name) for name in names}


def write_training(folder: Path, training: dict[str, Any]) -> None:
    """Write the last files of a checkpoint."""
    write_json_atomically(folder / TRAINING, training)
    write_text_atomically(folder / TRAINING_HASH, file_sha256(folder / TRAINING) + "\n")


def point_to(checkpoints: Path, folder: Path, step: int, *, is_best: bool) -> None:
    """Make a complete folder the last checkpoint and, if it is, the best one."""
    pointer = {"folder": folder.name, "step": step, "sha256": file_sha256(folder / TRAINING)}
    if is_best:
        write_json_atomically(checkpoints / "best.json", pointer)
    write_json_atomically(checkpoints / "last.json", pointer)


def rewind(checkpoints: Path, folder: Path, step: int, best_step: int | None) -> None:
    """Make an earlier checkpoint the last one again, and the best one that which was the best then, if it is there."""
    bests = [] if best_step is None else sorted(checkpoints.glob(f"step-{best_step:08d}*"))
    if bests:
        assert best_step is not None
        point_to(checkpoints, bests[-1], best_step, is_best=True)
    else:
        (checkpoints / "best.json").unlink(missing_ok=True)
    point_to(checkpoints, folder, step, is_best=False)


def points_to_something(checkpoints: Path, name: str) -> bool:
    """Return whether there is a last.json or best.json."""
    return (checkpoints / f"{name}.json").exists()


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


def open_checkpoint(checkpoints: Path, name: str) -> tuple[Path, dict[str, Any]]:
    """Return the folder that last.json or best.json points to, and its training.json, which is checked.

    The other files are checked by `check_files`.

    Raises:
        ValueError: something is missing, damaged or of another format; the message says what else could be used.
    """
    pointer = read_pointer(checkpoints, name)
    folder = checkpoints / Path(str(pointer["folder"])).name
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
    if not (folder / TRAINING_HASH).is_file():
        raise ValueError(f"{folder / TRAINING_HASH} is missing; nothing vouches for the checkpoint.")
    _require_hash(
        folder / TRAINING, (folder / TRAINING_HASH).read_text(encoding="utf-8").strip(), folder / TRAINING_HASH
    )
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


def remove_unused(checkpoints: Path, keep_last: int | None) -> None:
    """Remove what a crash left half-written and, unless `keep_last` is None, what is neither pointed to nor one of so
    many newest checkpoints.
    """
    for leftover in checkpoints.glob(".step-*"):
        shutil.rmtree(leftover)
    if keep_last is None:
        return
    used = {
        read_pointer(checkpoints, name)["folder"] for name in ("best", "last") if points_to_something(checkpoints, name)
    }
    complete = sorted(checkpoints.glob("step-*"), key=lambda path: path.stat().st_mtime_ns)
    for folder in complete[: max(0, len(complete) - keep_last)]:
        if folder.name not in used:  # hidden first: a crash halfway leaves nothing that looks like a checkpoint
            hidden = checkpoints / f".{folder.name}.removed"
            os.replace(folder, hidden)
            shutil.rmtree(hidden)


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
    pointer = source.suffix == ".json" and source.name != TRAINING
    checkpoints = source.parent if pointer else source.parent.parent
    damaged = read_pointer(checkpoints, source.stem)["folder"] if pointer else source.parent.name
    others = sorted(path.name for path in checkpoints.glob("step-*") if path.name != damaged and path.is_dir())
    if not others:
        return ""
    return f" Or go on from another checkpoint with --checkpoint NAME (checkpoint=...): there are {', '.join(others)}."
