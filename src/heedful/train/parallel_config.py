"""How a run is spread over processes: what each holds, what is recomputed, how long one waits for another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from heedful.train.checking import require, require_one_of

Strategy = Literal["auto", "single", "ddp", "fsdp2", "hsdp"]
GatherPrecision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """One process, or several started by torchrun; none of this changes what is computed beyond rounding, which is that
    of float32 or, with `gather_precision`, of bfloat16.

    Attributes:
        strategy: "single" is one process; "ddp" gives each process a whole model; "fsdp2" shards weights, gradients
            and optimiser state over all processes, block by block; "hsdp" shards over groups of `shard_size` processes
            and replicates over the groups; "auto" is "single" for one process and "ddp" for several.
        shard_size: processes that share one copy, for "hsdp" only; None takes those of one machine.
        recompute_blocks: keep only the inputs of each block in the forward pass and compute the rest again in the
            backward pass.
        gather_precision: the type in which "fsdp2" and "hsdp" send weights, float32 or bfloat16; gradients are sent in
            float32 always. With bfloat16 the embeddings and so the residual stream are bfloat16, too.
        timeout_seconds: how long a process waits for the others before it gives up.
    """

    strategy: Strategy = "auto"
    shard_size: int | None = None
    recompute_blocks: bool = False
    gather_precision: GatherPrecision = "float32"
    timeout_seconds: int = 600

    def __post_init__(self) -> None:
        require_one_of(Strategy, "strategy", self.strategy)
        require_one_of(GatherPrecision, "gather_precision", self.gather_precision)
        require(self.shard_size is None or self.shard_size >= 1, "shard_size", "1 or more", self.shard_size)
        require(self.timeout_seconds >= 1, "timeout_seconds", "1 or more", self.timeout_seconds)
        if self.shard_size is not None and self.strategy != "hsdp":
            raise ValueError(
                f"shard_size is for strategy 'hsdp', got strategy {self.strategy!r}; leave it out or change one."
            )
