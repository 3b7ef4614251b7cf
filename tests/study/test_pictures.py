"""Pictures of maps, gates and rounds: drawn for every mechanism, from results with and without the numbers, and with
whatever signs tokens are made of.
"""

from __future__ import annotations

import copy
import json
import re
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from heedful.data.tokenizers import ByteTokenizer
from heedful.models import DecoderLM, decoder_config
from heedful.models.probes import probe
from heedful.nn import PRESETS, Boosting
from heedful.study.attention_plots import (
    attention_pictures,
    example_picture,
    token_label,
    token_labels,
)
from heedful.study.fixed_point_plots import fixed_point_picture, rounds_picture
from heedful.study.gate_plots import gate_pictures
from heedful.study.look_plots import look_pictures
from heedful.study.mechanism_plots import mechanism_pictures
from heedful.study.round_maps import attention_findings

TEXT = "aunt saw it. The dog hears a bone! And so on, said my aunt; the cat finds her hat"
NASTY = ["<b>", "&amp;", '"', "$x_1$", "$", "\\frac", "\n", "\t", " ", "", "\x00", "漢", "\ufffd", "%", "{"]
NASTY += ["supercalifragil", "--", "e\u0301"]


def found_in(names: str, **fields: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return what a result holds of a model: attention findings and diagnostics, through JSON."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 257, "num_layers": 3, "max_positions": 48, "hidden_size": 16, "num_heads": 4}
    model = DecoderLM(decoder_config(names, **{**sizes, **fields})).eval()
    tokens = torch.tensor(ByteTokenizer().encode(TEXT)[:80]).view(2, 40)
    attention = attention_findings(model, tokens, ByteTokenizer())
    return json.loads(json.dumps([attention, probe(model, tokens)]))


def everything(attention: Any, layers: Any) -> list[dict[str, str]]:
    return [
        *mechanism_pictures("arm", layers),
        *gate_pictures("arm", layers),
        *look_pictures("arm", attention),
        *example_picture("arm", attention),
        *attention_pictures("arm", attention),
    ]


def words_in(svg: str) -> list[str]:
    """Parse the figure as XML and return its texts."""
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    return ["".join(element.itertext()) for element in root.iter() if element.tag.endswith("text")]


@pytest.mark.parametrize("name", [*PRESETS, "boosted+nonlinear-query+multi-token", "boosted+differential"])
def test_pictures_are_drawn_for_every_mechanism(name: str) -> None:
    fields = {} if "differential" not in name or "boosted" not in name else {"num_heads": 4}
    attention, layers = found_in(name, **fields)
    pictures = everything(attention, layers)
    assert len({picture["title"] for picture in pictures}) == len(pictures)
    for picture in pictures:
        words_in(picture["svg"])
        assert not re.search(r"#0102[0-9a-f]{2}|nan", picture["svg"])
    titles = {picture["title"] for picture in pictures}
    boosted = name.startswith("boosted")
    assert ("Gate of each dimension" in titles) == boosted
    assert ("Where the rounds look when the first is wrong" in titles) == boosted
    assert ("An example where the first round is wrong" in titles) == boosted
    assert f"Attention on a sentence, layer {attention['layers'][-1]}" in titles


def test_the_map_of_each_round_carries_the_tokens() -> None:
    attention, _ = found_in("boosted", boosting=Boosting(rounds=3))
    texts = words_in(attention_pictures("arm", attention)[0]["svg"])
    assert {"round 0", "round 1", "round 2"} <= set(texts)
    labels = token_labels(attention["tokens"])
    for label in set(labels):
        assert texts.count(label) == 4 * labels.count(label), "once for the rows, once for the columns of each round"


def test_every_weight_that_is_seen_is_a_stroke() -> None:
    attention, _ = found_in("standard")
    attention["maps"] = attention["maps"][-1:]
    cells = [[1.0], [0.25, 0.75], [0.0, 0.0, 1.0]]
    attention["maps"][0]["rounds"] = [{"mean": cells, "heads": [cells]}]
    attention["tokens"] = ["a", "b", "c"]
    svg = attention_pictures("arm", attention)[0]["svg"]
    drawn: dict[float, int] = {}
    for path in re.findall(r"<path [^>]*stroke: var\(--positive\)[^>]*>", svg):
        opacity = re.search(r"opacity: ([\d.]+)", path)
        level = 1.0 if opacity is None else float(opacity[1])
        drawn[level] = drawn.get(level, 0) + path.count("L")
    # Of the map two ones, sqrt(0.75) and sqrt(0.25) in sixteenths; of the key sqrt(0.01), sqrt(0.1), sqrt(0.4), one.
    assert drawn == {1.0: 3, 14 / 16: 1, 8 / 16: 1, 2 / 16: 1, 5 / 16: 1, 10 / 16: 1}


def test_labels_are_escaped_and_no_formulas() -> None:
    attention, _ = found_in("boosted")
    attention["tokens"] = NASTY[: len(attention["tokens"])]
    attention["example"]["text"] = "<script>$a$</script>\n&"
    for one in attention["predictions"]:
        one["next"] = one["first"]["token"] = "</text><b>"
    for picture in everything(attention, []):
        texts = words_in(picture["svg"])
        assert "<b>" not in picture["svg"]
        assert "<script" not in picture["svg"]
        assert "<b>" not in picture["caption"]
        if picture["title"].startswith("Attention"):
            assert {"<b>", "&amp;", '"', "$x_1$", "$", "\\frac", "↵", "⇥", "␣", "·", "漢"} <= set(texts)
        if picture["title"].startswith("An example"):
            assert "<script>$a$</script>↵&" in texts


def test_labels_are_short_and_printable() -> None:
    assert [token_label(text) for text in ("\n\n", "  ", "", "\x00", "e\u0301", "supercalifragil")] == [
        "↵↵", "␣␣", "·", "·", "e·", "supercalifr…",
    ]  # fmt: skip
    assert token_labels(["It", " is", " f", "ir", "m", ".", " So"]) == ["It", "is", "f", "-ir", "-m", ".", "So"]
    assert token_labels(["I", "t", " ", "i", "s"]) == ["I", "t", "␣", "i", "s"], "letters alone do not tell"
    assert token_labels(["the", "cat"]) == ["the", "cat"], "nor do words without blanks"


def test_results_from_before_have_no_new_pictures() -> None:
    _, layers = found_in("boosted")
    for layer in layers:
        del layer["gate_by_dimension"]
    assert [picture["title"] for picture in everything(None, layers)] == ["Gate of each boosting round"]
    assert gate_pictures("arm", []) == []


def test_gates_that_are_all_alike_need_no_picture() -> None:
    for gate in ("none", "scalar"):
        assert gate_pictures("arm", found_in("boosted", boosting=Boosting(gate=gate))[1]) == []
    assert gate_pictures("arm", found_in("boosted", boosting=Boosting(gate="head"))[1])
    negative = copy.deepcopy(found_in("boosted")[1])
    negative[0]["gate_by_dimension"][0][0] = -0.7  # a scaled gate may be
    assert "−0.5" in "".join(words_in(gate_pictures("arm", negative)[0]["svg"]))


def test_every_dimension_is_a_dot() -> None:
    attention, layers = found_in("boosted", boosting=Boosting(rounds=3))
    svg = gate_pictures("arm", layers)[0]["svg"]
    dots = re.findall(r'<path d="([^"]*)"[^>]*stroke-linecap: round', svg)
    assert [path.count("M") for path in dots] == [16] * 6
    del attention


def test_a_kind_of_position_that_does_not_occur_is_left_out() -> None:
    attention, _ = found_in("boosted")
    for item in attention["where"]["layers"]:
        for one in item["rounds"]:
            for values in one.values():
                values["right"] = None
                for row in values["by_part"]:
                    row["right"] = None
    assert len(look_pictures("arm", attention)) == 1


def test_fixed_points_and_rounds_are_drawn_from_plain_numbers() -> None:
    patterns = [[1.0, 0.0], [0.0, 1.0]]
    panel = {"title": "β = 1", "paths": [[[1.0, 1.0], [0.5, 0.5]]], "fixed": [[0.5, 0.5]]}
    assert "β = 1" in words_in(fixed_point_picture("a", patterns, [panel, panel]))
    svg = rounds_picture("b", patterns, [[[1.0, 1.0], [0.0, 0.0], [0.5, 0.5]]], {"rounds": [0.5, 0.25], "best": 0.1})
    assert {"0.500", "0.250", "F 0", "F 1", "best possible (0.100)"} <= set(words_in(svg))
