"""Time of one decoding step: the operation, a whole attention layer, a whole small model.

Every call steps through several memories in turn, always from the same states, so that the context stays what it is and
keys and values come from memory rather than from a processor cache, as they do where a model has many layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.measuring import Call, in_turns, storage_type
from benchmarks.multi_token_forms import CASES, DECODE_CONTEXT, DECODE_TARGET, KEY_TAPS, QUERY_TAPS, draw_parts
from heedful.models import DecoderLM, decoder_config
from heedful.models.decoder import DecoderState
from heedful.nn import Attention, Rotary, attention_config
from heedful.nn.state import AttentionState
from heedful.ops import multi_token_decode

CACHES = 8
PRESETS = ("standard", "talking-heads", "multi-token-v1", "multi-token")
MODEL_LAYERS, MODEL_VOCABULARY = 4, 1024
Cache = tuple[Tensor, Tensor]


def decode_rows(
    contexts: Sequence[int], *, batch: int, heads: int, head_dim: int, device: str, rounds: int
) -> Iterator[dict[str, Any]]:
    """Yield a row for each context, level and arm: seconds of one step, and its multiple of standard attention's."""
    levels = {"decode operation": operation_calls, "decode layer": layer_calls, "decode model": model_calls}
    for context in contexts:
        torch.manual_seed(0)
        shape = (batch, heads, context, head_dim)
        caches = [tuple(_randn(shape, device) for _ in range(2)) for _ in range(CACHES)]
        for kind, make in levels.items():
            calls, steps = make(cast("list[Cache]", caches))
            baseline = next(iter(calls))
            for name, timing in in_turns(calls, baseline=baseline, device=device, rounds=rounds).items():
                aimed = device == "cpu" and context == DECODE_CONTEXT and name != baseline
                yield {
                    "kind": kind,
                    "case": name,
                    "implementation": "decode" if name != baseline else baseline,
                    "length": context,
                    "seconds": timing.seconds / steps,
                    "ratio": timing.ratio,
                    "target": DECODE_TARGET if aimed else None,
                }


def operation_calls(caches: list[Cache]) -> tuple[dict[str, Call], int]:
    """Return one query against each cache, by SDPA and by `multi_token_decode` for every case."""
    key = caches[0][0]
    batch, heads, _, width = key.shape
    device = key.device.type
    query = _randn((batch, heads, 1, width), device)

    def standard(key: Tensor, value: Tensor) -> object:
        return scaled_dot_product_attention(query, key, value)

    calls: dict[str, Call] = {"sdpa": _over(caches, standard)}
    for case in CASES:
        parts = {name: part.detach() for name, part in draw_parts(case, heads, device, key.dtype).items()}
        halo = sum(part.shape[1] - 1 for name, part in parts.items() if name.startswith("kq"))
        past = _randn((batch, heads, halo, width), device)
        calls[case] = _over(caches, partial(multi_token_decode, query, past, **cast("dict[str, Any]", parts)))
    return calls, len(caches)


def layer_calls(caches: list[Cache]) -> tuple[dict[str, Call], int]:
    """Return a step of a whole attention layer, projections and the growing of its cache included."""
    key = caches[0][0]
    batch, heads, _, width = key.shape
    x = _randn((batch, 1, heads * width), key.device.type)
    calls: dict[str, Call] = {}
    for name in PRESETS:
        config = attention_config(name, hidden_size=heads * width, num_heads=heads)
        layer = Attention(config).to(device=key.device, dtype=key.dtype).eval()
        start = _short_state(layer, x)
        states = [_grown(start, *cache) for cache in caches]
        calls[name] = partial(_step_through, layer, x, states)
    return calls, len(caches)


def model_calls(caches: list[Cache]) -> tuple[dict[str, Call], int]:
    """Return a step of a model of four layers, one of which has the convolutions, as in the published models."""
    key = caches[0][0]
    batch, heads, context, width = key.shape
    tokens = torch.zeros(batch, 1, dtype=torch.int64, device=key.device)
    x = _randn((batch, 1, heads * width), key.device.type)
    calls: dict[str, Call] = {}
    for name in PRESETS:
        config = decoder_config(
            name,
            vocab_size=MODEL_VOCABULARY,
            num_layers=MODEL_LAYERS,
            max_positions=context + 1,
            hidden_size=heads * width,
            num_heads=heads,
            norm="rms",
            activation="swiglu",
            rotary=Rotary(),
        )
        model = DecoderLM(config).to(device=key.device, dtype=key.dtype).eval()
        starts = [_short_state(block.attention, x) for block in model.block_list]
        states = [
            DecoderState(layers=tuple(_grown(start, *caches[first + layer]) for layer, start in enumerate(starts)))
            for first in range(0, len(caches), MODEL_LAYERS)
        ]
        calls[name] = partial(_step_through, model, tokens, states)
    return calls, len(caches) // MODEL_LAYERS


@torch.no_grad()
def _step_through(module: Callable[..., object], new: Tensor, states: Sequence[object]) -> None:
    for state in states:
        module(new, state=state)


def _over(caches: list[Cache], call: Callable[[Tensor, Tensor], object]) -> Call:
    @torch.no_grad()
    def one_each() -> None:
        for key, value in caches:
            call(key, value)

    return one_each


@torch.no_grad()
def _short_state(layer: Attention, x: Tensor) -> AttentionState:
    """Return the state after a text that is just long enough for everything that a layer remembers."""
    state = layer(x.expand(-1, 2 * QUERY_TAPS + KEY_TAPS, -1), state=layer.empty_state())[1]
    assert state is not None
    return state


def _grown(state: AttentionState, key: Tensor, value: Tensor) -> AttentionState:
    """Return the state with other keys and values, all but the last of them: the step adds one."""
    first = replace(state.rounds[0], key=key[:, :, :-1], value=value[:, :, :-1])
    return replace(state, rounds=(first, *state.rounds[1:]))


def _randn(shape: tuple[int, ...], device: str) -> Tensor:
    return torch.randn(shape, device=device, dtype=storage_type(device))
