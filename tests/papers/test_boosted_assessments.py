"""The boosted paper's empirical claims on results made by hand."""

import copy
from pathlib import Path

import pytest
from made_results import around, made_result

from heedful.papers.boosted_claims import EMPIRICAL as BOOSTED
from heedful.papers.language_models import CPU_RECIPE, GPU_RECIPE, STUDIES
from heedful.papers.twicing_claims import CLAIMS as TWICING
from heedful.schema import to_mapping
from heedful.study.arms import arm_config
from heedful.study.recipe_file import load_recipe, recipe_mapping

ROOT = Path(__file__).parents[2]

EMPIRICAL = {claim.name: claim for claim in (*BOOSTED, *TWICING) if claim.evidence is not None}
MEANS = {
    "standard": 72.0, "standard-wide": 69.0, "standard-deep": 68.5, "twicing": 69.6, "boosted": 68.0,
    "boosted-input-kv": 69.3, "boosted-no-residual": 69.1, "boosted-three-rounds": 67.5,
}  # fmt: skip


def boosting(**changes):
    return {"rounds": 2, "kv_source": "residual", "residual_coefficient": 1.0, "gate": "vector"} | changes


def result(**means):
    """Published-looking results; every arm has a spread of its own."""
    arms = {arm: around(mean, 0.02 + 0.01 * index) for index, (arm, mean) in enumerate((MEANS | means).items())}
    made = made_result("language-models-small", "perplexity", arms)
    made["recipe"] = {"task": {"kind": "language-modelling"}, "budget": "steps"}
    settings = {"boosted": boosting(), "boosted-input-kv": boosting(kv_source="input"),
                "boosted-no-residual": boosting(residual_coefficient=0.0),
                "boosted-three-rounds": boosting(rounds=3)}  # fmt: skip
    matches = {"standard-wide": {"arm": "boosted", "by": "parameters", "vary": "width"},
               "standard-deep": {"arm": "boosted", "by": "compute", "vary": "depth"}}  # fmt: skip
    for arm in made["arms"]:
        rule = {"kind": "twicing" if arm["name"] == "twicing" else "standard"}
        arm["config"] = {
            "attention": {"boosting": settings.get(arm["name"]), "rule": rule},
            "norm_position": "pre",
        }
        arm["match"] = matches.get(arm["name"])
        arm["multiply_adds_per_token"] = {"boosted": 120, "standard-wide": 115}.get(arm["name"], 100)
        arm["diagnostics"] = []
    for run in made["runs"]:
        run["curve"] = []
    return made


def arm(made, name):
    return next(arm for arm in made["arms"] if arm["name"] == name)


def judged(claim, made):
    return EMPIRICAL[claim].evidence.finding({f"{made['name']}.json": made})


def with_loss_curves(made, boosted, wide):
    for run in made["runs"]:
        curve = {"boosted": boosted, "standard-wide": wide}.get(run["arm"], [])
        run["curve"] = [{"step": 10 * (index + 1), "val/loss": loss} for index, loss in enumerate(curve)]
    return made


@pytest.mark.parametrize(
    ("claim", "worse"),
    [
        ("boosted-beats-standard", "standard"),
        ("boosted-beats-wider", "standard-wide"),
        ("boosted-beats-deeper", "standard-deep"),
        ("boosted-beats-twicing", "twicing"),
        ("boosted-residual-keys", "boosted-input-kv"),
        ("boosted-residual-matters", "boosted-no-residual"),
    ],
)
def test_boosted_against_each_of_the_others(claim, worse):
    assert judged(claim, result()).verdict == "holds"
    assert judged(claim, result(**{worse: 67.0})).verdict == "does not hold"
    assert judged(claim, result(**{worse: 68.0})).verdict == "undecided"
    assert judged(claim, result()).numbers["difference"] == pytest.approx(68.0 - MEANS[worse])


def test_twicing_against_standard():
    assert judged("twicing-beats-standard", result()).verdict == "holds"
    assert judged("twicing-beats-standard", result(twicing=73.0)).verdict == "does not hold"


