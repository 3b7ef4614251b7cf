"""What is checked before anything trains, and what a dry run lists."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_study import recipe_table, tiny_recipe, write_corpus

from heedful.study import make_plan
from heedful.study.recipe_file import recipe_from_mapping


def test_a_plan_lists_arms_sizes_steps_and_runs(tmp_path: Path) -> None:
    arms = [
        {"name": "standard", "learning_rates": [1e-3, 1e-2]},
        {"name": "boosted", "attention": "boosted"},
        {"name": "wide", "match": {"arm": "boosted", "by": "parameters", "vary": "feed-forward"}},
    ]
    plan = make_plan(tiny_recipe(tmp_path, arms=arms))
    text = "\n".join(plan.lines())
    assert plan.num_runs == 4 + 3 + 3
    for arm in plan.arms:
        assert f"{arm.name}: {arm.parameters:,} parameters" in text
    assert "feed-forward 64 -> " in text
    assert f"against {plan.arms[1].parameters:,} of boosted" in text
    assert "learning rate 1e-3 and 1e-2" in text
    assert "seeds 1, 2 and 3" in text


def test_planning_trains_and_writes_nothing_but_token_shards(tmp_path: Path) -> None:
    make_plan(tiny_recipe(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "text.txt"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": {"hidden_size": 16, "num_layers": 1, "num_heads": 3}}, "arm 'standard': num_heads must divide"),
        (
            {"model": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_positions": 8}},
            "arm 'standard': model.max_positions = 8 is smaller than the context of 16",
        ),
        ({"model": {"hidden_size": 16, "num_layer": 1, "num_heads": 2}}, "no field 'num_layer'. Did you mean"),
        ({"model": {"num_layers": 1, "num_heads": 2}}, "hidden_size"),
        ({"task": {"kind": "language-modelling", "prompt_tokens": 16}}, "prompt_tokens = 16 must be smaller"),
        (
            {"arms": [{"name": "standard", "attention": "boosted+boosted"}]},
            "arm 'standard': preset 'boosted' stands twice",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_training(tmp_path: Path, changes: dict, expected: str) -> None:
    write_corpus(tmp_path)
    with pytest.raises(ValueError, match=expected):
        make_plan(recipe_from_mapping(recipe_table(tmp_path, **changes)))


def test_a_text_shorter_than_one_context_is_refused(tmp_path: Path) -> None:
    table = recipe_table(tmp_path)
    table["train"] |= {"context_length": 8000}
    write_corpus(tmp_path)
    with pytest.raises(ValueError, match=r"split has .* tokens, fewer than one context of 8000"):
        make_plan(recipe_from_mapping(table))


def test_a_missing_corpus_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"text\.txt"):
        make_plan(recipe_from_mapping(recipe_table(tmp_path)))
