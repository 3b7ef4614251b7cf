"""The kernel of the loss gives what torch's operations give in float64, up to rounding; interpreted without a GPU.

Bounds are derived: what plain torch loses in float32 against float64 on the same numbers, and for a gradient that is
stored in 16 bits half a unit in its last place besides. Triton's interpreter cuts off what a GPU rounds to bfloat16: a
whole unit there, and what depends on rounding is in float16 where it is interpreted.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import triton_on_cpu
from heedful.data.batches import IGNORED
from heedful.train import cross_entropy_rows
from heedful.train.chunked_cross_entropy import chunked_cross_entropy, chunked_token_losses
from heedful.train.cross_entropy_rows import choose_rows, torch_rows, triton_rows
from tolerance import ORDER, largest_difference, precision_loss
from triton_on_cpu import DEVICE, INTERPRETED

# Triton has wheels for Linux only; `make test` installs it there, so that nothing is skipped in CI.
if importlib.util.find_spec("triton") is None:
    pytest.skip("needs the package triton", allow_module_level=True)
# The interpreter is chosen when Triton is first imported, by conftest.py; a plugin or a user's shell might be earlier.
if not triton_on_cpu.load():
    pytest.skip("Triton was imported before, for a GPU; run this file alone", allow_module_level=True)

CPU, GPU = torch.device("cpu"), torch.device("cuda")
TOKENS, WIDTH, VOCABULARY = (3, 11), 6, 111
LOW = (torch.bfloat16, torch.float16)
ROUNDED = LOW[1:] if INTERPRETED else LOW
SIZES = [(1, 1), (33, 1), (1, 7), (33, 7), (1, 63), (33, 63), (33, 111), (1, 501), (33, 501), (5, 4096), (3, 4999)]


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that nobody wrote is NaN."""
    empty = torch.empty

    def poisoned(*args: Any, **options: Any) -> Tensor:
        tensor = empty(*args, **options)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poisoned)


def targets_of(shape: tuple[int, ...], vocabulary: int) -> Tensor:
    """A third of them is not scored; of several, the first is and the second is not."""
    targets = torch.randint(vocabulary, shape)
    targets[torch.rand(shape) < 1 / 3] = IGNORED
    flat = targets.flatten()
    flat[0] = vocabulary - 1
    flat[1:2] = IGNORED
    return flat.view(shape).to(DEVICE)


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, *LOW])
@pytest.mark.parametrize(("rows", "vocabulary"), SIZES)
def test_rows_are_those_of_float64(rows: int, vocabulary: int, dtype: torch.dtype, z_loss: float) -> None:
    logits = (4 * torch.randn(rows, vocabulary) + 3).to(DEVICE, dtype)
    targets = targets_of((rows,), vocabulary)
    score = partial(torch_rows, targets=targets, z_loss=z_loss, gradient=True)
    expected = score(logits.double())
    found = triton_rows(logits.clone(), targets, z_loss=z_loss, gradient=True)
    assert found.slopes is not None
    assert found.slopes.dtype == dtype
    for name in ("losses", "normalizers", "slopes"):
        one, other = getattr(found, name), getattr(expected, name)

        def wanted(values: Tensor, name: str = name) -> Tensor:
            return getattr(score(values.clone()), name)  # it writes over what it is given

        allowed = torch.tensor(ORDER * precision_loss(wanted, logits), device=DEVICE)
        if name == "slopes" and dtype in LOW:
            info = torch.finfo(dtype)
            step = info.eps if dtype == torch.bfloat16 and INTERPRETED else info.eps / 2
            allowed = allowed + step * other.abs() + info.smallest_normal * step
        assert bool(((one.double() - other).abs() <= allowed).all()), name
    for other in (found.losses, found.normalizers, found.slopes):
        assert bool((other[targets == IGNORED] == 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, *LOW])
def test_without_the_gradient_the_values_are_the_same_and_the_logits_stay(dtype: torch.dtype) -> None:
    logits, targets = torch.randn(9, 200).to(DEVICE, dtype), targets_of((9,), 200)
    given = logits.clone()
    found = triton_rows(given, targets, z_loss=0.1, gradient=False)
    other = triton_rows(logits.clone(), targets, z_loss=0.1, gradient=True)
    assert found.slopes is None
    assert torch.equal(given, logits)
    assert torch.equal(found.losses, other.losses)
    assert torch.equal(found.normalizers, other.normalizers)


def test_the_gradient_is_in_the_memory_of_the_logits() -> None:
    logits, targets = torch.randn(4, 30).to(DEVICE), targets_of((4,), 30)
    slopes = triton_rows(logits, targets, z_loss=0.0, gradient=True).slopes
    assert slopes is not None
    assert slopes.data_ptr() == logits.data_ptr()


