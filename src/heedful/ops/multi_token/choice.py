"""Which backends can run a multi-token call, and which of them `auto` prefers.

Preferences come from figures in docs/log.md and results/benchmarks; a rule that was not measured says so.
"""

from __future__ import annotations

import importlib.util
import os
from typing import NamedTuple

import torch

from heedful.ops.backends import Candidates, Situation
from heedful.ops.multi_token.parts import Parts

MOST_QUERY_TAPS, MOST_KEY_TAPS, MOST_MIXED_HEADS = 8, 15, 32
"""Limits of the Triton mixer."""
TRITON_HEAD_DIMS = (32, 256)
FLASH_WIDTH = 256
"""The widest values that fused attention kernels take on CUDA."""
SMALL_MAP = 2**14
"""Up to so many numbers in all maps of a call, the plain equations on a CPU are quicker than setting up a walk."""
_TRITON_INSTALLED = importlib.util.find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_NO_KERNELS: str | None = None  # a self-contained copy (heedful.hf.bundle) has none, and says so here


class PartSizes(NamedTuple):
    """Kernel sizes (c_q, c_k) and mixing group sizes c_h; None where a part is absent."""

    kq_pre: tuple[int, int] | None = None
    kq_post: tuple[int, int] | None = None
    head_pre: int | None = None
    head_post: int | None = None

    @classmethod
    def of(cls, parts: Parts) -> PartSizes:
        """Return the sizes of given parts."""
        pre, post = (None if k is None else (k.shape[1], k.shape[2]) for k in (parts.kq_pre, parts.kq_post))
        mix_pre, mix_post = (None if m is None else m.shape[1] for m in (parts.head_pre, parts.head_post))
        return cls(pre, post, mix_pre, mix_post)


class CallSizes(NamedTuple):
    """Sizes of a call besides those of its parts."""

    heads: int
    kv_heads: int
    head_dim: int
    dropout_p: float = 0.0


def multi_token_backends(parts: PartSizes, sizes: CallSizes, situation: Situation) -> Candidates:
    """Return the backends in the order of preference, with the reason of each refusal."""
    if parts == PartSizes():
        others = {"triton": _triton_refusal(parts, sizes, situation), "blockwise": None, "reference": None}
        return Candidates({"sdpa": None, **others}, "nothing changes the map")
    refusals = {
        "sdpa": _sdpa_refusal(parts, sizes),
        "triton": _triton_refusal(parts, sizes, situation),
        "blockwise": None,
        "reference": None,
    }
    order, reason = _preference(parts, sizes, situation)
    return Candidates({name: refusals[name] for name in order}, reason)


def _preference(parts: PartSizes, sizes: CallSizes, situation: Situation) -> tuple[tuple[str, ...], str]:
    fused = _sdpa_refusal(parts, sizes) is None and not situation.masked  # SDPA's masks are N x M
    if fused and _shares_values(parts, sizes):
        return ("sdpa", "blockwise", "reference", "triton"), "the mixed heads share their values, so outputs are mixed"
    if situation.device != "cuda":
        numbers = situation.batch * sizes.heads * situation.queries * situation.keys
        if numbers <= SMALL_MAP:
            order = ("reference", "blockwise", "sdpa", "triton")
            return order, f"maps of {numbers} numbers are so small that the plain equations are the fastest"
        return ("blockwise", "reference", "sdpa", "triton"), "linear memory, and the fastest on a CPU"
    if fused and parts.head_post == 2 and 2 * sizes.head_dim <= FLASH_WIDTH:
        reason = "the values of both mixed heads fit one fused kernel"
        return ("sdpa", "triton", "blockwise", "reference"), reason
    reason = "linear memory, and with a convolution the fastest that was measured on a GPU"
    return ("triton", "blockwise", "reference", "sdpa"), reason


def _shares_values(parts: PartSizes, sizes: CallSizes) -> bool:
    """Whether each group mixed after the softmax lies inside the query heads of one key head."""
    return (sizes.heads // sizes.kv_heads) % (parts.head_post or 1) == 0


def _sdpa_refusal(parts: PartSizes, sizes: CallSizes) -> str | None:
    if parts != PartSizes(head_post=parts.head_post):
        return "convolutions and mixing before the softmax need the attention map, which SDPA does not give"
    if sizes.dropout_p > 0.0:
        return "dropout acts on the mixed weights, which SDPA does not give"
    return None


def _triton_refusal(parts: PartSizes, sizes: CallSizes, situation: Situation) -> str | None:
    if _NO_KERNELS is not None:
        return _NO_KERNELS
    if situation.device not in ("cuda", None) and not _INTERPRETED:
        return f"it needs a CUDA device; this call is on {situation.device}"
    if not _TRITON_INSTALLED:
        return "it needs the package triton, which is not installed"
    if situation.dtype == torch.float64:
        return "it computes in float32; this call is in float64"
    low, high = TRITON_HEAD_DIMS
    if not low <= sizes.head_dim <= high:
        return f"it takes head_dim {low} to {high}; this call has {sizes.head_dim}"
    for kernel in (parts.kq_pre, parts.kq_post):
        if kernel is not None and (kernel[0] > MOST_QUERY_TAPS or kernel[1] > MOST_KEY_TAPS):
            limit = f"{MOST_QUERY_TAPS} x {MOST_KEY_TAPS}"
            return f"it takes kernels up to {limit}; this call has {kernel[0]} x {kernel[1]}"

    for group in (parts.head_pre, parts.head_post):
        if group is not None and group > MOST_MIXED_HEADS:
            return f"it mixes up to {MOST_MIXED_HEADS} heads; this call mixes {group}"
    return None
