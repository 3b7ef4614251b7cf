from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import END_OF_TEXT, VOCABULARY, tiny_model, tiny_split
from torch import nn

from heedful.data.batches import LanguageModelBatches
from heedful.models.probes import evaluating
from heedful.ops import AttentionMask
from heedful.train import Perplexity, evaluate_perplexity

WINDOW = 10


class Spy(nn.Module):
    """Answers with the bigram table p(next | token), and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(1)))
        self.seen: list[tuple[torch.Tensor, AttentionMask | None]] = []

    def forward(self, tokens: torch.Tensor, mask: AttentionMask | None = None) -> tuple[torch.Tensor, None]:
        self.seen.append((tokens, mask))
        return self.table[tokens], None


def score(model: nn.Module, split: Any, **options: Any) -> Perplexity:
    usual = {"context_length": WINDOW, "batch_size": 3, "end_of_text": END_OF_TEXT}
    return evaluate_perplexity(model, split, **{**usual, **options})


# 7: shorter than a window; 30: full windows and full batches; 47: a short last batch and a short last window
@pytest.mark.parametrize("length", [1, 7, 10, 30, 47])
def test_it_equals_scoring_each_token_by_itself(length: int) -> None:
    model = tiny_model("multi-token", dropout=0.3).double()
    split = tiny_split(torch.randint(1, VOCABULARY, (length,), generator=torch.Generator().manual_seed(9)).tolist())
    result = score(model, split)
    inputs = [END_OF_TEXT, *map(int, split.tokens)]
    nats = 0.0
    model.eval()
    with torch.no_grad():
        for position, target in enumerate(split.tokens):
            begin = position - position % WINDOW
            logits, _ = model(torch.tensor([inputs[begin : position + 1]]))
            nats -= logits[0, -1].log_softmax(-1)[int(target)].item()
    assert result.nats == pytest.approx(nats, rel=1e-12)
    assert result.tokens == length
    assert result.loss == pytest.approx(nats / length)
    assert result.perplexity == pytest.approx(math.exp(nats / length))
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / split.num_bytes)
    assert result.bytes == 3 * length


@given(length=st.integers(1, 200), window=st.integers(1, 40), batch_size=st.integers(1, 7))
def test_every_token_is_scored_exactly_once(length: int, window: int, batch_size: int) -> None:
    tokens = [position % VOCABULARY for position in range(length)]
    model = Spy()
    result = score(model, tiny_split(tokens), context_length=window, batch_size=batch_size)
    asked = torch.cat([seen.flatten() for seen, _ in model.seen])
    assert asked.tolist() == [END_OF_TEXT, *tokens[:-1]]
    assert all(seen.shape[0] <= batch_size and seen.shape[1] <= window for seen, _ in model.seen)
    log_p = model.table.detach().double().log_softmax(-1)
    expected = -sum(log_p[a, b].item() for a, b in zip(asked.tolist(), tokens, strict=True))
    assert result.nats == pytest.approx(expected, rel=1e-6)


def test_losses_are_summed_in_float64() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.zeros(1))

        def forward(self, tokens: torch.Tensor, mask: None = None) -> tuple[torch.Tensor, None]:
            return self.value.expand(*tokens.shape, 3), None

    split = tiny_split([1] * 300_000)
    result = score(Constant(), split, context_length=1000, batch_size=4)
    one = torch.tensor(3.0).log().item()  # float32, as each token's loss is
    assert result.nats == pytest.approx(300_000 * one, rel=1e-13)


def test_the_batch_size_changes_nothing() -> None:
    model = tiny_model().double()
    results = [score(model, tiny_split(), batch_size=size) for size in (1, 3, 100)]
    assert results[0].nats == pytest.approx(results[1].nats, rel=1e-12)
    assert results[0].nats == pytest.approx(results[2].nats, rel=1e-12)


def test_masked_documents_are_those_of_training() -> None:
    split = tiny_split(starts=(0, 4, 15, 16, 40))
    model = Spy()
    score(model, split, mask_documents=True)
    masks = [mask for _, mask in model.seen]
    seen = torch.cat(
        [mask.document_ids.flatten() for mask in masks if mask is not None and mask.document_ids is not None]
    )
    training = LanguageModelBatches(split, context_length=46, batch_size=1, seed=0, mask_documents=True).batch(0)
    assert training.document_ids is not None
    assert seen[0] == -1  # the end of text before everything
    assert seen[1:].tolist() == training.document_ids.flatten().tolist()


def test_masking_documents_hides_what_came_before() -> None:
    split = tiny_split(starts=(0, 4, 15, 16, 40))
    model = tiny_model().double()
    assert score(model, split).nats != score(model, split, mask_documents=True).nats


def test_the_context_rule_is_said() -> None:
    rule = (
        "Every token is scored once, in non-overlapping windows of 10. It is predicted from the tokens of its window "
        "before it and the one token before the window (end of text before the first): "
        "from 1 to 10 tokens, 5.5 on average."
    )
    assert score(Spy(), tiny_split()).context_rule == rule
    masked = score(Spy(), tiny_split(), mask_documents=True).context_rule
    assert masked == rule + " Attention stops at document borders, so after one it is fewer."


def test_the_modes_of_the_modules_come_back_even_after_an_error() -> None:
    model = tiny_model()
    model.train()
    model.blocks[0].eval()  # frozen by its owner
    before = {name: module.training for name, module in model.named_modules()}
    score(model, tiny_split())
    assert {name: module.training for name, module in model.named_modules()} == before

    def fail_while_evaluating() -> None:
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_while_evaluating()
    assert {name: module.training for name, module in model.named_modules()} == before


def test_it_leaves_gradients_and_random_state_alone() -> None:
    model = tiny_model()
    before = torch.get_rng_state()
    score(model, tiny_split())
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None and not parameter.is_inference() for parameter in model.parameters())


def test_a_hopeless_model_has_an_infinite_perplexity_and_no_error() -> None:
    model = Spy()
    model.table.data *= 1e4
    result = score(model, tiny_split())
    assert result.perplexity == math.inf
    assert math.isfinite(result.loss)


def test_bfloat16_is_close_to_float32() -> None:
    model = tiny_model("boosted")
    exact, rounded = score(model, tiny_split()), score(model, tiny_split(), precision="bfloat16")
    assert rounded.loss == pytest.approx(exact.loss, abs=0.02)
    assert rounded.loss != exact.loss


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(ValueError, match="the valid split has no tokens"):
        score(Spy(), tiny_split([]))


def test_a_device_the_model_is_not_on_is_refused() -> None:
    assert score(Spy(), tiny_split(), device="cpu") == score(Spy(), tiny_split())
    with pytest.raises(ValueError, match="the model is on meta, not on cpu"):
        score(Spy().to("meta"), tiny_split(), device="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"end_of_text": 12}, "the data has token 12, but the model a vocabulary of 12"),
        ({"context_length": 11}, "context_length is 11, but the model has max_positions=10"),
        ({"context_length": 0}, "context_length and batch_size must be 1 or more, got 0 and 3"),
        ({"batch_size": 0}, "context_length and batch_size must be 1 or more, got 10 and 0"),
    ],
)
def test_what_the_model_has_no_room_for_is_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(tiny_model(), tiny_split(), **options)