def test_large_logits_neither_overflow_nor_lose_the_gradient() -> None:
    logits, targets = 3e4 + torch.randn(3, 5000).to(DEVICE), targets_of((3,), 5000)
    found = triton_rows(logits.clone(), targets, z_loss=0.0, gradient=True)
    score = partial(torch_rows, targets=targets, z_loss=0.0, gradient=True)
    assert largest_difference(found.slopes.double(), score(logits.double()).slopes) <= ORDER * precision_loss(  # type: ignore[union-attr, arg-type]
        lambda values: score(values.clone()).slopes, logits
    )


@pytest.mark.parametrize("vocabulary", [7, 5000])
def test_what_is_not_scored_is_zero_whatever_its_logits(vocabulary: int) -> None:
    logits = torch.full((4, vocabulary), float("nan"), device=DEVICE)
    targets = torch.full((4,), IGNORED, device=DEVICE)
    found = triton_rows(logits, targets, z_loss=0.1, gradient=True)
    assert all(bool((result == 0).all()) for result in found if result is not None)


def test_impossible_entries_of_the_vocabulary_get_no_probability() -> None:
    logits, targets = torch.randn(2, 9000).to(DEVICE), torch.tensor([8999, 8500], device=DEVICE)
    logits[:, :8200] = float("-inf")  # two whole blocks, before anything possible is seen
    expected = torch_rows(logits.double(), targets, z_loss=0.1, gradient=True)
    found = triton_rows(logits, targets, z_loss=0.1, gradient=True)
    assert expected.slopes is not None
    assert found.slopes is not None
    assert bool((found.slopes[:, :8200] == 0).all())
    torch.testing.assert_close(found.losses.double(), expected.losses, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.slopes.double(), expected.slopes, rtol=0, atol=1e-6)


@pytest.mark.parametrize("wrong", [30, -1, 2**40])
def test_a_target_outside_the_vocabulary_makes_its_row_nan_and_no_other(wrong: int) -> None:
    logits, targets = torch.randn(3, 30).to(DEVICE), torch.tensor([4, wrong, 29], device=DEVICE)
    found = triton_rows(logits, targets, z_loss=0.0, gradient=True)
    assert found.slopes is not None
    assert found.losses.isnan().tolist() == [False, True, False]
    assert found.slopes.isnan().all(1).tolist() == [False, True, False]
    assert found.slopes.isnan().any(1).tolist() == [False, True, False]


def draw(dtype: torch.dtype = torch.float32) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    inputs = torch.randn(*TOKENS, WIDTH), torch.randn(VOCABULARY, WIDTH), torch.randn(VOCABULARY)
    hidden, weight, bias = (tensor.to(DEVICE, dtype) for tensor in inputs)
    return (hidden, weight, bias), targets_of(TOKENS, VOCABULARY)


def loss_and_gradients(targets: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, **options: Any) -> list[Tensor]:
    hidden, weight, bias = leaves = [tensor.detach().requires_grad_() for tensor in (hidden, weight, bias)]
    objective, total = chunked_cross_entropy(hidden, weight, bias, targets, **options)
    return [objective, total, *torch.autograd.grad(3.5 * objective, leaves)]


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("chunk_tokens", [1, 7, None])
def test_the_loss_and_its_gradients_are_those_of_float64(chunk_tokens: int | None, z_loss: float) -> None:
    inputs, targets = draw()
    in_torch = partial(loss_and_gradients, targets, z_loss=z_loss, rows=torch_rows)
    found = loss_and_gradients(targets, *inputs, z_loss=z_loss, chunk_tokens=chunk_tokens, rows=triton_rows)
    exact = in_torch(*(tensor.double() for tensor in inputs))
    for index, (one, other) in enumerate(zip(found, exact, strict=True)):
        allowed = ORDER * precision_loss(lambda *tensors, index=index: in_torch(*tensors)[index], *inputs)
        assert largest_difference(one.double(), other) <= allowed


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("chunk_tokens", [4, None])
def test_under_autocast_it_is_as_near_to_float64_as_torch_is(chunk_tokens: int | None, dtype: torch.dtype) -> None:
    inputs, targets = draw()
    exact = loss_and_gradients(targets, *(tensor.double() for tensor in inputs))

    def errors(rows: Any) -> list[float]:
        with torch.autocast(DEVICE.type, dtype):
            found = loss_and_gradients(targets, *inputs, z_loss=0.0, chunk_tokens=chunk_tokens, rows=rows)
        assert {tensor.dtype for tensor in found} == {torch.float32}
        pairs = zip(found, exact, strict=True)
        return [float((one.double() - right).detach().square().mean().sqrt()) for one, right in pairs]

    # The bias is left to the next test: its gradient is the one thing that is rounded in the kernel only.
    assert all(one <= 2 * other for one, other in zip(errors(triton_rows)[:4], errors(torch_rows)[:4], strict=True))


