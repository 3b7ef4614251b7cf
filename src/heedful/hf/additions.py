"""What can be added to a trained model without changing its function at first, and what cannot.

| name                     | what is added                                 | unchanged at first because      |
|--------------------------|-----------------------------------------------|---------------------------------|
| multi-token              | key-query convolutions, mixing of the heads   | both start as the identity      |
| talking-heads            | mixing of the heads, before and after softmax | it starts as the identity       |
| head-output              | norm and gate of each head's output           | share of the norm 0, gate 1     |
| boosted                  | further rounds, copies of the first           | their factor starts at 0        |
| nonlinear-query          | Q = x W_Q + f(x)                              | the norm that ends f has gain 0 |
| annealed-nonlinear-query | Q = (1 - a) x W_Q + a gain (x + f(x))         | a = 0, `AnnealQuery` moves it   |

Each is one section of `AttentionConfig`; names add up when their sections differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from heedful.nn.annealed_query import AnnealedQuery
from heedful.nn.boosting import Boosting
from heedful.nn.config import AttentionConfig
from heedful.nn.head_output import BlendedHeadOutput
from heedful.nn.multi_token import MultiTokenRule, TalkingHeadsRule
from heedful.nn.presets import PRESETS
from heedful.nn.queries import LinearQuery, NonlinearQuery
from heedful.nn.standard import StandardRule
from heedful.schema import did_you_mean, from_mapping, to_mapping


class UpcyclingOptions(TypedDict, total=False):
    """Options of `upcycle` by name; each belongs to one of the additions and means what it means in its section.

    multi-token: pre_convolution, post_convolution, query_kernel_size, key_kernel_size, pre_mixing, post_mixing,
    key_query_mask, convolution_every, convolution_offset. head-output: norm, gate. boosted: rounds, kv_source,
    residual_coefficient, gate_bias, gate_start. nonlinear-query: bottleneck, activation, input_norm, output_norm,
    output_norm_scope. annealed-nonlinear-query: the same, and anchor, gain, anchor_fit.
    """

    pre_convolution: bool
    post_convolution: bool
    query_kernel_size: int
    key_kernel_size: int
    pre_mixing: int | Literal["all"] | None
    post_mixing: int | Literal["all"] | None
    key_query_mask: Literal["double", "exact"]
    convolution_every: int
    convolution_offset: int
    norm: bool
    gate: Literal["none", "scalar", "elementwise"]
    rounds: int
    kv_source: Literal["residual", "input"]
    residual_coefficient: float
    gate_bias: bool
    gate_start: float
    bottleneck: int | None
    activation: Literal["gelu", "silu", "relu", "relu-squared", "none"]
    input_norm: Literal["rms", "layer", "none"]
    output_norm: Literal["layer", "rms"]
    output_norm_scope: Literal["full", "head"]
    anchor: Literal["identity", "none"]
    gain: float
    anchor_fit: Literal["exact", "slice", "tile"]


@dataclass(frozen=True)
class Addition:
    """One mechanism in the form that starts as the plain layer.

    Attributes:
        section: the field of `AttentionConfig` that it sets.
        start: the section's value with default options.
        options: the names of its options, which are fields of `start` (of its target for the annealed query).
    """

    section: Literal["rule", "query", "head_output", "boosting"]
    start: Any
    options: tuple[str, ...]

    def value(self, options: Mapping[str, Any], name: str) -> Any:
        """Return the section with these options; ValueError for wrong types and values."""
        if isinstance(self.start, AnnealedQuery):
            target = _changed(self.start.target, options, name)
            return dataclasses.replace(self.start, target=target)
        return _changed(self.start, options, name)


_MLP_OPTIONS = ("bottleneck", "activation", "input_norm", "output_norm", "output_norm_scope")

ADDITIONS: Mapping[str, Addition] = {
    "multi-token": Addition(
        "rule",
        MultiTokenRule(),
        tuple(field.name for field in dataclasses.fields(MultiTokenRule) if field.name != "kind"),
    ),
    "talking-heads": Addition("rule", TalkingHeadsRule(), ()),
    "head-output": Addition("head_output", BlendedHeadOutput(), ("norm", "gate")),
    "boosted": Addition(
        "boosting",
        Boosting(gate="scaled-vector"),
        ("rounds", "kv_source", "residual_coefficient", "gate_bias", "gate_start"),
    ),
    "nonlinear-query": Addition(
        "query", NonlinearQuery(anchor="linear", gain=1.0, output_gain_start=0.0), _MLP_OPTIONS
    ),
    "annealed-nonlinear-query": Addition("query", AnnealedQuery(), (*_MLP_OPTIONS, "anchor", "gain", "anchor_fit")),
}

_WITHOUT_IDENTITY_START = {
    "twicing": "(2A - A^2) V is another function than A V from the first step on",
    "differential": "the difference of two maps is another function than one map",
    "differential-v2": "the difference of two maps is another function than one map",
    "identity-query": "dropping W_Q changes the queries at once; 'annealed-nonlinear-query' gets there gradually",
    "standard": "it adds nothing",
}

_PLAIN = {"rule": StandardRule(), "query": LinearQuery(), "head_output": None, "boosting": None}


def parse_additions(add: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections that a sum such as "boosted+multi-token" sets, with these options.

    Raises:
        ValueError: unknown names or options, mechanisms that are not the identity at first, two of one section.
    """
    names = [name.strip() for name in add.split("+")]
    owners: dict[str, str] = {}
    for name in names:
        if name not in ADDITIONS:
            raise ValueError(_refusal(name, add))
        section = ADDITIONS[name].section
        if section in owners:
            other = owners[section]
            what = (
                f"stands twice in {add!r}" if other == name else f"and {other!r} both choose the {section} of a layer"
            )
            raise ValueError(f"{name!r} {what}; keep one.")
        owners[section] = name
    known = {option: name for name in names for option in ADDITIONS[name].options}
    for option in options:
        if option not in known:
            others = [name for name, addition in ADDITIONS.items() if option in addition.options]
            hint = f" It belongs to {others[0]!r}." if others else did_you_mean(option, known) if known else ""
            raise ValueError(f"{add!r} has no option {option!r}.{hint}")
    return {
        section: ADDITIONS[name].value({o: value for o, value in options.items() if known[o] == name}, name)
        for section, name in owners.items()
    }


