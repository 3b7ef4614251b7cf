"""A training step of a model spread over processes: what it allocates, and what was estimated. Started by torchrun."""

from __future__ import annotations

import json

import torch
import torch.distributed as dist

from heedful.models import DecoderConfig, DecoderLM, decoder_config
from heedful.train.config import TrainConfig
from heedful.train.loss import TrainingLoss
from heedful.train.memory import peak_tensor_bytes
from heedful.train.memory_estimate import estimate_memory
from heedful.train.optimisation import Optimization
from heedful.train.optimizer_config import ScheduleConfig
from heedful.train.parallel import build_mesh, gradient_module, local, parallelize, synchronising
from heedful.train.parallel_config import ParallelConfig, Strategy

ROWS, LENGTH, VOCABULARY, WIDTH, LAYERS = 4, 128, 512, 96, 5


# What a step needs is the most that it is seen to need: on a loaded machine one look came out lower.
LOOKS = 3


def measure(strategy: Strategy, *, recompute: bool, accumulation: int) -> None:
    policy = ParallelConfig(strategy=strategy, recompute_blocks=recompute)
    train = TrainConfig(
        steps=4,
        batch_size=8,
        context_length=LENGTH,
        schedule=ScheduleConfig(warmup_steps=1),
        parallel=policy,
    )
    config = decoder_config(
        "standard", vocab_size=VOCABULARY, hidden_size=WIDTH, num_layers=LAYERS, num_heads=4, max_positions=LENGTH
    )
    processes = dist.get_world_size()
    measured = max(peak_of_a_step(config, train, policy, accumulation) for _ in range(LOOKS))
    memory = estimate_memory(
        config,
        train,
        strategy=strategy,  # type: ignore[arg-type]
        shard_size=processes if strategy == "fsdp2" else 1,
        micro_batch=ROWS,
        accumulation=accumulation,
        gpu=False,
    )
    hidden_state = 4 * ROWS * LENGTH * WIDTH
    sent = memory.gathered + memory.communication if strategy == "fsdp2" else 0
    if dist.get_rank() == 0:
        line = {"case": f"{strategy}, recompute {recompute}, accumulation {accumulation}", "measured": measured}
        print("figures " + json.dumps({**line, "estimated": memory.tensors, "bound": hidden_state + sent}), flush=True)


def peak_of_a_step(config: DecoderConfig, train: TrainConfig, policy: ParallelConfig, accumulation: int) -> int:
    torch.manual_seed(0)
    model = DecoderLM(config)
    mesh = build_mesh(policy, dist.get_world_size(), "cpu")
    parallelize(model, mesh, policy, device=torch.device("cpu"))
    optimization = Optimization(model, train.optimizer)
    optimization.prepare_state()
    module = gradient_module(TrainingLoss(model, train.loss), mesh)
    tokens = torch.randint(VOCABULARY, (accumulation, ROWS, LENGTH))

    def step() -> None:
        for index, part in enumerate(tokens):
            with synchronising(module, synchronise=index == accumulation - 1):
                objective, _ = module(part, part, None)
                objective.backward()
                del objective
        optimization.step(1e-3)

    step()
    held = [local(tensor).detach() for tensor in (*model.parameters(), *optimization.tensors().values())]
    return peak_tensor_bytes(step, resident=held)


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for strategy in ("ddp", "fsdp2"):
        for recompute in (False, True):
            for accumulation in (1, 2):
                measure(strategy, recompute=recompute, accumulation=accumulation)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
