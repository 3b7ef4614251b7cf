"""Tasks that isolate what an attention mechanism can do: made-up ones, and published ones in running text."""

from __future__ import annotations

from heedful.tasks.find_the_block import (
    FindTheBlockConfig,
    FindTheBlockData,
    FindTheBlockResult,
    evaluate_find_the_block,
)
from heedful.tasks.long_babi import LongBabiConfig, LongBabiData, LongBabiResult, evaluate_long_babi
from heedful.tasks.needles import NeedlesConfig, NeedlesData, NeedlesResult, evaluate_needles

__all__ = [
    "FindTheBlockConfig",
    "FindTheBlockData",
    "FindTheBlockResult",
    "LongBabiConfig",
    "LongBabiData",
    "LongBabiResult",
    "NeedlesConfig",
    "NeedlesData",
    "NeedlesResult",
    "evaluate_find_the_block",
    "evaluate_long_babi",
    "evaluate_needles",
]
