"""`upcycle`: give a pre-trained checkpoint new attention mechanisms without changing its function at step 0.

The old weights are copied bit for bit; the new ones start so that their mechanism does nothing yet and learns from the
first step on (see `heedful.hf.additions`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor
from transformers import PreTrainedModel

from heedful.hf.additions import UpcyclingOptions, added_to, parse_additions
from heedful.hf.importing import import_decoder, load_source
from heedful.hf.modeling import HeedfulForCausalLM
from heedful.models.config import DecoderConfig
from heedful.models.decoder import DecoderLM, assemble_decoder
from heedful.models.initialisation import draw_initial_values
from heedful.nn.attention import Attention
from heedful.nn.norms import SpanNorm

KEPT_FIELDS = ("pad_token_id", "bos_token_id", "eos_token_id", "use_cache")


def upcycle(
    source: PreTrainedModel | str | Path,
    add: str,
    *,
    layers: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    dropout: float | None = None,
    **options: Unpack[UpcyclingOptions],
) -> HeedfulForCausalLM:
    """Return a heedful model that computes what the source computes and has room to learn more.

    Args:
        source: as in `import_decoder`; a heedful model is taken too if it is plain where something is added.
        add: names from `heedful.hf.additions`, such as "multi-token" or "boosted+head-output".
        layers: the layers that get it; None for all. The convolutions of "multi-token" are then in every fourth layer
            as published (`convolution_every`, `convolution_offset`), but in each layer that is named here.
        dtype, dropout: as in `import_decoder`. New parameters have the type of the old ones.
        options: see `UpcyclingOptions`.

    Returns:
        the model, in evaluation mode, on the source's device; new weights are drawn from torch's global generator. It
        shares no memory with the source.

    Raises:
        ValueError: what `import_decoder` refuses; unknown names, options or layers; mechanisms that exclude each other,
            do not start as the identity, or do not fit the sizes.
    """
    sections = parse_additions(add, options)
    model = source if isinstance(source, PreTrainedModel) else None
    if isinstance(source, str | Path):
        model = load_source(source)
    decoder = import_decoder(source if model is None else model, dtype=dtype, dropout=dropout)
    config = upcycled_config(decoder.config, sections, layers)
    assert model is not None  # import_decoder refuses everything else
    fields = {name: getattr(model.config, name) for name in KEPT_FIELDS if hasattr(model.config, name)}
    upcycled = HeedfulForCausalLM.from_decoder(upcycled_decoder(decoder, config), **fields)
    if getattr(model, "generation_config", None) is not None:
        upcycled.generation_config = type(model.generation_config).from_dict(model.generation_config.to_dict())
    return upcycled.eval()


def upcycled_config(decoder: DecoderConfig, sections: dict[str, Any], layers: Sequence[int] | None) -> DecoderConfig:
    """Return the decoder's configuration with new sections in the chosen layers.

    Raises:
        ValueError: layers that do not exist, stand twice or are shared; sections that do not fit.
    """
    chosen = range(decoder.num_layers) if layers is None else layers
    wrong = [layer for layer in chosen if isinstance(layer, bool) or layer not in range(decoder.num_layers)]
    if wrong or len(set(chosen)) < len(chosen) or not chosen:
        raise ValueError(f"layers must be different numbers from 0 to {decoder.num_layers - 1}, got {list(chosen)}.")
    if decoder.share_layers and layers is not None:
        raise ValueError("the model applies one block everywhere, so layers cannot be chosen; leave layers out.")
    new = [
        added_to(layer, sections, chosen=layers is not None) if index in chosen else layer
        for index, layer in enumerate(decoder.layers)
    ]
    return dataclasses.replace(decoder, attention=new[0] if decoder.share_layers else tuple(new))


def upcycled_decoder(decoder: DecoderLM, config: DecoderConfig) -> DecoderLM:
    """Return a decoder with all tensors of the given one, and new ones where the configuration asks for more.

    New tensors start as the modules say (`draw_initial_values`); the projections of further rounds are copies of those
    of the first.
    """
    trained = decoder.state_dict()
    weights = dict(trained)
    for index, layer in enumerate(config.layers[:1] if config.share_layers else config.layers):
        prefix = f"blocks.{index}.attention."
        like = weights[f"{prefix}o_proj.weight"]
        attention = Attention(layer)
        draw_initial_values(attention, config)
        _open_further_rounds(attention)
        for name, tensor in attention.state_dict().items():
            if prefix + name not in weights:
                given = trained.get(prefix + _in_first_round(name))
                copied = tensor if given is None else given.clone()
                weights[prefix + name] = copied.to(device=like.device, dtype=like.dtype)
    return assemble_decoder(config, weights)


@torch.no_grad()
def _open_further_rounds(attention: Attention) -> None:
    """Let the terms inside further rounds start as in a new model: the whole round starts at 0 already, and a second 0
    inside it would hold up its learning by a step.
    """
    for attention_round in attention.rounds[1:]:
        for module in attention_round.modules():
            if isinstance(module, SpanNorm):
                module.weight.fill_(1.0)


def _in_first_round(name: str) -> str:
    """Return the name of the same weight in the first round; names outside the rounds stay."""
    part, _, rest = name.partition(".")
    if part != "rounds":
        return name
    return f"rounds.0.{rest.partition('.')[2]}"


@torch.no_grad()
def logits_at_random(model: PreTrainedModel, *, tokens: int = 24, seed: int = 0) -> Tensor:
    """Return the logits at the same random tokens for every model of one vocabulary, computed in float32 or better.

    A model of 16 bits is widened for the call: without its rounding, a difference shows what it means.
    """
    tensors = [*model.parameters(), *model.buffers()]
    narrow = [(tensor, tensor.dtype) for tensor in tensors if tensor.is_floating_point() and tensor.element_size() < 4]
    length = min(tokens, int(model.config.max_position_embeddings))
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(int(model.config.vocab_size), (2, length), generator=generator)
    training = model.training
    try:
        for tensor, _ in narrow:
            tensor.data = tensor.data.float()
        return model.eval()(input_ids=ids.to(model.device), use_cache=False).logits
    finally:
        model.train(training)
        for tensor, dtype in narrow:  # exact: nothing has changed the widened values
            tensor.data = tensor.data.to(dtype)
