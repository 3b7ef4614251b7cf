"""The Triton mixer equals the torch mixer in float64, and its walk equals the equations; interpreted without a GPU.

Bounds are derived: in float32 from what plain torch loses against float64 with the same numbers, in 16 bits from what
the torch mixer loses when every step of it is rounded to 16 bits.
"""

import importlib.util
import itertools

import pytest
import torch

import triton_on_cpu
from heedful.ops import AttentionMask
from heedful.ops.multi_token.blockwise import multi_token_blockwise
from heedful.ops.multi_token.lines import lines_of
from heedful.ops.multi_token.parts import Parts, Reach
from heedful.ops.multi_token.reference import multi_token_reference
from heedful.ops.multi_token.tiles import tiles
from heedful.ops.multi_token.torch_mixer import TorchMixer
from heedful.ops.multi_token.triton_mixer import TritonMixer
from heedful.ops.multi_token.walk import Walk
from tolerance import ORDER
from triton_on_cpu import DEVICE

# Triton has wheels for Linux only; `make test` installs it there, so that nothing is skipped in CI.
if importlib.util.find_spec("triton") is None:
    pytest.skip("needs the package triton", allow_module_level=True)
# The interpreter is chosen when Triton is first imported. No other test imports it; a plugin or a user's shell might.
if not triton_on_cpu.load():
    pytest.skip("Triton was imported before, for a GPU; run this file alone", allow_module_level=True)

NO_PARTS = Parts()
COMBINATIONS = list(itertools.product([False, True], repeat=4))
DOCUMENTS = torch.tensor([[0, 0, 1, 1, 1, 1, 2, 2, 2], [0] * 4 + [1] * 5])
HOLES = torch.ones(2, 9, dtype=torch.bool)
HOLES[0, :2] = HOLES[0, 5] = HOLES[1, 8] = False


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    """Memory that nobody wrote is NaN."""
    empty = torch.empty

    def poisoned(*args, **options):
        tensor = empty(*args, **options)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poisoned)


