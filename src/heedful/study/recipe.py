"""What a comparison is: the task, the data, the model that all arms share, the budget and the arms themselves.

A recipe is a TOML file read into frozen dataclasses by `heedful.schema`, so an unknown key or a wrong type is one
sentence that names the file and the key. Everything that needs the data or a model is checked in `heedful.study.plan`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from heedful.data.config import DataConfig
from heedful.schema import did_you_mean
from heedful.study.long_context_tasks import LongBabiTask, NeedlesTask
from heedful.tasks.find_the_block import FindTheBlockConfig
from heedful.train.config import TrainConfig
from heedful.train.hardware import gpu_named

# Arm names become folder names and table rows.
ARM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+_-]*")
Budget = Literal["steps", "parameters", "compute"]


@dataclass(frozen=True, kw_only=True)
class LanguageModellingTask:
    """Next-token prediction on `[data]`; the test metric is perplexity on the whole test split.

    `prompt_tokens`, `sample_tokens` and `temperature` (0 is greedy) say how the sample of text in the report is made.
    `mask_documents` keeps attention inside documents, in training and in evaluation. `further_tests` names further
    texts, files or folders, that the tested runs are scored on as a whole, beside the test split; they decide nothing.
    """

    kind: Literal["language-modelling"] = "language-modelling"
    prompt_tokens: int = 48
    sample_tokens: int = 80
    temperature: float = 0.7
    mask_documents: bool = False
    further_tests: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.further_tests:
            if not ARM_NAME.fullmatch(name):
                raise ValueError(f"further test {name!r} must be named by letters, digits and + - _ only.")
        if self.prompt_tokens < 1 or self.sample_tokens < 1:
            raise ValueError("prompt_tokens and sample_tokens must be at least 1.")
        if self.temperature < 0:
            raise ValueError(f"temperature must be 0 (greedy) or above, got {self.temperature}.")


@dataclass(frozen=True, kw_only=True)
class FindTheBlockTask(FindTheBlockConfig):
    """Find-the-block with its own fields; the test metric is the share of test samples with any wrong token."""

    kind: Literal["find-the-block"] = "find-the-block"
    num_valid_samples: int = 256
    num_test_samples: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_valid_samples < 1 or self.num_test_samples < 1:
            raise ValueError("num_valid_samples and num_test_samples must be at least 1.")

    @property
    def samples(self) -> FindTheBlockConfig:
        """What the samples are made from, without how many of them are scored."""
        return FindTheBlockConfig(**{item.name: getattr(self, item.name) for item in fields(FindTheBlockConfig)})


Task = LanguageModellingTask | FindTheBlockTask | NeedlesTask | LongBabiTask


@dataclass(frozen=True, kw_only=True)
class Match:
    """Resize this arm until its `by` equals that of `arm`, by changing `vary`: a control for that arm's extra cost."""

    arm: str
    by: Literal["parameters", "compute"]
    vary: Literal["width", "feed-forward", "depth"] = "width"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One side of the comparison.

    Args:
        name: how the report calls it.
        attention: a preset such as `boosted+multi-token`, or a table of AttentionConfig fields; with `preset` in it,
            the fields change that preset.
        learning_rates: one, or several to choose from on the validation split; empty takes the recipe's.
        further_seeds: seeds beyond the recipe's, for an arm whose result matters most. Differences are paired over the
            seeds that both arms have.
        match: makes the arm a control for another one.
        model: further `decoder_config` keywords of this arm alone.
    """

    name: str
    attention: str | dict[str, Any] = "standard"
    learning_rates: tuple[float, ...] = ()
    further_seeds: tuple[int, ...] = ()
    match: Match | None = None
    model: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not ARM_NAME.fullmatch(self.name):
            raise ValueError(f"arm name {self.name!r} must be made of letters, digits and + - _ only.")


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What a recipe was sized for. `heedful estimate` starts from it; training asks the machine and torchrun instead.

    Attributes:
        gpu: a name of `heedful.train.hardware.GPUS`.
        gpus: how many, one process each.
    """

    gpu: str = "H200"
    gpus: int = 1

    def __post_init__(self) -> None:
        gpu_named(self.gpu)
        if self.gpus < 1:
            raise ValueError(f"gpus must be at least 1, got {self.gpus}.")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A comparison of several arms under one budget rule.

    Budgets: `steps` trains every model as given for the same number of steps; `parameters` resizes each arm's
    feed-forward width until its parameter count equals the baseline's; `compute` scales each arm's number of steps
    until its total training multiply-adds equal the baseline's.

    Where an arm has several learning rates, each is trained with the first `sweep_seeds` seeds, and the one with the
    lowest mean validation loss is used for all of them.
    """

    name: str
    seeds: tuple[int, ...]
    baseline: str
    train: TrainConfig
    arms: tuple[Arm, ...]
    title: str = ""
    description: str = ""
    budget: Budget = "steps"
    learning_rates: tuple[float, ...] = ()
    sweep_seeds: int = 1
    task: Task = field(default_factory=LanguageModellingTask)
    data: DataConfig = field(default_factory=DataConfig)
    model: dict[str, Any] = field(default_factory=dict)
    hardware: Hardware | None = None

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError("seeds is empty: name at least one, three or more for a test.")
        _refuse_repeats("seed", self.seeds)
        if not 1 <= self.sweep_seeds <= len(self.seeds):
            raise ValueError(
                f"sweep_seeds says how many of the {len(self.seeds)} seeds try every learning rate, got "
                f"{self.sweep_seeds}."
            )
        if not self.arms:
            raise ValueError("there is no [[arms]] table: name at least one arm.")
        names = [arm.name for arm in self.arms]
        _refuse_repeats("arm name", [name.lower() for name in names])  # some file systems ignore case
        if self.baseline not in names:
            raise ValueError(f"baseline {self.baseline!r} is not an arm.{did_you_mean(self.baseline, names)}")
        for arm in self.arms:
            self._check_arm(arm)
        for arm in self.arms:
            self._refuse_circle(arm)
        if isinstance(self.task, FindTheBlockTask) and self.train.context_length != self.task.context_length:
            raise ValueError(
                f"train.context_length must be the length of a sample, {self.task.context_length}, got "
                f"{self.train.context_length}; leave it out."
            )

    def rates(self, arm: Arm) -> tuple[float, ...]:
        """Return the learning rates of `arm`, in ascending order."""
        return tuple(sorted(arm.learning_rates or self.learning_rates))

    def seeds_of(self, arm: Arm) -> tuple[int, ...]:
        """Return the seeds of `arm`: the recipe's and its own."""
        return (*self.seeds, *arm.further_seeds)

    def runs_of(self, arm: Arm) -> int:
        """Return how often `arm` is trained: once per seed, and in the sweep once more per further learning rate."""
        return len(self.seeds_of(arm)) + self.sweep_seeds * (len(self.rates(arm)) - 1)

    def arm(self, name: str) -> Arm:
        """Return the arm called `name`."""
        return next(arm for arm in self.arms if arm.name == name)

    def _check_arm(self, arm: Arm) -> None:
        rates = self.rates(arm)
        if not rates:
            raise ValueError(f"arm {arm.name!r} has no learning_rates and the recipe gives none for all arms.")
        if any(not rate > 0 for rate in rates):
            raise ValueError(f"arm {arm.name!r}: learning rates must be above 0, got {list(rates)}.")
        _refuse_repeats(f"learning rate of arm {arm.name!r}", rates)
        seeds = self.seeds_of(arm)
        _refuse_repeats(f"arm {arm.name!r}: seed", seeds)
        if any(seed < 0 for seed in seeds):
            raise ValueError(f"arm {arm.name!r}: seeds must not be negative, got {list(seeds)}.")
        for key, source in (("vocab_size", "the tokenizer or the task"), ("attention", "the arms' `attention`")):
            if key in self.model or key in arm.model:
                raise ValueError(f"a `model` table must not set {key!r}: it comes from {source}.")
        if arm.match is None:
            return
        if self.budget == "parameters":
            raise ValueError(f"arm {arm.name!r} has a `match`, but budget = 'parameters' already resizes every arm.")
        names = [other.name for other in self.arms]
        if arm.match.arm not in names:
            raise ValueError(
                f"arm {arm.name!r} matches an unknown arm {arm.match.arm!r}.{did_you_mean(arm.match.arm, names)}"
            )

    def _refuse_circle(self, arm: Arm) -> None:
        path, current = [arm.name], arm
        while current.match is not None:
            path.append(current.match.arm)
            if current.match.arm == arm.name:
                raise ValueError(f"arms match each other in a circle: {' -> '.join(path)}.")
            if len(path) > len(self.arms):
                return  # a circle further on, which its own members report
            current = self.arm(current.match.arm)


def _refuse_repeats(what: str, values: tuple[Any, ...] | list[Any]) -> None:
    for value in values:
        if list(values).count(value) > 1:
            raise ValueError(f"{what} {value!r} is given more than once.")
