"""An exponential moving average of the weights, which often evaluates better than the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from heedful.train.parallel import local, reshard


class WeightAverage:
    """The moving average of a model's trainable parameters, from their initial values on.

    With t the number of updates before this one and w the weights,

        d_t = min(decay, (1 + t) / (10 + t)),   average <- d_t average + (1 - d_t) w.

    The growing d_t keeps the initial weights from lingering: after T updates their share is the product of the d_t,
    which falls as T^-9 as long as the bound is not reached, whereas a constant 0.999 would still leave them 37% after
    1000 updates. Frozen parameters and buffers have no average: they are what they are in the model.

    The average has the types, the device and the spread over processes of the weights, and their size once more.

    Args:
        model: the model, already on its device and spread over processes.
        decay: in [0, 1); the larger, the longer the memory, about 1 / (1 - decay) updates.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model, self._decay, self._applied = model, decay, False
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._names = [name for name, _ in named]
        self._averages = [parameter.detach().clone() for _, parameter in named]
        self._weight_parts = [local(parameter.detach()) for _, parameter in named]
        self._average_parts = [local(average) for average in self._averages]
        # On the CPU, where reading it waits for nothing.
        self._updates = torch.zeros((), dtype=torch.int64, device="cpu")

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present weights; call it after each optimiser step."""
        self._require_weights_in_model()
        updates = int(self._updates)
        decay = min(self._decay, (1 + updates) / (10 + updates))
        get_ema_multi_avg_fn(decay)(self._average_parts, self._weight_parts, None)
        self._updates += 1

    def tensors(self) -> dict[str, Tensor]:
        """Return the live state for checkpoints: the averages by parameter name, and the number of "updates"."""
        self._require_weights_in_model()
        return {**dict(zip(self._names, self._averages, strict=True)), "updates": self._updates}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Run the body with the average in the model, then put the weights back, bit for bit, also after an error.

        Weights and averages change places tensor by tensor, so it needs memory for the largest one only. Inside, the
        average can neither be updated nor read.

        Raises:
            RuntimeError: it is applied already.
        """
        self._require_weights_in_model()
        self._exchange()
        self._applied = True
        try:
            yield
        finally:
            self._exchange()
            self._applied = False

    @torch.no_grad()
    def _exchange(self) -> None:
        reshard(self._model)
        for average, weight in zip(self._average_parts, self._weight_parts, strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    def _require_weights_in_model(self) -> None:
        if self._applied:
            raise RuntimeError("the average is in the model now; leave `applied()` first.")
