"""What a checkpoint holds of a run in tensors, written and read by torch's distributed checkpoints as safetensors.

Every process writes its own parts into a file of its own. Reading takes from whatever files are there what this process
needs, so a run can go on with another number of processes and another strategy. No pickle is involved.

| name | tensor |
|---|---|
| `model/NAME` | a parameter or a buffer that is saved |
| `optimizer/NAME/STATE` | one state of the optimiser for a parameter |
| `average/NAME` | an averaged weight |
| `random/process-N/cpu`, `random/process-N/cuda` | the random state of process N |
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from heedful.data.randomness import PROCESS_RANDOMNESS, random_words
from heedful.train.parallel import local
from heedful.train.processes import Processes, losing_nobody

if TYPE_CHECKING:
    from heedful.train.averaging import WeightAverage
    from heedful.train.optimisation import Optimization

# More would bury the reason; another mechanism differs in dozens of tensors.
SHOWN_DIFFERENCES = 5


def run_tensors(model: nn.Module, optimization: Optimization, average: WeightAverage | None) -> dict[str, Tensor]:
    """Return the live tensors of a run by the names above, without random states; what is read goes into them."""
    saved = dict(model.state_dict(keep_vars=True))
    tensors: dict[str, Tensor] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:  # each once, as tied names are not
        if name in saved:
            tensors[f"model/{name}"] = tensor.detach()
    tensors |= {f"optimizer/{name}": tensor for name, tensor in optimization.tensors().items()}
    if average is not None:
        tensors |= {f"average/{name}": tensor for name, tensor in average.tensors().items()}
    # The storage reader slices by dimension, so there must be one.
    return {name: tensor.view(1) if tensor.dim() == 0 else tensor for name, tensor in tensors.items()}


def random_states(processes: Processes, device: torch.device) -> dict[str, Tensor]:
    """Return copies of the random states of this process."""
    place = f"random/process-{processes.rank}"
    states = {f"{place}/cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states[f"{place}/cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_states(states: Mapping[str, Tensor], processes: Processes, device: torch.device) -> None:
    """Put back what `random_states` returned; what is missing stays as it is."""
    place = f"random/process-{processes.rank}"
    if f"{place}/cpu" in states:
        torch.set_rng_state(states[f"{place}/cpu"])
    if device.type == "cuda" and f"{place}/cuda" in states:  # a run that moved from the CPU has none
        torch.cuda.set_rng_state(states[f"{place}/cuda"], device)


def process_seed(seed: int, rank: int, step: int = 0) -> int:
    """Return the seed of a process's dropout, from `step` on; that of the first process at step 0 is the run's own."""
    if rank == 0 and step == 0:
        return seed
    index = (step << 20) + rank
    return int(random_words(seed, PROCESS_RANDOMNESS, index, 1)[0] >> 1)


def on_cpu(tensors: Mapping[str, Tensor], mesh: DeviceMesh | None) -> dict[str, Tensor]:
    """Return copies on the CPU that stay as they are while training goes on; `mesh` arranges the processes there."""

    def copied(tensor: Tensor) -> Tensor:
        part = local(tensor).to("cpu", copy=True)
        if not isinstance(tensor, DTensor):
            return part
        assert mesh is not None
        shape, stride = tensor.shape, tensor.stride()
        return DTensor.from_local(part, mesh, tensor.placements, run_check=False, shape=shape, stride=stride)

    return {name: copied(tensor) for name, tensor in tensors.items()}


def cpu_mesh(mesh: DeviceMesh | None) -> DeviceMesh | None:
    """Return the same arrangement of processes over their CPUs; all of them must call it."""
    if mesh is None or mesh.device_type == "cpu":
        return mesh
    return init_device_mesh("cpu", tuple(mesh.shape), mesh_dim_names=mesh.mesh_dim_names)


def write_tensors(tensors: Mapping[str, Tensor], folder: Path, processes: Processes) -> None:
    """Write this process's parts into `folder`; every process must call it.

    Raises:
        CheckpointException: a process could not write, in every process.
    """
    with _quiet_alone(), losing_nobody():
        dcp.save(
            dict(tensors),
            storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True),
            process_group=processes.control,
            no_dist=not processes.several,
        )


def read_tensors(tensors: Mapping[str, Tensor], folder: Path, processes: Processes) -> None:
    """Fill `tensors` with what is in `folder`; every process must call it."""
    with _quiet_alone(), losing_nobody():
        dcp.load(
            dict(tensors),
            storage_reader=HuggingFaceStorageReader(str(folder)),
            process_group=processes.control,
            no_dist=not processes.several,
        )


def require_same_tensors(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Refuse a checkpoint whose tensors are not those of this run, random states apart.

    Raises:
        ValueError: names or shapes differ; the first differences are listed.
    """
    there = {
        name: tuple(stored.size)  # type: ignore[union-attr]  # only tensors are ever written
        for name, stored in HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata.items()
        if not name.startswith("random/")
    }
    here = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    problems = [f"{name} is not in this run" for name in there if name not in here]
    problems += [f"{name} is missing" for name in here if name not in there]
    problems += [
        f"{name} is {there[name]} there and {here[name]} here"
        for name in here
        if name in there and there[name] != here[name]
    ]
    if problems:
        more = len(problems) - SHOWN_DIFFERENCES
        shown = "; ".join(problems[:SHOWN_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
        raise ValueError(f"{folder} does not fit this run: {shown}.")


@contextmanager
def _quiet_alone() -> Iterator[None]:
    """Leave out the warning that a process on its own saves as a process on its own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield
