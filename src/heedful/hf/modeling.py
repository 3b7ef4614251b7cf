"""`HeedfulModel`, `HeedfulForCausalLM`, `HeedfulForSequenceClassification`: heedful decoders in transformers.

The blocks are those of `DecoderLM`; only the names around them are Llama's:

| `DecoderLM`          | here                                         |
|----------------------|----------------------------------------------|
| token_embedding      | model.embed_tokens                           |
| position_embedding   | model.embed_positions                        |
| blocks               | model.layers                                 |
| final_norm           | model.norm                                   |
| head, head_bias      | lm_head (its weight tied to embed_tokens)    |
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import fields
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from heedful.hf.cache import HeedfulCacheLayer, HeedfulStaticCacheLayer, adopt_cache, empty_cache
from heedful.hf.configuration import HeedfulConfig, backend_of
from heedful.hf.generation import HeedfulGenerationMixin
from heedful.hf.inputs import attention_mask_of, refuse_ignored
from heedful.hf.pretrained import HeedfulLayer, HeedfulPreTrainedModel
from heedful.models.blocks import build_norm
from heedful.models.decoder import DecoderLM, assemble_decoder, check_positions
from heedful.nn.attention_maps import recorded_maps
from heedful.ops.masks import AttentionMask

_CACHE = "cache" if any(f.name == "cache" for f in fields(BaseModelOutputWithPast)) else "past_key_values"
"""What this version of transformers calls the cache in outputs."""

_ARGUMENTS = (
    *("input_ids", "attention_mask", "position_ids", "past_key_values", "cache", "inputs_embeds", "labels"),
    *("use_cache", "output_attentions", "output_hidden_states", "logits_to_keep"),
)
_FOR_THE_LOSS = ("num_items_in_batch", "ignore_index", "shift_labels")
"""Arguments of transformers' loss function."""


