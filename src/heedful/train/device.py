"""Where a run computes and how precisely: an explicit request is obeyed or refused with the reason, never replaced."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from heedful.train.config import Precision


def resolve_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is CUDA when there is one, else the CPU.

    "auto" and "cuda" are the GPU that LOCAL_RANK names where torchrun started several processes on this machine.

    Raises:
        ValueError: an unknown device, or one this machine or this build of torch does not have.
    """
    if name == "auto":
        return resolve_device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}.") from None
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise ValueError(f"heedful trains on cpu and cuda, got device {name!r}.")
    if not torch.cuda.is_available():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
        raise ValueError(
            f"device {name!r} is not available: torch {torch.__version__} ({build}) finds no GPU. Use cpu or auto."
        )
    index = device.index
    if index is None:
        several = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1
        index = int(os.environ["LOCAL_RANK"]) if several else torch.cuda.current_device()
    if index >= torch.cuda.device_count():
        raise ValueError(
            f"device {name!r} does not exist; this machine has {torch.cuda.device_count()} GPU(s), counted from 0."
        )
    return torch.device("cuda", index)


def require_precision(precision: Precision, device: torch.device) -> None:
    """Refuse bfloat16 where the device would only emulate it.

    Raises:
        ValueError: `device` has no bfloat16 arithmetic.
    """
    if precision == "float32":
        return
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
        what = f"{torch.cuda.get_device_name(device)} (it needs compute capability 8.0)"
    else:
        supported = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        what = "this CPU (it needs AVX-512 and a torch build with oneDNN)"
    if not supported:
        raise ValueError(f"precision bfloat16 is not available on {what}. Use precision float32.")


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Return the context of a forward pass: bfloat16 autocast over float32 weights, or nothing for "float32"."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


@contextmanager
def computing_on(device: torch.device) -> Iterator[None]:
    """Make `device` the current one, and its float32 arithmetic float32.

    By default cuDNN rounds the inputs of float32 convolutions to TensorFloat-32. The multi-token mechanism is a
    convolution, so it alone would compute less precisely than it says.
    """
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    exact = cudnn.flags(enabled=True, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False)
    with torch.cuda.device(device), exact:
        yield


@contextmanager
def forked_random_state(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators of the CPU and of `device`; afterwards they are as they were, and no others are touched."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seed_random_states(seed, device)
        yield


def seed_random_states(seed: int, device: torch.device) -> None:
    """Seed the generators of the CPU and of `device`, and no others."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)
