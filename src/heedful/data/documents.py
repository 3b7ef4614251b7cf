"""Where documents begin inside a stream of lines.

| rule | a document is |
|---|---|
| `file` | a whole file |
| `wikitext` | an article: it begins at a line ` = Title = ` between blank lines (sections are ` = = Section = = `) |
| `paragraph` | a run of lines up to and including the blank lines after it |
| `line` | a line and the blank lines after it |

Documents lose nothing: joined, they are the file again, since blank lines belong to the document before them (those at
the top of a file to its first document). A file of white space alone holds no document.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

# Sections have a second "=" after the first, so "= " followed by anything else is a title.
_WIKITEXT_TITLE = re.compile(r" ?= [^=\s].* = *\r?\n?")


def documents_in(lines: Iterable[str], rule: str) -> Iterator[str]:
    """Yield the documents of one file in order.

    Args:
        lines: the file's lines, each with its line end.
        rule: `"file"`, `"wikitext"`, `"paragraph"` or `"line"` (`"auto"` is resolved by the corpus).

    At most one document is held in memory.
    """
    held: list[str] = []
    holds_text = False
    after_blank = True
    for line, next_is_blank in _with_next(lines):
        blank = not line.strip()
        if holds_text and not blank and _begins(rule, line, after_blank, next_is_blank):
            yield "".join(held)
            held = []
        held.append(line)
        holds_text = holds_text or not blank
        after_blank = blank
    if holds_text:
        yield "".join(held)


def looks_like_wikitext(lines: Iterable[str]) -> bool:
    """Return whether the first line that is not blank is the title of a WikiText article."""
    after_blank = True
    for line, next_is_blank in _with_next(lines):
        if line.strip():
            return _begins("wikitext", line, after_blank, next_is_blank)
    return False


def _begins(rule: str, line: str, after_blank: bool, next_is_blank: bool) -> bool:
    if rule == "wikitext":
        return after_blank and next_is_blank and _WIKITEXT_TITLE.fullmatch(line) is not None
    return rule == "line" or (rule == "paragraph" and after_blank)


def _with_next(lines: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Yield each line with whether a blank line or the end of the file follows it."""
    iterator = iter(lines)
    try:
        current = next(iterator)
    except StopIteration:
        return
    for following in iterator:
        yield current, not following.strip()
        current = following
    yield current, True