class HeedfulModel(HeedfulPreTrainedModel):
    """The decoder without a head.

    Submodules: embed_tokens, embed_positions (learned positions only), layers (one if they are shared), norm.
    """

    def __init__(self, config: HeedfulConfig) -> None:
        super().__init__(config)
        decoder = config.decoder_config()
        # No padding_idx: padding is hidden anyway, and where it shares its id with end of text, that row must learn.
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        learned = decoder.position_embedding == "learned"
        self.embed_positions = nn.Embedding(decoder.max_positions, config.hidden_size) if learned else None
        self.dropout = nn.Dropout(decoder.dropout)
        own = decoder.layers[:1] if decoder.share_layers else decoder.layers
        self.layers = nn.ModuleList(HeedfulLayer(decoder, layer) for layer in own)
        self.norm = build_norm(decoder)
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Return the last hidden states (B, T, hidden_size), and the cache and what else was asked for.

        Args:
            input_ids: (B, T) the new tokens; or `inputs_embeds`, (B, T, hidden_size).
            attention_mask: (B, remembered + T), nonzero for real tokens.
            position_ids: (B or 1, T); positions that start anew at 0 mark packed documents.
            past_key_values, cache: two names of the cache, empty or what an earlier call filled.
            use_cache: make and fill a cache; None for the configuration's choice, in evaluation only.
            output_attentions: return one map per layer, (B, rounds * heads, T, positions), the first round's heads
                first. Needs attn_implementation="reference" or "eager".
            output_hidden_states: return the input of every layer and the final normed states.

        Raises:
            ValueError: inputs that do not fit, a cache of another model, more positions than the model has.
        """
        refuse_ignored(kwargs, position_ids, _ARGUMENTS)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds.")
        if past_key_values is not None and cache is not None:
            raise ValueError("past_key_values and cache are two names of one argument; give one.")
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        hidden = cast(Tensor, hidden)
        wanted = self.config.use_cache and not self.training if use_cache is None else use_cache
        wanted = wanted and not (self.training and self.gradient_checkpointing)
        cache = past_key_values if cache is None else cache
        if cache is None and wanted:
            cache = empty_cache(self._attention_configs)
        memories = None if cache is None else adopt_cache(cache, self._attention_configs)
        batch, tokens = hidden.shape[:2]
        mask = attention_mask_of(
            attention_mask,
            position_ids,
            layer=None if memories is None else memories[0],
            batch=batch,
            tokens=tokens,
            device=hidden.device,
        )
        self._check_length(memories, mask, tokens, batch)
        if self.embed_positions is not None:
            hidden = hidden + self.embed_positions(_positions(mask, memories, tokens, hidden.device))
        hidden = self.dropout(hidden)
        with self._maps(output_attentions) as maps:
            hidden, states = self._run(hidden, mask, memories, bool(output_hidden_states))
        return BaseModelOutputWithPast(
            last_hidden_state=cast(Any, hidden),
            hidden_states=cast(Any, states),
            attentions=None if maps is None else cast(Any, tuple(torch.cat(rounds, dim=1) for rounds in maps)),
            **{_CACHE: cache},
        )

    def _run(
        self, hidden: Tensor, mask: AttentionMask | None, memories: list[HeedfulCacheLayer] | None, all_states: bool
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Apply all layers and the final norm."""
        states: list[Tensor] = []
        tokens = hidden.shape[1]
        for index in range(self.config.num_hidden_layers):
            if all_states:
                states.append(hidden)
            layer = self.layers[0 if self.config.share_layers else index]
            memory = None if memories is None else memories[index]
            hidden, state = layer(hidden, mask, None if memory is None else memory.begin(tokens))
            if memory is not None:
                memory.finish(state, tokens)
        hidden = self.norm(hidden)
        return hidden, (*states, hidden) if all_states else None

    @property
    def _attention_configs(self) -> list[Any]:
        configs = [layer.attention.config for layer in self.layers]  # type: ignore[union-attr]
        return configs * self.config.num_hidden_layers if self.config.share_layers else configs

    def _maps(self, output_attentions: bool | None) -> Any:
        wanted = self.config.output_attentions if output_attentions is None else output_attentions
        if not wanted:
            return nullcontext(None)
        if backend_of(self.config._attn_implementation) != "reference":
            raise ValueError(
                "attention maps exist on the reference backend only: load with attn_implementation='eager', or call "
                f"model.set_attn_implementation('eager'); now it is {self.config._attn_implementation!r}."
            )
        attentions = [layer.attention for layer in self.layers]  # type: ignore[union-attr]
        if self.config.share_layers:
            raise ValueError("attention maps of shared layers cannot be told apart; look at DecoderLM instead.")
        return recorded_maps(cast(Any, attentions))

    def _check_length(
        self, memories: list[HeedfulCacheLayer] | None, mask: AttentionMask | None, tokens: int, batch: int
    ) -> None:
        if memories is not None and memories[0].is_initialized:
            key = memories[0].keys
            if key is not None and key.shape[0] != batch:
                raise ValueError(f"the cache holds {key.shape[0]} rows, but this call has {batch}.")
        first = None if memories is None else memories[0]
        if isinstance(first, HeedfulStaticCacheLayer) and torch.compiler.is_compiling():
            room = min(first.max_length, self.config.max_position_embeddings)
            fits = first.length + tokens <= room
            torch._assert_async(
                fits, f"the static cache and the model have room for {room} positions; this call needs more"
            )
            return
        past = 0 if first is None else int(first.get_seq_length())
        if isinstance(first, HeedfulStaticCacheLayer) and past + tokens > first.max_length:
            raise ValueError(
                f"the static cache has room for {first.max_length} positions; it holds {past} and got {tokens} more. "
                f"Make it larger."
            )
        check_positions(mask, past + tokens, self.config.max_position_embeddings, "max_position_embeddings")