def test_a_second_look_without_residual_is_told_beside():
    finding = judged("boosted-residual-matters", result())
    assert finding.numbers["a = 0 against standard: difference"] == pytest.approx(69.1 - 72.0)
    assert "A second look without the residual" in finding.reason


def test_the_second_round_has_to_bring_more_than_the_third():
    finding = judged("boosted-third-round", result())
    assert finding.verdict == "holds"
    assert finding.numbers["gain by the second round"] == pytest.approx(4.0)
    assert finding.numbers["gain by the third round"] == pytest.approx(0.5)
    assert finding.figure == "gain +4.00 by the second round, +0.50 by the third"
    assert judged("boosted-third-round", result(**{"boosted-three-rounds": 60.0})).verdict == "does not hold"
    assert judged("boosted-third-round", result(**{"boosted-three-rounds": 64.0})).verdict == "undecided"
    assert judged("boosted-third-round", without_runs(result(), "boosted")).verdict == "undecided"
    worse = result(**{"standard": 67.0, "boosted-three-rounds": 75.0})
    assert judged("boosted-third-round", worse).verdict == "undecided", "both rounds make it worse: there is no gain"


def without_runs(made, name):
    made["runs"] = [run for run in made["runs"] if run["arm"] != name]
    return made


def test_convergence_counts_steps_and_arithmetic():
    early = with_loss_curves(result(), [5.0, 4.0, 3.0, 2.0], [5.0, 4.5, 4.2, 4.1])
    finding = judged("boosted-convergence", early)
    assert finding.verdict == "holds"
    assert finding.numbers["share of the steps"] == 0.5
    assert finding.numbers["share of the multiply-adds"] == pytest.approx(0.5 * 120 / 115)
    late = with_loss_curves(result(), [5.0, 4.5, 4.0, 3.0], [5.0, 4.5, 4.2, 4.0])
    assert judged("boosted-convergence", late).numbers["share of the steps"] == 0.75
    arm(late, "boosted")["multiply_adds_per_token"] = 200
    assert judged("boosted-convergence", late).verdict == "holds in part"
    end = with_loss_curves(result(), [5.0, 4.5, 4.3, 4.0], [5.0, 4.5, 4.2, 4.1])
    assert judged("boosted-convergence", end).verdict == "undecided"
    never = with_loss_curves(result(), [5.0, 4.5, 4.3, 4.2], [5.0, 4.5, 4.2, 4.1])
    assert judged("boosted-convergence", never).verdict == "does not hold"
    assert judged("boosted-convergence", without_runs(early, "boosted")).verdict == "undecided"


def test_gates_are_compared_with_their_start():
    made = result()
    assert judged("boosted-gates", made).verdict == "not tested here"
    arm(made, "boosted")["diagnostics"] = [{"layer": 0, "gate_mean": [0.3]}, {"layer": 1, "gate_mean": [0.4]}]
    assert judged("boosted-gates", made).verdict == "holds"
    assert judged("boosted-gates", made).figure == "0.30 / 0.40"
    arm(made, "boosted")["diagnostics"][1]["gate_mean"] = [0.6]
    assert judged("boosted-gates", made).verdict == "holds in part"
    arm(made, "boosted")["diagnostics"][0]["gate_mean"] = [0.7]
    assert judged("boosted-gates", made).verdict == "does not hold"


def test_entropies_are_means_over_right_and_wrong_positions():
    made = result()
    assert judged("boosted-entropies", made).verdict == "not tested here"

    def look(wrong, right):
        return {"entropy": {"wrong": wrong, "right": right}}

    layers = [{"layer": 0, "rounds": [look(2.0, 3.0), look(1.0, 2.0)]}]
    arm(made, "boosted")["maps"] = {"where": {"positions": 4, "wrong": 1, "layers": layers}}
    finding = judged("boosted-entropies", made)
    assert finding.verdict == "holds"
    assert finding.numbers["layer 0, first round"] == pytest.approx((2.0 + 3 * 3.0) / 4)
    layers.append({"layer": 3, "rounds": [look(1.0, 1.0), look(2.0, 2.0)]})
    assert judged("boosted-entropies", made).verdict == "holds in part"
    del layers[0]
    assert judged("boosted-entropies", made).verdict == "does not hold"


