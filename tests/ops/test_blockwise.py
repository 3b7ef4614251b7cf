"""The blockwise backend equals the reference, outputs and gradients, whatever the parts, masks, lengths and blocks."""

import pytest
import torch
from multi_token_cases import COMBINATIONS, draw_inputs, draw_parts, masks, value_and_gradients
from torch import library
from torch._inductor.utils import get_first_incompatible_cudagraph_node

from heedful.ops import AttentionMask, multi_token_attention
from heedful.ops.multi_token.blockwise import _backward, _forward, multi_token_blockwise
from heedful.ops.multi_token.parts import Parts
from tolerance import assert_close, largest_difference

LENGTHS = (1, 7, 63, 111)


def assert_same(found, expected, message):
    for index, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert bool(a.isfinite().all()), (index, message)
        assert_close(a, b, (index, message))


def blockwise(query, key, value, *, block=None, context=0, key_query_mask="double", mask=None, **options):
    parts = {name: options.pop(name, None) for name in Parts._fields}
    defaults = {"is_causal": True, "scale": None, "dropout_p": 0.0}
    return multi_token_blockwise(
        query,
        key,
        value,
        Parts(**parts),
        exact_mask=key_query_mask == "exact",
        mask=mask or AttentionMask(),
        block=block,
        context=context,
        **{**defaults, **options},
    )


@pytest.mark.parametrize("form", ["double", "exact"])
@pytest.mark.parametrize("names", COMBINATIONS, ids="-".join)
def test_every_combination_of_parts_equals_the_reference(names, form):
    parts = draw_parts(names)
    for length in LENGTHS:
        inputs = draw_inputs(length)
        for kind, mask in masks(length).items():
            options = {"mask": mask, "key_query_mask": form, "scale": 0.9}
            expected = value_and_gradients(inputs, parts, backend="reference", **options)
            assert_same(value_and_gradients(inputs, parts, backend="blockwise", **options), expected, (length, kind))


@pytest.mark.parametrize("form", ["double", "exact"])
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("block", [1, 4, 50, None])
def test_blocks_of_any_size_and_fewer_queries_than_keys(block, is_causal, form):
    parts = draw_parts(("kq_pre", "kq_post", "head_pre", "head_post"))
    for queries, kv_heads in ((37, 1), (37, 4), (3, 2), (1, 2)):
        inputs = draw_inputs(37, queries, kv_heads=kv_heads)
        for kind, mask in masks(37).items():
            options = {"mask": mask, "key_query_mask": form, "is_causal": is_causal}
            expected = value_and_gradients(inputs, parts, backend="reference", **options)
            found = value_and_gradients(inputs, parts, blockwise, block=block, **options)
            assert_same(found, expected, (queries, kv_heads, kind))


@pytest.mark.parametrize(
    ("kernel", "post_kernel"), [((6, 11), (6, 11)), ((1, 1), (1, 2)), ((2, 9), (5, 1)), ((8, 15), (1, 8))]
)
def test_kernels_of_any_size(kernel, post_kernel):
    for length in (5, 90):  # shorter than the halo, and several blocks
        inputs, parts = draw_inputs(length), draw_parts(("kq_pre", "kq_post"), kernel=kernel, post_kernel=post_kernel)
        for form in ("double", "exact"):
            for kind, mask in masks(length).items():
                options = {"mask": mask, "key_query_mask": form}
                expected = value_and_gradients(inputs, parts, backend="reference", **options)
                found = value_and_gradients(inputs, parts, blockwise, block=32, **options)
                assert_same(found, expected, (length, form, kind))


def test_long_texts_and_many_heads_take_every_way_through_the_convolution():
    """Parts of rows, parts of columns, pieces of the weight gradient, several tiles, several slices of the batch."""
    for heads, length, batch in ((16, 70, 1), (3, 300, 1), (2, 700, 1), (1, 40, 70)):
        inputs = draw_inputs(length, heads=heads, kv_heads=1, batch=batch)
        parts = draw_parts(("kq_pre", "kq_post"), heads=heads, kernel=(3, 5), post_kernel=(2, 3))
        expected = value_and_gradients(inputs, parts, backend="reference")
        assert_same(value_and_gradients(inputs, parts, backend="blockwise"), expected, (heads, length))


