"""Checks of what the boosted layer is and costs: the gauge, one round, parameters, arithmetic, what it can read."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from heedful.models import DecoderConfig, decoder_config
from heedful.models.counting import attention_multiply_adds, count_parameters, multiply_adds_per_token
from heedful.nn import Attention, Boosting, attention_config
from heedful.papers.claim import Finding
from heedful.study.wording import signed

CONTEXT = 256
ROUNDING = 1e-12
"""What two orders of float64 sums of some hundred terms of size one may differ by, with room."""


def paper_model(preset: str = "standard", *, width: int = 256, layers: int = 4) -> DecoderConfig:
    """Return the configuration of the paper's small language model."""
    return decoder_config(
        preset,
        vocab_size=16384,
        num_layers=layers,
        max_positions=CONTEXT,
        hidden_size=width,
        num_heads=4,
        bias=True,
    )


def gauge() -> Finding:
    """Rescale values, gates and output projection: the layer with x - F becomes one with x - F / k, k = -1 included."""
    x, numbers = _input(0), {}
    for rounds in (2, 3):
        for kv_source in ("residual", "input"):
            boosting = Boosting(rounds=rounds, kv_source=kv_source)
            layer = _layer(boosting)
            for k in (-1.0, 0.5, 3.0):
                other = _layer(replace(boosting, residual_coefficient=1 / k))
                other.load_state_dict(_rescaled(layer.state_dict(), k))
                numbers[f"{rounds} rounds, keys from {kv_source}, a = {1 / k:.3g}"] = _difference(layer, other, x)
    largest = max(numbers.values())
    seeing, blind = _layer(Boosting()), _layer(Boosting(residual_coefficient=0.0))
    blind.load_state_dict(seeing.state_dict())
    numbers["a = 0"] = _difference(seeing, blind, x)
    return Finding(
        verdict="does not hold" if largest < ROUNDING < numbers["a = 0"] else "holds",
        figure=f"x - aF with a = 1, -1, 2, 1/3: equal outputs within {largest:.0e}",
        reason=(
            "A layer that sees x + F computes the same function as one that sees x - F, with W_V, gates and W_O "
            "rescaled: the sign and the size of the 'error' have no meaning in a trained layer. Only a = 0 differs."
        ),
        numbers=numbers,
    )


def one_round() -> Finding:
    """Give a layer with one round, and one whose gates are shut, the weights of a standard layer."""
    x = _input(1)
    standard, single = _layer(None), _layer(Boosting(rounds=1))
    single.load_state_dict(standard.state_dict())
    shut = _layer(Boosting(rounds=2, gate_start=-1e4))  # sigmoid of that is exactly 0
    shut.load_state_dict({**shut.state_dict(), **standard.state_dict()})
    with torch.no_grad():
        for name, weight in shut.gates.named_parameters():
            if name.endswith("weight"):
                weight.zero_()
    one, closed = _difference(standard, single, x), _difference(standard, shut, x)
    return Finding(
        verdict="holds" if one == closed == 0.0 else "does not hold",
        figure=f"largest difference {one:g} with one round, {closed:g} with shut gates",
        reason="One round is standard attention to the last bit, and so are two rounds behind a shut gate.",
        numbers={"one round": one, "shut gates": closed},
    )


PUBLISHED_PARAMETERS = {
    ("standard", 256): 7_419_392,
    ("twicing", 256): 7_419_392,
    ("standard", 288): 8_789_184,
    ("boosted", 256): 8_734_208,
}


def parameters() -> Finding:
    """Count the parameters of the published models."""
    counts = {
        (preset, width): count_parameters(paper_model(preset, width=width)).total
        for preset, width in PUBLISHED_PARAMETERS
    }
    standard, boosted, wide = counts["standard", 256], counts["boosted", 256], counts["standard", 288]
    return Finding(
        verdict="holds" if counts == PUBLISHED_PARAMETERS else "does not hold",
        figure=f"{standard:,} standard, {boosted:,} boosted, {wide:,} wider",
        reason=(
            f"Boosting changes the number by {percent(boosted / standard, 1)}, and the wider model differs from the "
            f"boosted one by {percent(wide / boosted, 1)}."
        ),
        numbers={f"{name}, width {width}": float(count) for (name, width), count in counts.items()},
    )


def overhead() -> Finding:
    """Count the multiply-adds of the attention layers, and of the whole model."""
    standard, boosted = paper_model(), paper_model("boosted")
    attention = attention_ratio(standard, boosted)
    whole = multiply_adds_per_token(boosted, CONTEXT) / multiply_adds_per_token(standard, CONTEXT)
    return Finding(
        verdict="holds" if abs(attention - 1.5) < 0.05 else "does not hold",
        figure=f"{percent(attention)} attention, {percent(whole)} whole model",
        reason=(
            "A second round repeats projections and attention map, and its gate costs as much as two more projections. "
            "The second version of the paper leaves the figure out."
        ),
        numbers={"attention": attention, "whole model": whole},
    )


