"""Needles in text as a comparison's task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from heedful.study.answer_workload import EVALUATION_TOKENS, PROBE_SEQUENCES, VALID_SEED, AnswerWorkload
from heedful.study.wording import listed
from heedful.tasks.filler import Filler
from heedful.tasks.needle_samples import NeedleWriter
from heedful.tasks.needles import NeedlesData, NeedlesResult, evaluate_needles, evaluation_sample

if TYPE_CHECKING:
    from heedful.data import TokenDataset, TokenSplit
    from heedful.study.long_context_tasks import NeedlesTask
    from heedful.study.recipe import Recipe
    from heedful.tasks.answers import Sample
    from heedful.tasks.needle_samples import Role


class NeedleWorkload(AnswerWorkload):
    """Facts hidden in text, one of them asked for; tested over a grid of needles, lengths and depths."""

    context_rule = (
        "every test sample scored once, each token of the answer predicted after the true ones, which is right exactly "
        "when greedy decoding is"
    )

    def __init__(self, recipe: Recipe, task: NeedlesTask, dataset: TokenDataset) -> None:
        """Check that needles, lengths and text fit together."""
        super().__init__(recipe, dataset)
        self.task = task
        self.training_data(recipe.seeds[0])
        roles: tuple[tuple[TokenSplit, Role], ...] = ((dataset.valid, "valid"), (dataset.test, "test"))
        for split, role in roles:
            writer = NeedleWriter(Filler(split.tokens, dataset.tokenizer), dataset.tokenizer)
            for needles in task.needles:
                for length in task.lengths:
                    writer.require(task.request(needles, length, role))

    def training_data(self, seed: int) -> NeedlesData:
        """Return samples in the text of the train split."""
        return NeedlesData(
            self.task.samples,
            self.dataset.tokenizer,
            self.dataset.train.tokens,
            tokens_sha256=self.dataset.train.sha256,
            seed=seed,
            batch_size=self.recipe.train.batch_size,
            context_length=self.recipe.train.context_length,
        )

    def evaluate(self, model: Any, split: TokenSplit, seed: int, samples_per_cell: int) -> NeedlesResult:
        """Score a model on samples in the text of a split, with the pairs of city and number of that split."""
        return evaluate_needles(
            model,
            self.dataset.tokenizer,
            split.tokens,
            self.task.samples,
            seed=seed,
            samples_per_cell=samples_per_cell,
            role="valid" if split.name == "valid" else "test",
            batch_tokens=EVALUATION_TOKENS,
            device=self.device,
        )

    def samples_per_cell(self) -> tuple[int, int]:
        """Return how many samples of a cell are scored in validation and in the test."""
        return self.task.valid_samples_per_cell, self.task.test_samples_per_cell

    def probe_samples(self) -> list[Sample]:
        """Return test samples of the longest length with the most needles."""
        task, tokenizer = self.task, self.dataset.tokenizer
        writer = NeedleWriter(Filler(self.dataset.test.tokens, tokenizer), tokenizer)
        setup = (max(task.needles), max(task.lengths), task.depths[0])
        places = range(PROBE_SEQUENCES)
        return [evaluation_sample(task.samples, writer, VALID_SEED, *setup, place).sample for place in places]

    def facts(self) -> list[list[str]]:
        """Return task, a sample, sizes and what chance is."""
        task, tokenizer = self.task, self.dataset.tokenizer
        writer = NeedleWriter(Filler(self.dataset.test.tokens, tokenizer), tokenizer)
        needles, length, depth = task.needles[0], min(task.lengths), task.depths[len(task.depths) // 2]
        example = evaluation_sample(task.samples, writer, 0, needles, length, depth, 0)
        asked = "one is" if task.training_questions == "one" else "in training each of them, in the test one, is"
        counts = listed([str(count) for count in task.needles])
        return [
            ["task", f"{counts} cities with numbers of {task.digits} digits, in sentences between those of a text; "
             f"{asked} asked for at the end"],
            ["a sample", tokenizer.decode(example.tokens.tolist())],
            ["grid", f"lengths of {listed([str(length) for length in task.lengths])} tokens, needle asked for at "
             f"{listed([f'{100 * depth:g} %' for depth in task.depths])} of the text, the others anywhere"],
            ["samples", f"without end for training, {task.valid_samples_per_cell:,} a cell for validation, "
             f"{task.test_samples_per_cell:,} a cell for each seed's test; no pair of city and number in two of these"],
            ["chance", f"the number of any one needle is right in {listed([f'{100 / n:.3g} %' for n in task.needles])} "
             f"of the samples, a free guess in {100 / (9 * 10 ** (task.digits - 1)):.2g} %"],
        ]  # fmt: skip