def parts_of(heads, pre=None, post=None, mix_pre=None, mix_post=None):
    def kernel(size):
        return None if size is None else torch.randn(heads, *size, device=DEVICE) / (size[0] * size[1]) ** 0.5

    def mixing(size):
        return None if size is None else torch.randn(heads // size, size, size, device=DEVICE) / size**0.5

    return Parts(kernel(pre), kernel(post), mixing(mix_pre), mixing(mix_post))


def each_tile(parts, *, queries, keys=None, heads=4, batch=2, rows=5, mask=None, is_causal=True, dtype=torch.float32):
    """Yield the tiles of a walk, scores that are zero outside of the map, and a gradient."""
    keys = keys or queries
    pre, post = Reach.of(parts.kq_pre), Reach.of(parts.kq_post)
    gap = max(pre.rows, post.rows)
    lines = lines_of(mask or AttentionMask(), queries, keys, is_causal=is_causal, gap=gap)
    for tile in tiles(lines, 0, rows, pre, post, DEVICE):
        region = tile.scores
        row = torch.arange(region.top, region.top + region.rows, device=DEVICE)
        column = torch.arange(region.left, region.left + region.columns, device=DEVICE)
        inside = (row >= 0)[:, None] & ((column >= 0) & (column < keys))[None]
        scores = 2.0 * torch.randn(batch, heads, region.rows, region.columns, device=DEVICE) * inside
        gradient = torch.randn(batch, heads, tile.weights.rows, tile.weights.columns, device=DEVICE)
        yield tile, scores.to(dtype), gradient.to(dtype)


def results(mixer, cases, dtype):
    """Weights and gradients of all tiles, then the gradients of the parts, in float64."""
    found = []
    for number, (tile, scores, gradient) in enumerate(cases):
        weights, scores_gradient = mixer.backward(scores.to(dtype, copy=True), gradient.to(dtype, copy=True), tile)
        if number == 0:
            assert torch.equal(weights, mixer.forward(scores.to(dtype, copy=True), tile)), "both compute the same"
        assert weights.dtype == scores_gradient.dtype == dtype
        found += [weights, scores_gradient]
    return [one.double() for one in [*found, *(g for g in mixer.gradients if g is not None)]]


def assert_mixers_agree(parts, *, exact=False, dtype=torch.float32, needed=None, **scene):
    cases = list(each_tile(parts, dtype=dtype, **scene))
    needed = needed or parts.present
    found = results(TritonMixer(parts, exact_mask=exact, needed=needed), cases, dtype)
    wide, rough = (
        results(TorchMixer(parts.to(t), exact_mask=exact, needed=needed), cases, t) for t in (torch.float64, dtype)
    )
    factor = ORDER if dtype == torch.float32 else 2
    if dtype == torch.bfloat16 and triton_on_cpu.INTERPRETED:
        factor = 4  # the interpreter cuts off bits when it stores bfloat16, which doubles each rounding
    assert len(found) == len(wide) > 0
    for number, (one, exactly, roughly) in enumerate(zip(found, wide, rough, strict=True)):
        assert bool(one.isfinite().all()), number
        loss = float((roughly - exactly).abs().max())
        bound = factor * max(loss, torch.finfo(dtype).eps * float(exactly.abs().max()))
        assert float((one - exactly).abs().max()) <= bound, (number, float((one - exactly).abs().max()), bound)


@pytest.mark.parametrize(
    ("present", "exact"),
    [(present, exact) for present in COMBINATIONS for exact in (False, True) if present[0] or not exact],
    ids=lambda value: "".join("yn"[not one] for one in value) if isinstance(value, tuple) else f"exact={value}",
)
def test_every_combination_of_parts(present, exact):
    sizes = [size if there else None for size, there in zip(((3, 4), (2, 5), 2, 4), present, strict=True)]
    assert_mixers_agree(parts_of(4, *sizes), exact=exact, queries=5, rows=3, batch=1)


@pytest.mark.parametrize("exact", [False, True], ids=["double", "exact"])
@pytest.mark.parametrize(("pre", "post"), [((6, 11), (1, 1)), ((8, 15), (2, 9)), ((1, 1), (8, 15)), ((2, 2), (6, 11))])
def test_sizes_of_kernels(pre, post, exact):
    assert_mixers_agree(parts_of(2, pre, post), exact=exact, queries=19, heads=2, batch=1, rows=17)


@pytest.mark.parametrize(("heads", "pre", "post"), [(3, 1, 3), (6, 3, 2), (16, 16, 4), (32, 8, 32), (18, 6, 9)])
def test_sizes_of_mixing_groups(heads, pre, post):
    assert_mixers_agree(
        parts_of(heads, None if heads > 16 else (2, 3), None, pre, post), heads=heads, queries=3, batch=1
    )


def test_tiles_wider_and_taller_than_a_block():
    assert_mixers_agree(parts_of(2, (2, 3), (3, 4), 2, 2), heads=2, batch=1, queries=17, keys=300, rows=17)


@pytest.mark.parametrize("needed", [(False, True, False, True), (True, False, True, False)])
def test_only_the_gradients_that_are_needed(needed):
    assert_mixers_agree(parts_of(2, (2, 3), (3, 2), 2, 2), heads=2, batch=1, queries=3, needed=needed)


@pytest.mark.parametrize("exact", [False, True], ids=["double", "exact"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tiles_of_16_bits(dtype, exact):
    assert_mixers_agree(parts_of(4, (3, 5), (2, 4), 4, 2), exact=exact, dtype=dtype, queries=9, batch=1)


SCENES = {
    "causal 1": {"queries": 1},
    "causal 7 grouped": {"queries": 7, "heads": 4, "kv_heads": 2},
    "full 7": {"queries": 7, "is_causal": False, "kv_heads": 1, "batch": 1},
    "causal 63": {"queries": 63, "kv_heads": 1, "batch": 1, "block": 40},
    "causal 111 few queries": {"queries": 3, "keys": 111, "batch": 1},
    "shorter": {"queries": 4, "keys": 9, "kv_heads": 1},
    "window": {"queries": 11, "batch": 1, "mask": AttentionMask(window=4)},
    "full window": {"queries": 11, "batch": 1, "is_causal": False, "mask": AttentionMask(window=3)},
    "holes": {"queries": 9, "mask": AttentionMask(key_padding=HOLES)},
    "holes full shorter": {"queries": 7, "keys": 9, "is_causal": False, "mask": AttentionMask(key_padding=HOLES)},
    "documents": {"queries": 9, "mask": AttentionMask(document_ids=DOCUMENTS)},
    "all masks": {"queries": 9, "mask": AttentionMask(document_ids=DOCUMENTS, key_padding=HOLES, window=4)},
}


@pytest.mark.parametrize(
    ("name", "exact"),
    [(name, exact) for name, scene in SCENES.items() for exact in (False, True) if "mask" in scene or not exact],
)
def test_the_walk_equals_the_equations(name, exact):
    scene = SCENES[name]
    queries, heads, batch = scene["queries"], scene.get("heads", 2), scene.get("batch", 2)
    keys, kv_heads = scene.get("keys", queries), scene.get("kv_heads", heads)
    mask, is_causal = scene.get("mask", AttentionMask()), scene.get("is_causal", True)
    shapes = ((heads, queries, 4), (kv_heads, keys, 4), (kv_heads, keys, 3))
    inputs = [torch.randn(batch, *shape, device=DEVICE) for shape in shapes]
    parts = parts_of(heads, (3, 5), (2, 4), 2, heads)
    gradient = torch.randn(batch, heads, queries, 3, device=DEVICE)
    moved = AttentionMask(
        window=mask.window,
        key_padding=None if mask.key_padding is None else mask.key_padding.to(DEVICE),
        document_ids=None if mask.document_ids is None else mask.document_ids.to(DEVICE),
    )

    def equations(dtype):
        leaves = [t.to(dtype, copy=True).requires_grad_() for t in (*inputs, *parts)]
        kq_pre, kq_post, head_pre, head_post = leaves[3:]
        named = {"kq_pre": kq_pre, "kq_post": kq_post, "head_pre": head_pre, "head_post": head_post}
        options = {"mask": moved, "is_causal": is_causal, "scale": 0.7, "dropout_p": 0.0, "exact_mask": exact}
        output = multi_token_reference(*leaves[:3], **named, **options)
        return [output.detach(), *torch.autograd.grad(output, leaves, gradient.to(dtype))]

    walk = Walk(
        mask=moved,
        is_causal=is_causal,
        scale=0.7,
        context=0,
        block=scene.get("block", 5),
        pre=Reach.of(parts.kq_pre),
        post=Reach.of(parts.kq_post),
        dtype=torch.float32,
    )

    def mixer(needed):
        return lambda number: TritonMixer(parts, exact_mask=exact, needed=needed)

    output = walk.forward(*inputs, mixer((False,) * 4))
    *input_gradients, part_gradients = walk.backward(gradient, *inputs, mixer((True,) * 4))
    found = [output, *input_gradients, *part_gradients]
    wide, rough = equations(torch.float64), equations(torch.float32)
    for number, (one, exactly, roughly) in enumerate(zip(found, wide, rough, strict=True)):
        loss = float((roughly.double() - exactly).abs().max())
        bound = ORDER * max(loss, torch.finfo(torch.float32).eps * float(exactly.abs().max()))
        assert float((one.double() - exactly).abs().max()) <= bound, number


def test_lines_that_see_nothing_get_zero():
    padding = torch.ones(2, 9, dtype=torch.bool)
    padding[0, :4] = padding[1, 5:] = False
    mask, parts = AttentionMask(key_padding=padding), parts_of(4, (2, 3), None, None, 4)
    mixer = TritonMixer(parts, exact_mask=False, needed=parts.present)
    ((tile, scores, gradient),) = each_tile(parts, queries=9, rows=9, mask=mask)
    weights, scores_gradient = mixer.backward(scores, gradient, tile)
    for tensor in (weights[0, :, :4], weights[1, :, 5:], scores_gradient[0, :, :4], scores_gradient[1, :, 6:]):
        assert not bool(tensor.any())
    assert bool(weights.isfinite().all())


@pytest.mark.parametrize("mix_post", [None, 2])
def test_dropout_scales_and_repeats_itself(mix_post):
    parts, p = parts_of(2, None, (2, 2), None, mix_post), 0.4
    ((tile, scores, gradient),) = each_tile(parts, queries=9, keys=60, is_causal=False, heads=2, batch=1, rows=9)
    plain = TritonMixer(parts, exact_mask=False, needed=parts.present)
    dropping = TritonMixer(parts, exact_mask=False, dropout_p=p, seed=2**63 - 1, needed=parts.present)
    other = TritonMixer(parts, exact_mask=False, dropout_p=p, seed=7)
    whole = plain.forward(scores.clone(), tile)
    weights = dropping.forward(scores.clone(), tile)
    kept = weights != 0
    torch.testing.assert_close(weights, torch.where(kept, whole / (1 - p), 0.0))
    drawn = kept[whole != 0].double()
    assert abs(float(drawn.mean()) - (1 - p)) < 5 * (p * (1 - p) / drawn.numel()) ** 0.5
    assert not torch.equal(weights, other.forward(scores.clone(), tile))
    assert not torch.equal(kept[0, 0], kept[0, 1])
    again, scores_gradient = dropping.backward(scores.clone(), gradient.clone(), tile)
    assert torch.equal(weights, again)
    _, expected = plain.backward(scores.clone(), gradient * kept / (1 - p), tile)
    torch.testing.assert_close(scores_gradient, expected)
    for one, two in zip(dropping.gradients, plain.gradients, strict=True):
        if one is not None:
            torch.testing.assert_close(one, two)


def test_two_runs_give_the_same_bits():
    parts = parts_of(4, (3, 5), (2, 4), 2, 4)
    cases = list(each_tile(parts, queries=4, batch=1))
    first, second = (
        results(TritonMixer(parts, exact_mask=False, needed=parts.present), cases, torch.float32) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_operator_runs_it():
    torch.manual_seed(0)
    inputs = [torch.randn(1, 2, 19, 16, device=DEVICE, requires_grad=True) for _ in range(3)]
    parts = Parts(*(None if p is None else p.to(DEVICE).requires_grad_() for p in parts_of(2, (2, 3), (3, 2), 2, 1)))
    leaves = [*inputs, *(p for p in parts if p is not None)]
    found = []
    for mixer in ("torch", "triton"):
        output = multi_token_blockwise(
            *inputs,
            parts,
            exact_mask=False,
            mask=AttentionMask(),
            is_causal=True,
            scale=None,
            dropout_p=0.0,
            mixer=mixer,
        )
        found.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_float64_is_refused():
    with pytest.raises(ValueError, match=r"kq_pre must be float32, got torch\.float64"):
        TritonMixer(parts_of(2, (1, 1)).to(torch.float64), exact_mask=False)
    ((tile, scores, _),) = each_tile(NO_PARTS, queries=3)
    with pytest.raises(ValueError, match=r"bfloat16, float16 or float32, got torch\.float64"):
        TritonMixer(NO_PARTS, exact_mask=False).forward(scores.double(), tile)
