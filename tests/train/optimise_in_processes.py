"""The script of test_optimisation_in_processes.py: each process holds parts of a model and compares with the whole one.

Every process sees the same batch, so the averaged gradients are those of one process, and weights that are spread over
the processes must move as they do there.
"""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
from tiny_run import CopyData, tiny_model
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from heedful.models import DecoderLM
from heedful.train.averaging import WeightAverage
from heedful.train.optimisation import Optimization
from heedful.train.optimizer_config import OptimizerConfig, ParameterRule
from heedful.train.probing import probe_metrics
from tolerance import assert_close, relative_rounding

# Three heads and 13 tokens do not divide by two: the processes hold parts of unequal size.
SIZES = {"num_heads": 3, "hidden_size": 18, "num_layers": 3, "vocab_size": 13, "dropout": 0.0}
CONFIGS = (
    OptimizerConfig(kernel_decay="identity", decay="all"),
    OptimizerConfig(
        kind="muon", rules=(ParameterRule(parameters="*.head_p*", learning_rate_factor=0.5, weight_decay=0.2),)
    ),
)


def shard(model: DecoderLM, mesh: DeviceMesh, *, root: bool) -> None:
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    if root:
        fully_shard(model, mesh=mesh, reshard_after_forward=False)
        register_fsdp_forward_method(model, "hidden_states")


def whole(tensor: Tensor) -> Tensor:
    return tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def check(model: DecoderLM, config: OptimizerConfig, twin: DecoderLM) -> None:
    """Train `model`, of which this process holds a part, and `twin`, which it holds whole, and compare."""
    both: tuple[DecoderLM, DecoderLM] = (model, twin)
    optimizations = [Optimization(one, config) for one in both]
    averages = [WeightAverage(one, 0.5) for one in both]
    optimizations[0].prepare_state()
    sharded = {name: parameter for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)}
    tokens = CopyData().batch(9).tokens
    for number in range(2):
        norms = []
        for one, optimization, average in zip(both, optimizations, averages, strict=True):
            logits, _ = one(CopyData().batch(number).tokens)
            nn.functional.cross_entropy(
                logits.flatten(0, 1), CopyData().batch(number).tokens.roll(-1, 1).flatten()
            ).backward()
            norms.append(optimization.clip(0.1))
            optimization.step(0.05)
            average.update()
        assert type(norms[0]) is Tensor, type(norms[0])
        assert norms[0].dim() == 0, norms[0].shape
        assert_close(norms[0], norms[1], "norm")
    compare(optimizations[0].tensors(), optimizations[1].tensors())
    compare(averages[0].tensors(), averages[1].tensors())
    for name, value in optimizations[0].tensors().items():
        parameter, state = name.rsplit("/", 1)
        if parameter in sharded and state != "step":
            assert isinstance(value, DTensor), name
            assert value.placements == sharded[parameter].placements, name
            assert value.to_local().shape == sharded[parameter].to_local().shape, name
    batch = CopyData().batch(4)
    assert probe_metrics(model, batch).keys() == (expected := probe_metrics(twin, batch)).keys()
    for name, value in probe_metrics(model, batch).items():
        assert abs(value - expected[name]) <= relative_rounding() * max(1, abs(value)), name
    before, inside, after = [], [], []
    with torch.no_grad():
        for one, average in zip(both, averages, strict=True):
            before.append(one(tokens)[0])
            with average.applied():
                inside.append(one(tokens)[0])
            after.append(one(tokens)[0])
    assert_close(before[0], before[1], "logits")
    assert_close(inside[0], inside[1], "logits of the average")
    assert not torch.equal(before[0], inside[0])
    assert torch.equal(before[0], after[0]), "the weights are back"


def compare(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert_close(whole(value).double(), whole(expected[name]).double(), name)


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    plain, one_by_two, two_by_one = (
        init_device_mesh("cpu", shape, mesh_dim_names=("a", "b")[: len(shape)]) for shape in ((2,), (1, 2), (2, 1))
    )
    adamw, muon = CONFIGS
    cases = [(plain, True, adamw), (plain, True, muon), (one_by_two, True, muon), (two_by_one, True, adamw)]
    cases.append((plain, False, muon))  # plain tensors beside DTensors
    for mesh, root, config in cases:
        model, twin = (tiny_model("boosted+multi-token", **SIZES).double() for _ in range(2))
        shard(model, mesh, root=root)
        check(model, config, twin)
    dist.barrier()
    print(f"process {dist.get_rank()} compared everything", flush=True)
    # Freeing a process group sometimes waits for ever for one of its threads, which waits for Python: leave at once.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
