"""Reading dataclasses from plain mappings: what is accepted, what is refused, and with which words."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from heedful.schema import check_choices, did_you_mean, from_mapping, to_mapping


@dataclass(frozen=True, kw_only=True)
class Leaf:
    size: int
    name: str = "leaf"


@dataclass(frozen=True, kw_only=True)
class Round:
    kind: Literal["round"] = "round"
    radius: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Square:
    kind: Literal["square"] = "square"
    side: int = 1

    def __post_init__(self) -> None:
        if self.side < 0:
            raise ValueError(f"side must not be negative, got {self.side}.")


@dataclass(frozen=True, kw_only=True)
class Tree:
    count: int = 3
    rate: float = 0.5
    flag: bool = False
    text: str = ""
    mode: Literal["fast", "slow"] = "fast"
    leaf: Leaf | None = None
    leaves: tuple[Leaf, ...] = ()
    one_or_many: Leaf | tuple[Leaf, ...] = ()
    pair: tuple[int, str] = (0, "")
    table: dict[str, float] = field(default_factory=dict)
    shape: Round | Square | None = None
    size_or_all: int | Literal["all"] | None = "all"
    label: str | None = None
    style: Literal["none", "bold"] | None = "bold"
    anything: Any = None


FULL = {
    "count": 4,
    "rate": 2,
    "flag": True,
    "text": "x",
    "mode": "slow",
    "leaf": {"size": 1},
    "leaves": [{"size": 1, "name": "a"}, {"size": 2}],
    "one_or_many": [{"size": 3}],
    "pair": [7, "b"],
    "table": {"p": 1, "q": 0.5},
    "shape": {"kind": "square", "side": 2},
    "size_or_all": 5,
    "label": "l",
    "style": "none",
    "anything": [1, {"two": None}],
}


def test_a_table_without_its_kind_is_the_one_class_that_has_its_fields():
    """As files say that were written while there was one class."""
    assert from_mapping(Tree, {"shape": {"side": 1}}).shape == Square(side=1)


def test_every_kind_of_field_is_read():
    tree = from_mapping(Tree, FULL)
    assert tree == Tree(
        count=4,
        rate=2.0,
        flag=True,
        text="x",
        mode="slow",
        leaf=Leaf(size=1),
        leaves=(Leaf(size=1, name="a"), Leaf(size=2)),
        one_or_many=(Leaf(size=3),),
        pair=(7, "b"),
        table={"p": 1.0, "q": 0.5},
        shape=Square(side=2),
        size_or_all=5,
        label="l",
        style="none",
        anything=[1, {"two": None}],
    )
    assert type(tree.rate) is float
    assert type(tree.table["p"]) is float


def test_what_is_written_is_read_back_equal():
    for mapping in (FULL, {}, {"one_or_many": {"size": 1}}, {"size_or_all": None, "style": None}):
        tree = from_mapping(Tree, mapping)
        assert from_mapping(Tree, to_mapping(tree)) == tree


def test_ready_made_objects_inside_a_mapping_are_taken_as_they_are():
    leaf, square = Leaf(size=9), Square()
    tree = from_mapping(Tree, {"leaf": leaf, "leaves": (leaf,), "shape": square, "one_or_many": leaf})
    assert tree.leaf is leaf
    assert tree.shape is square
    assert tree.one_or_many is leaf


def test_none_can_be_said_in_a_format_without_null_where_no_text_is_meant():
    tree = from_mapping(
        Tree, {"leaf": "none", "shape": "none", "size_or_all": "none", "label": "none", "style": "none"}
    )
    assert (tree.leaf, tree.shape, tree.size_or_all) == (None, None, None)
    assert tree.label == "none", "a text"
    assert tree.style == "none", "a choice of that name"
    with pytest.raises(ValueError, match="count: expected int, got 'none'"):
        from_mapping(Tree, {"count": "none"})


WRONG = [
    ({"cuont": 1}, r"Tree: unknown key 'cuont'\. Did you mean 'count'\?"),
    ({"zzz": 1}, r"Tree: unknown key 'zzz'\. Known: anything, count"),
    ({"leaf": {}}, r"Tree\.leaf: key 'size' is missing and has no default"),
    ({"leaf": {"size": 1, "sise": 2}}, r"Tree\.leaf: unknown key 'sise'\. Did you mean 'size'"),
    ({"leaves": [{"size": 1}, {"size": "2"}]}, r"Tree\.leaves\[1\]\.size: expected int, got '2' \(str\)"),
    ({"one_or_many": [{"size": 1}, {"sise": 2}]}, r"Tree\.one_or_many\[1\]: unknown key 'sise'\. Did you mean 'size'"),
    ({"one_or_many": {"sise": 2}}, r"Tree\.one_or_many: unknown key 'sise'"),
    ({"one_or_many": 3}, r"Tree\.one_or_many: expected a table .*; or Tree\.one_or_many: expected a list, got 3"),
    ({"count": 1.0}, r"count: expected int, got 1\.0 \(float\)"),
    ({"count": True}, r"count: expected int, got True \(bool\)"),
    ({"count": None}, r"count: expected int, got None"),
    ({"rate": "1e-3"}, r"rate: expected float, got '1e-3' \(str\)"),
    ({"rate": False}, r"rate: expected float, got False \(bool\)"),
    ({"flag": 1}, r"flag: expected bool, got 1 \(int\)"),
    ({"flag": "true"}, r"flag: expected bool, got 'true'"),
    ({"text": 3}, r"text: expected str, got 3"),
    ({"mode": "fats"}, r"mode: expected one of 'fast', 'slow', got 'fats'"),
    ({"mode": ["fast"]}, r"mode: expected one of 'fast', 'slow', got \['fast'\]"),
    ({"leaves": {"size": 1}}, r"leaves: expected a list, got \{'size': 1\}"),
    ({"leaf": [1]}, r"leaf: expected a table of Leaf fields, got \[1\]"),
    ({"pair": [1]}, r"pair: expected a list of 2 items, got 1"),
    ({"pair": [1, 2]}, r"pair\[1\]: expected str, got 2"),
    ({"table": [1]}, r"table: expected a table, got \[1\]"),
    ({"table": {"p": "x"}}, r"table\.p: expected float, got 'x'"),
    ({"shape": {"width": 1}}, r"shape\.kind: unknown or missing kind None\. Known: round, square"),
    ({"shape": {"kind": "sqare"}}, r"shape\.kind: unknown or missing kind 'sqare'\. Did you mean 'square'"),
    ({"shape": {"kind": "round", "side": 1}}, r"shape: unknown key 'side'"),
    ({"shape": {"kind": "square", "side": -1}}, r"Tree\.shape: side must not be negative, got -1"),
    ({"size_or_all": "some"}, r"size_or_all: expected int, .*; or .*expected one of 'all', got 'some'"),
    ({"size_or_all": True}, r"size_or_all: expected int, got True"),
]


@pytest.mark.parametrize(("mapping", "message"), WRONG)
def test_a_wrong_value_is_named_with_its_place(mapping, message):
    with pytest.raises(ValueError, match=message):
        from_mapping(Tree, mapping)


def test_the_place_can_be_a_file():
    with pytest.raises(ValueError, match=r"^recipe\.toml: tree\.leaf\.size: expected int"):
        from_mapping(Tree, {"leaf": {"size": "x"}}, "recipe.toml: tree")
    with pytest.raises(ValueError, match=r"^recipe\.toml: expected a table of Tree fields, got \[\]"):
        from_mapping(Tree, [], "recipe.toml")
    with pytest.raises(ValueError, match=r"^here: side must not be negative"):
        from_mapping(Square, {"side": -1}, "here")
    with pytest.raises(ValueError, match=r"^side must not be negative"):
        from_mapping(Square, {"side": -1})


def test_a_field_that_no_recipe_can_hold_is_a_programming_error():
    @dataclass
    class Odd:
        callback: complex = 0j

    with pytest.raises(TypeError, match="cannot be read from a recipe"):
        from_mapping(Odd, {"callback": 1})


def test_choices_are_checked_for_objects_that_no_recipe_made():
    check_choices(Tree())
    check_choices(Tree(size_or_all=None, style=None))
    for wrong, message in (
        ({"mode": "fats"}, "mode: expected one of 'fast', 'slow', got 'fats'"),
        ({"size_or_all": "each"}, "expected one of 'all', got 'each'"),
        ({"style": "italic"}, "expected one of 'none', 'bold', got 'italic'"),
    ):
        with pytest.raises(ValueError, match=message):
            check_choices(Tree(**wrong))


def test_suggestions_name_the_nearest_or_all():
    assert did_you_mean("stanard", ["standard", "twicing"]) == " Did you mean 'standard'?"
    assert did_you_mean("q", ["standard", "boosted"]) == " Known: boosted, standard."
