from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heedful.data.documents import documents_in, looks_like_wikitext

RULES = ["file", "wikitext", "paragraph", "line"]
WIKITEXT = (
    " \n = First = \n \n Text . \n \n = = Section = = \n \n More = text = here . \n \n = Second one = \n \n End . \n"
)


def lines(text: str) -> io.StringIO:
    return io.StringIO(text, newline="\n")


@given(st.lists(st.sampled_from(["\n", " \n", " = A = \n", " = = B = = \n", "word\n", " two words\r\n", "last"])))
@pytest.mark.parametrize("rule", RULES)
def test_the_documents_of_a_text_joined_are_the_text(rule: str, parts: list[str]) -> None:
    text = "".join(parts)
    documents = list(documents_in(lines(text), rule))
    assert all(document.strip() for document in documents)
    assert "".join(documents) == (text if text.strip() else "")


def test_a_wikitext_document_begins_at_a_title_but_not_at_a_section() -> None:
    first, second = documents_in(lines(WIKITEXT), "wikitext")
    assert first.startswith(" \n = First = \n")
    assert "Section" in first
    assert second == " = Second one = \n \n End . \n"


def test_a_title_like_line_inside_a_paragraph_begins_no_document() -> None:
    for inside in ("Text . \n = not a title = \n \n", " \n = not a title = \n Text . \n"):
        assert len(list(documents_in(lines(f" = First = \n \n{inside}"), "wikitext"))) == 1


def test_paragraphs_end_at_blank_lines_and_lines_at_line_ends() -> None:
    text = "\na\nb\n\n\nc\n"
    assert list(documents_in(lines(text), "paragraph")) == ["\na\nb\n\n\n", "c\n"]
    assert list(documents_in(lines(text), "line")) == ["\na\n", "b\n\n\n", "c\n"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [(WIKITEXT, True), (" = Title = \n", True), ("Text\n\n = Title = \n\n", False), ("\n\n", False), ("", False)],
)
def test_wikitext_is_told_by_its_first_line_of_text(text: str, expected: bool) -> None:
    assert looks_like_wikitext(lines(text)) is expected
