"""One check per feature of the support table: a function of (mechanism, backend) that raises where the claim
is false."""

import json
from dataclasses import replace

import torch
from layers import HEADS, HIDDEN, build, config_of, inputs, reach, same_weights

import heedful.nn
from heedful.nn import Attention, AttentionConfig, AttentionState, Rotary
from heedful.ops import AttentionMask
from heedful.schema import from_mapping, to_mapping
from tolerance import assert_close, largest_difference

ODD_LENGTHS = (1, 7, 63, 111)


def run(layer, x, mask=None):
    return layer(x, mask)[0]


def all_gradients(layer, x, mask=None):
    x = x.clone().requires_grad_()
    y = run(layer, x, mask)
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return [y, *torch.autograd.grad((y * weight).sum(), [x, *layer.parameters()], allow_unused=True)]


def assert_all_close(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert_close(a, b)


def reference(mechanism, backend):
    masks = {
        "plain": lambda n: None,
        "padded": lambda n: AttentionMask(key_padding=torch.arange(n)[None].expand(2, n) >= torch.tensor([[0], [n //
        3]])),
        "packed": lambda n: AttentionMask(document_ids=torch.arange(n)[None].expand(2, n) // 5, window=4),
    }  # fmt: skip
    layer = build(mechanism, backend, num_kv_heads=2)
    oracle = same_weights(layer, mechanism, "reference", num_kv_heads=2)
    for length in ODD_LENGTHS:
        for mask in masks.values():
            x = inputs(length)
            assert_all_close(all_gradients(layer, x, mask(length)), all_gradients(oracle, x, mask(length)))


def _differentiable(mechanism, backend):
    layer = build(mechanism, backend, qk_norm=True)
    parameters = dict(layer.named_parameters())
    names = [
        name for name in parameters if "rule" in name or "gates" in name or "norm" in name or "head_output" in name
    ]
    x = inputs(5, batch=1)[..., :HIDDEN]
    mask = AttentionMask(document_ids=torch.tensor([[0, 0, 0, 1, 1]]))

    def function(x, *values):
        changed = {**parameters, **dict(zip(names, values, strict=True))}
        return torch.func.functional_call(layer, changed, (x, mask))[0]

    return function, (x.requires_grad_(), *(parameters[name].detach().clone().requires_grad_() for name in names))


def first_derivative(mechanism, backend):
    assert torch.autograd.gradcheck(*_differentiable(mechanism, backend), fast_mode=True)


def second_derivative(mechanism, backend):
    assert torch.autograd.gradgradcheck(*_differentiable(mechanism, backend), fast_mode=True)


def causal(mechanism, backend):
    for fields in ({}, {"num_kv_heads": 2, "rotary": Rotary()}):
        layer = build(mechanism, backend, **fields)
        x = inputs(23)
        for moved in (1, 11, 22):
            other = x.clone()
            other[:, moved] += 1.0
            assert largest_difference(run(layer, x)[:, :moved], run(layer, other)[:, :moved]) == 0.0
            assert largest_difference(run(layer, x)[:, moved], run(layer, other)[:, moved]) > 1e-3
            x_grad = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(run(layer, x_grad)[:, :moved].square().sum(), x_grad)
            assert float(gradient[:, moved:].abs().max()) == 0.0


def bidirectional(mechanism, backend):
    layer = build(mechanism, backend, is_causal=False)
    oracle = same_weights(layer, mechanism, "reference", is_causal=False)
    x = inputs(13)
    assert_all_close(all_gradients(layer, x), all_gradients(oracle, x))
    other = x.clone()
    other[:, -1] += 1.0
    assert largest_difference(run(layer, x)[:, 0], run(layer, other)[:, 0]) > 1e-6


def _decode(layer, x, pieces, mask=None):
    state, outputs, start = layer.empty_state(), [], 0
    for piece in pieces:
        end = start + piece
        part = None if mask is None else AttentionMask(key_padding=mask[:, :end])
        y, state = layer(x[:, start:end], part, state)
        outputs.append(y)
        start = end
    assert isinstance(state, AttentionState)
    assert state.length == x.shape[1] == start
    return torch.cat(outputs, dim=1)


def decode(mechanism, backend):
    for fields in ({"rotary": Rotary(), "num_kv_heads": 2}, {"window": 6}):
        layer = build(mechanism, backend, **fields)
        x = inputs(23)
        full = run(layer, x)
        for pieces in ([1] * 23, [7, 1, 1, 9, 5], [22, 1], [2, 21]):
            assert_close(_decode(layer, x, pieces), full, f"{fields} {pieces}")
        real = torch.arange(23)[None] >= torch.tensor([[0], [5]])  # ragged: the second row is padded on the left
        assert_close(
            _decode(layer, x, [8, 1, 1, 6, 7], real) * real[..., None],
            run(layer, x, AttentionMask(key_padding=real)) * real[..., None],
        )


def grouped_heads(mechanism, backend):
    grouped = build(mechanism, backend, num_kv_heads=2)
    full = build(mechanism, backend)
    state = dict(grouped.state_dict())
    blocks = grouped.config.heads.value_heads  # the unit that is shared: a key/value head, or a pair of key sub-heads
    for name, tensor in state.items():
        if "k_proj" in name or "v_proj" in name:
            parts = tensor.unflatten(0, (blocks, -1))
            state[name] = parts.repeat_interleave(HEADS // 2, dim=0).flatten(0, 1)
    full.load_state_dict(state)
    assert_close(run(grouped, inputs(17)), run(full, inputs(17)))


def window(mechanism, backend):
    whole = build(mechanism, backend)
    x = inputs(41)
    # Later rows may read a key through an earlier row's window: a window of N + all halos hides nothing.
    assert_close(run(same_weights(whole, mechanism, backend, window=41), x), run(whole, x))
    short = same_weights(whole, mechanism, backend, window=4)
    far = reach(short.config)
    changed = x.clone()
    changed[:, 2] += 1.0
    difference = (run(short, x) - run(short, changed)).detach().abs().amax(dim=(0, 2))
    assert float(difference[2]) > 1e-6
    assert float(difference[2 + 3]) > 1e-9  # the last row whose own window holds the changed token
    assert 2 + far < 40, "the text must be longer than the reach"
    assert float(difference[2 + far + 1 :].max()) == 0.0
    assert largest_difference(run(short, x), run(short, x, AttentionMask(window=99))) == 0.0  # the narrower counts


def left_padding(mechanism, backend):
    _padding(mechanism, backend, left=True)


def right_padding(mechanism, backend):
    _padding(mechanism, backend, left=False)


def _padding(mechanism, backend, *, left):
    layer = build(mechanism, backend, rotary=Rotary(), num_kv_heads=2)
    lengths, longest = (3, 17, 11), 17
    texts = [inputs(length, batch=1) for length in lengths]
    x = 100.0 * inputs(longest, batch=3)  # loud padding
    real = torch.zeros(3, longest, dtype=torch.bool)
    for row, text in enumerate(texts):
        place = slice(longest - text.shape[1], None) if left else slice(0, text.shape[1])
        x[row, place], real[row, place] = text[0], True
    x.requires_grad_()
    y = run(layer, x, AttentionMask(key_padding=real))
    for row, text in enumerate(texts):
        assert_close(y[row][real[row]], run(layer, text)[0])
    (gradient,) = torch.autograd.grad(y[real].square().sum(), x)
    assert float(gradient[~real].abs().max()) == 0.0
    assert bool(gradient.isfinite().all())


def packed_documents(mechanism, backend):
    layer = build(mechanism, backend, rotary=Rotary(), num_kv_heads=2)
    lengths = (1, 7, 2, 13)
    documents = [inputs(length, batch=1) for length in lengths]
    packed = torch.cat(documents, dim=1).requires_grad_()
    ends = torch.tensor([0, *lengths]).cumsum(0)
    y = run(layer, packed, AttentionMask.from_cumulative_lengths(ends))
    for start, end, document in zip(ends[:-1], ends[1:], documents, strict=True):
        assert_close(y[:, start:end], run(layer, document))
    (gradient,) = torch.autograd.grad(y[:, ends[2] : ends[3]].square().sum(), packed)
    assert float(gradient[:, : ends[2]].abs().max()) == 0.0
    assert float(gradient[:, ends[3] :].abs().max()) == 0.0
    by_ids = AttentionMask(
        document_ids=torch.repeat_interleave(torch.tensor([5, 2, 5, 9]), torch.tensor(lengths))[None]
    )
    assert largest_difference(run(layer, packed, by_ids), y) == 0.0


def rotary(mechanism, backend):
    for layout in ("half", "interleaved"):
        layer = build(mechanism, backend, rotary=Rotary(theta=100.0, layout=layout))
        x = inputs(19)
        attention_round = layer.rounds[0]
        query, key = torch.randn(2, 4, 19, 4).double(), torch.randn(2, 4, 19, 4).double()
        scores = []
        for shift in (0, 1000):
            q, k = attention_round.rotary(query, key, torch.arange(shift, shift + 19)[None])
            assert_close(q.norm(dim=-1), query.norm(dim=-1))
            scores.append(q @ k.transpose(-1, -2))
        # The angles near 1000 radians are rounded 1000 times coarser than those near 1.
        assert largest_difference(*scores) < 1000 * 1024 * torch.finfo(torch.float64).eps
        without = same_weights(layer, mechanism, backend)
        assert largest_difference(run(layer, x), run(without, x)) > 1e-3


def dropout(mechanism, backend):
    layer = build(mechanism, backend, dropout=0.4)
    plain = same_weights(layer, mechanism, backend)
    x = inputs(15)
    assert largest_difference(run(layer, x), run(plain, x)) == 0.0
    layer.train()
    torch.manual_seed(3)
    first = run(layer, x)
    second = run(layer, x)
    torch.manual_seed(3)
    assert largest_difference(run(layer, x), first) == 0.0
    assert largest_difference(first, second) > 1e-3
    gradients = all_gradients(layer, x)
    assert all(g is None or bool(g.isfinite().all()) for g in gradients)


def bfloat16(mechanism, backend):
    """Err at most twice as much (root mean square) as float32 arithmetic with bfloat16 storage, both against
    float64."""
    exact = build(mechanism, "reference")
    with torch.no_grad():  # weights and inputs which bfloat16 can hold, so that only the computation rounds
        for parameter in exact.parameters():
            parameter.copy_(parameter.bfloat16().double())
    x = inputs(31).bfloat16()
    expected = run(exact, x.double())
    layer = same_weights(exact, mechanism, backend).bfloat16()
    assert run(layer, x).dtype == torch.bfloat16
    independent = same_weights(exact, mechanism, "reference").float()
    rounded = _with_rounded_activations(independent, x.float())
    error = (run(layer, x).double() - expected).square().mean().sqrt()
    allowed = 2 * (rounded.double() - expected).square().mean().sqrt()
    assert error <= allowed, (error, allowed)


def _with_rounded_activations(layer, x):
    """float32 arithmetic whose module outputs are rounded to bfloat16: what storing activations costs by itself."""

    def rounded(value):
        return value.bfloat16().float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    def round_output(module, arguments, output):
        return tuple(rounded(item) for item in output) if type(output) is tuple else rounded(output)

    handles = [m.register_forward_hook(round_output) for m in layer.modules() if m is not layer]
    try:
        return run(layer, x).bfloat16().float()
    finally:
        for handle in handles:
            handle.remove()


def compile(mechanism, backend):
    layer = build(mechanism, backend, num_kv_heads=2, rotary=Rotary())
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = inputs(13)
    for mask in (None, AttentionMask(document_ids=torch.arange(13)[None].expand(2, 13) // 5)):
        eager = all_gradients(layer, x, mask)
        weight = torch.linspace(-1, 1, eager[0].numel(), dtype=x.dtype).reshape(eager[0].shape)
        x_grad = x.clone().requires_grad_()
        y = compiled(x_grad, mask)[0]
        found = torch.autograd.grad((y * weight).sum(), [x_grad, *layer.parameters()], allow_unused=True)
        assert_all_close([y, *found], eager)


def clean_memory(mechanism, backend):
    """torch fills fresh memory with NaN in deterministic mode; nothing of it may reach outputs or gradients."""
    layer = build(mechanism, backend)
    padded = AttentionMask(key_padding=torch.arange(9)[None].expand(2, 9) >= torch.tensor([[0], [4]]))
    plain = [all_gradients(layer, inputs(9), mask) for mask in (None, padded)]
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        assert bool(torch.empty(3).isnan().all())
        for mask, expected in zip((None, padded), plain, strict=True):
            assert_all_close(all_gradients(layer, inputs(9), mask), expected)
    finally:
        torch.use_deterministic_algorithms(False)


def state_dict(mechanism, backend):
    layer = build(mechanism, backend, rotary=Rotary(), qk_norm=True)
    config = layer.config
    assert eval(repr(config), vars(heedful.nn)) == config
    config = from_mapping(AttentionConfig, json.loads(json.dumps(to_mapping(config))))
    assert config == layer.config
    other = Attention(config).double().eval()
    other.load_state_dict(layer.state_dict(), strict=True)
    assert largest_difference(run(other, inputs(9)), run(layer, inputs(9))) == 0.0


def identity_start(mechanism, backend):
    config = config_of(mechanism, backend)
    torch.manual_seed(2)
    layer = Attention(config).double().eval()
    standard = Attention(config_of("standard", backend="reference")).double().eval()
    weights = layer.state_dict()
    standard.load_state_dict({name: weights[name] for name in standard.state_dict() if name in weights}, strict=False)
    assert_close(run(layer, inputs(21)), run(standard, inputs(21)))


def identity_start_without_head_output(mechanism):
    """The multi-token rules themselves start as the identity; their published head norms are what changes the
    function."""
    config = replace(config_of(mechanism), head_output=None)
    torch.manual_seed(2)
    layer = Attention(config).double().eval()
    standard = Attention(config_of("standard")).double().eval()
    standard.load_state_dict({name: layer.state_dict()[name] for name in standard.state_dict()})
    assert_close(run(layer, inputs(21)), run(standard, inputs(21)))