def test_context_rows_feed_the_convolutions_and_have_no_output():
    parts = draw_parts(("kq_pre", "kq_post", "head_pre"))
    for kind, mask in masks(29).items():
        inputs = draw_inputs(29)
        whole = value_and_gradients(inputs, parts, lambda *a, **k: blockwise(*a, **k)[:, :, 11:], mask=mask)
        found = value_and_gradients(inputs, parts, blockwise, context=11, block=4, mask=mask)
        assert_same(found, whole, kind)


def test_frozen_parts_and_inputs_get_no_gradient_and_the_others_the_same():
    query, key, value = draw_inputs(20)
    parts = draw_parts(("kq_pre", "head_post"))
    full = value_and_gradients((query, key, value), parts, backend="blockwise")
    frozen = {name: part.detach() for name, part in parts.items()}
    output = multi_token_attention(query.detach(), key, value, **frozen, backend="blockwise")
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).reshape(output.shape)
    assert_same(torch.autograd.grad((output * weight).sum(), [key, value]), full[2:4], "inputs")
    output = multi_token_attention(query.detach(), key.detach(), value.detach(), **parts, backend="blockwise")
    assert_same(torch.autograd.grad((output * weight).sum(), list(parts.values())), full[4:], "parts")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_of_narrow_types_are_as_near_as_the_references(dtype):
    parts = draw_parts(("kq_pre", "kq_post", "head_pre", "head_post"))
    inputs = draw_inputs(90)
    with torch.no_grad():
        for tensor in (*inputs, *parts.values()):
            tensor.copy_(tensor.to(dtype))  # numbers which the type can hold
    exact = value_and_gradients(inputs, parts, backend="reference")
    narrow = [t.detach().to(dtype).requires_grad_() for t in inputs]
    narrow_parts = {name: t.detach().to(dtype).requires_grad_() for name, t in parts.items()}
    for index, (found, reference, truth) in enumerate(
        zip(
            value_and_gradients(narrow, narrow_parts, backend="blockwise"),
            value_and_gradients(narrow, narrow_parts, backend="reference"),
            exact,
            strict=True,
        )
    ):
        assert found.dtype == dtype
        if dtype != torch.float32 and index < 2:  # output and gradient of the query: only the last rounding may differ
            a, b = found.detach().double().abs(), reference.detach().double()
            slack = 1024 * torch.finfo(torch.float32).eps * float(b.abs().max())
            assert bool(((found.double() - b).abs() <= torch.finfo(dtype).eps * a.maximum(b.abs()) + slack).all()), (
                index
            )
        error, allowed = ((x.double() - truth).square().mean().sqrt() for x in (found, reference))
        assert error <= 2 * allowed, (index, error, allowed)


OPERATOR_CASES = {
    "all parts": (("kq_pre", "kq_post", "head_pre", "head_post"), {}),
    "mixing": (("head_pre",), {"window": 5}),
    "masks": (("kq_pre", "kq_post"), {"padding": True, "documents": True, "exact": True}),
    "dropout and context": (("kq_pre", "head_post"), {"dropout": 0.3, "context": 2}),
}


@pytest.mark.parametrize("name", OPERATOR_CASES)
def test_the_operators_are_registered_correctly(name):
    names, options = OPERATOR_CASES[name]
    inputs, parts = draw_inputs(13), draw_parts(names)
    mask = masks(13)["everything"]
    dropout = options.get("dropout", 0.0)
    arguments = (
        *inputs,
        *(parts.get(field) for field in Parts._fields),
        mask.key_padding if "padding" in options else None,
        mask.document_ids if "documents" in options else None,
        torch.tensor(5) if dropout else None,
        options.get("window"),
        options.get("exact", False),
        True,
        0.3,
        dropout,
        options.get("context", 0),
        4,
        "torch",
    )
    assert set(library.opcheck(_forward, arguments).values()) == {"SUCCESS"}
    detached = tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in arguments)
    gradient = torch.ones_like(_forward(*detached))
    needed = [field in parts for field in Parts._fields]
    tests = ("test_schema", "test_faketensor")
    found = library.opcheck(_backward, (gradient, needed, *detached), test_utils=tests)
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", ["multi_token_blockwise", "multi_token_blockwise_backward"])
def test_cuda_graphs_are_not_recorded_through_the_operators(name):
    """Inductor splits graphs at this tag; the layout of the lines reads the mask, which a capture forbids."""
    operator = getattr(torch.ops.heedful, name).default
    assert torch.Tag.cudagraph_unsafe in operator.tags
    graph = torch.fx.Graph()
    graph.call_function(torch.ops.aten.mm.default)
    node = graph.call_function(operator)
    assert get_first_incompatible_cudagraph_node(torch.fx.GraphModule(torch.nn.Module(), graph)) is node


