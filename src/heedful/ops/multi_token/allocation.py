"""Keeping freed memory: tiles are made and dropped many times a second, and fresh pages cost as much as the arithmetic.

glibc gives freed blocks above a limit back to the system, and every page of the next block must then be cleared and
mapped again: measured at two thirds of a whole forward and backward pass. It raises that limit by itself to the size of
the largest block of at most 32 MiB that was freed, so one block which is never touched is all it takes. Other systems'
allocators are not affected.
"""

from __future__ import annotations

import functools

import torch

LARGEST_KEPT = 31 * 2**20  # bytes; glibc adapts to blocks below 32 MiB only


@functools.cache
def keep_freed_memory() -> None:
    """Let the C allocator keep freed blocks of up to 31 MiB, and twice as much at the end of its heap."""
    torch.empty(LARGEST_KEPT, dtype=torch.uint8, device="cpu")
