"""Which parameters of a heedful model are new beside a plain model of its sizes, and how to train them.

What is new follows from the configuration: the names in the attention layers that the same layers without mechanisms do
not have. Nothing has to be remembered, and a model that was saved and loaded knows it still.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import PreTrainedModel

from heedful.hf.additions import plain_layer
from heedful.hf.configuration import HeedfulConfig
from heedful.nn.attention import Attention

_IN_ATTENTION = re.compile(r"^(?:.*\.)?layers\.(\d+)\.attention\.(.+)$")


def new_parameter_names(model: PreTrainedModel) -> list[str]:
    """Return the names of the parameters that a plain model would not have, in the model's order.

    Raises:
        ValueError: a model that is not one of ours.
    """
    if not isinstance(model.config, HeedfulConfig):
        raise ValueError(f"expected a heedful model such as `upcycle` returns, got a {type(model).__name__}.")
    if any(".base_layer." in name or ".lora_" in name for name, _ in model.named_parameters()):
        raise ValueError("adapters hide which parameters are new; ask before they are added.")
    plain: list[set[str]] = []
    with torch.device("meta"):
        for layer in model.config.decoder_config().layers:
            plain.append({name for name, _ in Attention(plain_layer(layer)).named_parameters()})
    found = []
    for name, _ in model.named_parameters():
        match = _IN_ATTENTION.match(name)
        if match is not None and match[2] not in plain[int(match[1])]:
            found.append(name)
    return found


def freeze_all_but_new(model: PreTrainedModel) -> None:
    """Let only the new parameters learn.

    Raises:
        ValueError: the model has none.
    """
    new = set(_some_new(model))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in new)


def parameter_groups(
    model: PreTrainedModel,
    *,
    learning_rate: float,
    new_learning_rate: float,
    weight_decay: float = 0.1,
    freeze_rest: bool = False,
) -> list[dict[str, Any]]:
    """Return groups for an optimizer of torch: the new parameters, old matrices, and old vectors.

    | group        | learning rate       | weight decay   |
    |--------------|---------------------|----------------|
    | new          | `new_learning_rate` | 0              |
    | old matrices | `learning_rate`     | `weight_decay` |
    | old vectors  | `learning_rate`     | 0              |

    New parameters start at the identity, which decay would pull them away from.

    Args:
        model: what `upcycle` returned. Parameters that do not require gradients are left out.
        learning_rate, new_learning_rate, weight_decay: as in the table.
        freeze_rest: freeze the old parameters (`freeze_all_but_new`) and return one group.

    Raises:
        ValueError: the model has no new parameters.
    """
    new = set(_some_new(model))
    if freeze_rest:
        freeze_all_but_new(model)
    kinds: dict[str, list[torch.nn.Parameter]] = {"new": [], "matrices": [], "vectors": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kinds["new" if name in new else "matrices" if parameter.dim() >= 2 else "vectors"].append(parameter)
    rates = {"new": new_learning_rate, "matrices": learning_rate, "vectors": learning_rate}
    return [
        {"params": found, "lr": rates[kind], "weight_decay": weight_decay if kind == "matrices" else 0.0}
        for kind, found in kinds.items()
        if found
    ]


def _some_new(model: PreTrainedModel) -> list[str]:
    names = new_parameter_names(model)
    if not names:
        raise ValueError("the model has no new parameters: its attention is plain in every layer; `upcycle` adds some.")
    return names
