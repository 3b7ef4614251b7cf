"""Which GPU a device name means, and that the table holds together."""

from __future__ import annotations

import pytest

from heedful.train.hardware import GPUS, find_gpu, gpu_named


@pytest.mark.parametrize(
    ("device_name", "name"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA A100-SXM4-40GB", None),
        ("NVIDIA H200 MIG 1g.18gb", None),
    ],
)
def test_only_the_cards_of_the_table_are_found(device_name: str, name: str | None) -> None:
    gpu = find_gpu(device_name)
    assert (gpu.name if gpu else None) == name


def test_names_are_found_in_any_case_and_others_refused_with_the_list() -> None:
    assert gpu_named("h200") is next(gpu for gpu in GPUS if gpu.name == "H200")
    with pytest.raises(ValueError, match=r"unknown GPU 'B200'.*H200, H100, A100"):
        gpu_named("B200")
