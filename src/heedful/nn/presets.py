"""Mechanisms by name, and sums of them: `attention_config("boosted+nonlinear-query", hidden_size=..., num_heads=...)`.

A preset sets some sections of an `AttentionConfig`. Presets add up when they set different sections; two presets that
set the same section contradict each other and are refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from heedful.nn.boosting import Boosting
from heedful.nn.config import AttentionConfig
from heedful.nn.differential import DifferentialRule, DifferentialV2Rule
from heedful.nn.head_output import HeadOutput
from heedful.nn.multi_token import MultiTokenRule, TalkingHeadsRule
from heedful.nn.queries import IdentityQuery, NonlinearQuery
from heedful.nn.twicing import TwicingRule
from heedful.schema import did_you_mean


class Preset(NamedTuple):
    """A named mechanism: what it is, where it comes from, and the sections it sets."""

    description: str
    source: str
    sections: Mapping[str, Any]


PRESETS: Mapping[str, Preset] = {
    "standard": Preset("softmax attention with linear queries", "arXiv 1706.03762", {}),
    "identity-query": Preset(
        "the layer's input, halved, is the query; no query projection",
        "arXiv 2510.23912",
        {"query": IdentityQuery()},
    ),
    "nonlinear-query": Preset(
        "half the sum of the input and a bottleneck MLP of it is the query",
        "arXiv 2603.13381",
        {"query": NonlinearQuery()},
    ),
    "nonlinear-query-linear-control": Preset(
        "the nonlinear query without its activation: same size, same norms",
        "control of arXiv 2603.13381",
        {"query": NonlinearQuery(activation="none")},
    ),
    "boosted": Preset(
        "a second round attends from the residual of the first; a gate adds it",
        "arXiv 2604.03190",
        {"boosting": Boosting()},
    ),
    "boosted-input-kv": Preset(
        "boosted, with keys and values of the second round from the input",
        "arXiv 2604.03190, version 1",
        {"boosting": Boosting(kv_source="input")},
    ),
    "twicing": Preset("(2A - A^2) V in two passes", "arXiv 2503.00687", {"rule": TwicingRule()}),
    "differential": Preset(
        "difference of two maps, normalised heads",
        "arXiv 2410.05258",
        {"rule": DifferentialRule(), "head_output": HeadOutput(depth_scale=True)},
    ),
    "differential-v2": Preset(
        "twice the query heads, neighbours subtracted per token",
        "its authors' second version",
        {"rule": DifferentialV2Rule()},
    ),
    "talking-heads": Preset(
        "heads mixed before and after the softmax", "arXiv 2003.02436", {"rule": TalkingHeadsRule()}
    ),
    "multi-token-v1": Preset(
        "key-query convolution before, head mixing by pairs after the softmax, normalised heads",
        "arXiv 2504.00927, version 1",
        {
            "rule": MultiTokenRule(post_convolution=False, pre_mixing=None, post_mixing=2),
            "head_output": HeadOutput(depth_scale=True),
        },
    ),
    "multi-token": Preset(
        "convolutions over queries and keys, and mixing of all heads, before and after the softmax; normalised, "
        "gated heads",
        "arXiv 2504.00927, version 2",
        {"rule": MultiTokenRule(), "head_output": HeadOutput(gate="scalar")},
    ),
}


def preset_sections(names: str) -> dict[str, Any]:
    """Return the sections set by a preset or by a sum such as "boosted+multi-token".

    Raises:
        ValueError: an unknown name, a name given twice, or two presets which set the same section.
    """
    sections: dict[str, Any] = {}
    owners: dict[str, str] = {}
    seen: set[str] = set()
    for name in (part.strip() for part in names.split("+")):
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r} in {names!r}.{did_you_mean(name, PRESETS)}")
        if name in seen:
            raise ValueError(f"preset {name!r} stands twice in {names!r}; name it once.")
        seen.add(name)
        for section, value in PRESETS[name].sections.items():
            if section in owners:
                what = {
                    "rule": "the score rule",
                    "query": "the query map",
                    "head_output": "the head output",
                }.get(section, section)
                raise ValueError(
                    f"{names!r} contradicts itself: {owners[section]!r} and {name!r} both choose {what}; keep one."
                )
            sections[section], owners[section] = value, name
    return sections


def attention_config(names: str = "standard", **fields: Any) -> AttentionConfig:
    """Build a configuration from preset names and fields of `AttentionConfig`.

    A field given here replaces the preset's section as a whole: `attention_config("boosted", hidden_size=64,
    num_heads=4, boosting=Boosting(rounds=3))`.

    Raises:
        ValueError: unknown presets or fields, contradictions, sizes that do not fit.
    """
    known = [field.name for field in dataclasses.fields(AttentionConfig)]
    for field in fields:
        if field not in known:
            raise ValueError(f"AttentionConfig has no field {field!r}.{did_you_mean(field, known)}")
    for field in ("hidden_size", "num_heads"):
        if field not in fields:
            raise ValueError(f"attention_config needs {field}=..., which has no default.")
    sections = {**preset_sections(names), **fields}
    try:
        return AttentionConfig(**sections)
    except ValueError as error:
        if "+" not in names:
            raise
        raise ValueError(f"{names!r} does not fit: {error}") from error
