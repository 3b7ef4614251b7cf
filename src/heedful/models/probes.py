"""Looking into a model: gates, kernels, sizes of scores and of nonlinear terms, as plain numbers for pictures and logs.

Each mechanism says itself what is worth seeing: a module with a method `observe`, called with the module's inputs,
returns a dictionary of numbers. This file only runs the model and collects.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from heedful.models.decoder import DecoderLM
from heedful.nn.attention import Attention, AttentionRound
from heedful.nn.score_sizes import score_sizes
from heedful.ops.masks import AttentionMask


@torch.no_grad()
def probe(
    model: DecoderLM, tokens: Tensor, mask: AttentionMask | None = None, *, score_rows: int = 0
) -> list[dict[str, Any]]:
    """Run `tokens` (B, T) through the model in evaluation mode and return one JSON-able dictionary per layer.

    The backends are those of any other call, and no attention map is built. Random states, gradients and the modes of
    the modules stay as they are. Compiled blocks run as they were before, and keep their compiled code.

    Args:
        model: with weights that may be spread over processes by FSDP2; all of them must call then.
        tokens: int64.
        mask: as in the model's forward pass.
        score_rows: of how many query positions to measure the scores, which are computed for these positions alone.

    Returns:
        Keys exist only where the mechanism does: "layer"; of the first round "score_max" and "score_std" (see
        `score_sizes`; with `score_rows` only), "nonlinear_ratio" (norm of the nonlinear term over that of its anchor),
        "kq_pre", "kq_post" (H, c_q, c_k), "head_pre", "head_post" (groups, out, in), "lambda"; "further_rounds", a list
        of the same for the others; "gate_mean" and "gate_std", lists with a number per further round, and
        "gate_by_dimension" with a list of heads_width numbers per further round; "head_gate_mean".
    """
    blocks = model.block_list
    with _observing(model, score_rows) as observed, evaluating(model), uncompiled():
        model.hidden_states(tokens, mask)
    # A block that several layers share was called once for each of them.
    calls = [sum(other is block for other in blocks[:index]) for index, block in enumerate(blocks)]
    return [_describe(index, block.attention, observed, calls[index]) for index, block in enumerate(blocks)]


@contextmanager
def _observing(model: nn.Module, score_rows: int) -> Iterator[dict[nn.Module, list[dict[str, Any]]]]:
    """Collect what the modules observe inside the context, call by call."""
    observed: dict[nn.Module, list[dict[str, Any]]] = defaultdict(list)
    busy = False

    def observe(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal busy
        if busy:  # observing may call the module again, or others in it
            return
        busy = True
        try:
            observed[module].append(module.observe(*inputs))  # type: ignore[operator]  # chosen by this method below
        finally:
            busy = False

    def observe_scores(attention_round: AttentionRound) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
            if not busy:
                asked = {name: options[name] for name in ("mask", "is_causal", "scale")}
                observed[attention_round].append(score_sizes(*inputs[:2], rows=score_rows, **asked))

        return attention_round.rule.register_forward_hook(hook, with_kwargs=True)

    handles = [m.register_forward_hook(observe) for m in model.modules() if hasattr(m, "observe")]
    if score_rows:
        handles += [observe_scores(m) for m in model.modules() if isinstance(m, AttentionRound)]
    try:
        yield observed
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode (no dropout); afterwards every module is in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def uncompiled() -> AbstractContextManager[Any]:
    """Run compiled modules as they were: compiled code knows nothing of hooks that come later."""
    if "torch._dynamo" not in sys.modules:  # then nothing is compiled, and importing it takes seconds
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


def _describe(
    index: int, attention: Attention, observed: dict[nn.Module, list[dict[str, Any]]], call: int
) -> dict[str, Any]:
    rounds = []
    for attention_round in attention.rounds:
        parts = [observed[module][call] for module in attention_round.modules() if module in observed]
        rounds.append({key: value for part in parts for key, value in part.items()})
    layer: dict[str, Any] = {"layer": index, **rounds[0]}
    if len(rounds) > 1:
        layer["further_rounds"] = rounds[1:]
        gates = [observed[gate][call] for gate in attention.gates]
        for key in ("gate_mean", "gate_std", "gate_by_dimension"):
            layer[key] = [gate[key] for gate in gates]
    if attention.head_output in observed:
        layer.update(observed[attention.head_output][call])
    return layer
