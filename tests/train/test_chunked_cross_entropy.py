"""Cross-entropy some tokens at a time equals cross-entropy of all logits: values, gradients, and less memory."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from heedful.data.batches import IGNORED
from heedful.train import chunked_cross_entropy as module
from heedful.train import peak_tensor_bytes
from heedful.train.chunked_cross_entropy import chunked_cross_entropy, chunked_token_losses
from tolerance import bound, largest_difference

TOKENS, WIDTH, VOCABULARY = (3, 11), 6, 29
FORMS = list(itertools.product((False, True), (0.0, 0.3)))


def draw(
    *, bias: bool = True, dtype: torch.dtype = torch.float64, tokens: tuple[int, ...] = TOKENS
) -> tuple[Tensor, Tensor, Any, Tensor]:
    """Hidden states, head and targets; some targets are not scored, one row of them not at all."""
    generator = torch.Generator().manual_seed(1)

    def values(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    targets = torch.randint(VOCABULARY, tokens, generator=generator)
    targets[torch.rand(tokens, generator=generator) < 0.2] = IGNORED
    targets[-1] = IGNORED
    return values(*tokens, WIDTH), values(VOCABULARY, WIDTH), values(VOCABULARY) if bias else None, targets


def plain(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, z_loss: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The same from all logits, by torch's cross-entropy and the formula of the penalty."""
    logits = torch.nn.functional.linear(hidden, weight, bias).flatten(0, -2)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    total = torch.nn.functional.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum")
    normalizers = logits.exp().sum(-1).log()[targets.flatten() != IGNORED]
    return total + z_loss * (normalizers**2).sum(), total.detach()


def gradients(objective: Tensor, *inputs: Tensor | None) -> list[Tensor]:
    return list(torch.autograd.grad(objective, [tensor for tensor in inputs if tensor is not None]))


@pytest.mark.parametrize(("bias", "z_loss"), FORMS)
@pytest.mark.parametrize("chunk_tokens", [1, 7, 33, 100, None])
def test_values_and_gradients_are_those_of_all_logits(chunk_tokens: int | None, bias: bool, z_loss: float) -> None:
    hidden, weight, head_bias, targets = draw(bias=bias)
    inputs = (hidden, weight, head_bias)
    found, reported = chunked_cross_entropy(*inputs, targets, z_loss=z_loss, chunk_tokens=chunk_tokens)
    expected, total = plain(*inputs, targets, z_loss)

    def value(*tensors: Tensor) -> Tensor:
        return plain(tensors[0], tensors[1], tensors[2] if bias else None, targets, z_loss)[0]

    known = [tensor for tensor in inputs if tensor is not None]
    assert largest_difference(found, expected) <= bound(value, *known)
    assert largest_difference(reported, total) <= bound(value, *known)
    assert not reported.requires_grad
    for index, (one, other) in enumerate(
        zip(gradients(3.5 * found, *inputs), gradients(3.5 * expected, *inputs), strict=True)
    ):

        def slope(*tensors: Tensor, index: int = index) -> Tensor:
            leaves = [tensor.detach().requires_grad_() for tensor in tensors]
            return gradients(3.5 * value(*leaves), leaves[index])[0]

        assert largest_difference(one, other) <= bound(slope, *known)


