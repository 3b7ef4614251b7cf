"""What convolutions and head mixing do to the attention map: its rank, and what they do before any training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from heedful.convert.queries.verification import relative_error
from heedful.models import DecoderLM, decoder_config
from heedful.ops.multi_token.reference import mix_heads
from heedful.papers.claim import Finding
from heedful.papers.random_models import SIZES, random_decoder, random_tokens

HEADS, HEAD_DIM, LENGTH, WIDTH = 4, 8, 64, 64
KERNEL = (3, 5)
EXACT = 1e-10


def identity_start() -> Finding:
    """Put untrained multi-token parts into a standard model, and compare logits."""
    standard = random_decoder(seed=0, backend="reference")
    tokens = random_tokens(seed=5)
    bare = _started_from(standard, "multi-token", head_output=None)
    published = _started_from(standard, "multi-token")
    with torch.no_grad():
        expected = standard(tokens)[0]
        without, with_norm_and_gate = (relative_error(model(tokens)[0], expected) for model in (bare, published))
    exact = without < EXACT
    return Finding(
        verdict="does not hold" if not exact else "holds in part" if with_norm_and_gate > 0.01 else "holds",
        figure=f"the same logits without norm and gate; off by {100 * with_norm_and_gate:.0f} % with them",
        reason="Kernels and mixing matrices that are the identity leave the map as it is. The heads' norm and gate "
        "(version 1: norm and depth scale) do not start as the identity, so a trained model cannot take in the "
        "whole of either published form unchanged.",
        numbers={
            "relative difference of logits": without,
            "relative difference of logits with norm and gate": with_norm_and_gate,
        },
    )


def rank_of_the_map() -> Finding:
    """Measure ranks of random score maps before and after mixing and convolution, and of a head's output map."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    query, key = drawn(2, HEADS, LENGTH, HEAD_DIM)
    scores = query @ key.mT
    mixing, kernel = drawn(1, HEADS, HEADS), drawn(HEADS, *KERNEL)
    mixed = mix_heads(scores[None], mixing)[0]
    convolved = conv2d(pad(scores[None], (2, 2, KERNEL[0] - 1, 0)), kernel[:, None], groups=HEADS)[0]
    wide = wide_queries(query) @ wide_keys(key, kernel).mT
    values, outputs = drawn(HEADS, WIDTH, HEAD_DIM), drawn(HEADS, HEAD_DIM, WIDTH)
    read = torch.einsum("og,odv,ove->gde", mixing[0], values, outputs)  # what map g reads from x into the output
    ranks = {
        "scores": _rank(scores),
        "scores after mixing": _rank(mixed),
        "scores after the convolution": _rank(convolved),
        "output of a map": _rank(values @ outputs),
        "output of a map after mixing": _rank(read),
    }
    expected = (HEAD_DIM, HEADS * HEAD_DIM, KERNEL[0] * HEAD_DIM, HEAD_DIM, HEADS * HEAD_DIM)
    wide_error = relative_error(wide, convolved)
    holds = tuple(ranks.values()) == expected and wide_error < EXACT
    return Finding(
        verdict="holds" if holds else "does not hold",
        figure=f"rank {ranks['scores']} before, {ranks['scores after mixing']} after mixing {HEADS} heads",
        reason=f"Heads of {HEAD_DIM} channels: mixing before the softmax raises the rank of the scores to c_h d, "
        "mixing after it that of what a map reads. A convolution over c_q queries raises it to c_q d: away from the "
        "mask it is a product of queries and keys that are c_q times as wide.",
        numbers={**{f"rank of {name}": float(rank) for name, rank in ranks.items()},
                 "relative difference of convolution and wide product": wide_error},
    )  # fmt: skip


def wide_queries(query: Tensor) -> Tensor:
    """Return the last c_q queries side by side, latest first, (heads, N, c_q d)."""
    length = query.shape[1]
    return torch.cat([pad(query, (0, 0, back, 0))[:, :length] for back in range(KERNEL[0])], dim=-1)


def wide_keys(key: Tensor, kernel: Tensor) -> Tensor:
    """Return, for each of these queries, the keys summed with its row of the kernel, (heads, M, c_q d)."""
    length, (rows, taps) = key.shape[1], KERNEL
    near = pad(key, (0, 0, (taps - 1) // 2, taps // 2))
    windows = torch.stack([near[:, tap : tap + length] for tap in range(taps)])
    return torch.cat([torch.einsum("ht,thmd->hmd", kernel[:, rows - 1 - back], windows) for back in range(rows)], -1)


def _rank(matrices: Tensor) -> int:
    """Return the rank that all matrices have."""
    ranks = set(torch.linalg.matrix_rank(matrices).tolist())
    return ranks.pop() if len(ranks) == 1 else -1


def _started_from(standard: DecoderLM, names: str, **fields: Any) -> DecoderLM:
    """Return an untrained model of another mechanism with all weights that the standard model has."""
    config = decoder_config(names, **{**SIZES, "backend": "reference", **fields})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DecoderLM(config).double().eval()
    missing, unexpected = model.load_state_dict(standard.state_dict(), strict=False)
    assert missing
    assert not unexpected
    return model
