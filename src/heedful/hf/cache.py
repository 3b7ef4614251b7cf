"""What our layers remember between calls, inside transformers' `Cache`.

A layer of any mechanism keeps an `AttentionState`: keys and values of every round, and what its score rule needs
besides (past queries, corrected values). Both kinds of cache layer here hold exactly that value, so that `generate`
with beams, batches, chunks and drafts needs to know nothing of the mechanism.

* `HeedfulCacheLayer` grows with the text.
* `HeedfulStaticCacheLayer` has room for `max_length` positions and never changes its shapes. Its positions are aligned
  on the right, the newest one last, and the room that is not used yet counts as padding on the left; so every
  operation works on it as on a padded batch, and a step is the same graph for `torch.compile` at any length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, StaticCache

from heedful.hf.configuration import HeedfulConfig
from heedful.nn.config import AttentionConfig
from heedful.nn.state import AttentionState, RoundState

NO_OFFLOADING = "offloaded caches are not supported by heedful models; use a dynamic or a static cache."


class HeedfulCacheLayer(CacheLayerMixin):
    """The memory of one layer, growing with the text.

    Args:
        config: the attention layer that it belongs to.
    """

    is_compileable = False
    is_croppable = True
    is_sliding = False

    def __init__(self, config: AttentionConfig) -> None:
        # The base class would set attributes which are properties here.
        self.config = config
        self.state = AttentionState.empty(config.rounds)
        self.record_past = False
        self._recorded = 0  # tokens since the last crop, which may be taken back

    @property
    def keys(self) -> Tensor | None:  # type: ignore[override]  # an attribute of the base class
        """The keys of the first round."""
        return self.state.rounds[0].key

    @property
    def values(self) -> Tensor | None:  # type: ignore[override]
        """The values of the first round."""
        return self.state.rounds[0].value

    @property
    def is_initialized(self) -> bool:  # type: ignore[override]
        """Whether anything has been stored."""
        return self.keys is not None

    def begin(self, tokens: int) -> AttentionState:
        """Return the state for a call on so many new tokens."""
        spare = self._recorded + tokens if self.record_past else 0
        return replace(self.state, spare=spare, taken_back=0)

    def finish(self, state: AttentionState, tokens: int) -> None:
        """Keep the state after the call."""
        self.state = state
        self._recorded = self._recorded + tokens if self.record_past else 0

    def get_seq_length(self) -> int:
        """Return the number of positions stored."""
        return self.state.length

    def get_max_length(self) -> int:
        """Return -1: there is no limit."""
        return -1

    def get_max_cache_shape(self) -> int:
        """Return `get_max_length()`, by its older name."""
        return self.get_max_length()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of keys that the next call sees, and the position of the first."""
        return self.get_seq_length() + query_length, 0

    def activate_past_recording(self) -> None:
        """Keep as many past queries as the next `crop` may need."""
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last `-tokens_to_remove` tokens; 0 says that all of them stay.

        Raises:
            ValueError: a positive number, or more tokens than can be taken back: convolutions over queries need earlier
                queries, which are kept after `activate_past_recording`.
        """
        if tokens_to_remove > 0:
            raise ValueError(
                f"crop takes the negative number of tokens to remove, got {tokens_to_remove}; to keep n tokens, crop "
                f"by n - get_seq_length()."
            )
        tokens = -tokens_to_remove
        if tokens > self.get_seq_length():
            raise ValueError(f"cannot take back {tokens} tokens: the cache holds {self.get_seq_length()}.")
        if tokens and not self._whole() and tokens > self.state.spare:
            raise ValueError(
                f"cannot take back {tokens} tokens: this layer convolves over queries and kept what taking back "
                f"{self.state.spare} needs; call cache.activate_past_recording() before the tokens are read."
            )
        if tokens:
            rounds = tuple(memory.without_last(tokens) for memory in self.state.rounds)
            self.state = replace(self.state, rounds=rounds, spare=max(self.state.spare - tokens, 0))
        self._recorded = 0

    def _whole(self) -> bool:
        """Whether everything is remembered for all positions, so that any number of them can go."""
        length = self.get_seq_length()
        return all(memory.memory is None or memory.memory.shape[2] == length for memory in self.state.rounds)

    def reset(self) -> None:
        """Forget everything."""
        self.state, self._recorded = AttentionState.empty(self.config.rounds), 0

    def offload(self) -> None:
        """Refuse: a call would not bring the memory back.

        Raises:
            ValueError: always.
        """
        raise ValueError(NO_OFFLOADING)

    def prefetch(self) -> None:
        """Refuse, as `offload`.

        Raises:
            ValueError: always.
        """
        raise ValueError(NO_OFFLOADING)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take the rows of the batch in this order, for beam search."""
        self._map(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        self._map(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        self._map(lambda tensor: tensor[indices.to(tensor.device) if isinstance(indices, Tensor) else indices])

    def _map(self, function: Callable[[Tensor], Tensor]) -> None:
        self.state = self.state.map(function)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the first call says what is stored."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Refuse: keys and values alone are not what these layers remember.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "this cache belongs to a heedful model, whose layers remember more than keys and values; it cannot be "
            "updated by another model."
        )


class HeedfulStaticCacheLayer(HeedfulCacheLayer):
    """The memory of one layer in tensors of constant size.

    Args:
        config: the attention layer that it belongs to.
        max_length: how many positions there is room for.
    """

    is_compileable = True
    is_croppable = False

    def __init__(self, config: AttentionConfig, max_length: int) -> None:
        super().__init__(config)
        self.max_length = max_length
        self.length = torch.zeros((), dtype=torch.long)  # a tensor, so that a compiled step does not depend on it

    def begin(self, tokens: int) -> AttentionState:
        """Return the state for a call on so many new tokens: all but the oldest `tokens` places."""
        if not self.is_initialized:
            return self.state
        rounds = tuple(
            RoundState(key=r.key[:, :, tokens:], value=r.value[:, :, tokens:], memory=self._older(r.memory, tokens))
            for r in self.state.rounds
            if r.key is not None and r.value is not None
        )
        return replace(self.state, rounds=rounds)

    def _older(self, memory: Tensor | None, tokens: int) -> Tensor | None:
        """Make room in a memory that has one entry per position."""
        return memory[:, :, tokens:] if memory is not None and self._by_position() else memory

    def finish(self, state: AttentionState, tokens: int) -> None:
        """Keep the state after the call; after the first one, in its final size."""
        if self.is_initialized:
            self._overwrite(state)
        else:
            self.state = replace(state, rounds=tuple(self._enlarged(memory) for memory in state.rounds))
            self.length = self.length.to(state.rounds[0].key.device)  # type: ignore[union-attr]
            self._keep_addresses()
        self.length.add_(tokens)

    def _overwrite(self, state: AttentionState) -> None:
        """Write a state into the tensors that are there: a CUDA graph finds its inputs at fixed addresses."""
        for kept, new in zip(self.state.rounds, state.rounds, strict=True):
            for old, tensor in zip(kept, new, strict=True):
                if old is not None and tensor is not None:
                    old.copy_(tensor)

    def _keep_addresses(self) -> None:
        """Tell the compiler that these tensors stay where they are."""
        if not torch.compiler.is_compiling():
            tensors = (tensor for memory in self.state.rounds for tensor in memory if tensor is not None)
            for tensor in (self.length, *tensors):
                torch._dynamo.mark_static_address(tensor)

    def _enlarged(self, memory: RoundState) -> RoundState:
        """Return a round's memory with empty places before it."""
        rows = self.max_length
        if memory.memory is not None and not self._by_position():
            heads, width = memory.memory.shape[1], memory.memory.shape[3]
            rows = self.config.rule.memory_values(self.config.sizes) // (heads * width)
        return RoundState(
            key=_padded(memory.key, self.max_length),
            value=_padded(memory.value, self.max_length),
            memory=_padded(memory.memory, rows),
        )

    def _by_position(self) -> bool:
        return self.config.rule.memory_values_per_token(self.config.sizes) > 0

    def real_positions(self, tokens: int, device: torch.device) -> Tensor:
        """Return which places are in use in a call on so many new tokens, (1, max_length) bool."""
        places = torch.arange(self.max_length, device=device)
        return (places >= self.max_length - self.length.to(device) - tokens)[None]

    def get_seq_length(self) -> int:
        """Return the number of positions stored, a tensor once there are any."""
        return self.length if self.is_initialized else 0  # type: ignore[return-value]

    def get_max_length(self) -> int:
        """Return how many positions there is room for."""
        return self.max_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of places, and the first of them."""
        return self.max_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse, unless nothing is to be removed: positions are aligned on the right.

        Raises:
            ValueError: anything but 0.
        """
        if tokens_to_remove != 0:
            raise ValueError("a static cache of a heedful model cannot take tokens back; use a dynamic cache.")

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.length = torch.zeros_like(self.length)


def empty_cache(layers: Sequence[AttentionConfig], max_length: int | None = None) -> Cache:
    """Return an empty cache for the layers of a model.

    Args:
        layers: the attention configuration of each layer.
        max_length: room for so many positions in tensors of constant size; None for a cache that grows.
    """
    if max_length is None:
        return Cache(layers=[HeedfulCacheLayer(layer) for layer in layers])
    return Cache(layers=[HeedfulStaticCacheLayer(layer, max_length) for layer in layers])


def make_cache(config: HeedfulConfig, max_length: int | None = None) -> Cache:
    """Return an empty cache for a model of this configuration.

    Args:
        config: the model's configuration.
        max_length: room for so many positions in tensors of constant size; None for a cache that grows.
    """
    return empty_cache(config.decoder_config().layers, max_length)


def adopt_cache(cache: Cache, layers: Sequence[AttentionConfig]) -> list[HeedfulCacheLayer]:
    """Return the layers of a cache, after giving an empty cache of transformers our layers.

    `generate` and users make `DynamicCache` and `StaticCache`; while these are empty, they become ours.

    Raises:
        ValueError: a cache of another model, or of a kind that cannot hold what the layers remember.
    """
    own = [layer for layer in cache.layers if isinstance(layer, HeedfulCacheLayer)]
    if len(own) == len(cache.layers) == len(layers):
        if not all(_same_layer(layer.config, mine) for layer, mine in zip(own, layers, strict=True)):
            raise ValueError("this cache was filled by a model with other attention layers; start with an empty one.")
        return own
    if own or (cache.layers and int(cache.get_seq_length()) > 0):
        raise ValueError(
            f"this cache was filled by another model: it has {len(cache.layers)} layers, {len(own)} of them of a "
            f"heedful model, and this model has {len(layers)} layers; start with an empty one."
        )
    if getattr(cache, "offloading", False):
        raise ValueError(NO_OFFLOADING)
    if isinstance(cache, StaticCache):
        fresh = empty_cache(layers, _room(cache))
    elif type(cache) is DynamicCache or cache.layer_class_to_replicate is DynamicLayer:
        fresh = empty_cache(layers)
    else:
        raise ValueError(
            f"a heedful model cannot use a {type(cache).__name__}: its layers remember more than keys and values; use "
            f"a DynamicCache or a StaticCache."
        )
    cache.layers, cache.layer_class_to_replicate = fresh.layers, None
    return cache.layers  # type: ignore[return-value]  # made of ours just now


def _same_layer(one: AttentionConfig, other: AttentionConfig) -> bool:
    """Whether two layers remember the same; the backend may change between calls."""
    return one == other or replace(one, backend="auto") == replace(other, backend="auto")


def _room(cache: StaticCache) -> int:
    """Return how many positions transformers' static cache was made for; a layer with a window does not tell."""
    lengths = [
        int(layer.get_max_length()) for layer, slides in zip(cache.layers, cache.is_sliding, strict=True) if not slides
    ]
    if not lengths:
        raise ValueError(
            "a StaticCache of layers with windows does not say how many positions it is for; use "
            "heedful.hf.make_cache(model.config, max_length) or generate(cache_implementation='static')."
        )
    return max(lengths)


def _padded(tensor: Tensor | None, rows: int) -> Tensor | None:
    """Return (B, H, n, d) as (B, H, rows, d) with zeros before."""
    return None if tensor is None else torch.nn.functional.pad(tensor, (0, 0, rows - tensor.shape[2], 0))
