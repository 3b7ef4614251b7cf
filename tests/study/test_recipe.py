"""Recipes: what is read is what is written, and every mistake is one sentence that names the file and the key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_study import recipe_table

from heedful.study import FindTheBlockTask, LanguageModellingTask, load_recipe, parse_overrides
from heedful.study.recipe_file import recipe_from_mapping, recipe_mapping

RECIPES = Path(__file__).parents[2] / "recipes"
TOML = """
name = "tiny"
seeds = [1, 2, 3]
baseline = "standard"
learning_rates = [1e-3]

[model]
hidden_size = 16
num_layers = 1
num_heads = 2

[train]
steps = 10
batch_size = 2
context_length = 8
schedule = { warmup_steps = 1 }

[[arms]]
name = "standard"

[[arms]]
name = "boosted"
attention = "boosted"
learning_rates = [3e-3, 1e-3]
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TOML, encoding="utf-8")
    return path


def test_a_recipe_is_read_with_defaults_and_rates_in_order(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    assert recipe.seeds == (1, 2, 3)
    assert recipe.train.steps == 10
    assert recipe.rates(recipe.arm("standard")) == (1e-3,)
    assert recipe.rates(recipe.arm("boosted")) == (1e-3, 3e-3)
    assert isinstance(recipe.task, LanguageModellingTask)
    assert recipe.data.corpus == "python-stdlib"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("steps = 10", "stepps = 10", r"tiny\.toml: recipe\.train: unknown key 'stepps'\. Did you mean 'steps'"),
        ("steps = 10", 'steps = "10"', r"tiny\.toml: recipe\.train\.steps: expected int"),
        ("steps = 10", "steps = 10\nseed = 1", r"train\.seed: not allowed here, it comes from the recipe's `seeds`"),
        (
            "steps = 10",
            "steps = 10\noptimizer = { learning_rate = 1 }",
            r"train\.optimizer\.learning_rate: not allowed",
        ),
        ("[1, 2, 3]", "[]", "seeds is empty"),
        ("[1, 2, 3]", "[1, 1]", "seed 1 is given more than once"),
        ("[1, 2, 3]", "[-1]", "must not be negative"),
        ('baseline = "standard"', 'baseline = "standrad"', r"'standrad' is not an arm\. Did you mean 'standard'"),
        ("learning_rates = [1e-3]", "", "arm 'standard' has no learning_rates"),
        ("learning_rates = [1e-3]", "learning_rates = [0.0]", "learning rates must be above 0"),
        ("[3e-3, 1e-3]", "[1e-3, 1e-3]", "learning rate of arm 'boosted' 0.001 is given more than once"),
        ('name = "boosted"', 'name = "Standard"', "arm name 'standard' is given more than once"),
        ('name = "boosted"', 'name = "../boosted"', "must be made of letters"),
        ("num_heads = 2", "num_heads = 2\nvocab_size = 5", "must not set 'vocab_size'"),
        ('attention = "boosted"', "attention = 3", r"arms\[1\]\.attention: expected str"),
        ('attention = "boosted"', 'match = { arm = "boostd", by = "compute" }', "unknown arm 'boostd'. Did you mean"),
        ('attention = "boosted"', 'match = { arm = "boosted", by = "compute" }', "in a circle: boosted -> boosted"),
        (
            'attention = "boosted"',
            'match = { arm = "standard", by = "size" }',
            "expected one of 'parameters', 'compute'",
        ),
        ('name = "tiny"', 'name = "tiny"\ntask = "translation"', r"task\.kind: unknown or missing kind 'translation'"),
        ('name = "tiny"', 'name = "tiny"\nbudget = "time"', r"recipe\.budget: expected one of 'steps'"),
        ("[model]", "[model", r"tiny\.toml: no readable recipe"),
    ],
)
def test_each_mistake_names_the_file_and_the_key(recipe_file: Path, old: str, new: str, expected: str) -> None:
    assert old in TOML
    recipe_file.write_text(TOML.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=expected) as caught:
        load_recipe(recipe_file)
    assert "tiny.toml" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no recipe file"):
        load_recipe(tmp_path / "none.toml")


def test_a_match_contradicts_the_parameter_budget(tmp_path: Path) -> None:
    arms = [{"name": "standard"}, {"name": "wide", "match": {"arm": "standard", "by": "parameters"}}]
    with pytest.raises(ValueError, match="already resizes every arm"):
        recipe_from_mapping(recipe_table(tmp_path, arms=arms, budget="parameters"))


def test_a_circle_of_matches_is_found_through_other_arms(tmp_path: Path) -> None:
    arms = [
        {"name": "standard"},
        {"name": "outside", "match": {"arm": "a", "by": "parameters"}},
        {"name": "a", "match": {"arm": "b", "by": "parameters"}},
        {"name": "b", "match": {"arm": "a", "by": "compute"}},
    ]
    with pytest.raises(ValueError, match="in a circle: a -> b -> a"):
        recipe_from_mapping(recipe_table(tmp_path, arms=arms))


def test_overrides_reach_tables_lists_and_arms_by_name(recipe_file: Path) -> None:
    overrides = {"train.steps": 50, "data.vocab_size": 300, "arms.boosted.attention": "twicing", "seeds": [4]}
    recipe = load_recipe(recipe_file, overrides)
    assert recipe.train.steps == 50
    assert recipe.data.vocab_size == 300
    assert recipe.arm("boosted").attention == "twicing"
    assert recipe.seeds == (4,)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train.stepps", 5, "unknown key 'stepps'"),
        ("train.steps", "many", r"train\.steps: expected int"),
        ("arms.bosted.attention", "twicing", "no item 'bosted'. Did you mean 'boosted'"),
        ("name.first", 1, "which is no table"),
    ],
)
def test_overrides_are_checked_like_the_file(recipe_file: Path, key: str, value: object, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        load_recipe(recipe_file, {key: value})


def test_command_line_values_are_toml_or_plain_text() -> None:
    read = parse_overrides(["train.steps=50", "seeds=[1, 2]", "data.corpus=some/folder", "a.b='x=y'", "c=true"])
    assert read == {"train.steps": 50, "seeds": [1, 2], "data.corpus": "some/folder", "a.b": "x=y", "c": True}
    with pytest.raises(ValueError, match="key=value"):
        parse_overrides(["train.steps"])


def test_the_plain_form_reads_back_to_the_same_recipe(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file)
    mapping = json.loads(json.dumps(recipe_mapping(recipe)))
    assert recipe_from_mapping(mapping) == recipe
    written = tmp_path / "recipe.json"
    written.write_text(json.dumps({"recipe": mapping}), encoding="utf-8")
    assert load_recipe(written) == recipe


def test_find_the_block_knows_its_own_context_and_reads_no_corpus(tmp_path: Path) -> None:
    table = recipe_table(tmp_path, task={"kind": "find-the-block", "block_length": 3, "num_blocks": 2})
    with pytest.raises(ValueError, match="reads no corpus"):
        recipe_from_mapping(table)
    table.pop("data")
    with pytest.raises(ValueError, match="length of a sample"):
        recipe_from_mapping(table)
    table["train"].pop("context_length")
    recipe = recipe_from_mapping(table)
    assert isinstance(recipe.task, FindTheBlockTask)
    assert (
        recipe.train.context_length == recipe.task.context_length == 14
    )  # BOS, 2 x "abc.", ab, abc: one is the target's
    assert recipe_from_mapping(json.loads(json.dumps(recipe_mapping(recipe)))) == recipe


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_that_is_shipped_can_be_read(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.title
