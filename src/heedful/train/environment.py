"""What a result was computed with: versions, machine, source commit. Enough to repeat a run, nothing personal."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from heedful.files import write_bytes_atomically, write_json_atomically

PACKAGES = (
    "heedful", "torch", "numpy", "scipy", "safetensors", "tokenizers", "triton", "tensorboard", "trackio", "wandb"
)  # fmt: skip

# Whatever the user's settings, a diff that `git apply` takes.
_DIFF = (
    "-c",
    "diff.noprefix=false",
    "-c",
    "diff.mnemonicPrefix=false",
    "diff",
    "--binary",
    "--no-color",
    "--no-ext-diff",
)

LARGEST_DIFF_BYTES = 1 << 20
"""A larger diff is not kept: cut off it could not be applied. Its size and hash are."""


def describe_environment(device: torch.device | str | None = None) -> dict[str, Any]:
    """Return a JSON-able description of this process, its machine, and the device it computes on.

    Missing packages, a missing GPU and source that is not in a git checkout are None.
    """
    device = torch.device("cpu" if device is None else device)
    gpu = device.type == "cuda"
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if gpu else None,
        "gpu_memory_bytes": torch.cuda.get_device_properties(device).total_memory if gpu else None,
        "cuda": torch.version.cuda,
        "cpu": cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "source": git_state(Path(__file__)),
    }


def record_process(
    folder: Path, device: torch.device | str, step: int, *, processes: int = 1, strategy: str = "single"
) -> None:
    """Write down a process that starts to train, or goes on with, the run in `folder`.

    environment.json holds the first one, and under "resumed" the others with the step each went on from. What its
    source differs from its commit in is in source.diff (source-2.diff, ... for others that differ). The result of an
    earlier process is removed: the run is not over.

    Args:
        folder: the run folder.
        device: what the first process computes on.
        step: the step the run goes on from, 0 at its beginning.
        processes: how many train together.
        strategy: how the run is spread over them.

    Raises:
        ValueError: environment.json is damaged.
        OSError: something cannot be written.
    """
    from heedful.train.run_folder import read_json  # which imports this file

    file = folder / "environment.json"
    environment = {**describe_environment(device), "processes": processes, "strategy": strategy}
    first = read_json(file) if step > 0 and file.exists() else None
    if not isinstance(first, dict | None):
        raise ValueError(f"{file} is damaged: it holds no environment.")
    if environment["source"] is not None:
        earlier = [] if first is None else [first, *first.get("resumed", [])]
        environment["source"]["diff"] = _keep_diff(folder, earlier)
    if first is not None:
        environment = {**first, "resumed": [*first.get("resumed", []), {"from_step": step, **environment}]}
    write_json_atomically(file, environment)
    (folder / "result.json").unlink(missing_ok=True)


def source_diff(file: Path) -> bytes | None:
    """Return what the package that holds `file` differs from its checkout's commit in, as `git apply` takes it.

    That is everything tracked in the checkout, and the untracked files of the package, which would run as well. Empty
    when there is no difference, None outside a checkout.
    """
    root = _git(file.parent, "rev-parse", "--show-toplevel")
    if root is None or git_state(file) is None:
        return None
    diff = _git_bytes(Path(root), *_DIFF, "HEAD")
    untracked = _git_bytes(file.parent, "ls-files", "--others", "--exclude-standard", "--full-name", "-z")
    if diff is None or untracked is None:
        return None
    for name in sorted(untracked.decode(errors="surrogateescape").split("\0")):
        if name:
            diff += _git_bytes(Path(root), *_DIFF, "--no-index", "--", os.devnull, name, statuses=(0, 1)) or b""
    return diff


def _keep_diff(folder: Path, earlier: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Keep this source's diff beside environment.json, once for all processes that have the same."""
    diff = source_diff(Path(__file__).parent.parent / "__init__.py")
    if not diff:
        return None
    sha256 = hashlib.sha256(diff).hexdigest()
    kept = [(process.get("source") or {}).get("diff") for process in earlier]
    for other in kept:
        if other is not None and other["sha256"] == sha256:
            return other
    if len(diff) > LARGEST_DIFF_BYTES:
        return {"file": None, "bytes": len(diff), "sha256": sha256}
    number = len({other["file"] for other in kept if other is not None and other["file"]})
    name = "source.diff" if number == 0 else f"source-{number + 1}.diff"
    write_bytes_atomically(folder / name, diff)
    return {"file": name, "bytes": len(diff), "sha256": sha256}


def cpu_name() -> str:
    """Return the processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def git_state(file: Path) -> dict[str, Any] | None:
    """Return the commit `file` is tracked in and whether the checkout differs from it, or None outside a checkout.

    A copy of the package installed inside somebody else's checkout is not tracked there, so its commit is not claimed.
    """
    tracked = _git(file.parent, "ls-files", "--error-unmatch", file.name)
    commit = _git(file.parent, "rev-parse", "HEAD")
    if tracked is None or commit is None:
        return None
    changes = _git(file.parent, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else changes != ""}


def _git(folder: Path, *arguments: str) -> str | None:
    output = _git_bytes(folder, *arguments)
    return None if output is None else output.decode(errors="replace").strip()


def _git_bytes(folder: Path, *arguments: str, statuses: tuple[int, ...] = (0,)) -> bytes | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return None  # no git
    return done.stdout if done.returncode in statuses else None  # no checkout, or one that belongs to somebody else


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
