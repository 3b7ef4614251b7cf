"""What is trained on and tested on: the one place where a comparison knows its task.

A workload gives the batches of a seed, the metrics on the validation and on the test split, the tokens to probe a model
with and, for text, a sample. Validation decides about checkpoints and learning rates; the test split is read once, at
the end of a run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from heedful.data import LanguageModelBatches, MixedBatches, TokenDataset, Tokenizer, TrainingData, prepare
from heedful.data.corpora import open_corpus
from heedful.data.memory import split_in_memory
from heedful.data.shards import TokenSplit
from heedful.study.babi_workload import LongBabiWorkload
from heedful.study.long_context_tasks import LongBabiTask, NeedlesTask
from heedful.study.needle_workload import NeedleWorkload
from heedful.study.recipe import FindTheBlockTask, LanguageModellingTask, Recipe
from heedful.study.wording import ON_TEXT
from heedful.tasks.find_the_block import (
    VOCAB_SIZE,
    FindTheBlockData,
    FindTheBlockResult,
    evaluate_find_the_block,
    to_text,
)
from heedful.train.device import resolve_device
from heedful.train.evaluation import evaluate_perplexity

if TYPE_CHECKING:
    from heedful.models import DecoderLM

TEXT_METRICS = ("perplexity", "bits_per_byte")
PROBE_SEQUENCES = 4
# Short contexts are evaluated this many tokens at a time: it changes speed and memory, not the result.
EVALUATION_TOKENS = 4096
# Seed of find-the-block's validation samples. Test samples have the seed of the run, and nobody chooses this one.
VALID_SEED = 1_000_000_007


class Workload(Protocol):
    """What a comparison needs to know of its task."""

    vocab_size: int
    tokenizer: Tokenizer | None
    metrics: tuple[str, ...]
    curve: dict[str, Any]

    def training_data(self, seed: int) -> TrainingData:
        """Return the batches of `seed`, the same for every arm."""
        ...

    def validate(self, model: Any) -> dict[str, float]:
        """Return metrics on the validation split, "val/loss" among them."""
        ...

    def test(self, model: DecoderLM, seed: int) -> dict[str, Any]:
        """Return the test metrics of the run of `seed` by the names in `metrics`, and what is needed to check them."""
        ...

    def probe_tokens(self) -> torch.Tensor:
        """Return tokens (B, T) of the test split to look into a model with."""
        ...

    def sample(self, model: DecoderLM, seed: int) -> dict[str, str] | None:
        """Return a prompt from the test split and the model's continuation, where the task has one."""
        ...

    def hashes(self) -> dict[str, Any]:
        """Return what the data are known by: hashes of text, tokenizer and tokens."""
        ...

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer into `folder`/tokenizer, where the task has one."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return what result.json says of task and data: `facts` for readers, hashes for checking."""
        ...


def open_workload(recipe: Recipe, report: Callable[[str], None]) -> Workload:
    """Prepare the data of `recipe`, building token shards where they are not cached yet."""
    if isinstance(recipe.task, FindTheBlockTask):
        return FindTheBlockWorkload(recipe, recipe.task)
    dataset = prepare(recipe.data, report)
    if isinstance(recipe.task, NeedlesTask):
        return NeedleWorkload(recipe, recipe.task, dataset)
    if isinstance(recipe.task, LongBabiTask):
        return LongBabiWorkload(recipe, recipe.task, dataset)
    return LanguageModellingWorkload(recipe, recipe.task, dataset)