class Repeatable(torch.autograd.Function):
    """The loss anew for every backward pass, which gradcheck takes many of through one graph."""

    @staticmethod
    def forward(ctx: Any, options: dict[str, Any], targets: Tensor, *inputs: Tensor) -> Tensor:
        ctx.options, ctx.targets = options, targets
        ctx.save_for_backward(*inputs)
        hidden, weight, bias = inputs
        return chunked_cross_entropy(hidden, weight, bias, targets, **options)[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, bias = leaves = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        with torch.enable_grad():
            objective, _ = chunked_cross_entropy(hidden, weight, bias, ctx.targets, **ctx.options)
        return (None, None, *torch.autograd.grad(objective, leaves, grad))


def test_gradcheck() -> None:
    hidden, weight, bias, targets = draw(tokens=(2, 5))
    options = {"z_loss": 0.3, "chunk_tokens": 3}
    assert torch.autograd.gradcheck(lambda *inputs: Repeatable.apply(options, targets, *inputs), (hidden, weight, bias))


def test_the_loss_of_each_token_is_its_own() -> None:
    hidden, weight, bias, targets = draw()
    expected = torch.nn.functional.cross_entropy(
        torch.nn.functional.linear(hidden, weight, bias).flatten(0, -2),
        targets.flatten(),
        ignore_index=IGNORED,
        reduction="none",
    )
    for chunk_tokens in (1, 7, None):
        found = chunked_token_losses(hidden, weight, bias, targets, chunk_tokens=chunk_tokens)
        torch.testing.assert_close(found, expected.detach(), rtol=1e-13, atol=1e-13)
        assert bool((found[targets.flatten() == IGNORED] == 0).all())


def test_without_gradients_the_values_are_the_same_bit_for_bit() -> None:
    hidden, weight, bias, targets = draw()
    objective, total = chunked_cross_entropy(hidden, weight, bias, targets, z_loss=0.1, chunk_tokens=5)
    with torch.no_grad():
        again = chunked_cross_entropy(hidden, weight, bias, targets, z_loss=0.1, chunk_tokens=5)
    assert torch.equal(objective, again[0])
    assert torch.equal(total, again[1])
    assert objective.requires_grad
    assert not again[0].requires_grad


def test_tokens_that_are_not_scored_give_nothing_even_where_all_are() -> None:
    hidden, weight, bias, targets = draw()
    nothing = torch.full_like(targets, IGNORED)
    objective, total = chunked_cross_entropy(hidden, weight, bias, nothing, z_loss=0.3, chunk_tokens=4)
    assert objective.item() == total.item() == 0
    assert all(bool((gradient == 0).all()) for gradient in gradients(objective, hidden, weight, bias))


def test_a_target_outside_the_vocabulary_is_refused_as_by_torch() -> None:
    hidden, weight, bias, targets = draw()
    for wrong in (VOCABULARY, -1):
        with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
            chunked_cross_entropy(hidden, weight, bias, targets.clone().fill_(wrong))


def test_frozen_parts_get_no_gradient_and_the_others_theirs() -> None:
    hidden, weight, bias, targets = draw()
    wanted = gradients(chunked_cross_entropy(hidden, weight, bias, targets, chunk_tokens=5)[0], hidden, weight, bias)
    for trained in range(3):
        inputs = one, two, three = hidden.detach(), weight.detach(), bias.detach()
        inputs[trained].requires_grad_()
        chunked_cross_entropy(one, two, three, targets, chunk_tokens=5)[0].backward()
        assert [tensor.grad is None for tensor in inputs].count(False) == 1
        assert torch.equal(inputs[trained].grad, wanted[trained])  # type: ignore[arg-type]


def test_a_second_backward_pass_is_an_error_and_never_wrong() -> None:
    hidden, weight, bias, targets = draw()
    objective, _ = chunked_cross_entropy(hidden, weight, bias, targets)
    (2 * objective).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        objective.backward()


def in_bfloat16(form: Any, *inputs: Any) -> list[Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        objective, total = form(*inputs)
    return [objective, total, *gradients(objective, *inputs[:3])]


@pytest.mark.parametrize("chunk_tokens", [4, None])
def test_under_autocast_it_is_as_near_to_float64_as_whole_logits_are(chunk_tokens: int | None) -> None:
    tokens = (8, 32)
    exact_inputs = draw(tokens=tokens)
    objective, total = plain(*exact_inputs)
    exact = [objective, total, *gradients(objective, *exact_inputs[:3])]
    inputs = draw(dtype=torch.float32, tokens=tokens)
    whole = in_bfloat16(plain, *inputs)
    chunked = in_bfloat16(lambda *args: chunked_cross_entropy(*args, chunk_tokens=chunk_tokens), *inputs)
    for one, other, right in zip(chunked, whole, exact, strict=True):
        assert one.dtype == torch.float32
        error, allowed = ((value.double() - right).square().mean().sqrt() for value in (one, other))
        assert error <= 2 * allowed


def test_under_autocast_the_products_are_rounded_and_nothing_else() -> None:
    hidden, weight, bias, targets = draw(dtype=torch.float32, tokens=(8, 32))
    low = torch.nn.functional.linear(hidden.bfloat16(), weight.bfloat16(), bias.bfloat16())
    expected = torch.nn.functional.cross_entropy(
        low.double().flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    with torch.autocast("cpu", torch.bfloat16):
        found = chunked_token_losses(hidden, weight, bias, targets, chunk_tokens=9)
    few_roundings = 16 * torch.finfo(torch.float32).eps * float(low.detach().abs().max())
    assert largest_difference(found.double(), expected) <= few_roundings
    in_low = -low.log_softmax(-1).flatten(0, -2).gather(1, targets.flatten().clamp(0)[:, None])[:, 0]
    scored = targets.flatten() != IGNORED
    assert largest_difference(in_low.double()[scored], expected[scored]) > 100 * few_roundings  # it could be told apart


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_have_the_type_of_what_they_belong_to(dtype: torch.dtype) -> None:
    hidden, weight, bias, targets = draw(dtype=dtype)
    objective, total = chunked_cross_entropy(hidden, weight, bias, targets, chunk_tokens=7)
    assert objective.dtype == total.dtype == torch.float32
    assert {gradient.dtype for gradient in gradients(objective, hidden, weight, bias)} == {dtype}


class LargestTensor(TorchDispatchMode):
    """Remembers how many elements the largest tensor had that an operation made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_no_tensor_of_all_logits_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOGITS_OF_A_CHUNK", 8 * VOCABULARY + 3)
    hidden, weight, bias, targets = draw(tokens=(5, 40))
    with LargestTensor() as seen:
        chunked_cross_entropy(hidden, weight, bias, targets, z_loss=0.1)[0].backward()
        chunked_token_losses(hidden, weight, bias, targets)
    assert seen.elements == max(hidden.numel(), 8 * VOCABULARY)
    with LargestTensor() as seen:
        plain(hidden, weight, bias, targets)
    assert seen.elements == 200 * VOCABULARY


def test_memory_is_that_of_one_chunk_and_of_the_gradients() -> None:
    tokens, width, vocabulary, chunk = 512, 16, 4096, 32
    hidden = torch.randn(tokens, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    targets = torch.randint(vocabulary, (tokens,))

    def step(chunk_tokens: int) -> int:
        hidden.grad = weight.grad = None

        def both_ways() -> None:
            chunked_cross_entropy(hidden, weight, None, targets, chunk_tokens=chunk_tokens)[0].backward()

        return peak_tensor_bytes(both_ways)

    step(chunk)  # what a first call keeps for ever is not of interest
    figures = 4 * (hidden.numel() + weight.numel())
    assert step(chunk) <= 1.1 * (4 * chunk * vocabulary + figures)
    assert step(4 * chunk) > 4 * 4 * chunk * vocabulary


@pytest.mark.parametrize("chunk_tokens", [4, None])
def test_hidden_states_may_lie_in_memory_in_any_order(chunk_tokens: int | None) -> None:
    hidden, weight, _, targets = draw()
    strided = hidden.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    assert not strided.is_contiguous()
    found = gradients(
        chunked_cross_entropy(strided, weight, None, targets, chunk_tokens=chunk_tokens)[0], strided, weight
    )
    expected = gradients(
        chunked_cross_entropy(hidden, weight, None, targets, chunk_tokens=chunk_tokens)[0], hidden, weight
    )
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
