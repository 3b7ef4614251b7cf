from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor, nn

from heedful.data.batches import IGNORED
from heedful.models import DecoderLM, decoder_config
from heedful.tasks import FindTheBlockConfig, FindTheBlockData, evaluate_find_the_block
from heedful.tasks.block_samples import draw_samples, most_blocks
from heedful.tasks.find_the_block import END, VOCAB_SIZE, evaluation_batch, to_text

SMALL = FindTheBlockConfig(num_blocks=4, block_length=3)


def check_sample(config: FindTheBlockConfig, tokens: Tensor, targets: Tensor) -> tuple[int, str]:
    """Check one sample from its text, one rule of the task after the other; return the target's place and the query."""
    text = to_text(tokens)
    assert text.startswith("<s>")
    prompt, _, rest = text.removeprefix("<s>").partition("#")
    blocks = prompt.split(".")
    assert len(blocks) == config.resolved_num_blocks
    assert all(len(block) == len(set(block)) == config.block_length and block.isalpha() for block in blocks)
    assert len(set(blocks)) == len(blocks)
    query = rest[: config.query_letters]
    assert len(set(query)) == config.query_letters
    holders = [place for place, block in enumerate(blocks) if set(query) <= set(block)]
    assert len(holders) == 1
    block = blocks[holders[0]]
    answer = {"all": block, "first": block[0], "last": block[-1]}[config.answer]
    whole = f"<s>{prompt}#{query}{answer}</s>"
    padding = config.context_length - 1 - len(f"{prompt}#{query}{answer}")
    assert text + ("_" if padding else "</s>") == whole + "_" * padding
    predicted = [int(target) for target in targets if target != IGNORED]
    assert to_text(predicted) == f"{answer}</s>"
    scored = (targets != IGNORED).nonzero().flatten().tolist()
    first = 1 + len(prompt) + len(query)
    assert scored == list(range(first, first + len(answer) + 1)), "the last letter of the query predicts the answer"
    assert all(tokens[i + 1] == targets[i] for i in scored if i + 1 < len(tokens))
    return holders[0], query


@st.composite
def configurations(draw: st.DrawFn) -> FindTheBlockConfig:
    block_length = draw(st.integers(2, 13))
    query_letters = draw(st.integers(1, block_length))
    num_blocks = draw(st.integers(1, min(20, most_blocks(block_length, query_letters))))
    config = FindTheBlockConfig(
        block_length=block_length,
        query_letters=query_letters,
        num_blocks=num_blocks,
        answer=draw(st.sampled_from(["all", "first", "last"])),
    )
    return replace(config, characters=draw(st.none() | st.integers(0, 9).map(lambda n: n + config.resolved_characters)))


@settings(max_examples=60)
@given(configurations(), st.integers(0, 2**63 - 1), st.integers(0, 10**6))
def test_samples_obey_every_rule_of_the_task(config: FindTheBlockConfig, seed: int, step: int) -> None:
    batch = FindTheBlockData(replace(config, train_samples=50), seed, batch_size=3).batch(step)
    assert batch.tokens.shape == batch.targets.shape == (3, config.context_length)
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    for tokens, targets in zip(batch.tokens, batch.targets, strict=True):
        check_sample(config, tokens, targets)


@pytest.mark.parametrize(("block_length", "num_blocks"), [(5, 52), (8, 34)])
@pytest.mark.parametrize("answer", ["all", "first", "last"])
def test_the_papers_rows_are_filled_with_whole_blocks(block_length: int, num_blocks: int, answer: str) -> None:
    config = FindTheBlockConfig(block_length=block_length, answer=answer)  # type: ignore[arg-type]
    assert config.resolved_num_blocks == num_blocks
    assert config.context_length == 320, "BOS and 319 characters; the last target is one further"
    batch = FindTheBlockData(config, 0, 16).batch(0)
    for tokens, targets in zip(batch.tokens, batch.targets, strict=True):
        check_sample(config, tokens, targets)
    if (block_length, answer) == (5, "all"):
        assert (batch.targets[:, -1] == END).all(), "no padding: the row is exactly full"


def test_the_prompt_is_the_same_for_every_answer() -> None:
    prompts = {
        answer: evaluation_batch(replace(SMALL, answer=answer), 3, np.arange(20)).tokens[:, : 1 + 4 * 4 + 2].tolist()
        for answer in ("all", "first", "last")
    }
    assert prompts["all"] == prompts["first"] == prompts["last"]
    assert len({replace(SMALL, answer=answer).context_length for answer in prompts}) == 1


def test_crowded_tasks_are_generated_too() -> None:
    config = FindTheBlockConfig(block_length=2, query_letters=1, num_blocks=most_blocks(2, 1))
    assert config.resolved_num_blocks == 301
    batch = evaluation_batch(config, 0, np.arange(4))
    for tokens, targets in zip(batch.tokens, batch.targets, strict=True):
        check_sample(config, tokens, targets)


