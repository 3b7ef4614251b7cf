"""What is asked of a checkpoint before it is read: whether its index of shards is whole, and whether it fits into
memory, since the operating system's answer to that would be to kill the process.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup")


def require_memory(folder: str | Path, dtype: torch.dtype | str | None = None, *, copies: float = 1.0) -> None:
    """Refuse a folder whose weights are larger than the memory that is available; what cannot be known passes.

    Args:
        folder: a checkpoint's folder with safetensors files.
        dtype: the type that the weights are read into; None or "auto" for the type that they are stored in.
        copies: how many times the weights are held at once at most.

    Raises:
        ValueError: with both sizes.
    """
    needed, available = int(copies * weight_bytes(folder, dtype)), available_memory()
    if available is not None and needed > available:
        raise ValueError(
            f"{folder}: its weights take {needed / 1e9:.1f} GB{_while(copies)}, but {available / 1e9:.1f} GB of memory "
            f"are available; read them into a smaller type (dtype=torch.bfloat16), or spread them over devices or the "
            f"disk with device_map and offload_folder."
        )


def _while(copies: float) -> str:
    return "" if copies == 1.0 else f" while they are changed ({copies:g} times their size)"


def check_shard_index(folder: str | Path) -> None:
    """Refuse a folder whose index of shards is damaged.

    Raises:
        ValueError: with the file and what is wrong.
    """
    for file in sorted(Path(folder).glob("*.safetensors.index.json")):
        try:
            index = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is damaged: {error}.") from error
        if not isinstance(index, dict) or not isinstance(index.get("weight_map"), dict):
            raise ValueError(f"{file} is damaged: it has no table weight_map from weights to files.")


def weight_bytes(folder: str | Path, dtype: torch.dtype | str | None = None) -> int:
    """Return the bytes that the weights of a checkpoint take in memory; 0 where there are no safetensors files.

    Raises:
        ValueError: a damaged file.
    """
    from safetensors import SafetensorError, safe_open

    named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype  # None for "auto"
    total = 0
    for file in _weight_files(Path(folder)):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  # not a mapping
                    tensor = opened.get_slice(name)
                    size = torch.Size(tensor.get_shape()).numel()
                    total += size * (_ITEM_BYTES.get(tensor.get_dtype(), 4) if named is None else named.itemsize)
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged or no safetensors file: {error}.") from error
    return total


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers reads: one, or those of the index; others may lie beside them."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return sorted(folder / name for name in names if (folder / name).is_file())


def available_memory() -> int | None:
    """Return the bytes that a process may still use, the limit of its control group included; None if unknown."""
    found = [number for number in (_system_memory(), _group_memory()) if number is not None]
    return min(found, default=None)


def _system_memory() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass  # another operating system
    return None


def _group_memory() -> int | None:
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="utf-8").strip()
        used = int((_CGROUP / "memory.current").read_text(encoding="utf-8"))
        reclaimable = dict(line.split() for line in (_CGROUP / "memory.stat").read_text(encoding="utf-8").splitlines())
        return None if limit == "max" else max(int(limit) - used + int(reclaimable.get("inactive_file", 0)), 0)
    except (OSError, ValueError):
        return None  # no control groups, or an older kind


_ITEM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
