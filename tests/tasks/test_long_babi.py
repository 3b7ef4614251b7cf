"""Long bAbI: archives of made-up stories in bAbI's format, samples read off their text, scores of known answers."""

from __future__ import annotations

import io
import random
import re
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from heedful.data.batches import IGNORED
from heedful.data.tokenizers import ByteTokenizer
from heedful.tasks import LongBabiConfig, LongBabiData, evaluate_long_babi
from heedful.tasks.babi_stories import BabiArchive, parse_questions
from heedful.tasks.filler import Filler
from heedful.tasks.long_babi import BabiStories, evaluation_samples

BYTES = ByteTokenizer()
ROOMS = ("attic", "cellar", "porch")
PEOPLE = ("Ann", "Bob", "Cy")
TEXT = " ".join(f"Stone number {number} of the old wall went green." for number in range(3000))
TOKENS = np.array(BYTES.encode(TEXT), dtype=np.uint16)
FACT = re.compile(r" (Ann|Bob|Cy) ran to the (attic|cellar|porch)\.")


def stories(count: int, seed: int, facts: int = 4) -> str:
    """Return stories in bAbI's format: who ran where, and after every second move where somebody is."""
    words = random.Random(seed)
    lines = []
    for _ in range(count):
        where: dict[str, tuple[str, int]] = {}
        number = 0
        for move in range(facts):
            number += 1
            who, room = words.choice(PEOPLE), words.choice(ROOMS)
            where[who] = room, number
            lines.append(f"{number} {who} ran to the {room}.")
            if move % 2:
                number += 1
                asked = words.choice(list(where))
                lines.append(f"{number} Where is {asked}? \t{where[asked][0]}\t{where[asked][1]}")
    return "\n".join(lines) + "\n"


def write_archive(path: Path, files: dict[str, str]) -> str:
    with tarfile.open(path, "w:xz") as archive:
        for name, text in files.items():
            content = text.encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return str(path)


