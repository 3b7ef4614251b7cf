"""Every operation equals its equations, written as loops elsewhere, over odd sizes, grouped heads and all masks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
from heedful.ops import (
    AttentionMask,
    differential_attention,
    differential_attention_v2,
    multi_token_attention,
    standard_attention,
    talking_heads_attention,
    twicing_attention,
)
from tolerance import assert_close


@st.composite
def scenes(draw, square=False):
    """Sizes, masks and a seed; masks by position, all of them possible together."""
    keys = draw(st.integers(1, 9))
    queries = keys if square else draw(st.integers(1, keys))
    batch = draw(st.integers(1, 2))
    return {
        "queries": queries,
        "keys": keys,
        "batch": batch,
        "is_causal": draw(st.booleans()),
        "window": draw(st.none() | st.integers(1, keys + 1)),
        "real": draw(st.none() | st.lists(st.lists(st.booleans(), min_size=keys, max_size=keys), min_size=batch,
        max_size=batch)),
        "documents": draw(st.none() | st.lists(st.lists(st.integers(0, 2), min_size=keys, max_size=keys),
        min_size=batch, max_size=batch)),
        "seed": draw(st.integers(0, 2**16)),
    }  # fmt: skip


def mask_of(scene):
    real, documents = scene["real"], scene["documents"]
    return AttentionMask(
        window=scene["window"],
        key_padding=None if real is None else torch.tensor(real, dtype=torch.bool),
        document_ids=None if documents is None else torch.tensor(documents),
    )


def rows_of(scene):
    for b in range(scene["batch"]):
        yield (
            b,
            oracles.Scene(
                scene["keys"],
                is_causal=scene["is_causal"],
                window=scene["window"],
                real=None if scene["real"] is None else scene["real"][b],
                documents=None if scene["documents"] is None else scene["documents"][b],
            ),
        )


def draw_tensors(scene, query_heads, key_heads, width=3, value_width=2, value_heads=None):
    generator = torch.Generator().manual_seed(scene["seed"])
    shapes = (
        (query_heads, scene["queries"], width),
        (key_heads, scene["keys"], width),
        (value_heads or key_heads, scene["keys"], value_width),
    )
    return [torch.randn(scene["batch"], *s, generator=generator, dtype=torch.float64) * 1.5 for s in shapes], generator


def expected(scene, tensors, function):
    return torch.from_numpy(np.stack([function(*(t[b].numpy() for t in tensors), row) for b, row in rows_of(scene)]))


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@settings(max_examples=60, deadline=None)
@given(scene=scenes(), groups=st.sampled_from([1, 2, 4]))
def test_standard_attention_equals_the_definition(backend, scene, groups):
    tensors, _ = draw_tensors(scene, 4, groups)
    output = standard_attention(*tensors, mask=mask_of(scene), is_causal=scene["is_causal"], scale=0.7, backend=backend)
    assert_close(output, expected(scene, tensors, lambda q, k, v, row: oracles.standard(q, k, v, row, 0.7)[0]))


@settings(max_examples=120, deadline=None)
@given(
    scene=scenes(),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 6)),
    post_kernel=st.tuples(st.integers(1, 3), st.integers(1, 5)),
    group=st.sampled_from([1, 2, 4]),
    parts=st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
    exact=st.booleans(),
    key_heads=st.sampled_from([1, 2, 4]),
)
def test_multi_token_attention_equals_the_definition(scene, kernel, post_kernel, group, parts, exact, key_heads):
    check_multi_token(scene, kernel, post_kernel, group, parts, exact, key_heads)


def check_multi_token(scene, kernel, post_kernel, group, parts, exact, key_heads):
    tensors, generator = draw_tensors(scene, 4, key_heads)
    shapes = {
        "kq_pre": (4, *kernel),
        "kq_post": (4, *post_kernel),
        "head_pre": (4 // group, group, group),
        "head_post": (4 // group, group, group),
    }
    given_parts = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for (name, shape), present in zip(shapes.items(), parts, strict=True)
        if present
    }
    arrays = {name: tensor.numpy() for name, tensor in given_parts.items()}
    function = lambda q, k, v, row: oracles.multi_token(q, k, v, row, exact=exact, **arrays)[0]  # noqa: E731
    definition = expected(scene, tensors, function)
    for backend in ("reference", "blockwise"):
        output = multi_token_attention(
            *tensors,
            **given_parts,
            key_query_mask="exact" if exact else "double",
            mask=mask_of(scene),
            is_causal=scene["is_causal"],
            backend=backend,
        )
        assert_close(output, definition, backend)


def dense_case(seed):
    """A case in which everything that can interact does: no size of one, borders and padding inside the text."""
    random = np.random.default_rng(seed)
    keys = int(random.integers(6, 10))
    scene = {
        "queries": int(random.integers(3, keys + 1)),
        "keys": keys,
        "batch": 2,
        "is_causal": bool(random.random() < 0.7),
        "window": int(random.integers(2, 6)) if random.random() < 0.4 else None,
        "real": (random.random((2, keys)) < 0.8).tolist() if random.random() < 0.5 else None,
        "documents": np.sort(random.integers(0, 3, (2, keys)), axis=1).tolist() if random.random() < 0.6 else None,
        "seed": seed,
    }
    kernels = [tuple(int(size) for size in random.integers(2, (4, 6))) for _ in range(2)]
    group = int(random.choice([1, 2, 4]))
    parts = [bool(random.random() < 0.6) for _ in range(4)]
    if not any(parts[:2]):
        parts[seed % 2] = True
    return scene, kernels, group, parts, bool(seed % 2), int(random.choice([1, 2, 4]))


@pytest.mark.parametrize("seed", range(48))
def test_multi_token_attention_equals_the_definition_where_everything_interacts(seed):
    scene, (kernel, post_kernel), group, parts, exact, key_heads = dense_case(seed)
    check_multi_token(scene, kernel, post_kernel, group, parts, exact, key_heads)


def test_the_dense_cases_hold_every_pair_of_features():
    cases = [dense_case(seed) for seed in range(48)]
    for convolution in (0, 1):
        for exact in (False, True):
            for feature in ("window", "real", "documents"):
                assert any(
                    scene[feature] is not None and parts[convolution] and is_exact == exact
                    for scene, _, _, parts, is_exact, _ in cases
                )


@settings(max_examples=40, deadline=None)
@given(scene=scenes(), key_heads=st.sampled_from([1, 3]))
def test_talking_heads_attention_equals_the_definition(scene, key_heads):
    tensors, generator = draw_tensors(scene, 3, key_heads)
    pre, post = (torch.randn(3, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    output = talking_heads_attention(*tensors, pre, post, mask=mask_of(scene), is_causal=scene["is_causal"])
    mixing = {"head_pre": pre[None].numpy(), "head_post": post[None].numpy()}
    assert_close(output, expected(scene, tensors, lambda q, k, v, row: oracles.multi_token(q, k, v, row, **mixing)[0]))


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@settings(max_examples=60, deadline=None)
@given(scene=scenes(square=True), key_heads=st.sampled_from([1, 2, 4]))
def test_twicing_attention_equals_the_squared_map(backend, scene, key_heads):
    tensors, _ = draw_tensors(scene, 4, key_heads)
    output = twicing_attention(*tensors, mask=mask_of(scene), is_causal=scene["is_causal"], backend=backend)
    assert_close(output, expected(scene, tensors, oracles.twicing))


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@settings(max_examples=60, deadline=None)
@given(scene=scenes(), groups=st.sampled_from([1, 2]))
def test_differential_attention_equals_the_definition(backend, scene, groups):
    tensors, _ = draw_tensors(scene, 4, 2 * groups, width=2, value_width=4, value_heads=groups)
    factor = torch.tensor([0.3, 1.7], dtype=torch.float64)
    output = differential_attention(
        *tensors, factor, mask=mask_of(scene), is_causal=scene["is_causal"], backend=backend
    )
    assert_close(
        output, expected(scene, tensors, lambda q, k, v, row: oracles.differential(q, k, v, row, factor.numpy()))
    )


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@settings(max_examples=40, deadline=None)
@given(scene=scenes(), key_heads=st.sampled_from([1, 2]))
def test_differential_attention_v2_equals_the_definition(backend, scene, key_heads):
    tensors, generator = draw_tensors(scene, 4, key_heads)
    logits = torch.randn(scene["batch"], 2, scene["queries"], generator=generator, dtype=torch.float64)
    options = {"mask": mask_of(scene), "is_causal": scene["is_causal"], "backend": backend}
    output = differential_attention_v2(*tensors, logits, **options)
    heads = expected(scene, tensors, lambda q, k, v, row: oracles.standard(q, k, v, row)[0])
    assert_close(output, heads[:, 0::2] - torch.sigmoid(logits)[..., None] * heads[:, 1::2])
