"""The page: every number of the result is on it, nothing is loaded from elsewhere, and it is well formed."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tiny_study import tiny_recipe

from heedful.study import load_result, render_report, run_comparison
from heedful.study.svg import INK, SERIES, figure, to_svg
from heedful.study.wording import count, memory, metric_value, p_value, signed

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects the text, the attributes and every place where elements do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the result of a comparison with a control and a sweep."""
    folder: Path = tmp_path_factory.mktemp("report")
    arms = [
        {"name": "standard", "learning_rates": [1e-3, 1e-2]},
        {"name": "wide", "match": {"arm": "boosted", "by": "parameters", "vary": "feed-forward"}},
        {"name": "boosted", "attention": "boosted"},
        {"name": "sum", "attention": "boosted+nonlinear-query+multi-token"},
    ]
    run_comparison(
        tiny_recipe(folder, arms=arms, description="An <unusual> & short text."), folder / "study", lambda line: None
    )
    return load_result(folder / "study")


@pytest.fixture(scope="module")
def html(result: dict[str, Any]) -> str:
    return render_report(result)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def text_of(page: Page) -> str:
    return " ".join(" ".join(page.text).split())


def test_the_page_nests_and_no_id_occurs_twice(page: Page) -> None:
    assert page.wrong == []
    assert page.open == []
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_every_reference_stays_inside_the_page(html: str, page: Page) -> None:
    ids = {value for _, name, value in page.attributes if name == "id"}
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "data", "action", "srcset"):
            assert value.startswith("#"), (tag, name, value)
            assert value[1:] in ids, (tag, name, value)
        for target in re.findall(r"url\(([^)]*)\)", value):
            assert target.strip("'\"#") in ids, (tag, name, value)
    tags = {tag for tag, _, _ in page.attributes}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed"}
    assert "@import" not in html
    assert "http" not in re.sub(r"<pre>.*?</pre>", "", html, flags=re.DOTALL)


def test_every_metric_cost_and_probability_is_on_the_page(result: dict[str, Any], page: Page) -> None:
    text = text_of(page)
    for arm in result["arms"]:
        for key in ("perplexity", "bits_per_byte"):
            assert metric_value(key, arm["metrics"][key]["mean"]) in text
        for number in (arm["parameters"], arm["parameters_without_embeddings"], arm["steps"]):
            assert f"{number:,}" in text
        assert count(arm["multiply_adds_per_token"]) in text
        assert count(arm["tokens_per_second"]) in text
        assert memory(arm["cache_bytes_per_token"]) in text
        assert memory(arm["peak_memory_bytes"]) in text
        assert " ".join(arm["sample"]["prompt"].split()) in text
    for item in result["comparisons"]:
        if item["metric"] == "perplexity":
            assert signed(item["mean"], 2) in text
            assert signed(item["low"], 2) in text
            assert signed(item["high"], 2) in text
            assert p_value(item["p_value"]) in text
            assert p_value(item["p_holm"]) in text
    for run in result["runs"]:
        assert f"{run['best']['val/loss']:.4f}" in text
        if run["chosen"]:
            assert metric_value("perplexity", run["test"]["perplexity"]) in text


def test_the_page_says_how_to_repeat_it(result: dict[str, Any], page: Page) -> None:
    text = text_of(page)
    for value in (result["command"], result["data"]["corpus_sha256"], result["data"]["tokenizer_sha256"]):
        assert value in text
    assert f"torch {result['environment']['packages']['torch']}" in text
    assert result["context_rule"] in text


def test_words_of_the_recipe_are_escaped(html: str, page: Page) -> None:
    assert "An <unusual> & short text." in text_of(page)
    assert "An &lt;unusual&gt; &amp; short text." in html


def test_pictures_follow_the_mechanisms(page: Page) -> None:
    text = text_of(page)
    for title in (
        "Gate of each boosting round.",
        "Size of the nonlinear term.",
        "Key-query convolution before the softmax.",
        "Head mixing after the softmax.",
    ):
        assert title in text
    labels = [value for tag, name, value in page.attributes if tag == "svg" and name == "aria-label"]
    assert "Gate of each boosting round of boosted" in labels
    assert "Size of the nonlinear term of sum" in labels
    plain = [label for label in labels if label.endswith((" of standard", " of wide"))]
    assert plain
    assert all(label.startswith(("Attention on a sentence", "Heads of layer")) for label in plain)
    assert "Gate of each dimension of boosted" in labels
    assert "Where the rounds look when the first is wrong, of sum" in labels


def test_the_same_result_gives_the_same_page(result: dict[str, Any], html: str) -> None:
    assert render_report(copy.deepcopy(result)) == html


def test_two_seeds_give_no_interval_and_the_page_says_why(result: dict[str, Any]) -> None:
    changed = copy.deepcopy(result)
    changed["tests"] = 0
    for item in changed["comparisons"]:
        item |= {"count": 2, "low": None, "high": None, "p_value": None, "p_holm": None}
        item["note"] = "no test: fewer than three seeds"
    text = text_of(Page(render_report(changed)))
    assert "no test: fewer than three seeds" in text
    assert "there are no intervals" in text
    assert "is better than standard" not in text


def test_a_page_without_samples_pictures_or_tests_still_renders(result: dict[str, Any]) -> None:
    changed = copy.deepcopy(result)
    for arm in changed["arms"]:
        arm |= {"sample": None, "diagnostics": [], "sweep": arm["sweep"][:1]}
        del arm["attention_maps"]  # as in results written before there were any
    text = text_of(Page(render_report(changed)))
    assert "Samples" not in text
    assert "What the mechanisms learned" not in text
    assert "Learning rates" not in text


def test_figures_carry_no_placeholder_colour_font_or_prolog() -> None:
    with figure(200, 100) as (drawing, [axes]):
        axes.plot([0, 1], [1, 0], "o-", color=SERIES[3], label="x")
        axes.text(0.5, 0.5, "words", color=INK, weight="bold")
        svg = to_svg(drawing, 'a "label" & more')
    assert svg.startswith('<svg viewBox="0 0 200 100"')
    assert "var(--series-3)" in svg
    assert "var(--ink)" in svg
    assert ">words<" in svg
    assert 'aria-label="a &quot;label&quot; &amp; more"' in svg
    assert not re.search(r"#0102[0-9a-f]{2}|DejaVu|<metadata|<\?xml|http", svg)
