"""Needles in text: every rule of the samples read off their text, and scores against models that read it too."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor, nn

from heedful.data.batches import IGNORED
from heedful.data.tokenizers import ByteTokenizer, Tokenizer, train_bpe
from heedful.models import DecoderLM, decoder_config
from heedful.tasks import NeedlesConfig, NeedlesData, evaluate_needles
from heedful.tasks.draws import Draws
from heedful.tasks.filler import Filler
from heedful.tasks.needle_samples import CITIES, NeedlePieces, NeedleWriter, role_of
from heedful.tasks.needles import evaluation_sample

NEEDLE = re.compile(r" The code of (\w+) is (\d+)\.")
QUESTION = re.compile(r"(?:\nSo the code|, that) of (\w+) is (\d+)")


WORDS = ("the", "cat", "river", "of", "stone", "saw", "went", "over", "Rome", "to", "17", "1984", "green")


def prose(sentences: int, seed: int = 0) -> str:
    """Return made-up sentences, some with numbers, some of them names of cities."""
    words = random.Random(seed)
    lines = []
    for _ in range(sentences):
        body = " ".join(words.choice(WORDS) for _ in range(7))
        lines.append(f"{body.capitalize()}{words.choice('.?!')}")
    return " ".join(lines)


TEXT = prose(4000)
BYTES = ByteTokenizer()
BPE = train_bpe([TEXT, " The code of Oslo is 4071. So, that of Paris is 12"], 300)
TOKENS = {tokenizer.kind: np.array(tokenizer.encode(TEXT), dtype=np.uint16) for tokenizer in (BYTES, BPE)}
SMALL = NeedlesConfig(needles=(2, 3), lengths=(256, 400), digits=3)


def writer(tokenizer: Tokenizer = BYTES) -> NeedleWriter:
    return NeedleWriter(Filler(TOKENS[tokenizer.kind], tokenizer), tokenizer)


def drawn(needles: int = 2, length: int = 300, depth: float = 0.5, index: int = 0, **rest) -> NeedlePieces:
    return evaluation_sample(SMALL, writer(rest.get("tokenizer", BYTES)), 3, needles, length, depth, index)


def check_sample(pieces: NeedlePieces, tokenizer: Tokenizer, digits: int, questions: int) -> str:
    """Check one sample from its text, one rule after the other; return the text around the needles."""
    text = tokenizer.decode(pieces.tokens.tolist())
    prompt, _, asked = text.rpartition("\nSo the code of ")
    found = NEEDLE.findall(prompt)
    assert {city: int(number) for city, number in found} == dict(zip(pieces.cities, pieces.numbers, strict=True))
    assert len(found) == len({number for _, number in found}) == len(pieces.cities)
    assert all(len(number) == digits and number[0] != "0" for _, number in found)
    answers = QUESTION.findall(f"\nSo the code of {asked}")
    assert len(answers) == questions
    assert (
        "".join(match.group(0) for match in QUESTION.finditer(f"\nSo the code of {asked}"))
        == f"\nSo the code of {asked}"
    )
    around = NEEDLE.sub("", prompt)
    for (city, number), which, place in zip(answers, pieces.asked, pieces.answers, strict=True):
        assert dict(found)[city] == number
        assert city == pieces.cities[which]
        assert tokenizer.decode(pieces.tokens[place.start : place.stop].tolist()) == f" {number}"
        assert not re.search(rf"(?<!\d){number}(?!\d)", around), "the answer stands in the needle only"
        assert prompt.count(f" is {number}.") == 1
    return around


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
@pytest.mark.parametrize("needles", [1, 2, 4])
@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
def test_samples_obey_every_rule_of_the_task(tokenizer: Tokenizer, needles: int, depth: float) -> None:
    config = NeedlesConfig(needles=(needles,), lengths=(300,), digits=4)
    for index in range(8):
        pieces = evaluation_sample(config, writer(tokenizer), 0, needles, 300, depth, index)
        assert len(pieces.tokens) == 300
        assert pieces.answers[0].stop == 300
        around = check_sample(pieces, tokenizer, digits=4, questions=1)
        assert around in TEXT, "what is around the needles is one piece of the text"
        assert around[-1] in ".!?"


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
@pytest.mark.parametrize("depth", [0.0, 0.25, 0.6, 1.0])
def test_the_needle_asked_for_lies_at_its_depth_within_a_sentence(tokenizer: Tokenizer, depth: float) -> None:
    for index in range(10):
        pieces = evaluation_sample(SMALL, writer(tokenizer), 1, 3, 400, depth, index)
        text = tokenizer.decode(pieces.tokens.tolist())
        city = pieces.cities[pieces.asked[0]]
        before, _, after = text.partition(f" The code of {city} is")
        around = [NEEDLE.sub("", part) for part in (before, after.partition(".")[2].rpartition("\nSo ")[0])]
        sizes = [len(tokenizer.encode(part)) for part in around]
        sentence = max(len(tokenizer.encode(piece)) for piece in re.split(r"(?<=[.!?]) ", "".join(around)))
        assert abs(sizes[0] - depth * sum(sizes)) <= sentence
        assert not around[0] or around[0][-1] in ".!?", "between two sentences"
        assert pieces.depths[pieces.asked[0]] == pytest.approx(sizes[0] / sum(sizes), abs=2 / sum(sizes))
        if depth in (0, 1):
            assert pieces.depths[pieces.asked[0]] == depth


def test_places_and_choices_are_spread_evenly() -> None:
    pieces = [drawn(needles=3, length=400, depth=0.5, index=index) for index in range(600)]
    asked = Counter(own.asked[0] for own in pieces)
    others = [own.depths[which] for own in pieces for which in range(3) if which != own.asked[0]]
    cities = Counter(city for own in pieces for city in own.cities)
    assert chisquare([asked[which] for which in range(3)]).pvalue > 1e-3
    # Sentence ends are not evenly spaced, but thirds of the text are as good as any other.
    assert chisquare(np.histogram(others, bins=[0, 1 / 3, 2 / 3, 1.001])[0]).pvalue > 1e-3
    assert chisquare([cities[city] for city in CITIES]).pvalue > 1e-3
    assert len({own.tokens.tobytes() for own in pieces}) == 600


def test_a_sample_is_a_pure_function_of_seed_and_index() -> None:
    here, again = drawn(index=4), drawn(index=4)
    assert here.tokens.tolist() == again.tokens.tolist()
    other = [drawn(index=5), drawn(index=4, depth=0.25), drawn(index=4, length=301), drawn(index=4, needles=3)]
    assert all(own.tokens.tolist() != here.tokens.tolist() for own in other)
    assert evaluation_sample(SMALL, writer(), 4, 2, 300, 0.5, 4).tokens.tolist() != here.tokens.tolist()


def test_no_pair_of_city_and_number_is_in_two_parts() -> None:
    pairs: dict[str, set[tuple[str, int]]] = {"train": set(), "valid": set(), "test": set()}
    config = replace(SMALL, digits=2)
    for index in range(150):
        for role in ("valid", "test"):
            own = evaluation_sample(config, writer(), 0, 3, 400, 0.5, index, role)
            pairs[role] |= set(zip(own.cities, own.numbers, strict=True))
        request = config.request(3, 400, "train")
        own = writer().write(request, Draws(0, 99, index))
        pairs["train"] |= set(zip(own.cities, own.numbers, strict=True))
    for role, found in pairs.items():
        assert len(found) > 100
        assert {role_of(*pair) for pair in found} == {role}
    shares = Counter(role_of(city, number) for city in CITIES for number in range(1000, 2000))
    expected = [32_000, 4_000, 4_000]
    assert chisquare([shares[role] for role in ("train", "valid", "test")], expected).pvalue > 1e-3


def test_every_city_has_numbers_of_two_digits_in_every_part() -> None:
    shares = {(city, role_of(city, number)) for city in CITIES for number in range(10, 100)}
    assert len(shares) == 3 * len(CITIES)


def training_data(config: NeedlesConfig = SMALL, **changes) -> NeedlesData:
    arguments = {"tokens_sha256": "text", "seed": 0, "batch_size": 4, **changes}
    return NeedlesData(config, BYTES, TOKENS["bytes"], **arguments)


@pytest.mark.parametrize("questions", ["one", "each"])
def test_training_samples_obey_the_rules_and_are_scored_at_their_answers(questions: str) -> None:
    config = replace(SMALL, training_questions=questions, lengths=(256, 300))  # type: ignore[arg-type]
    batch = training_data(config, context_length=600).batch(3)
    assert batch.tokens.shape == batch.targets.shape == (4, 600)
    assert batch.document_ids is not None
    lengths = set()
    for tokens, targets, documents in zip(batch.tokens, batch.targets, batch.document_ids, strict=True):
        for document in range(2):  # two of either length fit
            own = tokens[documents == document].tolist()
            lengths.add(len(own))
            text = BYTES.decode(own)
            prompt, _, asked = text.rpartition("\nSo the code of ")
            found = dict(NEEDLE.findall(prompt))
            answers = QUESTION.findall(f"\nSo the code of {asked}")
            assert len(answers) == (len(found) if questions == "each" else 1)
            assert all(found[city] == number for city, number in answers)
            assert {role_of(city, int(number)) for city, number in found.items()} == {"train"}
            scored = targets[documents == document]
            spoken = "".join(f" {number}" for _, number in answers)
            assert BYTES.decode(scored[scored != IGNORED].tolist()) == spoken
            places = (scored != IGNORED).nonzero().flatten().tolist()
            assert all(own[place + 1] == scored[place] for place in places if place + 1 < len(own))
    assert lengths == {256, 300}


def test_batches_are_a_pure_function_of_seed_and_step() -> None:
    first = training_data().batch(7)
    for row in range(4):
        part = training_data().batch(7, range(row, row + 1))
        assert torch.equal(part.tokens[0], first.tokens[row])
        assert torch.equal(part.targets[0], first.targets[row])
    rows = [tuple(row) for step in range(3) for row in training_data().batch(step).tokens.tolist()]
    assert len(set(rows)) == 12
    assert not torch.equal(training_data(seed=1).batch(7).tokens, first.tokens)


def test_the_fingerprint_tells_what_determines_the_samples() -> None:
    data = [
        training_data(), training_data(seed=1), training_data(batch_size=5), training_data(tokens_sha256="other"),
        training_data(context_length=500), training_data(replace(SMALL, digits=4)),
        training_data(replace(SMALL, training_questions="each")),
    ]  # fmt: skip
    assert len({own.fingerprint for own in data}) == len(data)
    assert training_data().fingerprint == data[0].fingerprint
    assert training_data(context_length=500).tokens_per_batch == 2000


class Reader(nn.Module):
    """Reads the needles and answers with the number that `choose` takes of them, given (city -> number, city asked)."""

    def __init__(self, choose) -> None:
        super().__init__()
        self.choose = choose

    def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
        logits = torch.zeros(*tokens.shape, BYTES.vocab_size)
        for row, own in enumerate(tokens.tolist()):
            text = bytes(own).decode("ascii")
            match = list(re.finditer(r"\nSo the code of (\w+) is", text))[-1]
            answer = f" {self.choose(dict(NEEDLE.findall(text)), match[1])}"
            for place, letter in enumerate(answer[: len(own) - match.end() + 1]):
                logits[row, match.end() - 1 + place, ord(letter)] = 20.0
        return logits, None


GRID = NeedlesConfig(needles=(2, 4), lengths=(256,), depths=(0.0, 1.0), digits=3)


def scored(model: nn.Module, config: NeedlesConfig = GRID, samples: int = 40):
    return evaluate_needles(model, BYTES, TOKENS["bytes"], config, seed=5, samples_per_cell=samples)


def test_a_model_that_reads_the_needles_makes_no_error() -> None:
    result = scored(Reader(lambda found, city: found[city]))
    assert [(cell.needles, cell.length, cell.depth) for cell in result.cells] == [
        (2, 256, 0.0), (2, 256, 1.0), (4, 256, 0.0), (4, 256, 1.0)
    ]  # fmt: skip
    assert result.total.accuracy == 100
    assert result.total.samples == 160
    facts = result.cells[2].facts()
    assert facts["chance"] == 25
    assert facts["right"] == facts["samples"] == 40


def test_a_model_that_copies_any_needle_is_at_chance() -> None:
    luck = random.Random(0)
    result = scored(Reader(lambda found, city: luck.choice(list(found.values()))), samples=150)
    for cell in result.cells:
        low, high = cell.score.interval()
        assert low < cell.chance < high


def test_a_model_that_copies_the_first_needle_fails_where_it_is_not_asked_for() -> None:
    result = scored(Reader(lambda found, city: next(iter(found.values()))), NeedlesConfig(
        needles=(2,), lengths=(400,), depths=(0.0, 1.0), digits=3), samples=60)  # fmt: skip
    first, last = result.cells
    # At depth 0 only a needle that drew the very beginning too can stand before it, and at depth 1 only one after it.
    assert first.score.accuracy > 90
    assert last.score.accuracy < 10


def test_a_random_guess_is_right_as_often_as_there_are_numbers() -> None:
    luck = random.Random(0)
    config = replace(GRID, needles=(2,), depths=(0.5,), digits=2)
    (cell,) = scored(Reader(lambda found, city: luck.randrange(10, 100)), config, samples=400).cells
    low, high = cell.score.interval()
    assert low < 100 / 90 < high


def test_an_untrained_decoder_is_scored_too() -> None:
    torch.manual_seed(0)
    config = decoder_config("standard", vocab_size=257, hidden_size=16, num_layers=1, num_heads=2, max_positions=256)
    result = scored(DecoderLM(config), samples=3)
    assert result.total.nats / result.total.tokens == pytest.approx(np.log(257), rel=0.1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"needles": ()}, "needles must be one or more values from 1 to 40"),
        ({"needles": (0,)}, "needles must be"),
        ({"needles": (41,)}, "needles must be"),
        ({"needles": (2, 2)}, "must not hold a value twice"),
        ({"lengths": (0,)}, "lengths must be"),
        ({"depths": (1.5,)}, "depths must be one or more values from 0 to 1"),
        ({"digits": 1}, "digits must be from 2 to 9"),
        ({"training_questions": "two"}, "training_questions must be"),
    ],
)
def test_impossible_tasks_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NeedlesConfig(**fields)


def test_needles_that_leave_no_text_are_refused_with_both_numbers() -> None:
    config = NeedlesConfig(needles=(2,), lengths=(60,), digits=3)
    longest = max(map(len, CITIES))
    taken = 2 * len(f" The code of {'x' * longest} is 123.") + len(f"\nSo the code of {'x' * longest} is 123")
    for refused in (training_data, lambda config: scored(Reader(None), config)):
        with pytest.raises(ValueError, match=f"up to {taken} tokens .* a length of 60"):
            refused(config)
    assert len(writer().write(config.request(2, taken + 1, "test"), Draws(0, 0, 0)).tokens) == taken + 1


def test_a_row_or_a_text_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="a row of 399 tokens has no room for a sample of 400"):
        training_data(context_length=399)
    with pytest.raises(ValueError, match="has 500 tokens, fewer than the 600"):
        NeedlesData(
            replace(SMALL, lengths=(600,)), BYTES, TOKENS["bytes"][:500], tokens_sha256="", seed=0, batch_size=1
        )
    with pytest.raises(ValueError, match="samples_per_cell must be at least 1"):
        scored(Reader(None), samples=0)


def test_a_text_full_of_numbers_is_refused_and_not_searched_for_ever() -> None:
    numbers = np.array(BYTES.encode(". ".join(map(str, range(10, 100))) + ". "))
    crowded = NeedleWriter(Filler(np.concatenate([numbers] * 8), BYTES), BYTES)
    with pytest.raises(ValueError, match="use more than 2 digits"):
        crowded.write(replace(SMALL, digits=2).request(1, 800, "test"), Draws(0, 0, 0))


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
def test_sentences_begin_after_stops_and_line_breaks(tokenizer: Tokenizer) -> None:
    text = "The cat cost 3.5 of it. Did it? went the stone\nGreen river! Over"
    filler = Filler(np.array(tokenizer.encode(text)), tokenizer)
    window = np.array(tokenizer.encode(text))
    starts = [tokenizer.decode(window[place:].tolist()) for place in filler.sentence_starts(window)]
    rest = "Green river! Over"
    assert starts == [text, f" Did it? went the stone\n{rest}", f" went the stone\n{rest}", rest, " Over", ""]
