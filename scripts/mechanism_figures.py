"""The figures of docs/pictures.md: what the mechanisms learned, from a committed comparison, and retrieval in the
plane, computed by `scripts.fixed_points`.

As in `scripts.benchmark_plots`, a comment at a figure's end names what it was drawn from and tells whether it is up to
date.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import heedful.study
from heedful.study.attention_plots import attention_pictures, example_picture
from heedful.study.gate_plots import gate_pictures
from heedful.study.look_plots import look_pictures
from heedful.study.mechanism_plots import mechanism_pictures
from scripts import fixed_points
from scripts.result_words import ROOT, load, missing, provenance

FIGURES = ROOT / "docs/figures"
STUDY = Path(heedful.study.__file__).parent
RESULT = "language-models-small"
# Which arms are shown, and which of their pictures by the beginning of their titles.
SHOWN = {
    "boosted": ("Gate", "Where", "An example", "Attention", "Heads"),
    "multi-token": ("Key-query", "Head mixing", "Attention"),
    "standard": ("Attention",),
}
DRAWN_BY = ("mechanism_plots.py", "gate_plots.py", "look_plots.py", "attention_plots.py")
COMPUTED: dict[str, Callable[[], str]] = {
    "fixed-points": fixed_points.fixed_point_figure,
    "boosted-retrieval": fixed_points.rounds_figure,
}


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


def learned_pictures(result: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Yield the pictures of a comparison that the docs show, with "arm", "file" and "data" of each."""
    arms = {arm["name"]: arm for arm in result["arms"]}
    for name, titles in SHOWN.items():
        if name not in arms:
            continue
        layers, attention = arms[name]["diagnostics"], arms[name].get("attention_maps")
        data = json.dumps([layers, attention], sort_keys=True)
        pictures = [
            *(mechanism_pictures(name, layers) if layers else []),
            *gate_pictures(name, layers),
            *look_pictures(name, attention),
            *example_picture(name, attention),
            *attention_pictures(name, attention),
        ]
        for picture in pictures:
            if picture["title"].startswith(titles):
                slug = "-".join(f"{name} {picture['title']}".lower().replace(",", "").split())
                yield {**picture, "arm": name, "file": f"{slug}.svg", "data": data}


def learned_part() -> str:
    """Return the generated part of docs/pictures.md with the pictures of the committed comparison."""
    result = load(RESULT)
    if result is None:
        return missing(RESULT) + "\n"
    lines = [
        f"Of the first seed ({result['recipe']['seeds'][0]}) of each arm, on {result['probe_tokens']:,} tokens of the "
        f"test split. {provenance(RESULT, result)}"
    ]
    arm = ""
    for picture in learned_pictures(result):
        if picture["arm"] != arm:
            arm = picture["arm"]
            lines += ["", f"### {arm}"]
        title = f"{picture['title']} ({arm})"
        lines += ["", f"**{picture['title']}.** {picture['caption']}", "", f"![{title}](figures/{picture['file']})"]
    return "\n".join(lines) + "\n"


def computed_part() -> str:
    """Return the generated part of docs/pictures.md that says how the computed figures were computed."""
    betas = ", ".join(f"{beta:g}" for beta in fixed_points.BETAS)
    return (
        f"Seed {fixed_points.SEED}, {fixed_points.PATTERNS} patterns on the unit circle, β = {betas}. The retrieval "
        f"has {fixed_points.ROUNDS} rounds with keys of width {fixed_points.KEY_WIDTH} and a gate network; it was "
        f"trained for {fixed_points.STEPS} steps of {fixed_points.BATCH} queries (a pattern plus normal noise of "
        f"{fixed_points.NOISE:g} in each direction) on the squared distance of the last estimate to the pattern. "
        f"Squared distances are means over {fixed_points.HELD_OUT:,} further queries.\n"
    )


def stale_mechanism_figures() -> dict[Path, str]:
    """Return the figures that were not drawn from the results and the code as they are, drawn anew."""
    stale = {}
    for name, draw in COMPUTED.items():
        path, mark = FIGURES / f"{name}.svg", _mark("", STUDY / "fixed_point_plots.py", Path(fixed_points.__file__))
        if _is_stale(path, mark):
            stale[path] = stand_alone(draw()) + mark
    result = load(RESULT)
    for picture in [] if result is None else learned_pictures(result):
        path, mark = FIGURES / picture["file"], _mark(picture["data"], *(STUDY / name for name in DRAWN_BY))
        if _is_stale(path, mark):
            stale[path] = stand_alone(picture["svg"]) + mark
    return stale


def _mark(data: str, *code: Path) -> str:
    """Return the comment that says what a figure was drawn from: data, and code that draws."""
    common = [STUDY / "svg.py", STUDY / "templates/report.css"]
    content = b"".join(path.read_bytes() for path in [*common, *code])
    return f"<!-- drawn from {hashlib.sha256(data.encode() + content).hexdigest()[:16]} -->\n"


def _is_stale(path: Path, mark: str) -> bool:
    return not path.exists() or mark not in path.read_text(encoding="utf-8")
