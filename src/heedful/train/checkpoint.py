"""Checkpoints: complete or absent, checked before they are used, and exact.

    checkpoints/step-00000500/   config.json, model.safetensors   the model, as `model.save` writes it
                                 training.safetensors             optimiser, random states, step durations
                                 training.json                    everything else, and the SHA-256 of the other files
    checkpoints/last.json        which folder a resumed run starts from, and the SHA-256 of its training.json
    checkpoints/best.json        which folder holds the weights with the lowest "val/loss"

A folder is renamed into place when it is complete, and the pointers are replaced after that, best before last, so a
crash at any moment leaves a run that can be resumed. Reading checks the hashes, the run, and every name and shape
before the first weight is changed.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from heedful.files import atomic_folder, file_sha256, write_json_atomically
from heedful.schema import from_mapping, to_mapping
from heedful.train.optimisation import load_optimizer_tensors, optimizer_tensors
from heedful.train.run_folder import read_json, require_same_run
from heedful.train.state import TrainingState

if TYPE_CHECKING:
    from heedful.models import DecoderLM

FORMAT = 1


def save_checkpoint(
    checkpoints: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: TrainingState,
    description: dict[str, Any],
    *,
    is_best: bool,
    keep_all: bool,
) -> Path:
    """Write the checkpoint of `state.step`, point last.json (and best.json) to it, remove what nothing points to."""
    # A folder that a pointer names is never touched: what is written again (an evaluation came later) gets a new name.
    names = (f"step-{state.step:08d}{f'.{again}' if again else ''}" for again in itertools.count())
    folder = next(checkpoints / name for name in names if not (checkpoints / name).exists())
    with atomic_folder(folder) as temporary:
        save_model: Any = model.save
        save_model(temporary)
        tensors = {f"optimizer/{name}": tensor for name, tensor in optimizer_tensors(model, optimizer).items()}
        tensors |= {f"random/{name}": tensor for name, tensor in _random_states(model).items()}
        tensors["step_seconds"] = torch.tensor(state.step_seconds, dtype=torch.float64)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary / "training.safetensors")
        training = {
            "format": FORMAT,
            "state": to_mapping(dataclasses.replace(state, step_seconds=())),
            "run": description,
            "sha256": {file.name: file_sha256(file) for file in sorted(temporary.iterdir())},
        }
        write_json_atomically(temporary / "training.json", training)
    pointer = {"folder": folder.name, "step": state.step, "sha256": file_sha256(folder / "training.json")}
    if is_best:
        write_json_atomically(checkpoints / "best.json", pointer)
    write_json_atomically(checkpoints / "last.json", pointer)
    if not keep_all:
        _remove_unused(checkpoints)
    return folder


def load_checkpoint(
    checkpoints: Path, model: nn.Module, optimizer: torch.optim.Optimizer, description: dict[str, Any]
) -> TrainingState | None:
    """Bring model, optimiser and random states to the last checkpoint and return its state, None when there is none.

    Raises:
        ValueError: the checkpoint is damaged, belongs to another run, or does not fit the model; the message names the
            file and what differs. Model, optimiser and files are as before.
    """
    if not (checkpoints / "last.json").exists():
        return None
    if (checkpoints / "best.json").exists():
        _open(checkpoints, "best")  # found damaged now rather than when the run is over
    folder, training = _open(checkpoints, "last")
    training_file = folder / "training.json"
    require_same_run(training.get("run"), description, training_file)
    state = from_mapping(TrainingState, training.get("state", {}), f"{training_file}: state")
    tensors = _load_tensors(folder / "training.safetensors")
    moments = {
        name.removeprefix("optimizer/"): tensor for name, tensor in tensors.items() if name.startswith("optimizer/")
    }
    weights = _matching_weights(folder / "model.safetensors", model)
    try:
        load_optimizer_tensors(model, optimizer, moments)
    except ValueError as error:
        raise ValueError(f"{folder / 'training.safetensors'} does not fit the model: {error}") from None
    model.load_state_dict(weights, strict=False)  # strict was `_matching_weights`, which knows tied parameters
    _restore_random_states(model, tensors)
    state.step_seconds = tuple(tensors["step_seconds"].tolist())
    return state


def best_folder(folder: str | Path) -> Path:
    """Return the checkpoint folder with the lowest "val/loss" of the run in `folder`, its hashes checked.

    Raises:
        ValueError: there is no checkpoint, or it is damaged.
    """
    return _open(Path(folder) / "checkpoints", "best")[0]


def load_best(folder: str | Path, device: str | torch.device = "cpu") -> DecoderLM:
    """Return the model with the lowest "val/loss" of the run in `folder` (the newest when nothing was evaluated).

    Raises:
        ValueError: there is no checkpoint, or it is damaged.
    """
    from heedful.models import load_decoder

    return load_decoder(best_folder(folder), device=device)


def _open(checkpoints: Path, pointer_name: str) -> tuple[Path, dict[str, Any]]:
    pointer_file = checkpoints / f"{pointer_name}.json"
    pointer = read_json(pointer_file)
    if not isinstance(pointer, dict) or not {"folder", "sha256"} <= pointer.keys():
        raise ValueError(f"{pointer_file} is damaged: it names no checkpoint folder.")
    folder = checkpoints / Path(str(pointer["folder"])).name
    moved_aside = checkpoints / f".{folder.name}.old"
    if moved_aside.is_dir() and not folder.exists():  # a crash while `atomic_folder` exchanged the two
        os.replace(moved_aside, folder)
    _require_hash(folder / "training.json", pointer["sha256"], pointer_file)
    training = read_json(folder / "training.json")
    if not isinstance(training, dict) or training.get("format") != FORMAT:
        raise ValueError(
            f"{folder / 'training.json'} is not a checkpoint of format {FORMAT}, the one this version reads."
        )
    for name, expected in training["sha256"].items():
        _require_hash(folder / name, expected, folder / "training.json")
    return folder, training


def _require_hash(file: Path, expected: str, source: Path) -> None:
    if not file.is_file():
        raise ValueError(f"{file} is missing, although {source} names it; the checkpoint is incomplete.")
    found = file_sha256(file)
    if found != expected:
        raise ValueError(
            f"{file} is damaged: its SHA-256 begins {found[:12]} and {source} says {str(expected)[:12]}. "
            "Put back the file from a copy, or start again in another folder."
        )


def _load_tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} cannot be read: {error}.") from None


def _matching_weights(file: Path, model: nn.Module) -> dict[str, Tensor]:
    weights, own = _load_tensors(file), model.state_dict()
    stored = {own[name].data_ptr() for name in weights if name in own}
    problems = [f"{name} is not in the model" for name in weights if name not in own]
    problems += [
        f"{name} is missing" for name, tensor in own.items() if name not in weights and tensor.data_ptr() not in stored
    ]  # a tied parameter is stored under one of its names
    problems += [
        f"{name} is {tuple(weights[name].shape)} there and {tuple(own[name].shape)} here"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise ValueError(f"{file} does not fit the model: {shown}.")
    return weights


def _random_states(model: nn.Module) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    device = next(model.parameters()).device
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _restore_random_states(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    torch.set_rng_state(tensors["random/cpu"])
    device = next(model.parameters()).device
    if device.type == "cuda" and "random/cuda" in tensors:  # a run that moved from the CPU has none
        torch.cuda.set_rng_state(tensors["random/cuda"], device)


def _remove_unused(checkpoints: Path) -> None:
    used = {read_json(file)["folder"] for file in checkpoints.glob("*.json")}
    for folder in [*checkpoints.glob("step-*"), *checkpoints.glob(".step-*")]:  # the hidden ones are left by a crash
        if folder.name not in used:
            shutil.rmtree(folder)