class HeedfulForCausalLM(HeedfulPreTrainedModel, HeedfulGenerationMixin):
    """The decoder with a language-model head.

    Examples:
        >>> import heedful.hf
        >>> config = heedful.hf.HeedfulConfig(
        ...     attention="boosted+multi-token", hidden_size=32, num_hidden_layers=3, num_attention_heads=4
        ... )
        >>> heedful.hf.HeedfulForCausalLM(config).config.model_type
        'heedful'
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012  # as transformers declares it

    def __init__(self, config: HeedfulConfig) -> None:
        super().__init__(config)
        self.model = HeedfulModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.head_bias)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return the logits of the next token, (B, T or fewer, vocab_size), and the loss if there are labels.

        Args:
            input_ids, attention_mask, position_ids, inputs_embeds: as in `HeedfulModel`.
            past_key_values, cache, use_cache, output_attentions, output_hidden_states: as in `HeedfulModel`.
            labels: (B, T) token ids, -100 where nothing counts; the loss is the mean cross-entropy of the next token
                in nats, or the sum divided by `num_items_in_batch` if that is given.
            logits_to_keep: compute only the last so many positions, or those at these indices; 0 for all.

        Raises:
            ValueError: as `HeedfulModel`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            cache=cache,
            return_dict=True,
            **{name: value for name, value in kwargs.items() if name not in _FOR_THE_LOSS},
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            options = {name: value for name, value in kwargs.items() if name in _FOR_THE_LOSS}
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **options)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{_CACHE: getattr(outputs, _CACHE)},
        )

    @classmethod
    def from_decoder(cls, decoder: DecoderLM, **fields: Any) -> HeedfulForCausalLM:
        """Return a model with the weights of a native decoder, copied; on its device, in its type and mode.

        Args:
            decoder: the native model.
            fields: further fields of the configuration, such as `eos_token_id`.
        """
        config = HeedfulConfig.from_decoder(decoder.config, **fields)
        weights = {_renamed(name, _TO_HERE): tensor for name, tensor in decoder.state_dict().items()}
        if config.tie_word_embeddings:
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        with torch.device("meta"):
            model = cls(config)
        model.load_state_dict({name: tensor.clone() for name, tensor in weights.items()}, assign=True)
        model.tie_weights()
        model.requires_grad_(True)  # assign=True keeps the tensors' own flag
        return cast(HeedfulForCausalLM, model.train(decoder.training))

    def to_decoder(self) -> DecoderLM:
        """Return a native decoder with a copy of the weights; on the same device, in the same types and mode.

        Raises:
            ValueError: weights that are not in memory, or a head that is tied in the configuration only.
        """
        weights = {_renamed(name, _TO_NATIVE): tensor.detach().clone() for name, tensor in self.state_dict().items()}
        if self.config.tie_word_embeddings:
            head = weights.pop("head.weight")
            if not head.is_meta and not torch.equal(head, weights["token_embedding.weight"]):
                raise ValueError(
                    "the configuration says that the head is tied to the embedding, but they hold different weights; "
                    "set config.tie_word_embeddings to what is meant."
                )
        return assemble_decoder(self.config.decoder_config(), weights, "the model").train(self.training)


class HeedfulForSequenceClassification(GenericForSequenceClassification, HeedfulPreTrainedModel):
    """The decoder with a score of each class at the last real token; `pad_token_id` tells which that is."""

    def __init__(self, config: HeedfulConfig) -> None:
        HeedfulPreTrainedModel.__init__(self, config)  # the mixin's own would go through the Auto classes
        self.num_labels = config.num_labels
        self.model = HeedfulModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels or 2, bias=False)
        self.post_init()


_TO_HERE = {
    "token_embedding.": "model.embed_tokens.",
    "position_embedding.": "model.embed_positions.",
    "blocks.": "model.layers.",
    "final_norm.": "model.norm.",
    "head.": "lm_head.",
    "head_bias": "lm_head.bias",
}
_TO_NATIVE = {here: native for native, here in reversed(_TO_HERE.items())}  # the bias before the rest of the head


def _renamed(name: str, prefixes: dict[str, str]) -> str:
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise ValueError(f"no name for the weight {name!r}; expected one of {', '.join(prefixes)}.")


def _positions(
    mask: AttentionMask | None, memories: list[HeedfulCacheLayer] | None, tokens: int, device: torch.device
) -> Tensor:
    """Return the positions of the new tokens, as the attention layers count them."""
    counted = None if mask is None else mask.positions()
    if counted is not None:
        return counted[:, -tokens:]
    past = 0 if memories is None else int(memories[0].get_seq_length())
    return torch.arange(past, past + tokens, device=device)[None]