def test_compiled_graphs_stay_whole_for_changing_lengths():
    torch.compiler.reset()
    parts = draw_parts(("kq_pre", "kq_post", "head_pre", "head_post"))
    compiled = torch.compile(multi_token_attention, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (13, 22, 31):
        inputs = draw_inputs(length)
        for kind in ("plain", "everything"):
            options = {"mask": masks(length)[kind], "backend": "blockwise"}
            found = value_and_gradients(inputs, parts, compiled, **options)
            assert_same(found, value_and_gradients(inputs, parts, **options), (length, kind))


def test_second_derivatives_are_refused_with_the_way_out():
    inputs, parts = draw_inputs(9), draw_parts(("kq_pre",))
    output = multi_token_attention(*inputs, **parts, backend="blockwise")
    (gradient,) = torch.autograd.grad(output.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(ValueError, match="first derivatives only; for second derivatives use backend='reference'"):
        torch.autograd.grad(gradient.sum(), inputs[0])


def test_autocast_changes_nothing_inside():
    inputs, parts = ([t.detach().float() for t in draw_inputs(40)], draw_parts(("kq_pre", "head_pre")))
    parts = {name: part.detach().float() for name, part in parts.items()}
    plain = multi_token_attention(*inputs, **parts, backend="blockwise")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(multi_token_attention(*inputs, **parts, backend="blockwise"), plain)


def test_no_queries_and_no_keys_give_an_empty_output():
    parts = {name: part.detach() for name, part in draw_parts(("kq_pre", "head_post")).items()}
    for queries, keys in ((0, 0), (0, 5)):
        query, key, value = (torch.zeros(2, h, n, w) for h, n, w in ((4, queries, 5), (2, keys, 5), (2, keys, 3)))
        for backend in ("auto", "reference", "blockwise"):
            assert multi_token_attention(query, key, value, **parts, backend=backend).shape == (2, 4, 0, 3)


def test_the_order_of_the_blocks_does_not_show():
    """Only rounding differs between block sizes, and nothing between two calls."""
    inputs, parts = draw_inputs(111), draw_parts(("kq_pre", "kq_post"))
    first = value_and_gradients(inputs, parts, blockwise, block=16)
    again = value_and_gradients(inputs, parts, blockwise, block=16)
    assert all(largest_difference(a, b) == 0.0 for a, b in zip(first, again, strict=True))
    assert_same(value_and_gradients(inputs, parts, blockwise, block=48), first, "48 rows")


def test_another_default_device_changes_nothing():
    """Geometry and seeds live on the CPU whatever the user's default is."""
    inputs, parts = draw_inputs(40), draw_parts(("kq_pre", "kq_post"))
    for kind, mask in masks(40).items():
        expected = value_and_gradients(inputs, parts, backend="blockwise", mask=mask)
        with torch.device("meta"):
            output = multi_token_attention(*inputs, **parts, backend="blockwise", mask=mask)
            dropped = multi_token_attention(*inputs, **parts, backend="blockwise", mask=mask, dropout_p=0.1)
            gradients = torch.autograd.grad(output.square().sum() + dropped.sum(), inputs)
        assert_close(output, expected[0], kind)
        assert all(gradient.device.type == "cpu" for gradient in gradients)


def test_parts_in_any_memory_order():
    inputs, parts = draw_inputs(20), draw_parts(("kq_pre", "head_pre", "head_post"))
    turned = {name: part.detach().transpose(-1, -2).contiguous() for name, part in parts.items()}
    views = {name: part.requires_grad_().transpose(-1, -2) for name, part in turned.items()}
    found = value_and_gradients(inputs, views, backend="blockwise")
    assert_same(found, value_and_gradients(inputs, parts, backend="blockwise"), "views")
