"""Generation: the cached continuation is the naive one, padded batches are single prompts, sampling is what it says."""

import pytest
import torch
from tiny_models import VOCABULARY, logits_of, model_of, tokens_of

from heedful.models.generation import _choose
from heedful.nn import PRESETS, Rotary
from heedful.ops import AttentionMask

ALL = [*PRESETS, "boosted+nonlinear-query", "boosted+multi-token", "nonlinear-query+differential", "boosted+twicing"]
NEW = 7


def naive(model, prompt, new=NEW):
    """Greedy continuation of one prompt, the whole text computed anew for every token."""
    tokens = prompt[None]
    for _ in range(new):
        tokens = torch.cat([tokens, logits_of(model, tokens)[:, -1].argmax(-1, keepdim=True)], dim=1)
    return tokens[0]


@pytest.mark.parametrize("names", ALL)
def test_a_left_padded_batch_continues_each_prompt_as_without_cache_and_padding(names):
    turned = "+" in names  # sums with rotary positions, single presets with learned ones
    model = model_of(names, rotary=Rotary() if turned else None, position_embedding="none" if turned else "learned")
    lengths = (6, 1, 4)
    prompts = [tokens_of(length, 1, seed=length)[0] for length in lengths]
    batch = torch.full((3, 6), VOCABULARY - 1)
    real = torch.zeros(3, 6, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        batch[row, 6 - len(prompt) :], real[row, 6 - len(prompt) :] = prompt, True
    result = model.generate(batch, NEW, key_padding=real)
    assert result.shape == (3, 6 + NEW)
    for row, prompt in enumerate(prompts):
        expected = naive(model, prompt)
        assert result[row, 6 - len(prompt) :].tolist() == expected.tolist()
    assert len({tuple(row.tolist()) for row in result[:, 6:]}) > 1, "the prompts must matter"
    assert torch.equal(model.generate(prompts[0][None], NEW)[0], result[0])


def test_layers_of_different_mechanisms_decode_together():
    model = model_of({0: "boosted", 1: "multi-token", 2: "twicing"}, num_layers=4)
    prompt = tokens_of(5, 1)[0]
    assert model.generate(prompt[None], NEW)[0].tolist() == naive(model, prompt).tolist()


def test_a_window_decodes_as_it_computes():
    model = model_of("multi-token", window=3)
    prompt = tokens_of(5, 1)[0]
    assert model.generate(prompt[None], NEW)[0].tolist() == naive(model, prompt).tolist()


def test_the_end_token_finishes_its_row_and_fills_it_up():
    model = model_of()
    prompts = tokens_of(4, 6)
    free = model.generate(prompts, NEW)
    # A token after which the first row, left alone, would go on to say something else.
    first = free[0, 4:].tolist()
    end = next(token for place, token in enumerate(first[:-1]) if set(first[place + 1 :]) - {token})
    result = model.generate(prompts, NEW, end_token=end)
    for row, freely in zip(result, free, strict=True):
        said = freely[4:].tolist()
        length = said.index(end) + 1 if end in said else NEW
        assert row[4 : 4 + length].tolist() == said[:length]
        assert set(row[4 + length :].tolist()) <= {end}
    stopped = model.generate(prompts[:1], NEW, end_token=end)
    assert stopped.shape[1] == 4 + free[0, 4:].tolist().index(end) + 1, "all rows finished: no further tokens"


def test_an_end_token_in_the_prompt_does_not_finish_it():
    model = model_of()
    prompt = tokens_of(4, 1)
    assert model.generate(prompt, 3, end_token=int(prompt[0, -1])).shape[1] > 4


def test_no_new_tokens_are_the_prompt():
    prompt = tokens_of(4)
    assert torch.equal(model_of().generate(prompt, 0), prompt)


def test_generation_leaves_the_mode_and_asks_for_no_gradients():
    model = model_of(dropout=0.5).train()
    first = model.generate(tokens_of(4), 3)
    assert model.training
    assert torch.equal(first, model.generate(tokens_of(4), 3)), "dropout is off meanwhile"
    with pytest.raises(ValueError, match="max_positions"):
        model.generate(tokens_of(48), 3)
    assert model.training, "also after an error"


def counts(logits, draws=20_000, **options):
    settings = {"temperature": 1.0, "top_k": None, "top_p": None, "generator": torch.Generator().manual_seed(0)}
    settings.update(options)
    drawn = _choose(logits.expand(draws, -1), **settings)
    return torch.bincount(drawn, minlength=logits.shape[-1]) / draws


PROBABILITIES = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])
NOISE = 5 * (0.25 / 20_000) ** 0.5  # five standard deviations of a frequency over 20 000 draws


