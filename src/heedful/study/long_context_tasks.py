"""The `[task]` tables of needles and of long bAbI: the tasks' own fields, and how many samples are scored."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from heedful.tasks.long_babi import LongBabiConfig
from heedful.tasks.needles import NeedlesConfig


@dataclass(frozen=True, kw_only=True)
class NeedlesTask(NeedlesConfig):
    """Needles in the text of `[data]`; the test metric is the share of test samples with any wrong token.

    A cell is a count of needles, a length and a depth. Rows of `train.context_length` tokens hold several samples,
    which do not see each other.
    """

    kind: Literal["needles"] = "needles"
    valid_samples_per_cell: int = 10
    test_samples_per_cell: int = 500
    mask_documents: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_samples(self.valid_samples_per_cell, self.test_samples_per_cell)

    @property
    def samples(self) -> NeedlesConfig:
        """What the samples are made from, without how many of them are scored."""
        return NeedlesConfig(**{item.name: getattr(self, item.name) for item in fields(NeedlesConfig)})


@dataclass(frozen=True, kw_only=True)
class LongBabiTask(LongBabiConfig):
    """bAbI in the text of `[data]`; the test metric is the share of test samples with any wrong token.

    A cell is a task and an amount of text between. Rows of `train.context_length` tokens hold several samples, which do
    not see each other; a story must fit into one beside the largest amount.
    """

    kind: Literal["long-babi"] = "long-babi"
    valid_samples_per_cell: int = 50
    test_samples_per_cell: int = 500
    mask_documents: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_samples(self.valid_samples_per_cell, self.test_samples_per_cell)

    @property
    def samples(self) -> LongBabiConfig:
        """What the samples are made from, without how many of them are scored."""
        return LongBabiConfig(**{item.name: getattr(self, item.name) for item in fields(LongBabiConfig)})


def _require_samples(valid: int, test: int) -> None:
    if valid < 1 or test < 1:
        raise ValueError(
            f"valid_samples_per_cell and test_samples_per_cell must be at least 1, got {valid} and {test}."
        )
