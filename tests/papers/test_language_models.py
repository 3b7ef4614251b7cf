"""Several sizes of one comparison: the largest that is there decides, and the smaller ones are heard."""

import json

import pytest
from made_results import around, made_result

from heedful.cli import main
from heedful.papers.findings import result_source
from heedful.papers.judging import judge
from heedful.papers.language_models import CPU_RECIPE, GPU_RECIPE, RESULTS, STUDIES, size, study_evidence
from heedful.papers.registry import CLAIMS

LARGE, SMALL = "language-models-one-epoch", "language-models-small"
CLAIM = "nonlinear-query-gain"
ON_STUDIES = [claim for claim in CLAIMS.values() if claim.evidence is not None and claim.evidence.results == RESULTS]


def made(name, nonlinear, parameters=100):
    arms = {"standard": around(20.0, 0.01), "nonlinear-query": nonlinear}
    return made_result(name, "perplexity", arms, dict.fromkeys(arms, parameters))


def both(large, small):
    results = {SMALL: made(SMALL, small, 68_800), LARGE: made(LARGE, large, 7_419_392)}
    return {f"{name}.json": result for name, result in results.items()}


def found(results):
    return CLAIMS[CLAIM].evidence.finding(results)


BETTER, WORSE, UNCLEAR = around(19.0, 0.03), around(21.0, 0.03), [19.0, 21.0, 20.0]


@pytest.mark.parametrize(
    ("large", "small", "verdict", "heard"),
    [
        (BETTER, BETTER, "holds", "gives the same verdict: "),
        (BETTER, WORSE, "holds", "gives another verdict, does not hold: +1.00 test perplexity (+5.0 %)."),
        (WORSE, BETTER, "does not hold", "gives another verdict, holds: −1.00 test perplexity (−5.0 %)."),
        (UNCLEAR, BETTER, "undecided", "gives another verdict, holds: −1.00"),
        (BETTER, UNCLEAR, "holds", "gives another verdict, undecided: 0.00 test perplexity"),
    ],
)
def test_the_large_study_decides_and_the_small_one_stands_in_the_reason(large, small, verdict, heard):
    results = both(large, small)
    alone = found({f"{LARGE}.json": results[f"{LARGE}.json"]})
    finding = found(results)
    assert (finding.verdict, finding.figure, finding.numbers) == (verdict, alone.figure, alone.numbers)
    assert finding.reason.startswith(f"{alone.reason} The smaller study (68.8 k parameters, 2.00 M tokens) gives ")
    assert heard in finding.reason


def test_the_order_in_which_results_are_given_does_not_matter():
    results = both(BETTER, WORSE)
    assert found(results) == found(dict(reversed(results.items())))


@pytest.mark.parametrize("name", STUDIES)
def test_one_study_judges_alone(name):
    for values, verdict in ((BETTER, "holds"), (WORSE, "does not hold")):
        result = made(name, values)
        finding = found({f"{name}.json": result})
        assert finding == judge(result, "nonlinear-query", "standard")
        assert finding.verdict == verdict


def test_without_any_of_them_nothing_is_judged_and_both_recipes_are_named():
    finding = found({})
    assert finding.verdict == "not tested here"
    assert f"any of {', '.join(RESULTS)}; made by {CPU_RECIPE}, on a GPU by {GPU_RECIPE}." in finding.reason


def test_a_small_result_that_is_something_else_is_refused_even_beside_a_large_one():
    results = both(BETTER, BETTER)
    results[f"{SMALL}.json"]["recipe"]["budget"] = "compute"
    with pytest.raises(ValueError, match=r"language-models-small\.json has recipe\.budget = 'compute'"):
        found(results)
    results = both(BETTER, BETTER)
    swapped = {f"{LARGE}.json": results[f"{SMALL}.json"]}
    with pytest.raises(ValueError, match=f"is the result of '{SMALL}', expected '{LARGE}'"):
        found(swapped)


def test_a_finding_comes_from_the_machine_of_the_study_that_decides():
    results = both(BETTER, WORSE)
    for name, result in results.items():
        result["environment"] = {"source": None, "gpu": None, "cpu": name, "time": "now", "packages": {"torch": "2"}}
    source = result_source(results, CLAIMS[CLAIM].evidence.results)
    assert source.machine == f"{LARGE}.json"
    assert source.results == (f"{LARGE}.json", f"{SMALL}.json")


def test_the_size_is_that_of_the_baseline():
    result = made(LARGE, BETTER, 7_419_392)
    result["arms"][1] |= {"parameters": 1, "steps": 1}
    assert size(result) == "7.42 M parameters, 2.00 M tokens"


def test_settings_of_a_claim_are_asked_of_every_size():
    evidence = study_evidence(lambda result: judge(result, "a", "b"), "a", "b", settings={"recipe.seeds": 3})
    assert evidence.settings == {"recipe.task.kind": "language-modelling", "recipe.budget": "steps", "recipe.seeds": 3}


def test_every_claim_about_language_models_is_judged_by_all_sizes():
    assert len(ON_STUDIES) == 17
    assert all(claim.evidence.gpu_recipe == GPU_RECIPE for claim in ON_STUDIES)
    others = [claim.evidence for claim in CLAIMS.values() if claim.evidence and claim not in ON_STUDIES]
    assert not any(name in RESULTS for evidence in others for name in evidence.results)


def printed(capsys, *words):
    assert main(["claims", *words]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_the_command_judges_what_it_is_given(capsys, tmp_path):
    files = {}
    for name, values in ((SMALL, WORSE), (LARGE, BETTER), ("language-models", BETTER), ("demo", BETTER)):
        files[name] = tmp_path / f"{name} of mine.json"
        files[name].write_text(json.dumps(made(name, values)), encoding="utf-8")
    for name, verdict in ((SMALL, "does not hold"), (LARGE, "holds"), ("language-models", "holds")):
        text = printed(capsys, "run", CLAIM, "--result", str(files[name]))
        assert f"{CLAIM}: {verdict} claim" in text
        assert "smaller study" not in text
    text = printed(capsys, "run", CLAIM, "--result", str(files[SMALL]), str(files[LARGE]))
    assert f"{CLAIM}: holds claim" in text
    assert "gives another verdict, does not hold: +1.00" in text
    assert main(["claims", "run", CLAIM, "--result", str(files["demo"])]) == 2
    refused = capsys.readouterr().err
    assert "Given: 'demo'" in refused
    assert f"heedful compare {CPU_RECIPE}, or on a GPU heedful compare {GPU_RECIPE}, writes" in refused


def test_the_way_to_find_it_again_names_both_recipes(capsys):
    again = f"heedful compare {CPU_RECIPE} (on a GPU heedful compare {GPU_RECIPE}), then heedful claims run {CLAIM}"
    assert again in printed(capsys, "show", CLAIM)