def near(found, expected):
    assert float((found - torch.as_tensor(expected)).abs().max()) < NOISE
    assert bool((found[torch.as_tensor(expected) == 0] == 0).all()), "excluded tokens never appear"


def test_temperature_one_draws_from_the_models_distribution():
    near(counts(PROBABILITIES.log()), PROBABILITIES)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_sharpens_and_flattens(temperature):
    expected = PROBABILITIES ** (1 / temperature)
    near(counts(PROBABILITIES.log(), temperature=temperature), expected / expected.sum())


def test_a_tiny_temperature_is_greedy():
    near(counts(PROBABILITIES.log(), temperature=1e-4), [1.0, 0, 0, 0, 0])


def test_top_k_keeps_the_k_likeliest_in_proportion():
    near(counts(PROBABILITIES.log(), top_k=2), [4 / 7, 3 / 7, 0, 0, 0])
    near(counts(PROBABILITIES.log(), top_k=99), PROBABILITIES)


def test_top_k_keeps_exactly_k_also_among_equals():
    frequencies = counts(torch.zeros(5), top_k=2)
    assert int((frequencies > 0).sum()) == 2
    assert int((counts(torch.zeros(5), top_k=1) > 0).sum()) == 1


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.01, 1), (0.39, 1), (0.41, 2), (0.69, 2), (0.71, 3), (0.96, 5), (1.0, 5)],
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p, kept):
    shuffled = torch.tensor([3, 0, 4, 1, 2])
    expected = torch.zeros(5)
    expected[:kept] = PROBABILITIES[:kept] / PROBABILITIES[:kept].sum()
    near(counts(PROBABILITIES[shuffled].log(), top_p=top_p), expected[shuffled])


def test_top_p_counts_within_the_top_k():
    near(counts(PROBABILITIES.log(), top_k=2, top_p=0.5), [1.0, 0, 0, 0, 0])


def test_sampling_is_reproducible_by_generator_and_by_the_global_seed():
    model, prompts = model_of(), tokens_of(4, 8)
    draws = [
        model.generate(prompts, NEW, temperature=1.0, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    sampled = []
    for _ in range(2):
        torch.manual_seed(7)
        sampled.append(model.generate(prompts, NEW, temperature=1.0))
    assert torch.equal(*sampled)


def test_sampling_with_one_candidate_is_greedy():
    model, prompts = model_of(), tokens_of(4)
    assert torch.equal(model.generate(prompts, NEW, temperature=1.0, top_k=1), model.generate(prompts, NEW))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature must be at least 0 .* got -1.0"),
        ({"temperature": float("nan")}, "temperature must be .* got nan"),
        ({"temperature": float("inf")}, "temperature must be .* got inf"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.1}, r"top_p must be in \(0, 1\], got 1.1"),
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 0, got -1"),
        ({"max_new_tokens": 46}, "46 new ones need 49 positions, but the model has max_positions = 48"),
        (
            {"tokens": torch.zeros(1, 0, dtype=torch.long)},
            r"tokens must have shape \(batch, at least 1\), got \(1, 0\)",
        ),
        ({"tokens": torch.zeros(4, dtype=torch.long)}, r"tokens must have shape .* got \(4,\)"),
        ({"key_padding": torch.ones(2, 3).bool()}, r"shape of tokens, \(2, 4\), got \(2, 3\)"),
        ({"key_padding": torch.tensor([[1, 1, 1, 0]] * 2).bool()}, "padded on the left"),
        ({"key_padding": torch.tensor([[1, 0, 1, 1]] * 2).bool()}, "padded on the left"),
        ({"key_padding": torch.zeros(2, 4).bool()}, "padded on the left"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    settings = {"tokens": tokens_of(4), "max_new_tokens": 2, **options}
    with pytest.raises(ValueError, match=message):
        model_of().generate(settings.pop("tokens"), settings.pop("max_new_tokens"), **settings)


def test_the_last_position_can_be_generated():
    model = model_of()
    assert model.generate(tokens_of(4), 45).shape[1] == 49, "the last token is never read, so it needs no position"


def test_padding_as_mask_and_generation_agree_on_the_first_token():
    model, prompts = model_of(), tokens_of(5)
    real = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]).bool()
    logits = logits_of(model, prompts, AttentionMask(key_padding=real))
    assert torch.equal(model.generate(prompts, 1, key_padding=real)[:, -1], logits[:, -1].argmax(-1))