@pytest.mark.parametrize("dtype", ROUNDED)
def test_the_gradient_of_the_bias_is_off_by_the_rounding_of_the_slopes(dtype: torch.dtype) -> None:
    (hidden, weight, bias), targets = draw()

    def gradient(rows: Any) -> Tensor:
        with torch.autocast(DEVICE.type, dtype):
            return loss_and_gradients(targets, hidden, weight, bias, rows=rows)[-1].double() / 3.5

    low = torch.nn.functional.linear(hidden.to(dtype), weight.to(dtype), bias.to(dtype)).flatten(0, -2)
    slopes = torch_rows(low.double(), targets.flatten(), z_loss=0.0, gradient=True).slopes
    assert slopes is not None
    sizes = slopes.abs().sum(0)
    difference = (gradient(triton_rows) - gradient(torch_rows)).abs()
    few_roundings = 64 * torch.finfo(torch.float32).eps
    info = torch.finfo(dtype)
    smallest = targets.numel() * info.smallest_normal * info.eps / 2  # below the normal numbers steps are all of a size
    assert bool((difference <= (info.eps / 2 + few_roundings) * sizes + smallest).all())
    assert bool((difference > few_roundings * sizes).any())  # it could be told apart


def test_hidden_states_may_lie_in_memory_in_any_order() -> None:
    (hidden, weight, bias), targets = draw()
    strided = hidden.transpose(0, 1).contiguous().transpose(0, 1)
    assert not strided.is_contiguous()
    options = {"chunk_tokens": 5, "rows": triton_rows}
    found, expected = (loss_and_gradients(targets, one, weight, bias, **options) for one in (strided, hidden))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_without_gradients_the_values_are_the_same_bit_for_bit() -> None:
    inputs, targets = draw()
    expected = loss_and_gradients(targets, *inputs, z_loss=0.1, chunk_tokens=5, rows=triton_rows)[:2]
    with torch.no_grad():
        found = chunked_cross_entropy(*inputs, targets, z_loss=0.1, chunk_tokens=5, rows=triton_rows)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    losses = chunked_token_losses(*inputs, targets, rows=triton_rows)
    whole = torch.nn.functional.linear(*(tensor.double() for tensor in inputs)).flatten(0, -2)

    def in_torch(logits: Tensor) -> Tensor:
        return torch_rows(logits.clone(), targets.flatten(), z_loss=0.0, gradient=False).losses

    exact = torch.nn.functional.cross_entropy(whole, targets.flatten(), reduction="none", ignore_index=IGNORED)
    allowed = ORDER * precision_loss(
        lambda *tensors: in_torch(torch.nn.functional.linear(*tensors).flatten(0, -2)), *inputs
    )
    assert largest_difference(losses.double(), exact) <= allowed


def test_where_nothing_is_scored_nothing_comes_out() -> None:
    inputs, targets = draw()
    found = loss_and_gradients(torch.full_like(targets, IGNORED), *inputs, z_loss=0.3, chunk_tokens=4, rows=triton_rows)
    assert all(bool((tensor == 0).all()) for tensor in found)


@pytest.mark.parametrize("bias", [True, False])
def test_fake_tensors_are_asked_for_no_value(bias: bool) -> None:
    with FakeTensorMode():
        hidden, weight = torch.randn(3, 11, 6), torch.randn(50_000, 6)
        inputs = [hidden, weight, *([torch.randn(50_000)] if bias else [])]
        targets = torch.zeros(3, 11, dtype=torch.int64)
        leaves = [tensor.requires_grad_() for tensor in inputs]
        head_bias = leaves[2] if bias else None
        objective, _ = chunked_cross_entropy(hidden, weight, head_bias, targets, chunk_tokens=8, rows=triton_rows)
        gradients = torch.autograd.grad(objective, leaves)
    assert [tensor.shape for tensor in gradients] == [tensor.shape for tensor in inputs]


@pytest.mark.parametrize(
    ("device", "dtype", "installed", "chosen"),
    [
        (GPU, torch.bfloat16, True, triton_rows),
        (GPU, torch.float16, True, triton_rows),
        (GPU, torch.float32, True, triton_rows),
        (GPU, torch.float64, True, torch_rows),
        (GPU, torch.bfloat16, False, torch_rows),
        (CPU, torch.bfloat16, True, torch_rows),
        (CPU, torch.float32, True, torch_rows),
    ],
)
def test_the_kernel_is_chosen_where_it_runs(
    device: torch.device,
    dtype: torch.dtype,
    installed: bool,
    chosen: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cross_entropy_rows, "_TRITON_INSTALLED", installed)
    assert choose_rows(device, dtype) is chosen
