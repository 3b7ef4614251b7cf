"""`heedful export`: a trained model as a Hugging Face folder, and such a folder as a native decoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro


@dataclass(frozen=True)
class Export:
    """Convert a trained model between heedful's own form and that of transformers, without loss."""

    source: Annotated[Path, tyro.conf.Positional]
    """With --hf: the folder of a run, or of a decoder saved by DecoderLM.save. With --native: a Hugging Face folder."""

    destination: Annotated[Path, tyro.conf.Positional]
    """The folder to write; it appears when it is complete."""

    hf: bool = False
    """Write a folder that transformers loads, also where heedful is not installed; a run's tokenizer goes along."""

    native: bool = False
    """Write a folder for load_decoder."""

    force: bool = False
    """Replace a model that is already at the destination."""

    def run(self, overrides: dict[str, Any]) -> None:
        """Convert."""
        from heedful.cli.overrides import refuse_overrides
        from heedful.files import check_model_destination

        refuse_overrides(overrides, "export")
        if self.hf == self.native:
            both = "both were given" if self.hf else "neither was given"
            raise ValueError(f"heedful export needs one of --hf and --native to say what to write; {both}.")
        if not self.source.is_dir():
            raise ValueError(f"there is no folder {str(self.source)!r} to export.")
        check_model_destination(self.destination, force=self.force, source=self.source)
        if self.hf:
            self._write_hf()
        else:
            self._write_native()

    def _write_hf(self) -> None:
        from heedful.cli.run_folder import open_run
        from heedful.hf.export import export_pretrained, model_type
        from heedful.models import load_decoder

        tokenizer = None
        if (self.source / "model.safetensors").is_file() and (self.source / "config.json").is_file():
            kind = model_type(self.source)
            if kind is not None:
                raise ValueError(f"{self.source} already is a folder for transformers, with a model of type {kind!r}.")
            model = load_decoder(self.source)
        else:
            trained = open_run(self.source, {})
            model = trained.model
            if trained.recipe.task.kind != "find-the-block":
                tokenizer = trained.tokenizer()
        export_pretrained(model, self.destination, tokenizer=tokenizer, force=self.force)
        print(f"{self.destination}: for AutoModelForCausalLM.from_pretrained{_and_tokenizer(tokenizer)}")

    def _write_native(self) -> None:
        from heedful.files import atomic_folder
        from heedful.hf.export import import_native

        decoder = import_native(self.source)
        with atomic_folder(self.destination) as folder:
            decoder.save(folder)
        print(f"{self.destination}: for heedful.load_decoder")


def _and_tokenizer(tokenizer: Any) -> str:
    return "; no tokenizer was found" if tokenizer is None else ", with its tokenizer"
