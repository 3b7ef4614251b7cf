"""Samples of needles in text, each a pure function of (seed, stream, index): a few facts in prose, one asked for.

    ... ran until 1987. The code of Oslo is 4071. It was then ... The code of Cairo is 2263. ...
    So the code of Oslo is 4071

Cities and numbers of a sample are all different, and the number that is asked for stands nowhere else in the text. The
pairs of city and number are shared out to training, validation and test by a hash, so a tested pair was never trained
on, and no rule that a model could learn tells which is which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from heedful.tasks.answers import Sample
from heedful.tasks.draws import Draws

if TYPE_CHECKING:
    from heedful.data.tokenizers import Tokenizer
    from heedful.tasks.filler import Filler

NEEDLE = " The code of {city} is"
QUESTION = "\nSo the code of {city} is"
FURTHER_QUESTION = ", that of {city} is"
CITIES = (
    "London", "Paris", "Rome", "Berlin", "Madrid", "Vienna", "Moscow", "Athens", "Dublin", "Oslo",
    "Lisbon", "Prague", "Warsaw", "Milan", "Venice", "Naples", "Turin", "Florence", "Munich", "Bonn",
    "Lyon", "Nice", "Geneva", "Basel", "Bern", "Porto", "Riga", "Sofia", "Oxford", "Cambridge",
    "York", "Bath", "Boston", "Chicago", "Lima", "Cairo", "Tunis", "Delhi", "Manila", "Tokyo",
)  # fmt: skip
Role = Literal["train", "valid", "test"]
_TENTHS: dict[Role, range] = {"train": range(8), "valid": range(8, 9), "test": range(9, 10)}
# A number is free with a chance of one in ten or better, unless the text holds most of them.
_TRIES = 1000


class NeedlePieces(NamedTuple):
    """A sample before it is put together.

    Attributes:
        tokens: int64 (length,), text, needles, questions and answers.
        answers: where the answers stand.
        cities: of the needles, in the order of their numbers here, which says nothing about their places.
        numbers: of the needles, in the same order.
        asked: which of them are asked for, in the order of the questions.
        depths: share of the text that comes before each needle, 0 to 1.
        starts: where in `tokens` each needle begins.
    """

    tokens: np.ndarray
    answers: tuple[range, ...]
    cities: tuple[str, ...]
    numbers: tuple[int, ...]
    asked: tuple[int, ...]
    depths: tuple[float, ...]
    starts: tuple[int, ...]

    @property
    def sample(self) -> Sample:
        """What a model is trained or scored on."""
        return Sample(self.tokens, self.answers)


@dataclass(frozen=True, kw_only=True)
class NeedleRequest:
    """What a sample shall be.

    Attributes:
        needles: how many.
        length: tokens of the whole sample, questions and answers included.
        depth: where the needle asked for stands, as a share of the text; None for a random place. The others always
            stand at random places.
        questions: how many of the needles are asked for, one after the other.
        digits: of the numbers, none of which begins with 0.
        role: whose pairs of city and number.
    """

    needles: int
    length: int
    depth: float | None
    questions: int
    digits: int
    role: Role


class NeedleWriter:
    """Puts samples together from text and needles in one tokenizer.

    Every piece is encoded by itself, so the tokens of a number are the same in needle and answer.
    """

    def __init__(self, filler: Filler, tokenizer: Tokenizer) -> None:
        """Encode what all samples share."""
        self._filler, self._encode = filler, tokenizer.encode
        self._needles = [tokenizer.encode(NEEDLE.format(city=city)) for city in CITIES]
        self._questions = [tokenizer.encode(QUESTION.format(city=city)) for city in CITIES]
        self._further = [tokenizer.encode(FURTHER_QUESTION.format(city=city)) for city in CITIES]
        self._stop = tokenizer.encode(".")

    def most_tokens(self, request: NeedleRequest) -> int:
        """Return a bound of what needles, questions and answers take; the rest of a sample is text."""
        number = request.digits + 1  # a token a digit and one for the space, at most
        needle = max(map(len, self._needles)) + number + len(self._stop)
        first, further = max(map(len, self._questions)) + number, max(map(len, self._further)) + number
        return request.needles * needle + first + (request.questions - 1) * further

    def require(self, request: NeedleRequest) -> None:
        """Refuse samples that the needles would fill.

        Raises:
            ValueError: with the length and what the needles take.
        """
        most = self.most_tokens(request)
        if request.length <= most:
            raise ValueError(
                f"{request.needles} needles with their questions take up to {most} tokens of this tokenizer, which "
                f"leaves no text in a length of {request.length}: use a longer one, or fewer needles."
            )
        self._filler.require(request.length)

    def write(self, request: NeedleRequest, draws: Draws) -> NeedlePieces:
        """Return the sample that `draws` lead to.

        Raises:
            ValueError: no room, see `require`, or a text that holds nearly all numbers of so few digits.
        """
        self.require(request)
        cities = draws.distinct(request.needles, len(CITIES))
        asked = draws.distinct(request.questions, request.needles)
        targets = [draws.fraction() for _ in cities]
        if request.depth is not None:
            targets[asked[0]] = request.depth
        numbers, encoded, window = self._numbers_and_text(request, draws, cities, asked)
        needles = [[*self._needles[city], *number, *self._stop] for city, number in zip(cities, encoded, strict=True)]
        starts_of_sentences = self._filler.sentence_starts(window)
        places = [_nearest(starts_of_sentences, target * len(window)) for target in targets]
        tokens, starts = _spread(window, needles, places)
        answers = []
        for number, which in enumerate(asked):
            question = (self._further if number else self._questions)[cities[which]]
            begin = len(tokens) + len(question)
            tokens = np.concatenate((tokens, question, encoded[which])).astype(np.int64)
            answers.append(range(begin, len(tokens)))
        return NeedlePieces(
            tokens=tokens,
            answers=tuple(answers),
            cities=tuple(CITIES[city] for city in cities),
            numbers=tuple(numbers),
            asked=tuple(asked),
            depths=tuple(place / len(window) for place in places),
            starts=tuple(starts),
        )

    def _numbers_and_text(
        self, request: NeedleRequest, draws: Draws, cities: list[int], asked: list[int]
    ) -> tuple[list[int], list[list[int]], np.ndarray]:
        """Draw numbers and the text between, until no number that is asked for stands in the text."""
        for _ in range(_TRIES):
            numbers = _draw_numbers(request, draws, cities)
            encoded = [self._encode(f" {number}") for number in numbers]
            taken = sum(len(self._needles[c]) + len(n) + len(self._stop) for c, n in zip(cities, encoded, strict=True))
            taken += sum(
                len((self._further if place else self._questions)[cities[which]]) + len(encoded[which])
                for place, which in enumerate(asked)
            )
            window = self._filler.window(draws, request.length - taken)
            if not any(self._stands_in(window, numbers[which]) for which in asked):
                return numbers, encoded, window
        raise ValueError(
            f"{_TRIES} texts of {request.length} tokens each held the number that should stand in the needle only: use "
            f"more than {request.digits} digits."
        )

    def _stands_in(self, window: np.ndarray, number: int) -> bool:
        """Return whether a text holds a number, after a space or after anything else."""
        return any(_contains(window, self._encode(form)) for form in (f" {number}", str(number)))


def _draw_numbers(request: NeedleRequest, draws: Draws, cities: list[int]) -> list[int]:
    """Draw a number for each city, all different, whose pairs belong to the role of the request."""
    lowest = 10 ** (request.digits - 1)
    numbers: list[int] = []
    for city in cities:
        for _ in range(_TRIES):
            number = lowest + draws.below(9 * lowest)
            if number not in numbers and _tenth(city, number) in _TENTHS[request.role]:
                numbers.append(number)
                break
        else:
            raise ValueError(f"{request.digits} digits make too few numbers for {request.needles} needles: use more.")
    return numbers


def role_of(city: str, number: int) -> Role:
    """Return in whose samples a pair of city and number may stand: training eight tenths, validation and test one
    each.
    """
    tenth = _tenth(CITIES.index(city), number)
    return next(role for role, tenths in _TENTHS.items() if tenth in tenths)


def _tenth(city: int, number: int) -> int:
    """Return a hash of the pair, 0 to 9: the finaliser of SplitMix64."""
    word = (number * len(CITIES) + city + 0x9E3779B97F4A7C15) % 2**64
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) % 2**64
    return (word ^ (word >> 31)) % 10


def _contains(window: np.ndarray, piece: list[int]) -> bool:
    if len(piece) > len(window):
        return False
    return bool((np.lib.stride_tricks.sliding_window_view(window, len(piece)) == piece).all(axis=1).any())


def _nearest(places: np.ndarray, target: float) -> int:
    return int(places[np.abs(places - target).argmin()])


def _spread(window: np.ndarray, needles: list[list[int]], places: list[int]) -> tuple[np.ndarray, list[int]]:
    """Put needles into the text; of several at one place, the one with the lower number stands first."""
    parts: list[np.ndarray] = []
    starts = [0] * len(needles)
    done = length = 0
    for which in sorted(range(len(needles)), key=lambda which: (places[which], which)):
        parts += [window[done : places[which]], np.array(needles[which], dtype=np.int64)]
        starts[which] = length + places[which] - done
        length = starts[which] + len(needles[which])
        done = places[which]
    return np.concatenate([*parts, window[done:]]), starts