def test_a_sample_does_not_depend_on_which_others_are_drawn_with_it() -> None:
    crowded = FindTheBlockConfig(block_length=2, query_letters=2, num_blocks=300)
    for config in (SMALL, crowded):
        together = evaluation_batch(config, 5, np.arange(10))
        for index in (7, 0, 9):
            alone = evaluation_batch(config, 5, np.array([index]))
            assert torch.equal(alone.tokens[0], together.tokens[index])


def test_batches_are_a_pure_function_of_seed_and_step() -> None:
    data = FindTheBlockData(SMALL, 1, 8)
    later = data.batch(12)
    data.batch(3)
    assert torch.equal(FindTheBlockData(SMALL, 1, 8).batch(12).tokens, later.tokens)
    assert torch.equal(data.batch(12).tokens, later.tokens)
    assert not torch.equal(data.batch(13).tokens, later.tokens)
    assert not torch.equal(FindTheBlockData(SMALL, 2, 8).batch(12).tokens, later.tokens)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8, 11])
def test_processes_generate_their_own_rows_of_the_batch_and_no_others(
    world_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = FindTheBlockData(replace(SMALL, train_samples=24), 1, 8)
    borders = [rank * 8 // world_size for rank in range(world_size + 1)]
    for step in (0, 2, 7):  # 7: in the third epoch
        whole = data.batch(step)
        parts = [data.batch(step, range(start, stop)) for start, stop in itertools.pairwise(borders)]
        assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)
        assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
        assert [len(part.tokens) for part in parts] == [stop - start for start, stop in itertools.pairwise(borders)]
    drawn: list[int] = []
    monkeypatch.setattr(
        "heedful.tasks.find_the_block.draw_samples",
        lambda *, indices, **rest: drawn.append(len(indices)) or draw_samples(indices=indices, **rest),
    )
    data.batch(3, range(2, 5))
    assert drawn == [3]


def test_an_epoch_passes_once_through_the_training_set() -> None:
    data = FindTheBlockData(replace(SMALL, train_samples=24), 0, 8)
    rows = [
        sorted(row for step in steps for row in data.batch(step).tokens.tolist()) for steps in ((0, 1, 2), (3, 4, 5))
    ]
    assert rows[0] == rows[1]
    assert len({tuple(row) for row in rows[0]}) == 24
    assert data.batch(0).tokens.tolist() != data.batch(3).tokens.tolist()


def test_training_never_sees_a_test_sample() -> None:
    config = FindTheBlockConfig(num_blocks=4)
    data = FindTheBlockData(replace(config, train_samples=1000), 0, 1000)
    trained = {tuple(row) for row in data.batch(0).tokens.tolist()}
    tested = {tuple(row) for row in evaluation_batch(config, 0, np.arange(1000)).tokens.tolist()}
    assert len(trained) == len(tested) == 1000
    assert not trained & tested


def test_place_query_and_letters_are_uniform() -> None:
    config = FindTheBlockConfig(block_length=5, num_blocks=10)
    batch = evaluation_batch(config, 0, np.arange(4000))
    drawn = [check_sample(config, *sample) for sample in zip(batch.tokens, batch.targets, strict=True)]
    places = np.bincount([place for place, _ in drawn], minlength=10)
    blocks = batch.tokens[:, 1 : 1 + 60].reshape(4000, 10, 6)[:, :, :5]
    target_blocks = blocks[torch.arange(4000), torch.tensor([place for place, _ in drawn])]
    asked = torch.tensor([[ord(letter) - ord("a") for letter in query] for _, query in drawn])
    chosen = (target_blocks[:, None, :] == asked[:, :, None]).long().argmax(dim=-1)
    pairs = np.bincount((chosen[:, 0] * 5 + chosen[:, 1]).numpy(), minlength=25).reshape(5, 5)
    assert (np.diag(pairs) == 0).all()
    letters = np.bincount(blocks.flatten().numpy(), minlength=26)
    for counts in (places, pairs[~np.eye(5, dtype=bool)], letters):
        assert chisquare(counts).pvalue > 1e-3  # the samples are fixed, so this cannot fail now and then


def test_the_fingerprint_tells_tasks_apart() -> None:
    tasks = [(SMALL, 0, 8), (SMALL, 1, 8), (SMALL, 0, 9), (replace(SMALL, answer="last"), 0, 8)]
    tasks.append((replace(SMALL, num_blocks=5), 0, 8))
    assert len({FindTheBlockData(*task).fingerprint for task in tasks}) == len(tasks)
    assert FindTheBlockData(SMALL, 0, 8).fingerprint == FindTheBlockData(SMALL, 0, 8).fingerprint
    assert FindTheBlockData(SMALL, 0, 8).tokens_per_batch == 8 * SMALL.context_length


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block_length": 1}, "block_length must be from 2 to 13"),
        ({"block_length": 14}, "block_length must be from 2 to 13"),
        ({"query_letters": 6}, "query_letters must be from 1 to block_length=5"),
        ({"answer": "middle"}, "answer must be one of all, first, last"),
        ({"num_blocks": 0}, "num_blocks must be from 1 to"),
        ({"num_blocks": 400, "block_length": 2}, "num_blocks must be from 1 to 325"),
        ({"characters": 10}, "num_blocks must be from 1 to"),
        ({"num_blocks": 4, "characters": 30}, "characters=30 is too short: .* take 31"),
        ({"train_samples": 0}, "train_samples must be at least 1"),
    ],
)
def test_impossible_tasks_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FindTheBlockConfig(**fields)


