"""The sentences: they claim what the corrected test allows, and nothing else. And the numbers in them read well."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from heedful.study.headline import headline
from heedful.study.statistics import holm, paired_difference, summarise
from heedful.study.table import plain_text, render_terminal
from heedful.study.wording import (
    count,
    listed,
    memory,
    metric_difference,
    metric_value,
    number_of,
    p_value,
    rate,
    ratio,
    signed,
    tick,
)

Values = dict[int, float]
BASELINE = {1: 100.0, 2: 104.0, 3: 97.0}
BETTER = {1: 90.1, 2: 93.9, 3: 87.2}
NOISY = {1: 99.0, 2: 95.0, 3: 103.0}
WORSE = {1: 110.0, 2: 114.2, 3: 106.9}


def result_of(
    arms: dict[str, Values], *, controls: dict[str, str] | None = None, metric: str = "perplexity"
) -> dict[str, Any]:
    """Return as much of a result as headline and table read; the first arm is the baseline."""
    controls, names = controls or {}, list(arms)
    pairs = [(name, names[0], "baseline") for name in names[1:]]
    pairs += [(arm, control, "control") for control, arm in controls.items()]
    items: list[dict[str, Any]] = []
    for arm, reference, kind in pairs:
        difference = vars(paired_difference(arms[arm], arms[reference]))
        items.append({"arm": arm, "reference": reference, "kind": kind, "metric": metric, **difference})
    corrected = holm([item["p_value"] for item in items])
    comparisons = [{**item, "p_holm": p} for item, p in zip(items, corrected, strict=True)]
    return {
        "name": "x",
        "title": "A title",
        "baseline": names[0],
        "metrics": [metric],
        "tests": sum(item["p_value"] is not None for item in comparisons),
        "comparisons": comparisons,
        "runs": [],
        "arms": [
            {
                "name": name,
                "attention_label": name,
                "match": {"arm": controls[name], "by": "parameters", "vary": "width"} if name in controls else None,
                "metrics": {metric: vars(summarise(list(values.values())))},
                "error_interval": None,
                "parameters": 1000 + 100 * index,
                "multiply_adds_per_token": 2000,
                "cache_bytes_per_token": 64,
                "steps": 10,
                "tokens_per_second": 1000.0,
                "peak_memory_bytes": 2**20,
            }
            for index, (name, values) in enumerate(arms.items())
        ],
    }


def test_a_surely_better_arm_is_called_better_with_size_certainty_and_cost() -> None:
    sentences = headline(result_of({"standard": BASELINE, "boosted": BETTER}))
    assert sentences[0] == ("boosted is better than standard: test perplexity 90.40 against 100.33, 9.9 % lower.")
    assert sentences[1].startswith("How surely: difference \N{MINUS SIGN}9.93, 95 % interval \N{MINUS SIGN}10.")
    assert "three seeds, p < 0.0001" in sentences[1] or "three seeds, p = 0.0" in sentences[1]
    assert "1.10\N{MULTIPLICATION SIGN} the parameters" in sentences[2]
    assert sentences[3] == "Better than standard: boosted."


def test_a_lower_mean_that_could_be_chance_is_not_called_better() -> None:
    sentences = headline(result_of({"standard": BASELINE, "twicing": NOISY}))
    assert "lowest test perplexity, but it is not distinguishable from standard" in sentences[0]
    assert not any("better" in sentence.lower() for sentence in sentences)
    assert sentences[-1] == "Not distinguishable from standard: twicing."


def test_the_corrected_probability_decides() -> None:
    values = {1: 96.0, 2: 101.3, 3: 92.0}
    single = result_of({"standard": BASELINE, "a": values})
    assert 0.01 < single["comparisons"][0]["p_value"] < 0.05
    assert headline(single)[0].startswith("a is better than standard")
    many = {"standard": BASELINE, "a": values} | {f"other-{i}": {s: v + i for s, v in NOISY.items()} for i in range(4)}
    assert "not distinguishable from standard" in headline(result_of(many))[0]
    assert "for five tests" in headline(result_of(many))[1]


def test_two_seeds_are_not_called_sure() -> None:
    two = {
        name: {seed: values[seed] for seed in (1, 2)} for name, values in (("standard", BASELINE), ("boosted", BETTER))
    }
    sentences = headline(result_of(two))
    assert sentences[0] == "boosted has the lowest test perplexity: 92.00 against 102.00 for standard, 9.8 % lower."
    assert sentences[1] == "How surely cannot be said: fewer than three seeds."
    assert sentences[-1] == "Differences are not tested: fewer than three seeds."


def test_a_baseline_that_nothing_beats_is_named() -> None:
    sentences = headline(result_of({"standard": BASELINE, "twicing": WORSE}))
    assert sentences == [
        "No arm beats standard: it has the lowest test perplexity, 100.33.",
        "Worse than standard: twicing.",
    ]


def test_an_arm_is_measured_against_its_control_too() -> None:
    arms = {"standard": BASELINE, "wide": {1: 90.0, 2: 94.1, 3: 86.95}, "boosted": BETTER}
    result = result_of(arms, controls={"wide": "boosted"})
    sentence = next(sentence for sentence in headline(result) if "control" in sentence)
    assert sentence.startswith(
        "Against wide, its control with 0.92\N{MULTIPLICATION SIGN} its parameters, boosted is not"
    )


def test_failed_runs_are_named_and_not_hidden() -> None:
    result = result_of({"standard": BASELINE, "boosted": {1: 90.0, 2: 93.0}})
    result["runs"] = [{"arm": "boosted", "status": "diverged", "seed": 3, "learning_rate": 0.01}]
    sentences = headline(result)
    assert "boosted diverged with seed 3 at learning rate 0.01; its means are over the runs that finished." in sentences
    assert any("not tested: fewer than three seeds" in sentence for sentence in sentences)


def test_nothing_finished_is_said() -> None:
    assert headline(result_of({"standard": {}, "boosted": {}}))[0].startswith("No arm finished")


def test_means_over_different_seeds_are_not_compared() -> None:
    sentences = headline(result_of({"standard": {1: 10.0, 2: 50.0}, "boosted": {1: 11.0}}))
    assert "the means are over different seeds" in sentences[0]


def test_error_rates_differ_by_points() -> None:
    arms = {"standard": {1: 78.0, 2: 75.0, 3: 80.0}, "multi-token": {1: 0.1, 2: 0.0, 3: 0.3}}
    sentences = headline(result_of(arms, metric="error"))
    assert sentences[0] == "multi-token is better than standard: test error 0.1 % against 77.7 %, 77.5 points lower."


def test_the_table_is_plain_text_outside_a_terminal() -> None:
    result = result_of({"standard": BASELINE, "boosted": BETTER})
    stream = io.StringIO()
    render_terminal(result, Console(file=stream, width=40))
    lines = stream.getvalue().splitlines()
    assert stream.getvalue() == plain_text(result) + "\n"
    table = [line for line in lines if line.startswith(("arm", "standard", "boosted ")) and "k" in line]
    assert len({len(line) for line in table}) == 1
    assert "\x1b" not in stream.getvalue()
    assert "90.40" in table[2]


def test_the_table_is_drawn_on_a_terminal() -> None:
    stream = io.StringIO()
    render_terminal(
        result_of({"standard": BASELINE, "boosted": BETTER}), Console(file=stream, width=200, force_terminal=True)
    )
    assert "\x1b" in stream.getvalue()
    assert "90.40" in stream.getvalue()
    assert "[dim]" not in stream.getvalue()


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (metric_value("perplexity", 67.8794), "67.88"),
        (metric_value("error", 12.34), "12.3 %"),
        (metric_value("perplexity", None), "\N{EN DASH}"),
        (metric_difference("error", -1.26), "\N{MINUS SIGN}1.3 points"),
        (signed(-0.0004, 2), "0.00"),
        (signed(0.456, 1), "+0.5"),
        (p_value(0.00004), "< 0.0001"),
        (p_value(0.00044), "0.0004"),
        (p_value(0.0312), "0.031"),
        (p_value(0.456), "0.46"),
        (count(7_419_392), "7.42 M"),
        (count(87_360), "87.4 k"),
        (count(999), "999"),
        (count(123_456_789), "123 M"),
        (tick(2_500_000), "2.5 M"),
        (memory(768), "768 B"),
        (memory(1536), "1.5 KiB"),
        (memory(31 * 2**20), "31 MiB"),
        (ratio(9.0, 8.0), "1.12\N{MULTIPLICATION SIGN}"),
        (ratio(1.0, None), "\N{EN DASH}"),
        (rate(3e-4), "3e-4"),
        (rate(0.0025), "2.5e-3"),
        (listed(["a"]), "a"),
        (listed(["a", "b", "c"]), "a, b and c"),
        (number_of(1, "seed"), "one seed"),
        (number_of(21, "run"), "21 runs"),
    ],
)
def test_numbers_read_as_a_person_writes_them(written: str, expected: str) -> None:
    assert written == expected
