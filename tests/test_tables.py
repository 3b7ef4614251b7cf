"""The generated parts of README and docs are what the declarations and results say."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from scripts import tables


def test_no_generated_table_is_stale():
    stale = [str(path.relative_to(tables.ROOT)) for path in tables.stale_files()]
    assert stale == [], "run `make tables`"


def test_a_stale_part_is_replaced_and_the_rest_is_kept():
    text = "before\n<!-- begin a -->\nold\n<!-- end a -->\nafter\n"
    assert tables.render(text, "a", "new\n") == "before\n<!-- begin a -->\nnew\n<!-- end a -->\nafter\n"


def test_a_missing_part_is_an_error():
    with pytest.raises(ValueError, match="begin b"):
        tables.render("nothing here", "b", "new\n")