class LanguageModellingWorkload:
    """Next-token prediction on a corpus; tested by perplexity and bits per byte over the whole test split."""

    def __init__(self, recipe: Recipe, task: LanguageModellingTask, dataset: TokenDataset) -> None:
        self.recipe, self.task, self.dataset = recipe, task, dataset
        self.vocab_size = dataset.vocab_size
        self.tokenizer: Tokenizer | None = dataset.tokenizer
        self.curve = {"key": "val/loss", "label": "validation loss (nats per token)"}
        self.further_tests = {name: self._read(name, Path(text)) for name, text in task.further_tests.items()}
        further = (f"{metric}{ON_TEXT}{name}" for name in task.further_tests for metric in TEXT_METRICS)
        self.metrics: tuple[str, ...] = (*TEXT_METRICS, *further)
        self._require_text()

    def _read(self, name: str, path: Path) -> TokenSplit:
        if not path.exists():
            raise ValueError(f"task.further_tests.{name}: there is no file or folder {str(path)!r}.")
        return split_in_memory(open_corpus(str(path)), self.dataset.tokenizer, separator=self.recipe.data.separator)

    def _require_text(self) -> None:
        train, task = self.recipe.train, self.task
        for split in (self.dataset.train, self.dataset.valid, self.dataset.test):
            if split.num_tokens < train.context_length + 1:
                raise ValueError(
                    f"the {split.name} split has {split.num_tokens} tokens, fewer than one context of "
                    f"{train.context_length}; use more text or a shorter train.context_length."
                )
        if task.prompt_tokens >= train.context_length:
            raise ValueError(
                f"task.prompt_tokens = {task.prompt_tokens} must be smaller than train.context_length = "
                f"{train.context_length}."
            )

    def training_data(self, seed: int) -> TrainingData:
        train, sources = self.recipe.train, self.recipe.data.sources
        shape: dict[str, Any] = {
            "context_length": train.context_length,
            "batch_size": train.batch_size,
            "seed": seed,
            "mask_documents": self.task.mask_documents,
        }
        if not sources:
            return LanguageModelBatches(self.dataset.train, **shape)
        weights = {source.name: source.weight for source in sources}
        return MixedBatches(self.dataset.train, self.dataset.sources, weights, **shape)

    def _perplexity(self, model: Any, split: Any) -> Any:
        train = self.recipe.train
        return evaluate_perplexity(
            model,
            split,
            context_length=train.context_length,
            batch_size=max(train.batch_size, EVALUATION_TOKENS // train.context_length),
            device=resolve_device(train.device),
            precision=train.precision,
            mask_documents=self.task.mask_documents,
            end_of_text=self.dataset.tokenizer.end_of_text,
        )

    def validate(self, model: Any) -> dict[str, float]:
        result = self._perplexity(model, self.dataset.valid)
        return {
            "val/loss": result.loss,
            "val/perplexity": result.perplexity,
            "val/bits_per_byte": result.bits_per_byte,
        }

    def test(self, model: DecoderLM, seed: int) -> dict[str, Any]:
        result = self._perplexity(model, self.dataset.test)
        found: dict[str, Any] = {
            "perplexity": result.perplexity,
            "bits_per_byte": result.bits_per_byte,
            "loss": result.loss,
            "tokens": result.tokens,
            "bytes": result.bytes,
            "context_rule": result.context_rule,
        }
        for name, split in self.further_tests.items():
            other = self._perplexity(model, split)
            found |= {f"{metric}{ON_TEXT}{name}": getattr(other, metric) for metric in TEXT_METRICS}
        return found

    def probe_tokens(self) -> torch.Tensor:
        length = self.recipe.train.context_length
        tokens = self.dataset.test.tokens[: length * max(PROBE_SEQUENCES, EVALUATION_TOKENS // length)]
        return torch.from_numpy(tokens[: len(tokens) // length * length].astype(np.int64)).view(-1, length)

    def sample(self, model: DecoderLM, seed: int) -> dict[str, str] | None:
        task, tokenizer = self.task, self.dataset.tokenizer
        prompt = self._prompt()
        room = model.config.max_positions - len(prompt)
        device = next(model.parameters()).device
        generator = torch.Generator(device).manual_seed(seed)
        tokens = torch.tensor([prompt], device=device)
        with torch.inference_mode():
            longer = model.generate(
                tokens, min(task.sample_tokens, room), temperature=task.temperature, generator=generator
            )
        ids = longer[0].tolist()
        # Decoded together, because tokens may end inside a character.
        before, text = tokenizer.decode(prompt), tokenizer.decode(ids)
        return {"prompt": before, "text": text.removeprefix(before)}

    def _prompt(self) -> list[int]:
        """Take the opening of the first test document that is long enough, else of the split."""
        split, length = self.dataset.test, self.task.prompt_tokens
        starts = split.document_starts
        ends = np.append(starts[1:], split.num_tokens)
        long_enough = np.flatnonzero(ends - starts > length)
        start = int(starts[long_enough[0]]) if len(long_enough) else 0
        return split.tokens[start : start + length].astype(np.int64).tolist()

    def _mixture(self) -> list[list[str]]:
        sources = self.recipe.data.sources
        total = sum(source.weight for source in sources)
        shares = [f"{100 * source.weight / total:.4g} % from {source.name}" for source in sources]
        return [["mixture", ", ".join(shares)]] if sources else []

    def _further(self) -> list[list[str]]:
        return [
            [
                f"further test {name}",
                f"{len(split.document_starts):,} documents, {split.num_tokens:,} tokens",
            ]
            for name, split in self.further_tests.items()
        ]

    def hashes(self) -> dict[str, Any]:
        return {key: value for key, value in self.describe().items() if key.endswith("sha256")}

    def save_tokenizer(self, folder: Path) -> None:
        self.dataset.tokenizer.save(folder / "tokenizer")

    def describe(self) -> dict[str, Any]:
        manifest = self.dataset.manifest
        splits = {name: manifest["splits"][name] for name in ("train", "valid", "test")}
        corpora = "; ".join(
            f"{corpus['description']} ({corpus['documents']:,} documents, {corpus['bytes'] / 1e6:.1f} MB)"
            for corpus in manifest["corpora"]
        )
        sizes = ", ".join(f"{name} {split['tokens']:,} tokens" for name, split in splits.items())
        tokenizer = f"{manifest['tokenizer']}, {manifest['vocab_size']:,} entries"
        sources = self.recipe.data.sources
        return {
            "task": "language modelling",
            "corpus": ", ".join(source.corpus for source in sources) or self.recipe.data.corpus,
            "facts": [
                ["text", corpora],
                ["splits", sizes],
                *self._mixture(),
                *self._further(),
                ["tokenizer", tokenizer],
            ],
            "corpus_sha256": manifest["corpus_sha256"],
            "tokenizer_sha256": manifest["tokenizer_sha256"],
            "tokens_sha256": {name: split["tokens_sha256"] for name, split in splits.items()}
            | {f"further test {name}": split.sha256 for name, split in self.further_tests.items()},
            "lossless": manifest["lossless"],
        }


class FindTheBlockWorkload:
    """Find-the-block, its samples made from seeds; tested by the share of samples with any wrong token."""

    metrics: tuple[str, ...] = ("error",)

    def __init__(self, recipe: Recipe, task: FindTheBlockTask) -> None:
        self.recipe, self.task = recipe, task
        self.vocab_size = VOCAB_SIZE
        self.tokenizer: Tokenizer | None = None
        self.curve = {"key": "val/error", "label": "validation error (%)"}

    def training_data(self, seed: int) -> TrainingData:
        return FindTheBlockData(self.task.samples, seed, self.recipe.train.batch_size)

    def _evaluate(self, model: Any, seed: int, num_samples: int) -> FindTheBlockResult:
        train = self.recipe.train
        device = resolve_device(train.device)
        return evaluate_find_the_block(model, self.task.samples, seed, num_samples, max(64, train.batch_size), device)

    def validate(self, model: Any) -> dict[str, float]:
        result = self._evaluate(model, VALID_SEED, self.task.num_valid_samples)
        return {"val/loss": result.loss, "val/error": result.error}

    def test(self, model: DecoderLM, seed: int) -> dict[str, Any]:
        result = self._evaluate(model, seed, self.task.num_test_samples)
        return {
            "error": result.error,
            "loss": result.loss,
            "errors": round(result.error / 100 * result.num_samples),
            "samples": result.num_samples,
            "interval": list(result.confidence_interval),
            "context_rule": "every test sample scored once, each token of the answer predicted after the true ones",
        }

    def probe_tokens(self) -> torch.Tensor:
        return FindTheBlockData(self.task.samples, VALID_SEED, PROBE_SEQUENCES).batch(0).tokens

    def sample(self, model: DecoderLM, seed: int) -> dict[str, str] | None:
        return None

    def hashes(self) -> dict[str, Any]:
        return {}

    def save_tokenizer(self, folder: Path) -> None:
        return None

    def describe(self) -> dict[str, Any]:
        task = self.task
        answer = {"all": "the whole block", "first": "its first letter", "last": "its last letter"}[task.answer]
        example = FindTheBlockData(task.samples, 0, 1).batch(0).tokens[0]
        facts = [
            ["task", f"find the one of {task.resolved_num_blocks} blocks of {task.block_length} letters that holds all "
             f"{task.query_letters} letters of the query; the answer is {answer}"],
            ["a sample", to_text(example)],
            ["samples", f"{task.train_samples:,} for training, {task.num_valid_samples:,} for validation, "
             f"{task.num_test_samples:,} for each seed's test"],
        ]  # fmt: skip
        return {"task": "find the block", "facts": facts}
