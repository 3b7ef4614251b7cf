"""`heedful info`: versions, devices, backends and presets; for a preset, what it is made of and what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from rich.console import Console

    from heedful.models import DecoderConfig


@dataclass(frozen=True)
class Info:
    """Show versions, devices, backends and presets; with a preset, its layer, parameters and costs beside
    standard's.
    """

    preset: Annotated[str | None, tyro.conf.Positional] = None
    """A preset or a sum, such as boosted+nonlinear-query+multi-token."""

    hidden_size: int = 256
    """Width of the example model."""

    num_layers: int = 4
    """Layers of the example model."""

    num_heads: int = 4
    """Heads of the example model."""

    vocab_size: int = 16384
    """Vocabulary of the example model."""

    context_length: int = 256
    """Context that costs are counted for."""

    def run(self, overrides: dict[str, Any]) -> None:
        """Print."""
        from rich.console import Console

        from heedful.cli.overrides import refuse_overrides

        refuse_overrides(overrides, "info")
        console = Console(highlight=False)
        if self.preset is None:
            _environment(console)
            _presets(console)
        else:
            self._costs(console, self.preset)

    def _model(self, preset: str) -> DecoderConfig:
        from heedful.models import decoder_config

        return decoder_config(
            preset,
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            max_positions=self.context_length,
            bias=True,
        )

    def _costs(self, console: Console, preset: str) -> None:
        from rich.table import Table

        from heedful.explain import explain
        from heedful.models.counting import (
            cache_bytes_per_token,
            count_parameters,
            fixed_cache_bytes,
            multiply_adds_per_token,
        )
        from heedful.nn import PRESETS

        config, standard = self._model(preset), self._model("standard")
        for part in (name.strip() for name in preset.split("+")):
            console.print(f"[bold]{part}[/bold]: {PRESETS[part].description} ({PRESETS[part].source})")
        choice = explain(preset)
        console.print(f"runs on the {choice.backend} backend: {choice.reason}")
        console.print("\n[bold]One layer[/bold] (this text rebuilds it, with the names of heedful.nn):")
        console.print(repr(config.attention), soft_wrap=True)
        title = (
            f"\n{self.num_layers} layers, width {self.hidden_size}, {self.num_heads} heads, vocabulary "
            f"{self.vocab_size:,}, context {self.context_length}; forward pass, float32 cache"
        )
        table = Table(title=title, title_justify="left")
        table.add_column("", no_wrap=True)
        for column in ("this preset", "standard", "ratio"):
            table.add_column(column, justify="right", no_wrap=True)
        rows = {
            "parameters": lambda c: count_parameters(c).total,
            "parameters without embeddings": lambda c: count_parameters(c).without_embeddings,
            "multiply-adds per token": lambda c: multiply_adds_per_token(c, self.context_length),
            "cache bytes per token": cache_bytes_per_token,
            "cache bytes besides": fixed_cache_bytes,
        }
        for name, figure in rows.items():
            own, other = figure(config), figure(standard)
            table.add_row(name, f"{own:,}", f"{other:,}", f"{own / other:.3f}" if other else "")
        console.print(table)


def _environment(console: Console) -> None:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    import heedful

    console.print(f"heedful {heedful.__version__}, python {platform.python_version()}, torch {torch.__version__}")
    console.print(f"CPU: {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            console.print(f"cuda:{index}: {torch.cuda.get_device_name(index)}")
    else:
        console.print("CUDA: no device")
    optional = ("datasets", "tensorboard", "trackio", "triton", "wandb")
    console.print("optional: " + ", ".join(f"{package} {installed(package)}" for package in optional))


def _presets(console: Console) -> None:
    from rich.table import Table

    from heedful.nn import PRESETS
    from heedful.support import backends_of

    table = Table(title="\nPresets; join them with + where they change different parts", title_justify="left")
    table.add_column("preset", no_wrap=True)
    for column in ("what it is", "source", "backends"):
        table.add_column(column)
    for name, preset in PRESETS.items():
        table.add_row(name, preset.description, preset.source, ", ".join(backends_of(name)))
    console.print(table)
    console.print("heedful info PRESET shows parameters and costs.")
