"""The generated parts of README and docs are what the declarations and results say."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from scripts import gains_answer, tables
from scripts.result_words import RESULTS


def test_no_generated_table_is_stale():
    stale = [str(path.relative_to(tables.ROOT)) for path in tables.stale_files()]
    assert stale == [], "run `make tables`"


def test_a_stale_part_is_replaced_and_the_rest_is_kept():
    text = "before\n<!-- begin a -->\nold\n<!-- end a -->\nafter\n"
    assert tables.render(text, "a", "new\n") == "before\n<!-- begin a -->\nnew\n<!-- end a -->\nafter\n"


def test_a_missing_part_is_an_error():
    with pytest.raises(ValueError, match="begin b"):
        tables.render("nothing here", "b", "new\n")


LARGE, SMALL = "language-models-one-epoch", "language-models-small"


def results_page(folder):
    """The first page of results as it is with the studies of `folder`."""
    text = tables.RESULTS_PAGE.read_text(encoding="utf-8")
    for name in (LARGE, SMALL):
        text = tables.render(text, name, tables.comparison_table(name, folder))
    return tables.render(text, "gains", gains_answer.answer_part(folder))


def test_the_page_of_results_follows_the_studies_that_are_there(tmp_path):
    """The small result stands in for the large one; a page made before it came, or without it, is stale."""
    text = (RESULTS / f"{SMALL}.json").read_text(encoding="utf-8")
    (tmp_path / f"{SMALL}.json").write_text(text, encoding="utf-8")
    alone = results_page(tmp_path)
    not_run = f"Not run yet: `heedful compare recipes/{LARGE}.toml` makes `results/{LARGE}.json`."
    assert not_run in alone
    assert "### The studies beside each other" not in alone
    large = json.loads(text.replace("standard-deep-all-three", "standard-wide-all-three").replace(SMALL, LARGE))
    (tmp_path / f"{LARGE}.json").write_text(json.dumps(large), encoding="utf-8")
    both = results_page(tmp_path)
    assert not_run not in both
    assert both.count("\n| standard-wide-all-three |") == both.count("\n| standard-deep-all-three |") == 1
    assert "### The studies beside each other" in both
    assert both.index(f"`results/{LARGE}.json`") < both.index(f"`results/{SMALL}.json`")
    (tmp_path / f"{LARGE}.json").unlink()
    assert results_page(tmp_path) == alone
