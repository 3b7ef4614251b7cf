"""Which W_Q can be removed from a network that has one, and which cannot (arXiv 2510.23912, and what follows from it).

`heedful.convert.queries` does the removing. Here it works on random networks of four layers in float64, and logits on
random tokens are compared. Wrong variants of the same algebra stand beside the right ones: they must fail visibly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from heedful.convert.queries import convert_queries
from heedful.convert.queries.frames import Frame
from heedful.convert.queries.plan import EliminationPlan, eliminate, query_frame
from heedful.convert.queries.verification import LARGEST_FLOAT64_ERROR, relative_error
from heedful.convert.queries.weights import DecoderWeights
from heedful.models import DecoderLM
from heedful.nn import Rotary
from heedful.papers.claim import Finding
from heedful.papers.random_models import SIZES, random_decoder, random_tokens

TOKENS = random_tokens(seed=5)
WITHOUT_NORM = {"norm": "none", "tie_embeddings": False}
NO_SKIPS = {**WITHOUT_NORM, "attention_skip": False, "feed_forward_skip": False}
ALL = (0, 1, 2, 3)
LLAMA_LIKE = {"num_kv_heads": 2, "rotary": Rotary(), "activation": "swiglu"}

# Fields, the only layer to treat, and the stored layers that must lose their W_Q.
REMOVABLE: Mapping[str, tuple[dict[str, Any], int | None, tuple[int, ...]]] = {
    "no skips": (NO_SKIPS, None, ALL),
    "no skips, biases, tied head": ({**NO_SKIPS, "bias": True, "tie_embeddings": True}, None, ALL),
    "no skips, shared keys, rotary positions, SwiGLU": ({**NO_SKIPS, **LLAMA_LIKE}, None, ALL),
    "no skips, query-key norm": ({**NO_SKIPS, "qk_norm": True}, None, ALL),
    "skip around the attention": ({**WITHOUT_NORM, "feed_forward_skip": False}, None, ALL),
    "skip around the feed-forward layer": ({**WITHOUT_NORM, "attention_skip": False}, None, ALL),
    "both skips, first layer": (WITHOUT_NORM, 0, (0,)),
    "both skips, third layer": ({**WITHOUT_NORM, **LLAMA_LIKE}, 2, (2,)),
    "both skips, one block in all layers": ({**WITHOUT_NORM, "share_layers": True}, None, (0,)),
}

GPT2_LIKE = {"norm": "layer", "bias": True}
WITH_NORMS: Mapping[str, dict[str, Any]] = {
    "GPT-2's layout": GPT2_LIKE,
    "Llama's layout": {"norm": "rms", "tie_embeddings": False, "position_embedding": "none", **LLAMA_LIKE},
}


def removal_where_exact() -> Finding:
    """Remove W_Q in every case of the theorems, and compare logits."""
    errors, as_expected = [], True
    for fields, layer, removed in REMOVABLE.values():
        model = random_decoder(seed=0, **fields)
        converted, report = convert_queries(model, layer=layer)
        errors.append(relative_error(_logits(converted), _logits(model)))
        as_expected = as_expected and report.removed == removed
    overwritten = _overwriting_error(random_decoder(seed=0, **NO_SKIPS))
    holds = as_expected and max(errors) < LARGEST_FLOAT64_ERROR and overwritten > 0.01
    return Finding(
        verdict="holds" if holds else "does not hold",
        figure=f"{len(errors)} of {len(REMOVABLE)} cases, logits within {LARGEST_FLOAT64_ERROR:.0e}",
        reason="Without norms: every W_Q goes where a skip is missing, one where both are there, and the one matrix "
        "of a block that all layers share. The other weights make up for it: overwriting W_Q alone changes the "
        f"logits by {100 * overwritten:.0f} %.",
        numbers={
            "largest relative difference of logits": max(errors),
            "relative difference when W_Q alone is overwritten": overwritten,
        },
    )


def removal_with_both_skips() -> Finding:
    """Remove one W_Q of four; show what stands in the way of the others, and a network in which nothing does."""
    generic = random_decoder(seed=0, **WITHOUT_NORM)
    converted, report = convert_queries(generic)
    error = relative_error(_logits(converted), _logits(generic))
    shares = [off_block_share(generic, layer) for layer in range(1, 4)]
    forced = relative_error(_logits(_own_basis_for_each_layer(generic)), _logits(generic))
    special = _queries_equal_up_to_heads(generic)
    special_converted, special_report = convert_queries(special)
    special_error = relative_error(_logits(special_converted), _logits(special))
    one = len(report.removed) == 1 and error < LARGEST_FLOAT64_ERROR and forced > 1
    exception = special_report.removed == ALL and special_error < LARGEST_FLOAT64_ERROR
    return Finding(
        verdict="holds" if one and exception and min(shares) > 0.1 else "does not hold",
        figure=f"{len(report.removed)} of 4 layers; all 4 only where the W_Q differ by changes inside their heads",
        reason="Skips tie all layers to one basis, that of one W_Q. A second W_Q goes with it only if the inverse "
        f"of the first times the second is block diagonal by heads; here {100 * min(shares):.0f} % of it lies "
        "outside. A basis for each layer, without a matrix in every skip, changes the logits by more than their "
        "size.",
        numbers={
            "layers removed": float(len(report.removed)),
            "relative difference of logits": error,
            "smallest share outside of the heads' blocks": min(shares),
            "relative difference with a basis for each layer": forced,
            "layers removed, W_Q equal up to heads": float(len(special_report.removed)),
            "relative difference of logits, W_Q equal up to heads": special_error,
        },
    )


def removal_with_norms() -> Finding:
    """Try the layouts in use: what is refused, what overwriting does, and what a rotation can do instead."""
    refused, overwritten = 0, []
    for fields in WITH_NORMS.values():
        for seed in range(5):
            model = random_decoder(seed=seed, **fields)
            refused += _is_refused(model)
            overwritten.append(_overwriting_error(model))
    llama = random_decoder(seed=0, **WITH_NORMS["Llama's layout"])
    adapted = relative_error(_logits(_as_if_without_norms(llama)), _logits(llama))
    rotated, _ = convert_queries(llama, reductions=("rotation",), eliminate_queries=False)
    rotation_error = relative_error(_logits(rotated), _logits(llama))
    below = [_share_below_diagonal(rotated, layer) for layer in range(4)]
    triangular = sum(share < LARGEST_FLOAT64_ERROR for share in below)
    low, high = min(overwritten), max(overwritten)
    norms_matter = refused == len(overwritten) and min(low, adapted) > 0.1
    holds = norms_matter and rotation_error < LARGEST_FLOAT64_ERROR and triangular == 1
    return Finding(
        verdict="holds" if holds else "does not hold",
        figure=f"no W_Q removable; overwriting them changes the logits by {100 * low:.0f} to {100 * high:.0f} %",
        reason=f"The algebra that is exact without norms is off by {100 * adapted:.0f} % with them, for one W_Q and "
        "all other weights adapted to it: a norm lets only rotations through. Since skips tie the rotations of all "
        "layers, one W_Q of a model becomes triangular and none the identity. A model with norms has to be trained "
        "without W_Q; a trained one cannot be rewritten.",
        numbers={
            "models tried": float(len(overwritten)),
            "models refused": float(refused),
            "smallest relative change of logits by W_Q := I": low,
            "largest relative change of logits by W_Q := I": high,
            "relative change of logits by the algebra without norms": adapted,
            "triangular W_Q after one rotation": float(triangular),
            "relative difference of logits after the rotation": rotation_error,
        },
    )


@torch.no_grad()
def _logits(model: DecoderLM) -> Tensor:
    return model(TOKENS)[0]


def _overwriting_error(model: DecoderLM) -> float:
    """Return the relative change of the logits by W_Q := I in all layers, everything else as it was."""
    changed, _ = convert_queries(model, approximate="identity", tokens=TOKENS)
    return relative_error(_logits(changed), _logits(model))


def _is_refused(model: DecoderLM) -> bool:
    try:
        convert_queries(model)
    except ValueError as error:
        return "pre-norm" in str(error)
    return False


def _query_weight(model: DecoderLM, layer: int) -> Tensor:
    """Return W_Q of a layer, from input to output."""
    return model.get_parameter(f"blocks.{layer}.attention.rounds.0.query.q_proj.weight").detach().T


def off_block_share(model: DecoderLM, layer: int) -> float:
    """Return the share of the norm of (W_Q of layer 0)^-1 W_Q that lies outside of the heads' diagonal blocks."""
    ratio = torch.linalg.solve(_query_weight(model, 0), _query_weight(model, layer))
    heads = torch.block_diag(*[torch.ones(12, 12, dtype=torch.bool)] * SIZES["num_heads"])
    return float(ratio.masked_fill(heads, 0.0).norm() / ratio.norm())


