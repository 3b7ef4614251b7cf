"""Set-up of all tests: helper modules beside this file, one thread, hypothesis without a clock."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

import heedful  # noqa: F401  # before the kernels, so that it does not take them for something that runs on a CPU
import triton_on_cpu

if importlib.util.find_spec("triton") is not None:
    triton_on_cpu.load()  # before transformers imports Triton: interpreted or not is settled by the first import

torch.set_warn_always(True)  # some warnings come once a process: a test must fail alone or not at all
torch.set_num_threads(1)  # the tensors are tiny, and two test processes share two cores
settings.register_profile("heedful", deadline=None, derandomize=True)
settings.load_profile("heedful")


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state."""
    torch.manual_seed(0)
