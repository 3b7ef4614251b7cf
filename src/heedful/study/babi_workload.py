"""Long bAbI as a comparison's task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from heedful.study.answer_workload import EVALUATION_TOKENS, PROBE_SEQUENCES, VALID_SEED, AnswerWorkload
from heedful.study.wording import listed
from heedful.tasks.filler import Filler
from heedful.tasks.long_babi import BabiStories, LongBabiData, LongBabiResult, evaluate_long_babi, evaluation_samples

if TYPE_CHECKING:
    from heedful.data import TokenDataset, TokenSplit
    from heedful.models import DecoderLM
    from heedful.study.long_context_tasks import LongBabiTask
    from heedful.study.recipe import Recipe
    from heedful.tasks.answers import Sample
    from heedful.tasks.long_babi import Part

POOLED = ("errors", "samples", "interval")
"""What a test of samples that share no questions says beside its error."""


class LongBabiWorkload(AnswerWorkload):
    """bAbI's stories spread through text; tested by task and amount of text between."""

    context_rule = (
        "every test question scored once with each amount of text, each token of the answer predicted after the true "
        "ones, which is right exactly when greedy decoding is"
    )

    def __init__(self, recipe: Recipe, task: LongBabiTask, dataset: TokenDataset) -> None:
        """Read the stories and check that they and the text fit."""
        super().__init__(recipe, dataset)
        self.task = task
        self.training_data(recipe.seeds[0])
        for split in (dataset.valid, dataset.test):
            Filler(split.tokens, dataset.tokenizer).require(max(task.distractions))
        parts: tuple[Part, ...] = ("train", "valid", "test")
        self.stories = {
            part: BabiStories(task.samples, dataset.tokenizer, part, recipe.train.context_length) for part in parts
        }

    def training_data(self, seed: int) -> LongBabiData:
        """Return samples in the text of the train split."""
        return LongBabiData(
            self.task.samples,
            self.dataset.tokenizer,
            self.dataset.train.tokens,
            tokens_sha256=self.dataset.train.sha256,
            seed=seed,
            batch_size=self.recipe.train.batch_size,
            context_length=self.recipe.train.context_length,
        )

    def evaluate(self, model: Any, split: TokenSplit, seed: int, samples_per_cell: int) -> LongBabiResult:
        """Score a model on the stories of a split in the text of that split."""
        part: Part = "valid" if split.name == "valid" else "test"
        return evaluate_long_babi(
            model,
            self.dataset.tokenizer,
            split.tokens,
            self.task.samples,
            context_length=self.recipe.train.context_length,
            seed=seed,
            samples_per_cell=samples_per_cell,
            part=part,
            batch_tokens=EVALUATION_TOKENS,
            device=self.device,
            stories=self.stories[part],
        )

    def test(self, model: DecoderLM, seed: int) -> dict[str, Any]:
        """Return the error over all cells, and each cell by itself.

        Counts stand in the cells alone: the seeds and the amounts of text share questions, so samples of several must
        not be taken for that many more.
        """
        return {key: value for key, value in super().test(model, seed).items() if key not in POOLED}

    def samples_per_cell(self) -> tuple[int, int]:
        """Return how many samples of a cell are scored in validation and in the test."""
        return self.task.valid_samples_per_cell, self.task.test_samples_per_cell

    def task_hashes(self) -> dict[str, str]:
        """Return the hashes of the archives."""
        return {
            "babi_sha256": self.stories["test"].archive_sha256,
            "babi_train_sha256": self.stories["train"].archive_sha256,
        }

    def probe_samples(self) -> list[Sample]:
        """Return test samples of the first task with the largest amount of text between."""
        filler = Filler(self.dataset.test.tokens, self.dataset.tokenizer)
        task, distraction = self.task.tasks[0], max(self.task.distractions)
        return evaluation_samples(self.stories["test"], filler, VALID_SEED, task, distraction, PROBE_SEQUENCES)

    def facts(self) -> list[list[str]]:
        """Return task, a sample, sizes, what was left out and what chance is."""
        task, test = self.task, self.stories["test"]
        filler = Filler(self.dataset.test.tokens, self.dataset.tokenizer)
        example = evaluation_samples(test, filler, 0, task.tasks[0], min(task.distractions), 1)[0]
        fitting = [f"{len(test.by_task[number]):,} of {test.read[number]:,} of task {number}" for number in task.tasks]
        chances = {number: test.chance(number) for number in task.tasks}
        return [
            ["task", f"bAbI {listed([str(number) for number in task.tasks])}, facts between the sentences of a text in "
             "their order, the question at the end"],
            ["a sample", self.dataset.tokenizer.decode(example.tokens.tolist())],
            ["grid", f"{listed([str(amount) for amount in task.distractions])} tokens of text between"],
            ["test questions", f"those whose story fits: {listed(fitting)}; at most {task.test_samples_per_cell:,} a "
             "cell for each seed"],
            ["chance", listed([f"task {number}: {guess:.4g} % (most frequent answer {most:.4g} %)"
                               for number, (guess, most) in chances.items()])],
        ]  # fmt: skip
