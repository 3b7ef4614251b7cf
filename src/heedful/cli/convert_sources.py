"""Where a command that converts finds its model: a saved decoder, a run of `heedful train`, a Hugging Face folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heedful.models import DecoderLM

COMPANIONS = (
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model", "*.tiktoken"),
    *("heedful_tokenizer.json", "chat_template*", "additional_chat_templates/*", "LICENSE*", "NOTICE*"),
)
"""Files beside the weights that a changed copy needs too, or that must go with the weights."""


COPIES = 8
"""How many times its weights a query elimination holds at most, found by trial: several copies in float64."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model with where it came from.

    Attributes:
        folder: as given.
        model: None where the architecture cannot be read, and then `refusal` says why.
        refusal: empty for a model.
        hugging_face: the parsed config.json of a Hugging Face folder.
        tokenizer_folder: where the tokenizer's files lie.
    """

    folder: Path
    model: DecoderLM | None
    refusal: str = ""
    hugging_face: dict[str, Any] | None = None
    tokenizer_folder: Path

    def encoder(self) -> Callable[[str], list[int]]:
        """Return a function from text to token ids.

        Raises:
            ValueError: the folder holds no tokenizer.
        """
        if (self.tokenizer_folder / "heedful_tokenizer.json").is_file():
            from heedful.data import open_tokenizer

            return open_tokenizer(self.tokenizer_folder).encode
        file = self.tokenizer_folder / "tokenizer.json"
        if not file.is_file():
            raise ValueError(f"{self.tokenizer_folder} holds no tokenizer (tokenizer.json), so text cannot be encoded.")
        import tokenizers

        backend = tokenizers.Tokenizer.from_file(str(file))
        return lambda text: backend.encode(text, add_special_tokens=False).ids


def open_source(folder: Path) -> Source:
    """Load the model of a folder of any of the three kinds.

    Raises:
        ValueError: no such folder, or one that holds no model.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {str(folder)!r}; give the folder of a model.")
    if (folder / "checkpoints").is_dir() or (folder / "recipe.json").is_file():
        from heedful.cli.run_folder import open_run

        run = open_run(folder, {})
        return Source(folder=folder, model=run.model, tokenizer_folder=run.home / "tokenizer")
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise ValueError(
            f"{folder} holds no config.json; give a folder written by DecoderLM.save, a run of heedful train, or a "
            "Hugging Face model."
        )
    try:
        mapping = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{config_file} is not valid JSON: {error}.") from error
    from heedful.models import load_decoder
    from heedful.models.weight_files import require_memory

    require_memory(folder, copies=COPIES)
    if isinstance(mapping, dict) and "model_type" in mapping:
        model, refusal = None, ""
        try:
            from heedful.hf.importing import FAMILIES, import_decoder
        except ModuleNotFoundError as error:  # an optional dependency
            refusal = f"reading Hugging Face weights needs the package {error.name}, which is not installed"
        else:
            if mapping["model_type"] in FAMILIES:
                model = import_decoder(folder)
            else:
                refusal = f"models of type {mapping['model_type']!r} cannot be read; expected {', '.join(FAMILIES)}"
        return Source(folder=folder, model=model, refusal=refusal, hugging_face=mapping, tokenizer_folder=folder)
    return Source(folder=folder, model=load_decoder(folder), tokenizer_folder=folder)


def copy_companions(source: Path, destination: Path) -> None:
    """Copy the files that belong to a model besides its weights and code, where the destination has none of its own."""
    found = {file for pattern in COMPANIONS for file in source.glob(pattern) if file.is_file()}
    for file in sorted(found):
        target = destination / file.relative_to(source)
        if file.suffix not in (".py", ".safetensors", ".bin") and not target.exists():
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)