class Oracle(nn.Module):
    """Answers every sample rightly, but puts a wrong letter into those whose query begins with one of `fails_on`.

    Only one of its tokens differs from the truth then, so errors are counted by sequence and not by token. With dropout
    on it answers nothing rightly.
    """

    def __init__(self, config: FindTheBlockConfig, fails_on: str = "") -> None:
        super().__init__()
        self.config, self.fails_on = config, fails_on
        self.inner = nn.Dropout(0.999)
        self.batch_sizes: list[int] = []

    def forward(self, tokens: Tensor, mask: None = None) -> tuple[Tensor, None]:
        self.batch_sizes.append(len(tokens))
        logits = torch.zeros(*tokens.shape, VOCAB_SIZE)
        for row, text in enumerate(tokens):
            prompt, _, rest = to_text(text).removeprefix("<s>").partition("#")
            query = rest[: self.config.query_letters]
            block = next(block for block in prompt.split(".") if set(query) <= set(block))
            first = 1 + len(prompt) + len(query)
            for offset, letter in enumerate(block):
                wrong = offset == 1 and query[0] in self.fails_on
                logits[row, first + offset, (ord(letter) - ord("a") + wrong) % 26] = 30.0
            logits[row, first + len(block), END] = 30.0
        return self.inner(logits), None


def test_a_perfect_model_makes_no_error_and_its_loss_is_nothing() -> None:
    result = evaluate_find_the_block(Oracle(SMALL), SMALL, seed=0, num_samples=30, batch_size=8)
    assert result.error == 0
    assert result.num_samples == 30
    assert result.loss < 1e-6
    low, high = result.confidence_interval
    assert low == 0
    assert high == pytest.approx(100 * 1.959964**2 / (30 + 1.959964**2), rel=1e-4)  # Wilson's bound for 0 of n


def test_the_error_is_the_share_of_sequences_with_any_wrong_token() -> None:
    queries = [to_text(row).partition("#")[2][0] for row in evaluation_batch(SMALL, 0, np.arange(53)).tokens]
    expected = sum(query in "abcdef" for query in queries)
    model = Oracle(SMALL, fails_on="abcdef")
    result = evaluate_find_the_block(model, SMALL, seed=0, num_samples=53, batch_size=16)
    assert 0 < expected < 53
    assert result.error == pytest.approx(100 * expected / 53)
    assert result.confidence_interval[0] < result.error < result.confidence_interval[1]
    assert model.batch_sizes == [16, 16, 16, 5], "the last incomplete batch is scored too"


def test_the_result_does_not_depend_on_the_batch_size() -> None:
    model = Oracle(SMALL, fails_on="abc")
    errors = {evaluate_find_the_block(model, SMALL, 1, num_samples=20, batch_size=size).error for size in (1, 7, 64)}
    assert len(errors) == 1


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_puts_every_module_back_into_its_mode(training: bool) -> None:
    model = Oracle(SMALL).train(training)
    model.inner.train(not training)
    assert evaluate_find_the_block(model, SMALL, seed=0, num_samples=5).error == 0, "no dropout"
    assert (model.training, model.inner.training) == (training, not training)


def test_evaluation_puts_the_modes_back_after_an_error() -> None:
    model = Oracle(SMALL).train()
    model.config = None  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        evaluate_find_the_block(model, SMALL, seed=0)
    assert model.training
    assert model.inner.training


@pytest.mark.parametrize("sizes", [{"num_samples": 0}, {"batch_size": 0}, {"seed": -1}])
def test_impossible_evaluations_are_refused(sizes: dict) -> None:
    with pytest.raises(ValueError, match="must be"):
        evaluate_find_the_block(Oracle(SMALL), SMALL, **{"seed": 0, **sizes})


def test_a_small_decoder_learns_to_copy_the_only_block() -> None:
    torch.manual_seed(0)
    task = FindTheBlockConfig(block_length=2, num_blocks=1, answer="first")
    config = decoder_config(
        "standard", vocab_size=VOCAB_SIZE, hidden_size=32, num_layers=1, num_heads=2, max_positions=task.context_length
    )
    model = DecoderLM(config)
    before = evaluate_find_the_block(model, task, seed=0, num_samples=100)
    assert before.error > 90
    data = FindTheBlockData(task, 0, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(80):
        batch = data.batch(step)
        logits, _ = model(batch.tokens)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = evaluate_find_the_block(model, task, seed=0, num_samples=100)
    assert after.error < 5
    assert after.loss < 0.3 < before.loss