def test_post_norm_is_claimed_to_be_worse():
    claim = EMPIRICAL["boosted-post-norm"]
    assert claim.evidence.finding({}).verdict == "not tested here"
    made = made_result("boosted-small", "perplexity",
                       {"standard-post-norm": around(77.0), "boosted-post-norm": around(84.0, 0.1)})  # fmt: skip
    for one in made["arms"]:
        one["config"] = {"norm_position": "post"}
    assert claim.evidence.finding({"boosted-small.json": made}).verdict == "holds"
    made["arms"][1]["config"] = {"norm_position": "pre"}
    with pytest.raises(ValueError, match="norm_position = 'pre', expected 'post'"):
        claim.evidence.finding({"boosted-small.json": made})


@pytest.mark.parametrize(
    ("claim", "name", "change", "message"),
    [
        ("boosted-beats-deeper", "standard-deep", {"match": None}, "arms.standard-deep.match.arm = None"),
        ("boosted-beats-deeper", "standard-deep",
         {"match": {"arm": "boosted", "by": "parameters", "vary": "depth"}}, "by = 'parameters', expected 'compute'"),
        ("boosted-residual-matters", "boosted-no-residual",
         {"config": {"attention": {"boosting": boosting()}}}, "residual_coefficient = 1.0, expected 0.0"),
        ("boosted-beats-standard", "boosted",
         {"config": {"attention": {"boosting": boosting(rounds=3)}}}, "rounds = 3, expected 2"),
    ],
)  # fmt: skip
def test_arms_that_are_something_else_are_refused(claim, name, change, message):
    made = result()
    arm(made, name).update(change)
    with pytest.raises(ValueError, match=message):
        judged(claim, made)


def test_other_comparisons_are_refused_and_every_size_is_taken():
    made = result()
    for study in STUDIES:
        assert judged("boosted-beats-wider", made | {"name": study}).verdict == "holds"
    evidence = EMPIRICAL["boosted-beats-wider"].evidence
    for name in ("demo", STUDIES[-1]):  # another comparison, and another size than the file's name says
        with pytest.raises(ValueError, match=f"is the result of '{name}', expected '{STUDIES[0]}'"):
            evidence.finding({f"{STUDIES[0]}.json": made | {"name": name}})
    other = copy.deepcopy(made)
    other["recipe"]["budget"] = "compute"
    with pytest.raises(ValueError, match="budget = 'compute', expected 'steps'"):
        judged("boosted-beats-wider", other)


BY_STUDY = [
    (claim, recipe)
    for claim in EMPIRICAL.values()
    for recipe in ({CPU_RECIPE: [f"recipes/{study}.toml" for study in STUDIES]}).get(
        claim.evidence.recipe, [claim.evidence.recipe]
    )
]


def test_the_recipes_that_a_claim_names_are_among_the_studies():
    assert {f"recipes/{study}.toml" for study in STUDIES} >= {CPU_RECIPE, GPU_RECIPE}


@pytest.mark.parametrize(("claim", "file"), BY_STUDY, ids=lambda value: getattr(value, "name", value))
def test_what_the_recipe_makes_is_taken(claim, file):
    """Arms as the recipe builds them, written as results write them, pass the check of every claim."""
    recipe = load_recipe(ROOT / file)
    arms = [
        {
            "name": arm.name,
            "config": to_mapping(
                arm_config(recipe, arm, vocab_size=512, max_positions=recipe.train.context_length + 1)
            ),
            "match": to_mapping(arm.match),
        }
        for arm in recipe.arms
    ]
    claim.evidence.check("made", {"name": recipe.name, "arms": arms, "recipe": recipe_mapping(recipe)})
