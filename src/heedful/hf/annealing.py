"""Annealing the query of an upcycled model: Q = (1 - a) x W_Q + a Q_nonlinear(x), a from 0 to 1 in training.

`AnnealQuery` moves a during `transformers.Trainer`'s training; `finish_annealing` drops W_Q once a = 1.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any, Literal

from torch import nn
from transformers import TrainerCallback

from heedful.hf.modeling import HeedfulForCausalLM
from heedful.hf.upcycling import KEPT_FIELDS
from heedful.models.decoder import assemble_decoder
from heedful.nn.annealed_query import AnnealedQuery, AnnealedQueryMap
from heedful.schema import check_choices


@dataclasses.dataclass(frozen=True)
class AnnealQuery(TrainerCallback):
    """Sets the coefficient of all annealed queries after every optimizer step.

    a(t) = s(p),  p = (t - start) / steps cut to [0, 1],  s(p) = p ("linear") or (1 - cos(pi p)) / 2 ("cosine"),

    where t counts finished optimizer steps. It depends on t alone, so a run that goes on from a checkpoint continues
    where it was.

    Attributes:
        steps: how many steps the way from 0 to 1 takes.
        start: after how many steps it begins.
        shape: "linear", or "cosine", which starts and ends slowly.
    """

    steps: int
    start: int = 0
    shape: Literal["linear", "cosine"] = "linear"

    def __post_init__(self) -> None:
        check_choices(self)
        if self.steps < 1 or self.start < 0:
            raise ValueError(f"steps must be at least 1 and start at least 0, got {self.steps} and {self.start}.")

    def coefficient(self, step: int) -> float:
        """Return a after `step` optimizer steps."""
        progress = min(max((step - self.start) / self.steps, 0.0), 1.0)
        return progress if self.shape == "linear" else (1.0 - math.cos(math.pi * progress)) / 2.0

    def apply(self, model: nn.Module, step: int) -> None:
        """Set the coefficients of a model, for training loops of one's own.

        Raises:
            ValueError: the model has no annealed query.
        """
        for query in annealed_queries(model):
            query.set_coefficient(self.coefficient(step))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the coefficient of the step from which the training starts."""
        self.apply(kwargs["model"], state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the next step's coefficient; evaluation and saving come afterwards and see it."""
        self.apply(kwargs["model"], state.global_step)


def annealed_queries(model: nn.Module) -> list[AnnealedQueryMap]:
    """Return the annealed queries of a model.

    Raises:
        ValueError: it has none.
    """
    found = [module for module in model.modules() if isinstance(module, AnnealedQueryMap)]
    if not found:
        raise ValueError("the model has no annealed query; make one with upcycle(model, 'annealed-nonlinear-query').")
    return found


def finish_annealing(model: HeedfulForCausalLM) -> HeedfulForCausalLM:
    """Return the model without the annealed queries' W_Q, once it has no more influence; the logits are the same.

    Raises:
        ValueError: no annealed query, or one whose coefficient is not 1 yet.
    """
    coefficients = [float(query.coefficient) for query in annealed_queries(model)]
    if any(coefficient != 1.0 for coefficient in coefficients):
        raise ValueError(
            f"the annealing is not finished: coefficients lie between {min(coefficients):.4g} and "
            f"{max(coefficients):.4g}, expected 1; train on, or set them with AnnealQuery.apply."
        )
    decoder = model.to_decoder()
    layers = [
        dataclasses.replace(layer, query=layer.query.target) if isinstance(layer.query, AnnealedQuery) else layer
        for layer in decoder.config.layers
    ]
    shared = decoder.config.share_layers
    config = dataclasses.replace(decoder.config, attention=layers[0] if shared else tuple(layers))
    annealed = {name for name, module in decoder.named_modules() if isinstance(module, AnnealedQueryMap)}
    weights = {}
    for name, tensor in decoder.state_dict().items():
        query = next((prefix for prefix in annealed if name.startswith(f"{prefix}.")), None)
        rest = None if query is None else name.removeprefix(f"{query}.")
        if rest is None:
            weights[name] = tensor
        elif rest.startswith("target."):
            weights[f"{query}.{rest.removeprefix('target.')}"] = tensor
    finished = HeedfulForCausalLM.from_decoder(
        assemble_decoder(config, weights).train(model.training),
        **{name: getattr(model.config, name) for name in KEPT_FIELDS},
    )
    finished.generation_config = copy.deepcopy(model.generation_config)
    return finished