def added_to(layer: AttentionConfig, sections: Mapping[str, Any], *, chosen: bool) -> AttentionConfig:
    """Return a layer's configuration with these sections.

    Args:
        layer: a layer that is plain in these sections.
        sections: what `parse_additions` returned.
        chosen: the layer was named by the user: a multi-token rule then carries its convolutions here, whatever the
            layer's index.

    Raises:
        ValueError: the layer already has something there, or the sizes do not fit.
    """
    sections = dict(sections)
    for section in sections:
        if getattr(layer, section) != _PLAIN[section]:
            raise ValueError(
                f"layer {layer.layer_index} is not plain: its {section} is {getattr(layer, section)}; only what a "
                f"layer does not have yet can be added."
            )
    rule = sections.get("rule")
    if chosen and isinstance(rule, MultiTokenRule):
        sections["rule"] = dataclasses.replace(rule, convolution_every=1, convolution_offset=0)
    try:
        return dataclasses.replace(layer, **sections)
    except ValueError as error:
        raise ValueError(f"the mechanism does not fit this model: {error}") from error


def plain_layer(layer: AttentionConfig) -> AttentionConfig:
    """Return the layer without any mechanism: the one whose weights it could have taken over."""
    return dataclasses.replace(layer, **_PLAIN, backend="auto")


def _changed(start: Any, options: Mapping[str, Any], name: str) -> Any:
    """Return `start` with these fields; some values of its class are no addition."""
    if isinstance(start, NonlinearQuery) and start.output_gain_start == 0.0 and options.get("output_norm") == "none":
        raise ValueError(f"{name!r}: output_norm must be 'layer' or 'rms': its gain 0 keeps the function at first.")
    value = from_mapping(type(start), {**to_mapping(start), **options}, name)
    if isinstance(value, Boosting) and value.rounds < 2:
        raise ValueError(f"{name!r}: rounds must be at least 2, the first being the trained one; got {value.rounds}.")
    if value == BlendedHeadOutput(norm=False, gate="none"):
        raise ValueError(f"{name!r}: without norm and gate nothing is added; keep one of them.")
    return value


def _refusal(name: str, add: str) -> str:
    if name in _WITHOUT_IDENTITY_START:
        return f"{name!r} cannot be added to trained weights: {_WITHOUT_IDENTITY_START[name]}."
    near = next((base for base in ADDITIONS if name.startswith(base)), None)
    if name in PRESETS and near is not None:
        return f"{name!r} is a preset for new models; for trained weights add {near!r} and choose its options."
    return f"nothing called {name!r} (in {add!r}) can be added.{did_you_mean(name, ADDITIONS)}"
