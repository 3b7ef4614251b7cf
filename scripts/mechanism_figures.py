"""The figures of docs/pictures.md: what the mechanisms learned, from a committed comparison, and retrieval in the
plane, computed by `scripts.fixed_points`.

As in `scripts.benchmark_plots`, a comment at a figure's end names what it was drawn from and tells whether it is up to
date.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from heedful.papers.language_models import STUDIES, size
from heedful.study.attention_plots import attention_pictures, example_picture
from heedful.study.gate_plots import gate_pictures
from heedful.study.look_plots import look_pictures
from heedful.study.mechanism_plots import mechanism_pictures
from scripts import fixed_points
from scripts.figures import FIGURES, STUDY, drawn_from, is_stale, stand_alone
from scripts.result_words import largest, missing, provenance

# Which arms are shown, and which of their pictures by the beginning of their titles.
SHOWN = {
    "boosted": ("Gate", "Where", "An example", "Attention", "Heads"),
    "multi-token": ("Key-query", "Head mixing", "Attention"),
    "standard": ("Attention",),
}
DRAWN_BY = [STUDY / f"{name}_plots.py" for name in ("mechanism", "gate", "look", "attention")]
COMPUTED: dict[str, Callable[[], str]] = {
    "fixed-points": fixed_points.fixed_point_figure,
    "boosted-retrieval": fixed_points.rounds_figure,
}


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
    """Return the generated part of docs/pictures.md with the pictures of the largest committed comparison."""
    found = largest(STUDIES)
    if found is None:
        return missing(STUDIES[-1]) + "\n"
    name, result = found
    lines = [
        f"Of the first seed ({result['recipe']['seeds'][0]}) of each arm ({size(result)}), on "
        f"{result['probe_tokens']:,} tokens of the test split. {provenance(name, result)}"
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
        path = FIGURES / f"{name}.svg"
        mark = drawn_from("", STUDY / "fixed_point_plots.py", Path(fixed_points.__file__))
        if is_stale(path, mark):
            stale[path] = stand_alone(draw()) + mark
    found = largest(STUDIES)
    for picture in [] if found is None else learned_pictures(found[1]):
        path, mark = FIGURES / picture["file"], drawn_from(picture["data"], *DRAWN_BY)
        if is_stale(path, mark):
            stale[path] = stand_alone(picture["svg"]) + mark
    return stale
