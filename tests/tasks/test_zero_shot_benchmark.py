"""Every tested run of a comparison is scored once, and what is written can be drawn as a table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from zero_shot_models import sentences

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import zero_shot
from scripts.zero_shot_tables import zero_shot_table

from heedful.study import run_comparison
from heedful.study.recipe_file import recipe_from_mapping
from heedful.study.statistics import holm, paired_difference
from heedful.tasks.lambada import evaluate_lambada, read_lambada


def recipe_of(folder):
    table = {
        "name": "tiny",
        "seeds": [1, 2, 3],
        "baseline": "standard",
        "learning_rates": [1e-2, 3e-2],
        "task": {"kind": "language-modelling", "prompt_tokens": 8, "sample_tokens": 6},
        "data": {
            "corpus": str(folder / "text.txt"),
            "documents": "line",
            "tokenizer": "bytes",
            "cache_folder": str(folder / "cache"),
            "valid_fraction": 0.1,
            "test_fraction": 0.1,
            "max_eval_tokens": 90,
        },
        "model": {"hidden_size": 16, "num_layers": 1, "num_heads": 2},
        "train": {
            "steps": 8,
            "batch_size": 4,
            "context_length": 32,
            "evaluate_every": 4,
            "schedule": {"warmup_steps": 1},
            "device": "cpu",
        },
        "arms": [
            {"name": "standard"},
            {"name": "boosted", "attention": "boosted"},
            {"name": "standard-wide", "match": {"arm": "boosted", "by": "parameters", "vary": "feed-forward"}},
        ],
    }
    return recipe_from_mapping(table)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    (folder / "text.txt").write_text("\n".join(" ".join(sentences(6, seed)) for seed in range(40)) + "\n")
    lines = [json.dumps({"text": " ".join(sentences(3, seed))}) for seed in range(100, 120)]
    (folder / "lambada.jsonl").write_text("\n".join(lines) + "\n")
    rows = ["uid\tfield\tterm\tpair_id\tsimple_lm\tsentence_good\tsentence_bad"]
    for number, text in enumerate(sentences(30, seed=200)):
        kind = ("first", "second", "third")[number % 3]
        rows.append(f"{kind}\tsyntax\torder\t{number}\t1\t{text}\t{' '.join(text.split()[::-1])}")
    (folder / "blimp.tsv").write_text("\n".join(rows) + "\n")
    run_comparison(recipe_of(folder), folder / "tiny", report=lambda line: None)
    return folder


def options_of(place, output, **changes):
    given = {"lambada": place / "lambada.jsonl", "blimp": place / "blimp.tsv", "blimp_limit": 8, **changes}
    return zero_shot.Options(comparison=place / "tiny", output=output, **given)


@pytest.fixture(scope="module")
def scored(place):
    output = place / "zero-shot.json"
    zero_shot.measure(options_of(place, output))
    return json.loads(output.read_text(encoding="utf-8"))


def test_every_run_at_its_arms_rate_is_scored(place, scored):
    comparison = json.loads((place / "tiny/result.json").read_text(encoding="utf-8"))
    rates = {arm["name"]: arm["learning_rate"] for arm in comparison["arms"]}
    assert [(run["arm"], run["learning_rate"], run["seed"]) for run in scored["runs"]] == [
        (arm, rates[arm], seed) for arm in ("standard", "boosted", "standard-wide") for seed in (1, 2, 3)
    ]
    assert scored["complete"]
    run = scored["runs"][4]
    folder = place / "tiny/runs/boosted" / f"lr-{rates['boosted']!r}" / "seed-2"
    opened = zero_shot.open_model(folder, {})
    expected = evaluate_lambada(
        opened["model"], opened["tokenizer"], read_lambada(place / "lambada.jsonl"), max_context=32
    )
    assert run["lambada"]["nats_per_word"] == pytest.approx(expected.nats_per_word)
    assert run["lambada"]["correct"] == expected.correct
    assert run["max_context"] == 32
    assert run["lambada"]["cut"] == 20
    assert scored["examples"] == {"lambada": 20, "blimp": {"first": 8, "second": 8, "third": 8}}
    shares = [run["blimp"]["phenomena"][uid] / 8 for uid in ("first", "second", "third")]
    assert run["blimp"]["accuracy"] == pytest.approx(sum(shares) / 3)


def test_several_at_a_time_score_the_same_in_the_same_order(place, scored, tmp_path):
    zero_shot.measure(options_of(place, tmp_path / "several.json", workers=2))
    assert json.loads((tmp_path / "several.json").read_text(encoding="utf-8"))["runs"] == scored["runs"]


def test_a_number_of_workers_below_one_is_refused(place, tmp_path):
    with pytest.raises(ValueError, match="--workers must be at least 1, got 0"):
        zero_shot.measure(options_of(place, tmp_path / "none.json", workers=0))
    assert not (tmp_path / "none.json").exists()


def test_differences_are_paired_by_seed_with_the_comparisons_own_pairs(scored):
    sides = {(item["arm"], item["reference"], item["kind"]) for item in scored["comparisons"]}
    assert sides == {
        ("boosted", "standard", "baseline"),
        ("standard-wide", "standard", "baseline"),
        ("boosted", "standard-wide", "control"),
    }
    nats = {
        arm: {run["seed"]: run["lambada"]["nats_per_word"] for run in scored["runs"] if run["arm"] == arm}
        for arm in ("boosted", "standard")
    }
    found = [item for item in scored["comparisons"] if item["metric"] == "lambada_nats_per_word"]
    expected = paired_difference(nats["boosted"], nats["standard"])
    assert (found[0]["mean"], found[0]["low"], found[0]["p_value"]) == (expected.mean, expected.low, expected.p_value)
    assert [item["p_holm"] for item in found] == holm([item["p_value"] for item in found])
    assert scored["chance"]["blimp_accuracy"] == 0.5


def test_a_finished_run_is_not_scored_again_and_an_unfinished_result_goes_on(place, scored, tmp_path, monkeypatch):
    output = tmp_path / "part.json"
    part = {key: value for key, value in scored.items() if key not in ("arms", "comparisons", "chance")}
    output.write_text(json.dumps({**part, "complete": False, "runs": scored["runs"][:7]}))
    assert "7 of 9 runs" in zero_shot_table(output)
    calls = []
    score = zero_shot.score
    monkeypatch.setattr(zero_shot, "score", lambda folder, examples: calls.append(folder) or score(folder, examples))
    again = zero_shot.measure(options_of(place, output))
    assert len(calls) == 2
    assert again["runs"] == scored["runs"]
    assert again["comparisons"] == scored["comparisons"]
    zero_shot.measure(options_of(place, output))
    assert len(calls) == 2


def test_an_interruption_keeps_what_was_scored(place, scored, tmp_path, monkeypatch):
    score, calls = zero_shot.score, []

    def until_the_third(folder, examples):
        calls.append(folder)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score(folder, examples)

    monkeypatch.setattr(zero_shot, "score", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        zero_shot.measure(options_of(place, tmp_path / "part.json"))
    kept = json.loads((tmp_path / "part.json").read_text(encoding="utf-8"))
    assert kept["runs"] == scored["runs"][:2]
    assert not kept["complete"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"blimp_limit": 7}, "settings.blimp_limit is 8 there and 7 here"),
        ({"start": "."}, "settings.start"),
        ({"seed": 1}, "settings.seed"),
    ],
)
def test_a_result_of_other_settings_is_refused(place, scored, changes, words):
    before = (place / "zero-shot.json").read_bytes()
    with pytest.raises(ValueError, match=words):
        zero_shot.measure(options_of(place, place / "zero-shot.json", **changes))
    assert (place / "zero-shot.json").read_bytes() == before


def test_a_result_of_other_data_models_or_source_is_refused(place, scored, tmp_path):
    output = place / "zero-shot.json"
    (tmp_path / "other.jsonl").write_text('{"text": "the cat sees"}\n')
    with pytest.raises(ValueError, match=r"data\.lambada"):
        zero_shot.measure(options_of(place, output, lambada=tmp_path / "other.jsonl"))
    for change, words in (
        ({"comparison": {**scored["comparison"], "runs": {}}}, r"comparison\.runs"),
        ({"commit": "0" * 40}, "one commit"),
    ):
        other = tmp_path / "other.json"
        other.write_text(json.dumps({**scored, **change}))
        with pytest.raises(ValueError, match=words):
            zero_shot.measure(options_of(place, other))
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match="something else"):
        zero_shot.measure(options_of(place, tmp_path / "list.json"))


def test_an_unfinished_comparison_is_refused(place, tmp_path):
    options = zero_shot.Options(comparison=tmp_path, lambada=place / "lambada.jsonl", blimp=place / "blimp.tsv")
    with pytest.raises(ValueError, match=r"result\.json is missing"):
        zero_shot.measure(options)


def test_the_result_names_files_without_their_places(place, scored, monkeypatch):
    options = options_of(place, place / "zero-shot.json")
    monkeypatch.setattr(sys, "argv", ["zero_shot", str(options.comparison), "--lambada", str(options.lambada)])
    head = zero_shot._head(options, "cpu")
    assert head["command"] == "python -m benchmarks.zero_shot tiny --lambada lambada.jsonl"
    assert str(place) not in json.dumps({**scored, **head})


def test_the_table_says_what_was_scored_and_what_chance_gives(place, scored, tmp_path):
    text = zero_shot_table(place / "zero-shot.json")
    assert "| standard (baseline) | 3 |" in text
    for arm in ("boosted", "standard-wide"):
        assert f"| {arm} | 3 |" in text
    assert "LAMBADA: 20 of 20 passages" in text
    assert "24 of 30 pairs, the mean over 3 phenomena, end of text before each sentence" in text
    assert "read 32 tokens at a time: **of 20 of the 20 passages they did not read the beginning**" in text
    assert "Guessing gives 50 % of BLiMP" in text
    mean = sum(run["blimp"]["accuracy"] for run in scored["runs"] if run["arm"] == "boosted") / 3
    assert f"| boosted | 3 | {100 * mean:.2f} |" in text
    assert zero_shot_table(tmp_path / "none.json").startswith("not measured yet")
    diverged = {**scored, "arms": [*scored["arms"], {"name": "x", "metrics": {
        metric: {"count": 0, "mean": None, "std": None} for metric in zero_shot.METRICS}}]}  # fmt: skip
    (tmp_path / "diverged.json").write_text(json.dumps(diverged))
    assert "| x | 0 | –" in zero_shot_table(tmp_path / "diverged.json")
