"""What a few GPUs can do by their maker's figures: the yardstick for estimates and for measured utilisation.

All figures are those of NVIDIA's data sheets for the SXM form: "NVIDIA H200 Tensor Core GPU" and "NVIDIA H100 Tensor
Core GPU" (where the tensor-core rates are printed with sparsity, dense is half of them) and "NVIDIA A100 80GB Tensor
Core GPU" (dense). They are peaks that no real program reaches. Cards of the same generation in another form (PCIe,
NVL, a MIG slice) have other figures and are not in the table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One model of GPU. Peaks, not what a program gets.

    Attributes:
        name: what `find_gpu` and the command line call it.
        memory_bytes: memory on the card as advertised, in units of 10^9 bytes. The driver reports a little more; the
            difference stands for what the driver and the communication library take for themselves.
        bfloat16_flops: dense tensor-core operations per second, bfloat16 products with float32 sums.
        float32_flops: operations per second outside the tensor cores, which is what a float32 product uses while TF32
            is off, as it is here.
        memory_bandwidth: bytes per second between the card's memory and its processor.
        node_bandwidth: bytes per second that one card can send to the others of its machine while receiving as much
            (NVLink; half of the advertised sum of both directions).
        device_names: a regular expression for the whole of `torch.cuda.get_device_name()`.
    """

    name: str
    memory_bytes: int
    bfloat16_flops: float
    float32_flops: float
    memory_bandwidth: float
    node_bandwidth: float
    device_names: str


GPUS: tuple[Gpu, ...] = (
    Gpu(
        name="H200",
        memory_bytes=141 * 10**9,
        bfloat16_flops=989e12,
        float32_flops=67e12,
        memory_bandwidth=4.8e12,
        node_bandwidth=450e9,
        device_names=r"NVIDIA H200",
    ),
    Gpu(
        name="H100",
        memory_bytes=80 * 10**9,
        bfloat16_flops=989e12,
        float32_flops=67e12,
        memory_bandwidth=3.35e12,
        node_bandwidth=450e9,
        device_names=r"NVIDIA H100 80GB HBM3",
    ),
    Gpu(
        name="A100",
        memory_bytes=80 * 10**9,
        bfloat16_flops=312e12,
        float32_flops=19.5e12,
        memory_bandwidth=2.039e12,
        node_bandwidth=300e9,
        device_names=r"NVIDIA A100-SXM4-80GB",
    ),
)


def find_gpu(device_name: str) -> Gpu | None:
    """Return the GPU that `torch.cuda.get_device_name()` calls `device_name`, or None for one not in the table."""
    return next((gpu for gpu in GPUS if re.fullmatch(gpu.device_names, device_name)), None)


def gpu_named(name: str) -> Gpu:
    """Return the GPU called `name` in the table, capitals or not.

    Raises:
        ValueError: there is none of that name; the message lists those there are.
    """
    for gpu in GPUS:
        if gpu.name.lower() == name.lower():
            return gpu
    raise ValueError(f"unknown GPU {name!r}: the figures known are those of {', '.join(gpu.name for gpu in GPUS)}.")
