"""`HeedfulPreTrainedModel`: what every heedful model in transformers shares: loading, initial weights, backends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from heedful.hf.configuration import HeedfulConfig, backend_of
from heedful.models.blocks import Block
from heedful.models.initialisation import draw_initial_values
from heedful.models.weight_files import check_shard_index, require_memory
from heedful.nn.attention import Attention


class HeedfulLayer(GradientCheckpointingLayer, Block):
    """A residual block which transformers can recompute in the backward pass."""


class HeedfulPreTrainedModel(PreTrainedModel):
    """Base of the heedful models in transformers."""

    config_class = HeedfulConfig
    config: HeedfulConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["HeedfulLayer"]  # noqa: RUF012  # lists, as transformers declares them
    _skip_keys_device_placement = ["past_key_values", "cache"]  # noqa: RUF012
    _supports_attention_backend = True
    _supports_sdpa = True
    _can_compile_fullgraph = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a model as transformers does, and refuse a checkpoint that does not fit its configuration.

        Raises:
            ValueError: damaged files, missing or unexpected weights, wrong shapes, with what was found; more weights
                than there is memory for.
            OSError: no such folder or model.
        """
        from safetensors import SafetensorError

        wanted = bool(kwargs.pop("output_loading_info", False))
        accepts_other_shapes = bool(kwargs.pop("ignore_mismatched_sizes", False))
        place = str(pretrained_model_name_or_path)
        if Path(place).is_dir():
            check_shard_index(place)
            if kwargs.get("device_map") is None:
                require_memory(place, kwargs.get("dtype", kwargs.get("torch_dtype")))
        try:
            loaded: Any = super().from_pretrained(
                pretrained_model_name_or_path,
                *args,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that the error below can name them
                **kwargs,
            )
        except SafetensorError as error:
            raise ValueError(f"{place}: a safetensors file is damaged or truncated ({error}).") from error
        model, info = loaded
        cls._refuse_other_weights(place, model, info, accepts_other_shapes)
        return (model, info) if wanted else model

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save as transformers does; only `heedful.hf.export` writes a copy of the code, and so the names in it."""
        if not self.is_remote_code():
            vars(self.config).pop("auto_map", None)  # of the export which this model was read from
        super().save_pretrained(*args, **kwargs)

    @classmethod
    def _refuse_other_weights(
        cls, place: str, model: PreTrainedModel, info: dict[str, Any], accepts_other_shapes: bool
    ) -> None:
        """Refuse a checkpoint with other weights than the model; a head of another kind of model may be exchanged."""
        written_as = model.config.architectures or [cls.__name__]  # from the file: saving sets it
        heads = () if cls.__name__ in written_as else ("lm_head.", "score.")
        for kind in ("missing_keys", "unexpected_keys"):
            names = sorted(name for name in info[kind] if not name.startswith(heads))
            if names:
                raise ValueError(
                    f"{place}: weights do not fit config.json: {len(names)} {kind.replace('_', ' ')}, "
                    f"first {names[0]!r}."
                )
        head, table = model.get_output_embeddings(), model.get_input_embeddings()
        if head is not None and model.config.tie_word_embeddings and head.weight is not table.weight:
            raise ValueError(
                f"{place}: config.json ties the head to the embedding (tie_word_embeddings), but the file holds "
                f"different weights for them; set it to false."
            )
        if info["mismatched_keys"] and not accepts_other_shapes:
            name, found, expected = sorted(info["mismatched_keys"])[0]
            raise ValueError(
                f"{place}: weights do not fit config.json: {name} should have shape {tuple(expected)}, found "
                f"{tuple(found)}."
            )

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """Return the backend asked for: "auto" where nothing is; "eager" is the reference.

        Raises:
            ValueError: a name that is no backend.
        """
        backend_of(requested_attention)
        return "auto" if requested_attention is None else requested_attention

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
