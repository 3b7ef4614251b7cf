"""Budgets and controls: equal means equal, checked on the published sizes where there are any."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_study import recipe_table

from heedful.models.counting import count_parameters, multiply_adds_per_token
from heedful.study import Recipe, load_recipe
from heedful.study.arms import arm_config, attention_label, typed_fields
from heedful.study.budgets import budgeted_configs, budgeted_train_config
from heedful.study.recipe_file import recipe_from_mapping

RECIPES = Path(__file__).parents[2] / "recipes"


def configs_of(recipe: Recipe, vocab_size: int) -> dict:
    context = recipe.train.context_length
    given = {arm.name: arm_config(recipe, arm, vocab_size=vocab_size, max_positions=context) for arm in recipe.arms}
    return budgeted_configs(recipe, given)


def test_the_shipped_paper_recipe_has_the_published_sizes_and_controls() -> None:
    recipe = load_recipe(RECIPES / "language-models.toml")
    configs = configs_of(recipe, vocab_size=16_384)
    sizes = {name: count_parameters(config).total for name, config in configs.items()}
    assert sizes["standard"] == 7_419_392
    assert sizes["twicing"] == 7_419_392
    assert sizes["boosted"] == sizes["boosted-input-kv"] == 8_734_208
    assert sizes["standard-wide"] == 8_789_184
    assert sizes["standard-deep"] == 8_998_912
    assert configs["standard-wide"].hidden_size == 288
    assert configs["standard-deep"].num_layers == 6
    costs = {name: multiply_adds_per_token(config, 256) for name, config in configs.items()}
    assert costs["boosted"] == costs["standard-deep"] == 9_699_328


def test_the_parameter_budget_resizes_the_feed_forward_layer_alone(tmp_path: Path) -> None:
    recipe = recipe_from_mapping(recipe_table(tmp_path, budget="parameters"))
    configs = configs_of(recipe, vocab_size=257)
    target = count_parameters(configs["standard"]).total
    for name, config in configs.items():
        # One unit of feed-forward width is 2 x 16 weights in each of 3 layers.
        assert abs(count_parameters(config).total - target) <= 96 / 2, name
        assert config.hidden_size == 16
    assert configs["boosted"].feed_forward_size < configs["standard"].feed_forward_size == 64


def test_the_compute_budget_equalises_steps_times_multiply_adds(tmp_path: Path) -> None:
    table = recipe_table(tmp_path, budget="compute")
    table["train"] |= {"steps": 1000, "schedule": {"warmup_steps": 100}}
    recipe = recipe_from_mapping(table)
    configs = configs_of(recipe, vocab_size=257)
    costs = {name: multiply_adds_per_token(config, 16) for name, config in configs.items()}
    for name, cost in costs.items():
        train = budgeted_train_config(recipe, cost, costs["standard"])
        assert train.steps * cost == pytest.approx(1000 * costs["standard"], rel=1e-3), name
        assert train.schedule.warmup_steps == pytest.approx(train.steps / 10, abs=1)
    assert budgeted_train_config(recipe, costs["boosted"], costs["standard"]).steps < 1000


def test_the_other_budgets_leave_steps_alone(tmp_path: Path) -> None:
    recipe = recipe_from_mapping(recipe_table(tmp_path))
    assert budgeted_train_config(recipe, 200, 100) == recipe.train


def test_a_control_follows_the_resized_arm_it_controls(tmp_path: Path) -> None:
    arms = [
        {"name": "standard"},
        {"name": "deep-of-wide", "match": {"arm": "wide", "by": "compute", "vary": "depth"}},
        {"name": "wide", "match": {"arm": "boosted", "by": "parameters", "vary": "feed-forward"}},
        {"name": "boosted", "attention": "boosted"},
    ]
    recipe = recipe_from_mapping(recipe_table(tmp_path, arms=arms))
    configs = configs_of(recipe, vocab_size=257)
    assert configs["wide"].feed_forward_size > 64
    assert configs["deep-of-wide"].num_layers > 3


def test_a_hopeless_match_names_the_arm(tmp_path: Path) -> None:
    arms = [
        {"name": "standard"},
        {
            "name": "vast",
            "model": {"hidden_size": 512},
            "match": {"arm": "standard", "by": "parameters", "vary": "depth"},
        },
    ]
    with pytest.raises(ValueError, match="arm 'vast'"):
        configs_of(recipe_from_mapping(recipe_table(tmp_path, arms=arms)), vocab_size=257)


def test_an_attention_table_changes_its_preset() -> None:
    fields = typed_fields({"rule": {"kind": "multi-token", "pre_mixing": "none", "query_kernel_size": 2}, "window": 4})
    assert fields["rule"].pre_mixing is None
    assert fields["rule"].query_kernel_size == 2
    assert fields["window"] == 4


def test_arms_may_differ_in_attention_tables_and_model_fields(tmp_path: Path) -> None:
    arms = [
        {"name": "standard"},
        {"name": "three-rounds", "attention": {"preset": "twicing", "boosting": {"rounds": 3}}},
        {"name": "rotary", "model": {"rotary": {"theta": 100.0}, "position_embedding": "none"}},
    ]
    recipe = recipe_from_mapping(recipe_table(tmp_path, arms=arms))
    configs = configs_of(recipe, vocab_size=257)
    assert configs["three-rounds"].layers[0].rounds == 3
    assert configs["rotary"].layers[0].rotary is not None
    assert configs["standard"].layers[0].rotary is None
    assert attention_label(recipe.arm("three-rounds")) == "twicing with boosting (rounds 3)"


@pytest.mark.parametrize(
    ("attention", "expected"),
    [
        ("bosted", "unknown preset 'bosted'"),
        ({"boostin": {"rounds": 2}}, "no field 'boostin'"),
        ({"boosting": {"round": 2}}, "unknown key 'round'"),
        ({"rule": {"kind": "twicin"}}, "unknown or missing kind 'twicin'"),
    ],
)
def test_a_wrong_attention_names_the_arm(tmp_path: Path, attention: object, expected: str) -> None:
    arms = [{"name": "standard"}, {"name": "other", "attention": attention}]
    with pytest.raises(ValueError, match=expected) as caught:
        configs_of(recipe_from_mapping(recipe_table(tmp_path, arms=arms)), vocab_size=257)
    assert "arm 'other'" in str(caught.value)
