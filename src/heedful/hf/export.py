"""A trained model as a folder for transformers, and back.

    config.json, generation_config.json    what the model is, and which classes of modeling_heedful.py load it
    model.safetensors or several shards    weights
    modeling_heedful.py                    a copy of heedful's code for this model, see `heedful.hf.bundle`
    tokenizer.json, tokenizer_config.json  with a tokenizer only
    README.md                              what the model is and how to load it

With heedful installed and `heedful.hf` imported, transformers uses the installed classes and never executes the copy.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heedful.data.tokenizers import BpeTokenizer, ByteTokenizer, Tokenizer
from heedful.files import atomic_folder, check_model_destination, write_json_atomically, write_text_atomically
from heedful.hf.bundle import bundle_source
from heedful.hf.importing import READING_ERRORS
from heedful.hf.model_card import model_card
from heedful.hf.modeling import HeedfulForCausalLM
from heedful.hf.tokenizers import to_transformers
from heedful.models.decoder import DecoderLM

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CODE_FILE = "modeling_heedful.py"
_CODE_CLASSES = {
    "AutoConfig": "HeedfulConfig",
    "AutoModel": "HeedfulModel",
    "AutoModelForCausalLM": "HeedfulForCausalLM",
    "AutoModelForSequenceClassification": "HeedfulForSequenceClassification",
}


def export_pretrained(
    model: HeedfulForCausalLM | DecoderLM,
    folder: str | Path,
    *,
    tokenizer: Tokenizer | PreTrainedTokenizerBase | None = None,
    max_shard_size: int | str = "5GB",
    force: bool = False,
) -> None:
    """Write a folder that transformers loads, with heedful installed or, by `trust_remote_code=True`, without it.

    The folder appears when it is complete, or not at all.

    Args:
        model: the model; a native decoder is converted.
        folder: where to write.
        tokenizer: the tokenizer it was trained with, heedful's or transformers'. Where the model's configuration names
            no end of text, the tokenizer's is taken.
        max_shard_size: the largest file of weights, in bytes or as transformers writes it, "200MB".
        force: replace an earlier export, or another folder with a model, at this place.

    Raises:
        ValueError: another kind of model, a place that is taken, a tokenizer with more ids than the model has.
    """
    folder = Path(folder)
    if isinstance(model, DecoderLM):
        model = HeedfulForCausalLM.from_decoder(model)
    if not isinstance(model, HeedfulForCausalLM):
        raise ValueError(
            f"expected a DecoderLM or a HeedfulForCausalLM of the installed heedful, got {type(model).__name__}; load "
            f"the model with heedful.hf imported and without trust_remote_code."
        )
    check_model_destination(folder, force=force)
    converted = _converted(tokenizer, model)
    end_of_text = None if converted is None else converted.eos_token_id
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary, max_shard_size=max_shard_size)
        written = json.loads((temporary / "config.json").read_text(encoding="utf-8"))
        written["auto_map"] = {auto: f"{Path(CODE_FILE).stem}.{name}" for auto, name in _CODE_CLASSES.items()}
        if written.get("eos_token_id") is None:
            written["eos_token_id"] = end_of_text
        write_json_atomically(temporary / "config.json", written)
        _write_generation_config(model, temporary, written["eos_token_id"])
        write_text_atomically(temporary / CODE_FILE, bundle_source())
        if converted is not None:
            converted.save_pretrained(temporary)
        write_text_atomically(temporary / "README.md", model_card(model, folder.name, converted))


def import_native(folder: str | Path) -> DecoderLM:
    """Read a folder that `export_pretrained` or `HeedfulForCausalLM.save_pretrained` wrote, as a native decoder.

    The weights are those of the export, bit for bit.

    Raises:
        ValueError: missing, damaged or foreign files, with what was expected.
    """
    folder = Path(folder)
    kind = model_type(folder)
    if kind != "heedful":
        raise ValueError(
            f"{folder / 'config.json'} describes a model of type {kind!r}; expected 'heedful', as heedful export --hf "
            f"writes it."
        )
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} holds no *.safetensors; expected the weights of the model there.")
    try:
        model, report = HeedfulForCausalLM.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    except READING_ERRORS as error:  # what transformers raises for files that do not fit
        raise ValueError(f"{folder} cannot be read, a file is missing or damaged: {error}.") from error
    wrong = sorted({*report["missing_keys"], *report["unexpected_keys"]})
    if wrong:
        raise ValueError(
            f"{folder} is not the folder of a HeedfulForCausalLM: its weights do not fit, first {wrong[0]!r}."
        )
    return model.to_decoder()


def model_type(folder: Path) -> str | None:
    """Return which kind of model the config.json of a folder describes; None for heedful's own decoders.

    Raises:
        ValueError: there is no such file, or it is damaged.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no config.json; expected the folder of a model.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no configuration: expected a JSON object, got {type(found).__name__}.")
    return found.get("model_type")


def _converted(
    tokenizer: Tokenizer | PreTrainedTokenizerBase | None, model: HeedfulForCausalLM
) -> PreTrainedTokenizerBase | None:
    if tokenizer is None:
        return None
    converted: Any = tokenizer
    if isinstance(tokenizer, ByteTokenizer | BpeTokenizer):
        converted = to_transformers(tokenizer, max_length=model.config.max_position_embeddings)
    if not hasattr(converted, "save_pretrained"):
        raise ValueError(f"expected a tokenizer of heedful or of transformers, got {type(tokenizer).__name__}.")
    if len(converted) > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(converted)} ids but the model only {model.config.vocab_size}; give the tokenizer "
            f"that the model was trained with."
        )
    return converted


def _write_generation_config(model: HeedfulForCausalLM, folder: Path, end_of_text: int | list[int] | None) -> None:
    """Write the settings of `generate`; rows of a batch that end early are filled up with end of text."""
    settings = copy.deepcopy(model.generation_config)
    assert settings is not None
    settings._from_model_config = False  # else transformers would make it anew from config.json
    if settings.eos_token_id is None:
        settings.eos_token_id = end_of_text
    if settings.pad_token_id is None:
        ends = settings.eos_token_id
        settings.pad_token_id = ends[0] if isinstance(ends, list) else ends
    settings.save_pretrained(folder)
