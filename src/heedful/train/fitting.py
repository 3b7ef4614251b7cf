"""Whether model, data and configuration belong together: asked before a run or an evaluation begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from heedful.data.batches import TrainingData
    from heedful.train.config import TrainConfig


def require_trainable(model: nn.Module, data: TrainingData, config: TrainConfig) -> None:
    """Refuse what would fail, or train something else than was meant, after the run folder was begun.

    Raises:
        ValueError: the model cannot be saved or has weights that are not float32, or the first batch does not have the
            shape the configuration says or does not fit the model.
    """
    if not callable(getattr(model, "save", None)):
        raise ValueError(f"{type(model).__name__} has no save(folder, weights) method, which checkpoints need.")
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise ValueError(
                f"weights are float32 in training at any precision, but {name} is {parameter.dtype}; use model.float()."
            )
    if config.probe_every and not hasattr(model, "block_list"):
        raise ValueError(
            f"probe_every = {config.probe_every} looks into the attention layers of a DecoderLM, and "
            f"{type(model).__name__} has none that it knows; set it to 0."
        )
    batch = data.batch(0)
    rows, length = batch.tokens.shape
    if rows != config.batch_size or length > config.context_length:
        raise ValueError(
            f"the data gives batches of {rows} sequences of {length} tokens, the configuration says batch_size="
            f"{config.batch_size} and context_length={config.context_length} (at most)."
        )
    require_room(model, context_length=length, largest_token=int(batch.tokens.max()))


def require_room(model: nn.Module, *, context_length: int, largest_token: int) -> None:
    """Refuse tokens or positions beyond those of a model whose `config` says how many it has.

    Raises:
        ValueError: there are more tokens than `vocab_size` or more positions than `max_positions`.
    """
    config = getattr(model, "config", None)
    vocab_size = getattr(config, "vocab_size", None)
    if vocab_size is not None and largest_token >= vocab_size:
        raise ValueError(
            f"the data has token {largest_token}, but the model a vocabulary of {vocab_size}: "
            "they were made with different tokenizers."
        )
    max_positions = getattr(config, "max_positions", None)
    if max_positions is not None and context_length > max_positions:
        raise ValueError(
            f"context_length is {context_length}, but the model has max_positions={max_positions}: "
            "use shorter contexts or a model with more positions."
        )
