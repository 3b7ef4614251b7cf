"""The few places in which `generate` must know that our layers remember more than keys and values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.cache_utils import Cache

from heedful.hf.cache import NO_OFFLOADING, HeedfulStaticCacheLayer, adopt_cache, make_cache
from heedful.hf.configuration import HeedfulConfig


class HeedfulGenerationMixin(GenerationMixin):
    """transformers' `generate` with our caches."""

    config: HeedfulConfig  # type: ignore[assignment]  # the mixin is used with our models only

    def _prepare_cache_for_generation(  # type: ignore[override]  # what we do not read is passed on as it comes
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Give the cache our layers before anything is stored, so that what `generate` asks of them is not lost."""
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)  # type: ignore[misc]
        for name in ("cache", "past_key_values"):
            if isinstance(model_kwargs.get(name), Cache):
                adopt_cache(model_kwargs[name], self.config.decoder_config().layers)
                if generation_config.is_assistant:
                    model_kwargs[name].activate_past_recording()

    def _prepare_static_cache(self, cache_implementation: str, batch_size: int, max_cache_len: int, *_: Any, **__: Any):
        """`generate` asks for a static cache here; ours knows what the layers remember."""
        if "offloaded" in cache_implementation:
            raise ValueError(NO_OFFLOADING)
        length = max(max_cache_len, getattr(self, "_previous_max_cache_length", -1))
        self._previous_max_cache_length = length  # a longer one is used again, so that compiled steps fit
        return make_cache(self.config, length)

    @staticmethod
    def create_masks_for_generate(
        *, attention_mask: Tensor | None = None, cache: Any = None, past_key_values: Any = None, **_: Any
    ) -> Tensor | None:
        """Return the tokenizer's mask in the static cache's own size, aligned on the right.

        transformers would make a B x 1 x N x M map; our operations take padding, and its constant shape keeps a
        compiled step from being compiled again.
        """
        kept = cache if cache is not None else past_key_values
        layer = kept.layers[0] if kept is not None and kept.layers else None
        if attention_mask is None or not isinstance(layer, HeedfulStaticCacheLayer) or not layer.is_initialized:
            return attention_mask
        unused = layer.max_length - attention_mask.shape[1]
        return torch.nn.functional.pad(attention_mask, (unused, 0))