FILES = {
    "en/qa1_single-supporting-fact_train.txt": stories(40, seed=1),
    "en/qa1_single-supporting-fact_test.txt": stories(60, seed=2),
    "en/qa2_two-supporting-facts_train.txt": stories(30, seed=3, facts=6),
    "en/qa2_two-supporting-facts_test.txt": stories(30, seed=4, facts=6),
    "en/qa12_conjunction_train.txt": stories(3, seed=5),
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_archive(tmp_path_factory.mktemp("babi") / "babi.tar.xz", FILES)


def task(archive: str, **fields) -> LongBabiConfig:
    return LongBabiConfig(**{"archive": archive, "tasks": (1, 2), "distractions": (0, 300), **fields})


def answer_of(text: str) -> str:
    """Return where the person asked for last ran to, read off the text of a sample without its answer."""
    asked = re.findall(r"\nWhere is (\w+)\?", text)[-1]
    return [room for who, room in FACT.findall(text) if who == asked][-1]


def test_a_question_is_answered_from_the_facts_of_its_story_before_it() -> None:
    content = b"1 A b.\n2 C d.\n3 Q one? \tx\t1\n4 E f.\n5 Q two?\ty,z\t1 4\n1 G h.\n2 Q three?\tx\t1\n"
    first, second, third = parse_questions(content, "file")
    assert first == (0, ("A b.", "C d."), "Q one?", "x")
    assert second == (0, ("A b.", "C d.", "E f."), "Q two?", "y,z")
    assert third == (1, ("G h.",), "Q three?", "x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1 A b.\nC d.\n", "line 2: expected a number and a sentence, got 'C d.'"),
        (b"1 A b.\n", "holds no question"),
        (b"1 Q?\tx\t1\n", "line 1: a question without facts"),
        (b"1 A b.\n2 Q?\t \t1\n", "line 2: a question without"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_files_that_are_not_babi_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_questions(content, "file")


def test_an_archive_is_read_without_unpacking_it(archive: str) -> None:
    before = sorted(Path(archive).parent.iterdir())
    read = BabiArchive(archive).questions((1, 2), "test")
    assert {number: len(questions) for number, questions in read.items()} == {1: 120, 2: 90}
    assert read[1] == parse_questions(FILES["en/qa1_single-supporting-fact_test.txt"].encode(), "")
    assert sorted(Path(archive).parent.iterdir()) == before


def test_bad_archives_are_refused(tmp_path: Path, archive: str) -> None:
    with pytest.raises(ValueError, match=r"there is no bAbI archive 'nowhere\.tar'"):
        BabiArchive("nowhere.tar")
    other = tmp_path / "plain.txt"
    other.write_text("no archive")
    with pytest.raises(ValueError, match=r"plain\.txt cannot be read as a tar archive"):
        BabiArchive(other).questions((1,), "test")
    cut = tmp_path / "cut.tar.xz"
    cut.write_bytes(Path(archive).read_bytes()[:-200])
    with pytest.raises(ValueError, match="cannot be read as a tar archive"):
        BabiArchive(cut).questions((1,), "test")
    with pytest.raises(ValueError, match=r"no file qa12_\.\.\._test\.txt: bAbI task 12"):
        BabiArchive(archive).questions((1, 12), "test")
    with pytest.raises(ValueError, match=r"in a folder 'hn': bAbI task 1"):
        BabiArchive(archive, "hn").questions((1,), "test")
    both = write_archive(tmp_path / "both.tar.xz", {**FILES, "en-10k/qa1_x_test.txt": stories(2, seed=9)})
    with pytest.raises(ValueError, match=r"holds task 1 more than once .* name one of their folders"):
        BabiArchive(both).questions((1,), "test")
    assert len(BabiArchive(both, "en-10k").questions((1,), "test")[1]) == 4


@pytest.mark.parametrize("distraction", [0, 1, 300, 1111])
def test_facts_keep_their_order_in_one_piece_of_text(archive: str, distraction: int) -> None:
    config = task(archive, distractions=(distraction,))
    read = BabiStories(config, BYTES, "test", 2000)
    questions = BabiArchive(archive).questions((1, 2), "test")
    for number in (1, 2):
        known = {(" " + " ".join(q.facts), q.question, q.answer) for q in questions[number]}
        for own in evaluation_samples(read, Filler(TOKENS, BYTES), 0, number, distraction, 20):
            text = BYTES.decode(own.tokens.tolist())
            prompt, _, rest = text.partition("\n")
            facts = "".join(match.group(0) for match in FACT.finditer(prompt))
            question, answer = rest.split("? ")
            assert (facts, f"{question}?", answer) in known
            (place,) = own.answers
            assert BYTES.decode(own.tokens[place.start :].tolist()) == f" {answer}"
            assert place.stop == len(own.tokens)
            around = FACT.sub("", prompt)
            assert len(around) == distraction
            assert around in TEXT
            assert len(own.tokens) == distraction + len(facts) + len(rest) + 1
            assert answer_of(text) == answer


def test_facts_stand_between_sentences_and_all_over_the_text(archive: str) -> None:
    read = BabiStories(task(archive), BYTES, "test", 2000)
    before = []
    for own in evaluation_samples(read, Filler(TOKENS, BYTES), 0, 1, 1000, 60):
        text = BYTES.decode(own.tokens.tolist()).partition("\n")[0]
        for match in FACT.finditer(text):
            assert match.start() == 0 or text[match.start() - 1] == "."
            before.append(len(FACT.sub("", text[: match.start()])) / 1000)
    # Uniform places put in order are still uniform when all of them are pooled.
    thirds = np.histogram(before, bins=[0, 1 / 3, 2 / 3, 1.001])[0]
    assert min(thirds) > len(before) / 4


def test_samples_are_a_pure_function_and_the_same_questions_with_any_text(archive: str) -> None:
    read, filler = BabiStories(task(archive), BYTES, "test", 2000), Filler(TOKENS, BYTES)

    def texts(count: int, distraction: int, seed: int = 0) -> list[str]:
        samples = evaluation_samples(read, filler, seed, 1, distraction, count)
        return [BYTES.decode(own.tokens.tolist()) for own in samples]

    assert texts(30, 300)[:5] == texts(5, 300)
    assert texts(30, 300) != texts(30, 300, seed=1)
    plain = [FACT.findall(text) for text in texts(30, 0)]
    assert [FACT.findall(text) for text in texts(30, 300)] == plain
    assert [FACT.findall(text) for text in texts(30, 300, seed=1)] != plain
    together = evaluation_samples(read, filler, 0, 1, 0, 120)
    assert Counter(own.tokens.tobytes() for own in together) == Counter(
        own.tokens.tobytes() for own in evaluation_samples(read, filler, 1, 1, 0, 120)
    ), "each question once, in another order"


def test_training_and_validation_share_no_story(archive: str) -> None:
    content = FILES["en/qa1_single-supporting-fact_train.txt"].encode()
    valid, train = (BabiStories(task(archive), BYTES, part, 2000) for part in ("valid", "train"))
    assert len(valid.by_task[1]) == 2 * 4
    assert len(train.by_task[1]) == 2 * 36
    kept = [q.question for q in parse_questions(content, "") if q.story % 10 == 0]
    assert [BYTES.decode(q.question).strip() for q in valid.by_task[1]] == kept


def test_training_may_come_from_another_archive(tmp_path: Path, archive: str) -> None:
    other = write_archive(tmp_path / "more.tar.xz", {"en-10k/qa1_x_train.txt": stories(100, seed=11)})
    config = task(archive, tasks=(1,), train_archive=other, train_folder="en-10k")
    assert len(BabiStories(config, BYTES, "train", 2000).by_task[1]) == 180
    assert len(BabiStories(config, BYTES, "test", 2000).by_task[1]) == 120
    with pytest.raises(ValueError, match="bAbI task 2"):
        BabiStories(task(archive, tasks=(2,), train_archive=other), BYTES, "train", 2000)


def training_data(archive: str, **changes) -> LongBabiData:
    arguments = {"tokens_sha256": "text", "seed": 0, "batch_size": 4, "context_length": 600, **changes}
    config = task(archive, **{key: arguments.pop(key) for key in ("tasks", "distractions") if key in arguments})
    return LongBabiData(config, BYTES, TOKENS, **arguments)


def test_training_samples_are_scored_at_their_answers(archive: str) -> None:
    amounts, num_facts = Counter(), Counter()
    for step in range(5):
        batch = training_data(archive).batch(step)
        assert batch.tokens.shape == batch.targets.shape == (4, 600)
        assert batch.document_ids is not None
        for tokens, targets, documents in zip(batch.tokens, batch.targets, batch.document_ids, strict=True):
            own_amounts = set()
            for document in range(int(documents.max())):  # the last one is what fills the row up
                inside = documents == document
                text, scored = BYTES.decode(tokens[inside].tolist()), targets[inside]
                answer = BYTES.decode(scored[scored != IGNORED].tolist())
                assert text.endswith(f"? {answer.strip()}")
                assert answer_of(text) == answer.strip()
                prompt = text.partition("\n")[0]
                own_amounts.add(len(FACT.sub("", prompt)))
                num_facts[len(FACT.findall(prompt))] += 1
            assert len(own_amounts) == 1, "a row has one amount of text"
            amounts += Counter(own_amounts)
    assert set(amounts) == {0, 300}
    assert set(num_facts) == {2, 4, 6}


def test_batches_and_fingerprints(archive: str) -> None:
    whole = training_data(archive).batch(3)
    assert torch.equal(training_data(archive).batch(3, range(1, 3)).tokens, whole.tokens[1:3])
    assert not torch.equal(training_data(archive, seed=1).batch(3).tokens, whole.tokens)
    changed = [
        {}, {"seed": 1}, {"batch_size": 3}, {"context_length": 700}, {"tokens_sha256": "x"}, {"tasks": (1,)},
        {"distractions": (0, 200)},
    ]  # fmt: skip
    assert len({training_data(archive, **fields).fingerprint for fields in changed}) == len(changed)


def test_stories_that_do_not_fit_are_left_out_of_all_cells_and_counted(archive: str) -> None:
    config = task(archive, distractions=(0, 300))
    questions = BabiArchive(archive).questions((2,), "test")[2]
    lengths = [len(" " + " ".join(q.facts)) + 1 + len(f"{q.question} {q.answer}") for q in questions]
    room = sorted(lengths)[len(lengths) // 2]
    read = BabiStories(config, BYTES, "test", 300 + room)
    assert len(read.by_task[2]) == sum(length <= room for length in lengths) < read.read[2] == 90
    with pytest.raises(
        ValueError, match=r"no story of bAbI task 1 fits: the shortest takes \d+ .* leaves 20 beside 300"
    ):
        BabiStories(config, BYTES, "test", 320)


class Reader(nn.Module):
    """Answers with what `choose` says of a text without its answer."""

    def __init__(self, choose) -> None:
        super().__init__()
        self.choose = choose

    def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
        logits = torch.zeros(*tokens.shape, BYTES.vocab_size)
        for row, own in enumerate(tokens.tolist()):
            text = bytes(own).decode("ascii")
            start = text.rindex("?")
            for place, letter in enumerate(f" {self.choose(text[: start + 1])}"[: len(own) - start]):
                logits[row, start + place, ord(letter)] = 20.0
        return logits, None


def scored(model: nn.Module, archive: str, samples: int = 500, **fields):
    return evaluate_long_babi(
        model, BYTES, TOKENS, task(archive, **fields), context_length=1000, seed=0, samples_per_cell=samples
    )


def test_a_model_that_keeps_track_makes_no_error(archive: str) -> None:
    result = scored(Reader(answer_of), archive, samples=30)
    assert [(cell.task, cell.distraction) for cell in result.cells] == [(1, 0), (1, 300), (2, 0), (2, 300)]
    assert result.total.accuracy == 100
    assert result.total.samples == 120
    assert result.questions == {1: (120, 120), 2: (90, 90)}


def test_chance_is_what_models_that_do_not_read_get(archive: str) -> None:
    answers = Counter(q.answer for q in BabiArchive(archive).questions((1,), "test")[1])
    most = max(answers, key=lambda answer: answers[answer])
    result = scored(Reader(lambda text: most), archive, tasks=(1,))
    for cell in result.cells:
        assert cell.score.samples == 120, "no cell has more questions than there are"
        assert cell.score.accuracy == pytest.approx(cell.most_frequent)
        assert cell.facts()["chance"] == pytest.approx(100 / 3)
    luck = random.Random(0)
    (guessed,) = scored(Reader(lambda text: luck.choice(ROOMS)), archive, tasks=(1,), distractions=(0,)).cells
    low, high = guessed.score.interval()
    assert low < guessed.chance < high


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tasks": ()}, "tasks must be one or more numbers from 1 to 20"),
        ({"tasks": (21,)}, "tasks must be"),
        ({"tasks": (1, 1)}, "must not hold a number twice"),
        ({"distractions": (-1,)}, "distractions must be one or more numbers from 0"),
        ({"archive": ""}, "archive is empty"),
        ({"train_folder": "en"}, "does not go without train_archive"),
    ],
)
def test_impossible_tasks_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LongBabiConfig(**{"archive": "a.tar", **fields})


def test_impossible_evaluations_are_refused(archive: str) -> None:
    with pytest.raises(ValueError, match="samples_per_cell must be at least 1"):
        scored(Reader(answer_of), archive, samples=0)
    with pytest.raises(ValueError, match="has 100 tokens, fewer than the 300"):
        LongBabiData(task(archive), BYTES, TOKENS[:100], tokens_sha256="", seed=0, batch_size=1, context_length=1000)
