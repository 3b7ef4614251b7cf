"""`HeedfulPreTrainedModel`: what every heedful model in transformers shares: loading, initial weights, backends."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from heedful.hf.cache import make_cache
from heedful.hf.configuration import HeedfulConfig, backend_of
from heedful.models.blocks import Block
from heedful.models.initialisation import draw_initial_values
from heedful.nn.attention import Attention
from heedful.ops.backends import BACKENDS
from heedful.schema import did_you_mean

ATTENTION_IMPLEMENTATIONS = ("auto", "eager", *BACKENDS)


class HeedfulLayer(GradientCheckpointingLayer, Block):
    """A residual block which transformers can recompute in the backward pass."""


class HeedfulPreTrainedModel(PreTrainedModel):
    """Base of the heedful models in transformers."""

    config_class = HeedfulConfig
    config: HeedfulConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("HeedfulLayer",)
    _skip_keys_device_placement = ("past_key_values", "cache")
    _supports_attention_backend = True
    _supports_sdpa = True
    _can_compile_fullgraph = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a model as transformers does, and refuse a checkpoint that does not fit its configuration.

        Raises:
            ValueError: damaged files, missing or unexpected weights, wrong shapes, with what was found.
            OSError: no such folder or model.
        """
        from safetensors import SafetensorError

        wanted = bool(kwargs.pop("output_loading_info", False))
        place = str(pretrained_model_name_or_path)
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
            )
        except SafetensorError as error:
            raise ValueError(f"{place}: a safetensors file is damaged or truncated ({error}).") from error
        except RuntimeError as error:
            if "size mismatch" in str(error) or "mismatched" in str(error) or "ignore_mismatched_sizes" in str(error):
                raise ValueError(f"{place}: weights do not fit config.json: {error}") from error
            raise
        own_head = ("lm_head.", "score.")  # exchanging the head is what the Auto classes are for
        for kind in ("missing_keys", "unexpected_keys"):
            names = sorted(name for name in info[kind] if not name.startswith(own_head))
            if names:
                raise ValueError(
                    f"{place}: weights do not fit config.json: {len(names)} {kind.replace('_', ' ')}, first {names[0]!r}."
                )
        return (model, info) if wanted else model

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """Return the backend asked for: "auto" where nothing is; "eager" is the reference.

        Raises:
            ValueError: a name that is no backend.
        """
        name = "auto" if requested_attention is None else requested_attention
        if name not in ATTENTION_IMPLEMENTATIONS:
            raise ValueError(
                f"attn_implementation must be one of {', '.join(ATTENTION_IMPLEMENTATIONS)}, got {name!r}."
                f"{did_you_mean(name, ATTENTION_IMPLEMENTATIONS)}"
            )
        return name

    def _flash_attn_can_dispatch(self, *args: Any, **kwargs: Any) -> bool:
        raise ValueError(
            f"flash attention is no backend of heedful; attn_implementation must be one of "
            f"{', '.join(ATTENTION_IMPLEMENTATIONS)} (sdpa takes torch's own flash kernel where it can)."
        )

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True

    def set_attn_implementation(self, attn_implementation: str | dict, *args: Any, **kwargs: Any) -> None:
        """Run all layers on another backend from now on.

        Raises:
            ValueError: a name that is no backend, or a backend that cannot run one of the layers, with the reason.
        """
        before = self.config._attn_implementation
        super().set_attn_implementation(attn_implementation, *args, **kwargs)
        try:
            self._use_backend()
        except ValueError:
            self.config._attn_implementation = before
            self._use_backend()
            raise

    def _use_backend(self) -> None:
        backend = backend_of(self.config._attn_implementation)
        for module in self.modules():
            if isinstance(module, Attention) and module.config.backend != backend:
                module.use_backend(backend)

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Draw the weights which no checkpoint has given, unit by unit, by the rules of the native model."""
        decoder = self.config.decoder_config()
        for unit in self._units():
            tensors = [*unit.parameters(), *unit.buffers()]
            given = [tensor for tensor in tensors if getattr(tensor, "_is_hf_initialized", False)]
            if len(given) == len(tensors):
                continue
            kept = [tensor.clone() for tensor in given]
            draw_initial_values(unit, decoder)
            for tensor, value in zip(given, kept, strict=True):
                tensor.copy_(value)
            for tensor in tensors:
                tensor._is_hf_initialized = True  # type: ignore[attr-defined]  # transformers' own mark

    def _units(self) -> list[nn.Module]:
        """Return the modules whose weights are drawn together: blocks, norms, tables, heads."""
        units: list[nn.Module] = []
        waiting: list[nn.Module] = [self]
        while waiting:
            module = waiting.pop()
            if isinstance(module, PreTrainedModel | nn.ModuleList):
                waiting += reversed(list(module.children()))
            else:
                units.append(module)
        return units

    def make_cache(self, max_length: int | None = None) -> Cache:
        """Return an empty cache: one that grows, or with room for `max_length` positions in constant tensors."""
        return make_cache(self.config.decoder_config().layers, max_length)

    def _prepare_static_cache(self, cache_implementation: str, batch_size: int, max_cache_len: int, *_: Any, **__: Any):
        """`generate` asks for a static cache here; ours knows what the layers remember."""
        if "offloaded" in cache_implementation:
            raise ValueError("offloaded caches are not supported by heedful models; use 'static' or 'dynamic'.")
        length = max(max_cache_len, getattr(self, "_previous_max_cache_length", -1))
        self._previous_max_cache_length = length  # a longer one is used again, so that compiled steps fit
        return self.make_cache(length)

    @staticmethod
    def create_masks_for_generate(*, attention_mask: Tensor | None = None, **_: Any) -> Tensor | None:
        """Leave the mask of a static cache as the tokenizer gave it: our operations take padding, not N x M maps."""
        return attention_mask
