"""`heedful generate`: continue a text with a trained run."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro


@dataclass(frozen=True)
class Generate:
    """Continue a prompt with the best checkpoint of a run."""

    run_folder: Annotated[Path, tyro.conf.Positional]
    """Folder of a run of `heedful train`, or of one run inside a comparison's folder."""

    prompt: str | None = None
    """The text to continue; read from standard input when it is left out."""

    max_new_tokens: int = 100
    """How many tokens to add at most; the model's longest context limits prompt and continuation together."""

    temperature: float = 0.8
    """0 always takes the likeliest token."""

    top_k: int | None = None
    """Draw among this many likeliest tokens only."""

    top_p: float | None = None
    """Draw among the likeliest tokens that together reach this probability."""

    seed: int = 0
    """Seed of the draws."""

    def run(self, overrides: dict[str, Any]) -> None:
        """Generate and print."""
        import torch

        from heedful.cli.overrides import refuse_overrides
        from heedful.cli.run_folder import open_run

        refuse_overrides(overrides, "generate")
        trained = open_run(self.run_folder, {})
        tokenizer, model = trained.tokenizer(), trained.model
        prompt = sys.stdin.read() if self.prompt is None else self.prompt
        ids = tokenizer.encode(prompt) or [tokenizer.end_of_text]
        device = next(model.parameters()).device
        room = model.config.max_positions - len(ids)
        if room < 1:
            raise ValueError(
                f"the prompt has {len(ids)} tokens, but the model sees {model.config.max_positions} in all; shorten it."
            )
        tokens = model.generate(
            torch.tensor([ids], device=device),
            min(self.max_new_tokens, room + 1),  # the last token is not read again
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            end_token=tokenizer.end_of_text,
            generator=torch.Generator(device).manual_seed(self.seed),
        )
        new = tokens[0, len(ids) :].tolist()
        if tokenizer.end_of_text in new:
            new = new[: new.index(tokenizer.end_of_text)]
        print(prompt + tokenizer.decode([*ids, *new]).removeprefix(tokenizer.decode(ids)))
