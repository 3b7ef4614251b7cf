"""Pictures of attention maps on one sentence, from `heedful.study.round_maps.attention_findings`.

The colour of a cell follows the square root of its weight: most weights are far below one, and would not be seen.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from math import exp
from typing import TYPE_CHECKING, Any

from heedful.study.svg import FAINT, NEGATIVE, POSITIVE, SURFACE, figure, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEVELS = 16  # of colour: cells of one level are one path
LONGEST_LABEL = 12
CELL, HEAD_CELL = 15.0, 6.5
LABEL_SIZE, CHARACTER = 9.5, 5.6  # font size and about the width of a letter, in pixels
KEY_WEIGHTS, KEY_WIDTH = (0.01, 0.1, 0.4, 1.0), 240.0
Triangle = list[list[float]]


def attention_pictures(arm: str, attention: dict[str, Any] | None) -> list[dict[str, str]]:
    """Return the pictures of one arm as `{"title", "caption", "svg"}`; none for a task without text.

    Args:
        arm: its name.
        attention: what `attention_findings` returned.
    """
    if not attention:
        return []
    pictures = []
    for index, item in enumerate(attention["maps"]):
        title = f"Attention on a sentence, layer {item['layer']}"
        svg = _sentence(f"{title}, of {arm}", item["rounds"], attention)
        caption = "Drawn as the layer before." if index else _sentence_caption(attention)
        pictures.append({"title": title, "caption": caption, "svg": svg})
    last = attention["maps"][-1]
    title = f"Heads of layer {last['layer']}"
    caption = (
        f"The first {len(last['rounds'][0]['heads'])} heads on the same sentence, one column each"
        + (", one row per round." if len(last["rounds"]) > 1 else ".")
        + " Axes and colours as above."
    )
    svg = _heads(f"{title} on a sentence, of {arm}", last["rounds"])
    return [*pictures, {"title": title, "caption": caption, "svg": svg}]


def example_picture(arm: str, attention: dict[str, Any] | None) -> list[dict[str, str]]:
    """Return the picture of one position where the first rounds alone are wrong, where there is one."""
    if not attention or not attention["example"]:
        return []
    layer = attention["example"]["looks"][-1]["layer"]
    caption = (
        "Of the positions of the sentence where the first rounds alone predict the next token wrongly, from the fifth "
        "on, the one whose next token gains most in probability when the corrections come in: the case that flatters "
        f"the mechanism most, not a typical one. Bars: the most attended tokens of each round in layer "
        f"{layer}, mean over heads; in brackets how many tokens back."
    )
    svg = _example(f"What the rounds of {arm} look at where the first is wrong", attention)
    return [{"title": "An example where the first round is wrong", "caption": caption, "svg": svg}]


def token_labels(tokens: list[str]) -> list[str]:
    """Return short printable words: ␣ for a blank, ↵ and ⇥ for line ends and tabs, … for what is cut, and a hyphen
    before a token that goes on with a word, where tokens show that by having no blank in front.
    """
    told = any(token.startswith(" ") and token.strip() for token in tokens)
    labels = []
    for before, token in zip(["", *tokens], tokens, strict=False):
        inside = before[-1:].isalnum() and token[:1].isalnum()
        labels.append(("-" if told and inside else "") + token_label(token))
    return labels


def token_label(text: str) -> str:
    """Return a token as one short printable word."""
    word = text.strip(" ") or "␣" * min(len(text), 3)
    word = printable(word)
    return (word if len(word) <= LONGEST_LABEL else word[: LONGEST_LABEL - 1] + "…") or "·"


def printable(text: str) -> str:
    """Return text on one line, · for what cannot be printed."""
    signs = {"\n": "↵", "\r": "↵", "\t": "⇥", " ": " "}
    return "".join(
        signs.get(c, "·" if unicodedata.category(c).startswith(("C", "Z", "M")) or c == "\ufffd" else c) for c in text
    )


@contextmanager
def canvas(width: float, height: float) -> Iterator[tuple[Any, Axes]]:
    """Yield a figure and its axes whose units are pixels, from the upper left corner."""
    with figure(width, height) as (drawing, [axes]), warnings.catch_warnings():
        # The page's fonts draw the tokens, and they know more scripts than matplotlib's, which only measures.
        warnings.filterwarnings("ignore", message=r"Glyph \d+")
        drawing.set_layout_engine("none")
        axes.set_position((0, 0, 1, 1))
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        axes.axis("off")
        yield drawing, axes


def words(axes: Axes, x: float, y: float, text: str, **options: Any) -> None:
    """Write text that is no formula, whatever signs are in it."""
    axes.text(x, y, text, parse_math=False, **{"fontsize": LABEL_SIZE, "va": "center", **options})


def _sentence_caption(attention: dict[str, Any]) -> str:
    caption = (
        "Mean over heads. Rows: the token that looks. Columns: the token looked at. The colour follows the square root "
        "of the weight (orange: below zero). Shown are the first and the last of the layers whose attention has most "
        "parameters."
    )
    if attention["predictions"]:
        caption += (
            " All rounds are those of the whole model. Ring: the model with its first rounds only predicts the next "
            "token wrongly; filled where the whole model predicts it rightly."
        )
    return caption


def _sentence(label: str, rounds: list[dict[str, Any]], attention: dict[str, Any]) -> str:
    labels = token_labels(attention["tokens"])
    size, longest = len(labels) * CELL, max(map(len, labels)) * CHARACTER
    left, top = longest + 26, longest + (30 if len(rounds) > 1 else 12)
    step = size + 22
    with canvas(left + max(len(rounds) * step, KEY_WIDTH), top + size + 34) as (drawing, axes):
        for place, text in enumerate(labels):
            words(axes, left - 16, top + (place + 0.5) * CELL, text, ha="right")
            if attention["predictions"] and place < len(attention["predictions"]):
                _mark(axes, left - 8, top + (place + 0.5) * CELL, attention["predictions"][place])
        for index, one in enumerate(rounds):
            x = left + index * step
            if len(rounds) > 1:
                words(axes, x, 9, f"round {index}", fontsize=11)
            for place, text in enumerate(labels):
                words(
                    axes, x + (place + 0.5) * CELL, top - 6, text, rotation=90, ha="center", va="bottom",
                    rotation_mode="default",
                )  # fmt: skip
            _triangle(axes, one["mean"], x, top, CELL, _full(rounds, "mean"))
        _key(axes, left, top + size + 12, _full(rounds, "mean"))
        return to_svg(drawing, label)


def _mark(axes: Axes, x: float, y: float, prediction: dict[str, Any]) -> None:
    if prediction["first"]["wrong"]:
        fill = SURFACE if prediction["all"]["wrong"] else POSITIVE
        axes.plot(x, y, "o", markersize=5.5, markerfacecolor=fill, markeredgecolor=POSITIVE, markeredgewidth=1.2)


def _heads(label: str, rounds: list[dict[str, Any]]) -> str:
    full = max(abs(w) for one in rounds for head in one["heads"] for row in head for w in row)
    size = len(rounds[0]["heads"][0]) * HEAD_CELL
    left = 58.0 if len(rounds) > 1 else 2.0
    step_x, step_y = size + 16, size + 16
    with canvas(left + len(rounds[0]["heads"]) * step_x, 20 + len(rounds) * step_y) as (drawing, axes):
        for row, one in enumerate(rounds):
            y = 20 + row * step_y
            if len(rounds) > 1:
                words(axes, 0, y + size / 2, f"round {row}", fontsize=10)
            for column, head in enumerate(one["heads"]):
                x = left + column * step_x
                if row == 0:
                    words(axes, x, 9, f"head {column}", fontsize=10)
                _triangle(axes, head, x, y, HEAD_CELL, max(1.0, full))
        return to_svg(drawing, label)


def _full(rounds: list[dict[str, Any]], name: str) -> float:
    """Return the weight in full colour: one, or the largest where maps are sums of maps."""
    return max(1.0, *(abs(weight) for one in rounds for row in one[name] for weight in row))


def _triangle(axes: Axes, rows: Triangle, left: float, top: float, cell: float, full: float) -> None:
    """Draw the lower triangle of a map, its cells by colour and level."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    size = len(rows)
    by_level: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for row, line in enumerate(rows):
        middle = top + (row + 0.5) * cell
        for column, weight in enumerate(line):
            level = round(LEVELS * (abs(weight) / full) ** 0.5)
            if level:
                ends = [(left + column * cell, middle), (left + (column + 1) * cell, middle)]
                by_level.setdefault((POSITIVE if weight > 0 else NEGATIVE, level), []).extend(ends)
    for (colour, level), points in sorted(by_level.items()):
        # A cell is a stroke as wide as it is long: half the text of a square. An artist, unlike a patch, is not
        # measured for the limits of the axes, which stand.
        path = Path(points, [Path.MOVETO, Path.LINETO] * (len(points) // 2))
        path.should_simplify = False
        stroke = {"edgecolor": colour, "linewidth": cell, "capstyle": "butt", "alpha": level / LEVELS}
        axes.add_artist(PathPatch(path, fill=False, **stroke))
    stairs = [(left, top), *((left + (i + d) * cell, top + (i + 1 - e) * cell) for i in range(size) for d, e in
              ((1, 1), (1, 0))), (left, top + size * cell), (left, top)]  # fmt: skip
    axes.add_artist(PathPatch(Path(stairs), fill=False, edgecolor=FAINT, linewidth=0.7))


def _key(axes: Axes, left: float, top: float, full: float) -> None:
    words(axes, left, top + CELL / 2, "weight", color=FAINT)
    x = left + 42
    for weight in KEY_WEIGHTS:
        _triangle(axes, [[weight]], x, top, CELL, full)
        words(axes, x + CELL + 4, top + CELL / 2, f"{weight:g}", color=FAINT)
        x += CELL + 34


def _example(label: str, attention: dict[str, Any]) -> str:
    example, labels = attention["example"], token_labels(attention["tokens"])
    place = example["position"]
    prediction = attention["predictions"][place]
    rounds = example["looks"][-1]["rounds"]
    largest = max(abs(look["weight"]) for tops in rounds for look in tops) or 1.0
    step, bar, row = 290.0, 110.0, 20.0
    lines = [
        ("text so far", printable(example["text"])),
        ("next token", token_label(prediction["next"])),
        ("first rounds only", _guess(prediction["first"])),
        ("all rounds", _guess(prediction["all"])),
    ]
    longest = 130 + CHARACTER * 1.1 * max(len(text) for _, text in lines)
    top = 26 + row * len(lines)
    with canvas(max(len(rounds) * step, longest), top + 22 + row * len(rounds[0])) as (drawing, axes):
        for index, (name, text) in enumerate(lines):
            words(axes, 0, 10 + index * row, name, color=FAINT, fontsize=10.5)
            words(axes, 118, 10 + index * row, text, fontsize=10.5)
        for index, tops in enumerate(rounds):
            x = index * step
            words(axes, x, top, f"round {index}", fontsize=11)
            for line, look in enumerate(tops):
                y = top + 22 + line * row
                back = place - look["position"]
                words(axes, x + 112, y, f"{labels[look['position']]} ({back})", ha="right", fontsize=10.5)
                length = bar * abs(look["weight"]) / largest
                colour = POSITIVE if look["weight"] >= 0 else NEGATIVE
                axes.barh(y, length, left=x + 118, height=11, color=colour)
                words(axes, x + 118 + length + 5, y, f"{look['weight']:.2f}", color=FAINT)
        return to_svg(drawing, label)


def _guess(prediction: dict[str, Any]) -> str:
    chance = exp(prediction["log_probability"])
    given = f"{100 * chance:.2g} %" if chance >= 5e-4 else "less than 0.05 %"
    return f"predict {token_label(prediction['token'])}, and give the next token {given}"