def _share_below_diagonal(model: DecoderLM, layer: int) -> float:
    weight = _query_weight(model, layer)
    return float(weight.tril(-1).abs().max() / weight.abs().max())


def _own_basis_for_each_layer(model: DecoderLM) -> DecoderLM:
    """Remove every W_Q by a basis for each block, as if skips could pass from one to the next without a matrix."""
    weights = DecoderWeights.of(model)
    bases = [Frame(query_frame(layer).matrix) for layer in weights.layers]
    states = [basis for basis in bases for _ in range(2)]
    eliminate(weights, EliminationPlan(frames=[*states, bases[-1]], conditions=dict.fromkeys(ALL, 1.0)))
    return weights.model()


def _as_if_without_norms(model: DecoderLM) -> DecoderLM:
    """Write the stream in the basis of the first W_Q and adapt all weights, as is exact where there are no norms."""
    folded, _ = convert_queries(model, reductions=("fold-norms",), eliminate_queries=False)
    weights = DecoderWeights.of(folded)
    basis = Frame(query_frame(weights.layers[0]).matrix)
    eliminate(weights, EliminationPlan(frames=[basis] * (2 * len(ALL) + 1), conditions={0: 1.0}))
    return weights.model()


@torch.no_grad()
def _queries_equal_up_to_heads(model: DecoderLM) -> DecoderLM:
    """Return the model with W_Q of layer 0 in every layer, times a random matrix for each head."""
    special = random_decoder(seed=0, **WITHOUT_NORM)
    special.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(3)
    for layer in ALL[1:]:
        blocks = torch.randn(SIZES["num_heads"], 12, 12, generator=generator, dtype=torch.float64)
        weight = special.get_parameter(f"blocks.{layer}.attention.rounds.0.query.q_proj.weight")
        weight.copy_((_query_weight(model, 0) @ torch.block_diag(*blocks)).T)
    return special
