"""`heedful convert upcycle`: a pre-trained checkpoint with new attention mechanisms, its function unchanged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

COPIES = 3.5
"""How many times the checkpoint is held at most, found by trial: the original, the native copy and the new model."""

LARGEST_ERROR = 1e-3
"""Relative to the largest logit; rounding in float32 stays far below, a weight in the wrong place far above."""


@dataclass(frozen=True)
class ConvertUpcycle:
    """Add mechanisms to a checkpoint of a Llama, Mistral, Qwen2, Qwen3, GPT-2 or heedful model."""

    source: Annotated[Path, tyro.conf.Positional]
    """Folder with config.json and safetensors; nothing is downloaded."""

    destination: Annotated[Path, tyro.conf.Positional]
    """Folder to write; it appears when it is complete."""

    add: str
    """What to add: multi-token, talking-heads, head-output, boosted, nonlinear-query, annealed-nonlinear-query, or a
    sum such as boosted+head-output."""

    layers: tuple[int, ...] | None = None
    """The layers that get it, counted from 0; all when left out (convolutions then in every fourth)."""

    kernel: tuple[int, int] | None = None
    """Sizes of the convolutions of multi-token, over queries and over keys; 6 11 when left out."""

    rounds: int | None = None
    """Rounds of boosted in all; 2 when left out."""

    bottleneck: int | None = None
    """Width inside the nonlinear query; as many weights as the query projection when left out."""

    anchor_fit: str | None = None
    """For annealed-nonlinear-query where the queries are not as wide as the model: slice or tile."""

    seed: int = 0
    """Seed of the new weights."""

    force: bool = False
    """Replace an existing folder."""

    def run(self, overrides: dict[str, Any]) -> None:
        """Convert, compare with the original, and write."""
        from heedful.cli.convert_sources import copy_companions
        from heedful.cli.overrides import refuse_overrides
        from heedful.files import atomic_folder, check_model_destination

        refuse_overrides(overrides, "convert upcycle")
        check_model_destination(self.destination, force=self.force, source=self.source)

        import torch

        from heedful.hf.additions import parse_additions
        from heedful.hf.importing import load_source
        from heedful.hf.new_parameters import new_parameter_names
        from heedful.hf.upcycling import logits_at_random, upcycle
        from heedful.models.weight_files import require_memory

        parse_additions(self.add, self._options())  # before a large file is read
        if self.source.is_dir():
            require_memory(self.source, copies=COPIES)
        original = load_source(self.source)
        torch.manual_seed(self.seed)
        upcycled = upcycle(original, self.add, layers=self.layers, **self._options())
        before = logits_at_random(original)
        del original
        after = logits_at_random(upcycled)
        error, size = float((after - before).abs().max()), float(before.abs().max())
        if not error <= LARGEST_ERROR * size:
            raise ValueError(
                f"{self.source}: the upcycled logits differ from the original's by {error:.2g} at random tokens "
                f"(largest logit {size:.2g}), which is more than rounding; nothing was written."
            )
        with atomic_folder(self.destination) as folder:
            upcycled.save_pretrained(folder)
            copy_companions(self.source, folder)
        parameters = dict(upcycled.named_parameters())
        new = sum(parameters[name].numel() for name in new_parameter_names(upcycled))
        old = sum(parameter.numel() for parameter in parameters.values()) - new
        print(f"largest difference of logits at random tokens: {error:.2g} (largest logit {size:.2g})")
        print(f"parameters: {old:,} old, {new:,} new ({new / old:.2%})")
        print(f"written: {self.destination}")

    def _options(self) -> dict[str, Any]:
        kernel = {} if self.kernel is None else {"query_kernel_size": self.kernel[0], "key_kernel_size": self.kernel[1]}
        others = {name: getattr(self, name) for name in ("rounds", "bottleneck", "anchor_fit")}
        return {**kernel, **{name: value for name, value in others.items() if value is not None}}
