"""The picture of where attention rounds look when the first rounds alone are wrong, from
`heedful.study.round_maps.where_rounds_look`.
"""

from __future__ import annotations

from typing import Any

from heedful.study.svg import FAINT, INK, NEGATIVE, POSITIVE, SURFACE, figure, to_svg

TITLE = "Where the rounds look when the first is wrong"
PANELS = {
    "distance": "mean distance looked back (tokens)",
    "entropy": "entropy of the weights (nats)",
    "neglected": "weight where round 0 gives little",
}
WIDTH = 860
KINDS = {"wrong": (NEGATIVE, -0.13), "right": (POSITIVE, 0.13)}


def look_pictures(arm: str, attention: dict[str, Any] | None) -> list[dict[str, str]]:
    """Return the picture of one arm as `{"title", "caption", "svg"}`; none for a model of one round.

    Args:
        arm: its name.
        attention: what `heedful.study.round_maps.attention_findings` returned.
    """
    if not attention or not attention["where"]:
        return []
    return [{"title": TITLE, "caption": _caption(attention["where"]), "svg": _looks(f"{TITLE}, of {arm}", attention)}]


def _caption(where: dict[str, Any]) -> str:
    parts = len(where["layers"][0]["rounds"][0]["distance"]["by_part"])
    return (
        f"Orange: positions where the model with its first rounds only (every correction left out) predicts the next "
        f"token wrongly, {where['wrong']:,} of {where['positions']:,}; blue: where it predicts it rightly. With the "
        f"corrections {where['wrong_with_all']:,} are wrong. Diamonds: all positions; dots: {parts} parts of the text "
        f"alone. Only positions from {where['from']} on count, so that there is text to look back at. Little: less "
        "than an even look back would give. A single model: no test, and hard positions differ from easy ones also in "
        "what stands before them."
    )


def _looks(label: str, attention: dict[str, Any]) -> str:
    layers = attention["where"]["layers"]
    lines = [
        (f"layer {item['layer']}, round {index}", one) for item in layers for index, one in enumerate(item["rounds"])
    ]
    with figure(WIDTH, 66 + 36 * len(lines), columns=len(PANELS)) as (drawing, panels):
        for panel, (axes, (key, title)) in enumerate(zip(panels, PANELS.items(), strict=True)):
            for row, (_, one) in enumerate(lines):
                for kind, (colour, shift) in KINDS.items():
                    single = [values[kind] for values in one[key]["by_part"] if values[kind] is not None]
                    axes.plot(single, [row + shift] * len(single), "o", color=colour, alpha=0.45, markersize=4.5,
                              markeredgewidth=0)  # fmt: skip
                    if one[key][kind] is not None:
                        axes.plot(one[key][kind], row + shift, "D", color=colour, markersize=7, markeredgecolor=SURFACE)
            names = [name for name, _ in lines] if panel == 0 else []
            axes.set_yticks(range(len(lines)), names or [""] * len(lines))
            axes.set_ylim(len(lines) - 0.5, -0.5)
            axes.tick_params(axis="y", length=0)
            axes.grid(visible=False, axis="y")
            axes.set_xlabel(title, fontsize=10)
            axes.set_xlim(left=0)
            for row in range(1, len(layers)):  # a line between layers
                axes.axhline(row * len(lines) / len(layers) - 0.5, color=FAINT, linewidth=0.6, alpha=0.5)
            axes.spines["left"].set_color(INK if panel == 0 else FAINT)
        return to_svg(drawing, label)
