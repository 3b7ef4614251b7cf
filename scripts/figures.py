"""Figures of the docs as files of their own.

A comment at the end of each says what it was drawn from, so that it is drawn anew when that changes, and not when
another machine would draw the same lines a little differently.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import heedful.study
from scripts.result_words import ROOT

FIGURES = ROOT / "docs/figures"
STUDY = Path(heedful.study.__file__).parent


def stand_alone(svg: str) -> str:
    """Return a figure of the report as a file of its own: with the page's colours, light and dark, on their surface."""
    colours = (STUDY / "templates/report.css").read_text(encoding="utf-8").split("* {")[0]
    start = svg.index('viewBox="') + len('viewBox="')
    _, _, width, height = svg[start : svg.index('"', start)].split()
    margin = 12
    box = f"{-margin} {-margin} {float(width) + 2 * margin:g} {float(height) + 2 * margin:g}"
    opening, body = svg.split('">', 1)
    opening = opening.replace(f'viewBox="0 0 {width} {height}"', f'viewBox="{box}"')
    opening = opening.replace("<svg", f'<svg xmlns="http://www.w3.org/2000/svg" width="{float(width) + 2 * margin:g}"')
    style = f"<style>{colours}text {{ font-family: system-ui, sans-serif; }}</style>"
    ground = f'<rect x="{-margin}" y="{-margin}" width="100%" height="100%" style="fill: var(--surface)"/>'
    return f'{opening}">{style}{ground}{body}\n'


def drawn_from(data: str, *code: Path) -> str:
    """Return the comment that says what a figure was drawn from: data, and code that draws."""
    common = [STUDY / "svg.py", STUDY / "templates/report.css"]
    content = b"".join(path.read_bytes() for path in [*common, *code])
    return f"<!-- drawn from {hashlib.sha256(data.encode() + content).hexdigest()[:16]} -->\n"


def is_stale(path: Path, mark: str) -> bool:
    """Return whether a figure is missing or was drawn from something else."""
    return not path.exists() or mark not in path.read_text(encoding="utf-8")
