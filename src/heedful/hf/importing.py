"""`import_decoder`: a pre-trained causal language model of transformers as a native `DecoderLM`.

Every field of the configuration is honoured or refused with the reason, every weight is copied, and nothing is
downloaded: the source is a model object or a folder with `config.json` and safetensors.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from heedful.hf.architectures import ARCHITECTURES
from heedful.hf.architectures.shared import check_rotary
from heedful.models.decoder import DecoderLM, assemble_decoder
from heedful.models.weight_files import require_memory

FAMILIES = (*ARCHITECTURES, "heedful")
"""What can be imported, by transformers' `model_type`."""


def import_decoder(
    source: PreTrainedModel | str | Path, *, dtype: torch.dtype | None = None, dropout: float | None = None
) -> DecoderLM:
    """Return a native decoder with the function and the weights of a pre-trained model.

    Args:
        source: a model of a family in `FAMILIES`, or a local folder that `save_pretrained` wrote (safetensors, in one
            file or several).
        dtype: the type of the weights; None for that of the checkpoint.
        dropout: probability of every dropout in training; None for the checkpoint's.

    Returns:
        the decoder, in evaluation mode, on the source's device. It shares no memory with a model object.

    Raises:
        ValueError: another family, a configuration that the native model cannot honour, weights that do not fit the
            configuration, missing or damaged files; with what was expected and what was found.
    """
    if isinstance(source, PreTrainedModel):
        model, shared = source, True
    elif isinstance(source, str | Path):
        model, shared = load_source(source), False
    else:
        raise ValueError(
            f"expected a model of transformers or the path of a folder, got {type(source).__name__}; load the model "
            f"with AutoModelForCausalLM.from_pretrained first."
        )
    place = str(source) if not shared else type(model).__name__
    if model.config.model_type == "heedful":
        decoder = _from_heedful(model, dropout, place)
    else:
        try:
            decoder = _translate(model, dropout, copy=shared)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
    if dtype is not None:
        if not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating-point type such as torch.bfloat16, got {dtype}.")
        decoder.to(dtype=dtype)
    elif len(types := {str(parameter.dtype) for parameter in decoder.parameters()}) > 1:
        raise ValueError(
            f"{place}: the weights have several types ({', '.join(sorted(types))}); choose one as dtype=..."
        )
    return decoder.eval()


def load_source(folder: str | Path) -> PreTrainedModel:
    """Read a folder as transformers does, and refuse all that transformers would repair or fetch.

    Raises:
        ValueError: no such folder, another family, files that are missing, damaged or do not fit each other.
    """
    import heedful.hf  # noqa: F401  # so that transformers knows the type "heedful"

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        what = "holds no config.json" if folder.is_dir() else "is no folder"
        raise ValueError(f"{folder} {what}; expected a folder with config.json and safetensors, nothing is downloaded.")
    try:
        mapping = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'} is not valid JSON: {error}.") from error
    if not isinstance(mapping, dict):
        raise ValueError(f"{folder / 'config.json'}: expected a table of fields, got {type(mapping).__name__}.")
    _check_family(mapping.get("model_type"), str(folder))
    for name, reason in _REFUSED_IN_FILES.items():
        own = name == "auto_map" and mapping.get("model_type") == "heedful"  # our exports; their code is not run
        if mapping.get(name) and not own:
            raise ValueError(f"{folder / 'config.json'} has {name}: {reason}.")
    require_memory(folder)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what transformers warns of is either refused below or no matter here
    try:
        read: Any = AutoModelForCausalLM.from_pretrained  # its annotation knows no report
        model, report = read(
            str(folder),
            local_files_only=True,
            use_safetensors=True,
            dtype="auto",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that the report names them
        )
    except READING_ERRORS as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{folder} cannot be read: {words[:400]}") from error
    finally:
        logging.set_verbosity(verbosity)
    _check_report(report, model, folder)
    return model


READING_ERRORS = (
    *(SafetensorError, StrictDataclassError, OSError),
    *(AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError),
)
"""What transformers raises for damaged files and for values in config.json that its classes do not expect."""

_REFUSED_IN_FILES = {
    "quantization_config": "quantised weights cannot be imported; dequantise the model and save it again",
    "auto_map": "the folder brings its own model code, which is neither run nor understood",
}


def _check_family(model_type: Any, place: str) -> None:
    if model_type not in FAMILIES:
        raise ValueError(
            f"{place}: model_type {model_type!r} cannot be imported; expected one of {', '.join(FAMILIES)}."
        )


def _check_report(report: Mapping[str, Any], model: PreTrainedModel, folder: Path) -> None:
    """Refuse a checkpoint in which transformers found more, less or other weights than the configuration needs."""
    problems = {
        "missing": report.get("missing_keys"),
        "left over": report.get("unexpected_keys"),
        "of another shape": report.get("mismatched_keys"),
        "unreadable": report.get("error_msgs"),
    }
    for what, found in problems.items():
        names = sorted(str(name[0] if isinstance(name, tuple) else name) for name in found or ())
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(
                f"{folder}: weights and config.json do not fit each other ({type(model).__name__}); {what}: "
                f"{', '.join(names[:3])}{more}."
            )


def _translate(model: PreTrainedModel, dropout: float | None, *, copy: bool) -> DecoderLM:
    config = model.config
    _check_family(config.model_type, type(model).__name__)
    architecture = ARCHITECTURES[config.model_type]
    if type(model).__name__ != architecture.class_name:
        raise ValueError(f"expected a {architecture.class_name}, got a {type(model).__name__}.")
    if getattr(model, "is_quantized", False):
        raise ValueError(f"{_REFUSED_IN_FILES['quantization_config']}.")
    architecture.check_fields(config)
    native = architecture.decoder(config, dropout)
    if native.layers[0].rotary is not None:
        check_rotary(model, native.layers[0].rotary, native.layers[0].sizes.head_dim)
    weights = architecture.weights(dict(model.state_dict()))
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight  # type: ignore[union-attr]
    if tied:
        del weights["head.weight"]
    native = dataclasses.replace(native, tie_embeddings=tied)
    return assemble_decoder(native, {name: tensor.clone() for name, tensor in weights.items()} if copy else weights)


def _from_heedful(model: PreTrainedModel, dropout: float | None, place: str) -> DecoderLM:
    from heedful.hf.modeling import HeedfulForCausalLM

    if not isinstance(model, HeedfulForCausalLM):
        raise ValueError(f"{place}: expected a HeedfulForCausalLM, got a {type(model).__name__}.")
    decoder = model.to_decoder()
    if dropout is None:
        return decoder
    layers = tuple(dataclasses.replace(layer, dropout=dropout) for layer in decoder.config.layers)
    config = dataclasses.replace(
        decoder.config,
        attention=layers[0] if decoder.config.share_layers else layers,
        dropout=dropout,
        activation_dropout=None,
        attention_output_dropout=dropout,
    )
    return assemble_decoder(config, decoder.state_dict())
