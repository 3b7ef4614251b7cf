"""The two masks of the key-query convolution, where they differ, and that neither of them sees the future.

With r = i - i' the source query and c = j - j' the source key of a tap, the definition (equation 4) hides keys c > i
after the output row, the models (equation 5) keys c > r after the source row. They can differ only where r < c <= i, on
the diagonals 0 <= i - j < c_q - 1 + floor(c_k / 2).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from heedful.ops import multi_token_attention
from heedful.ops.masks import NO_MASK
from heedful.ops.multi_token.reference import convolve_map
from heedful.papers.claim import Finding

KERNELS = ((6, 11), (4, 9), (8, 13), (2, 9), (2, 15), (3, 4), (2, 1), (1, 11), (1, 4))
"""Those of the models, of the ablations and of the toy task; an even one; one of a single query or key."""

LENGTH, HEADS = 32, 2
PAPER_CONTEXT = 2048


def mask_forms() -> Finding:
    """Convolve random maps under both masks, and find the diagonals on which they differ."""
    as_derived = [differing_diagonals(kernel) == derived_diagonals(kernel) for kernel in KERNELS]
    band = len(differing_diagonals(KERNELS[0]))
    share = sum(PAPER_CONTEXT - t for t in range(band)) / (PAPER_CONTEXT * (PAPER_CONTEXT + 1) // 2)
    return Finding(
        verdict="holds in part" if all(as_derived) else "does not hold",
        figure=f"6 x 11: different on the {band} diagonals next to the current token",
        reason=f"For {sum(as_derived)} of {len(KERNELS)} kernel sizes the masks differ exactly on the diagonals "
        "0 <= i - j < c_q - 1 + floor(c_k / 2), and nowhere with one query. At 2,048 tokens those are "
        f"{100 * share:.1f} % of the visible scores, but the nearest ones.",
        numbers={
            "kernel sizes as derived": float(sum(as_derived)),
            "kernel sizes": float(len(KERNELS)),
            "differing diagonals, 6 x 11": float(band),
            "share of visible scores at 2,048 tokens": share,
        },
    )


def causality() -> Finding:
    """Change one token after the other and look for changes in earlier rows, in all forms and in one that leaks."""
    forms: dict[str, Callable[..., Tensor]] = {
        "before the softmax, double mask": lambda *qkv: _attend(*qkv, kq_pre=_kernel((6, 11))),
        "before the softmax, exact mask": lambda *qkv: _attend(*qkv, kq_pre=_kernel((6, 11)), key_query_mask="exact"),
        "after the softmax": lambda *qkv: _attend(*qkv, kq_post=_kernel((6, 11))),
    }
    changes = {name: change_of_earlier_rows(form) for name, form in forms.items()}
    leaking = change_of_earlier_rows(_with_later_queries)
    worst = max(changes.values())
    return Finding(
        verdict="holds" if worst == 0 < leaking else "does not hold",
        figure="earlier outputs stay to the last bit" if worst == 0 else f"earlier outputs change by {worst:.1e}",
        reason=f"All {len(forms)} forms, every token of a text changed in turn. The query axis must be padded before "
        "the first query alone: a kernel centred on the query, as some ports have it, changes earlier outputs by "
        f"{leaking:.2f}.",
        numbers={**{f"largest change, {name}": change for name, change in changes.items()},
                 "largest change, kernel centred on the query": leaking},
    )  # fmt: skip


def differing_diagonals(kernel: tuple[int, int]) -> set[int]:
    """Return the i - j of visible entries on which a convolution of random scores differs between the masks."""
    scores = torch.randn(1, HEADS, LENGTH, LENGTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    visible = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).tril()
    exact, double = (convolve_map(scores, _kernel(kernel), NO_MASK, visible, exact_mask=form) for form in (True, False))
    rounding = 1e-12 * float(exact.abs().max())
    rows, keys = ((exact - double).abs().amax((0, 1)) > rounding).tril().nonzero(as_tuple=True)
    return set((rows - keys).tolist())


def derived_diagonals(kernel: tuple[int, int]) -> set[int]:
    """Return the diagonals of the formula above."""
    queries, keys = kernel
    return set(range(queries - 1 + keys // 2)) if queries > 1 else set()


def change_of_earlier_rows(attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> float:
    """Return the largest change of an output before the token whose query, key and value are drawn anew."""
    generator = torch.Generator().manual_seed(2)
    query, key, value, *others = torch.randn(6, 1, HEADS, LENGTH, 8, generator=generator, dtype=torch.float64)
    before, largest = attend(query, key, value), 0.0
    for token in range(1, LENGTH):
        changed = [part.clone() for part in (query, key, value)]
        for part, other in zip(changed, others, strict=True):
            part[:, :, token] = other[:, :, token]
        largest = max(largest, float((attend(*changed) - before)[:, :, :token].abs().max()))
    return largest


def _kernel(sizes: tuple[int, int]) -> Tensor:
    return torch.randn(HEADS, *sizes, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def _attend(query: Tensor, key: Tensor, value: Tensor, **options) -> Tensor:
    return multi_token_attention(query, key, value, backend="reference", **options)


def _with_later_queries(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend with a convolution after the softmax that is padded alike on both sides of the query axis."""
    weights = _attend(query, key, torch.eye(LENGTH, dtype=torch.float64).expand(1, HEADS, -1, -1))
    convolved = conv2d(pad(weights, (5, 5, 2, 2)), _kernel((5, 11))[:, None], groups=HEADS)
    return convolved.tril() @ value
