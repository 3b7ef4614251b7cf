"""Looking into a trained model: gates, kernels, sizes of nonlinear terms, as plain numbers for pictures and logs.

Each mechanism says itself what is worth seeing: a module with a method `observe`, called with the module's inputs,
returns a dictionary of numbers. This file only runs the model and collects.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from heedful.models.decoder import DecoderLM
from heedful.nn.attention import Attention


@torch.no_grad()
def probe(model: DecoderLM, tokens: Tensor) -> list[dict[str, Any]]:
    """Run `tokens` (B, T) through the model in evaluation mode and return one JSON-able dictionary per layer.

    Keys exist only where the mechanism does: "layer"; of the first round "nonlinear_ratio" (norm of the nonlinear
    term over that of its anchor), "kq_pre", "kq_post" (H, c_q, c_k), "head_pre", "head_post" (groups, out, in),
    "lambda"; "further_rounds", a list of the same for the others; "gate_mean" and "gate_std", lists with a number per
    further round; "head_gate_mean".
    """
    observed: dict[nn.Module, dict[str, Any]] = {}

    def observe(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        handles[module].remove()  # observing may call the module again
        observed[module] = module.observe(*inputs)  # type: ignore[operator]  # chosen by this method below

    handles = {m: m.register_forward_hook(observe) for m in model.modules() if hasattr(m, "observe")}
    was_training = model.training
    model.eval()
    try:
        model(tokens)
    finally:
        model.train(was_training)
        for handle in handles.values():
            handle.remove()
    return [_describe(index, block.attention, observed) for index, block in enumerate(model.block_list)]


def _describe(index: int, attention: Attention, observed: dict[nn.Module, dict[str, Any]]) -> dict[str, Any]:
    rounds = []
    for attention_round in attention.rounds:
        parts = [observed[module] for module in attention_round.modules() if module in observed]
        rounds.append({key: value for part in parts for key, value in part.items()})
    layer: dict[str, Any] = {"layer": index, **rounds[0]}
    if len(rounds) > 1:
        layer["further_rounds"] = rounds[1:]
        gates = [observed[gate] for gate in attention.gates]
        for key in ("gate_mean", "gate_std"):
            layer[key] = [gate[key] for gate in gates]
    if attention.head_output in observed:
        layer.update(observed[attention.head_output])
    return layer
