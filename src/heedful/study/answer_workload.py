"""What comparisons on tasks with an answer in running text have in common: text, tokenizer, metric and its cells."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from heedful.train.device import resolve_device

if TYPE_CHECKING:
    from heedful.data import TokenDataset, Tokenizer, TokenSplit, TrainingData
    from heedful.models import DecoderLM
    from heedful.study.recipe import Recipe
    from heedful.tasks.answers import AnswerScore, Sample

PROBE_SEQUENCES = 4
EVALUATION_TOKENS = 16384
# Seed of the validation samples. Test samples have the seed of the run, and nobody chooses this one.
VALID_SEED = 1_000_000_007


class CellResult(Protocol):
    """What an evaluation of such a task returns."""

    @property
    def cells(self) -> tuple[Any, ...]:
        """One score for each setup, with `facts()`."""
        ...

    @property
    def total(self) -> AnswerScore:
        """The score over all cells."""
        ...


class AnswerWorkload(ABC):
    """Base of the workloads whose samples lie in the text of `[data]`; tested by the share with any wrong token.

    Training, validation and test samples lie in the text of their own split.
    """

    metrics: tuple[str, ...] = ("error",)
    context_rule: str

    def __init__(self, recipe: Recipe, dataset: TokenDataset) -> None:
        """Keep the data; nothing is generated yet."""
        self.recipe, self.dataset = recipe, dataset
        self.vocab_size = dataset.vocab_size
        self.tokenizer: Tokenizer | None = dataset.tokenizer
        self.curve: dict[str, Any] = {"key": "val/error", "label": "validation error (%)"}

    @abstractmethod
    def training_data(self, seed: int) -> TrainingData:
        """Return the batches of `seed`, the same for every arm."""

    @abstractmethod
    def evaluate(self, model: Any, split: TokenSplit, seed: int, samples_per_cell: int) -> CellResult:
        """Score a model on samples of a split in all cells."""

    @abstractmethod
    def samples_per_cell(self) -> tuple[int, int]:
        """Return how many samples of a cell are scored in validation and in the test."""

    @abstractmethod
    def probe_samples(self) -> list[Sample]:
        """Return test samples of a seed that no run has, to look into a model with."""

    @abstractmethod
    def facts(self) -> list[list[str]]:
        """Return what a reader must know of the task, as pairs of name and value."""

    def task_hashes(self) -> dict[str, str]:
        """Return what files besides the text are known by."""
        return {}

    @property
    def device(self) -> torch.device:
        """Where models are scored."""
        return resolve_device(self.recipe.train.device)

    def validate(self, model: Any) -> dict[str, float]:
        """Return loss and error on the validation samples."""
        score = self.evaluate(model, self.dataset.valid, VALID_SEED, self.samples_per_cell()[0]).total
        return {"val/loss": score.nats / score.tokens, "val/error": 100 - score.accuracy}

    def test(self, model: DecoderLM, seed: int) -> dict[str, Any]:
        """Return the error over all cells, and each cell by itself."""
        result = self.evaluate(model, self.dataset.test, seed, self.samples_per_cell()[1])
        score = result.total
        low, high = score.interval()
        return {
            "error": 100 - score.accuracy,
            "loss": score.nats / score.tokens,
            "errors": score.samples - score.right,
            "samples": score.samples,
            "interval": [100 - high, 100 - low],
            "cells": [cell.facts() for cell in result.cells],
            "context_rule": self.context_rule,
        }

    def probe_tokens(self) -> torch.Tensor:
        """Return test samples, the beginnings of longer ones cut off so that all end with their answers."""
        samples = self.probe_samples()
        length = min(len(sample.tokens) for sample in samples)
        return torch.from_numpy(np.stack([sample.tokens[-length:] for sample in samples]))

    def sample(self, model: DecoderLM, seed: int) -> dict[str, str] | None:
        """Return None: what a model answers is in the cells."""
        return None

    def hashes(self) -> dict[str, Any]:
        """Return the hashes of text, tokenizer and tokens, and of what else the task reads."""
        return {key: value for key, value in self.describe().items() if key.endswith("sha256")}

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer into `folder`/tokenizer."""
        self.dataset.tokenizer.save(folder / "tokenizer")

    def describe(self) -> dict[str, Any]:
        """Return what result.json says of task and data."""
        manifest = self.dataset.manifest
        splits = {name: manifest["splits"][name] for name in ("train", "valid", "test")}
        corpora = "; ".join(
            f"{corpus['description']} ({corpus['documents']:,} documents, {corpus['bytes'] / 1e6:.1f} MB)"
            for corpus in manifest["corpora"]
        )
        sizes = ", ".join(f"{name} {split['tokens']:,} tokens" for name, split in splits.items())
        return {
            "task": self.recipe.task.kind,
            "corpus": ", ".join(source.corpus for source in self.recipe.data.sources) or self.recipe.data.corpus,
            "facts": [
                *self.facts(),
                ["text between", corpora],
                ["splits", sizes],
                ["tokenizer", f"{manifest['tokenizer']}, {manifest['vocab_size']:,} entries"],
            ],
            "corpus_sha256": manifest["corpus_sha256"],
            "tokenizer_sha256": manifest["tokenizer_sha256"],
            "tokens_sha256": {name: split["tokens_sha256"] for name, split in splits.items()},
            "lossless": manifest["lossless"],
            **self.task_hashes(),
        }
