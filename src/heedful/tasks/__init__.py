"""Synthetic tasks that isolate what an attention mechanism can do."""

from __future__ import annotations

from heedful.tasks.find_the_block import (
    FindTheBlockConfig,
    FindTheBlockData,
    FindTheBlockResult,
    evaluate_find_the_block,
)

__all__ = ["FindTheBlockConfig", "FindTheBlockData", "FindTheBlockResult", "evaluate_find_the_block"]