def equal_compute() -> Finding:
    """Count the multiply-adds of six standard layers and of four boosted ones."""
    boosted, deeper, wider = paper_model("boosted"), paper_model(layers=6), paper_model(width=288)
    cost = {
        name: multiply_adds_per_token(config, CONTEXT)
        for name, config in (("boosted", boosted), ("deeper", deeper), ("wider", wider))
    }
    return Finding(
        verdict="holds in part" if cost["deeper"] == cost["boosted"] > cost["wider"] else "holds",
        figure=(
            f"multiply-adds per token: boosted {cost['boosted']:,}, wider {cost['wider']:,}, six layers "
            f"{cost['deeper']:,}"
        ),
        reason=(
            f"The arithmetic of the boosted model differs from the wider one's by "
            f"{percent(cost['boosted'] / cost['wider'], 1)}. A standard model of six layers costs exactly as much as "
            "the boosted one and is in none of the published tables."
        ),
        numbers={name: float(value) for name, value in cost.items()},
    )


def hidden_token() -> Finding:
    """Hide one token from a map A and ask what of it arrives: in twicing, in A'(V - AV), in the boosted layer."""
    hidden, length, width = 3, 8, 16
    torch.manual_seed(2)
    scores = torch.randn(2, length, length, dtype=torch.float64)
    visible = torch.ones(length, length, dtype=torch.bool)
    visible[:, hidden] = False
    first = scores[0].masked_fill(~visible, float("-inf")).softmax(-1)
    second = scores[1].softmax(-1)
    values = torch.randn(length, width, dtype=torch.float64)

    def reach(function) -> float:
        jacobian = torch.autograd.functional.jacobian(function, values)  # (T, d, T, d)
        assert isinstance(jacobian, Tensor)
        return float(jacobian[:, :, hidden].abs().max())

    twicing = reach(lambda v: first @ v + first @ (v - first @ v))
    other = reach(lambda v: first @ v + second @ (v - first @ v))
    layer = reach(lambda v: _blind_to(hidden, v, rounds=2))
    single = reach(lambda v: _blind_to(hidden, v, rounds=1))
    arrives = twicing == 0.0 and other > 1e-3 and layer > 1e-3 and single == 0.0
    return Finding(
        verdict="holds" if arrives else "does not hold",
        figure=f"derivative by the hidden token: twicing {twicing:g}, A'(V - AV) {other:.2f}, layer {layer:.3f}",
        reason=(
            "Twicing uses one map twice and cannot read what that map leaves out; a second learned map can. The A' of "
            "the statement is not the published layer, which computes its second map from x - F, but the layer can too."
        ),
        numbers={"twicing": twicing, "A'(V - AV)": other, "boosted layer": layer, "one round": single},
    )


def _blind_to(token: int, x: Tensor, *, rounds: int) -> Tensor:
    """Return the other tokens' outputs of a boosted layer whose first round never looks at `token`.

    Feature 0 of the input marks the token, and the first round turns that mark into a score of -250,000.
    """
    torch.manual_seed(3)
    config = attention_config(
        "boosted", hidden_size=x.shape[1], num_heads=1, bias=True, is_causal=False, boosting=Boosting(rounds=rounds)
    )
    layer = Attention(config).double()
    weights = layer.state_dict()  # its tensors are the layer's own
    query, key = "rounds.0.query.q_proj", "rounds.0.k_proj"
    for name in (f"{query}.weight", f"{key}.weight", f"{query}.bias", f"{key}.bias"):
        weights[name][0] = 0.0
    weights[f"{query}.bias"][0], weights[f"{key}.weight"][0, 0] = 1e3, -1e3
    mark = torch.zeros_like(x)
    mark[token, 0] = 1.0
    marked = torch.cat([mark[:, :1], x[:, 1:]], dim=1)
    output = layer(marked[None])[0][0]
    return torch.cat([output[:token], output[token + 1 :]])


def percent(ratio: float, digits: int = 0) -> str:
    """Write by how much a ratio differs from one: 1.177 is `+17.7 %`."""
    return f"{signed(100 * (ratio - 1), digits)} %"


def attention_ratio(standard: DecoderConfig, other: DecoderConfig) -> float:
    return attention_multiply_adds(other.layers[0], CONTEXT) / attention_multiply_adds(standard.layers[0], CONTEXT)


def _layer(boosting: Boosting | None) -> Attention:
    torch.manual_seed(4)
    config = attention_config("standard", hidden_size=32, num_heads=4, bias=True, boosting=boosting)
    return Attention(config).double().eval()


def _input(seed: int) -> Tensor:
    return torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _rescaled(weights: dict[str, Tensor], k: float) -> dict[str, Tensor]:
    """Multiply every W_V and its bias by k, divide the gates' weights and W_O by k."""
    scaled = {}
    for name, weight in weights.items():
        reads_heads = name == "o_proj.weight" or (name.startswith("gates") and name.endswith("weight"))
        scaled[name] = weight * k if ".v_proj." in name else weight / k if reads_heads else weight
    return scaled


def _difference(layer: Attention, other: Attention, x: Tensor) -> float:
    return float((layer(x)[0] - other(x)[0]).detach().abs().max())
