"""Write the generated tables into README and docs, and the figures of docs: support, benchmarks, results.

A generated part stands between `<!-- begin NAME -->` and `<!-- end NAME -->`. `--check` writes nothing and fails where
a file is stale.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from heedful.files import write_text_atomically
from heedful.study.headline import headline
from heedful.study.table import columns, rows
from heedful.support import PART_COMBINATIONS, support_table
from scripts.benchmark_plots import figure_name, mark_of, multi_token_figure
from scripts.benchmark_tables import (
    decode_tables,
    layer_tables,
    model_step_tables,
    multi_token_tables,
    results_of,
    tile_step_tables,
)
from scripts.claim_tables import claim_table
from scripts.data_tables import loader_tables, preparation_tables
from scripts.fault_table import fault_table
from scripts.long_context_tables import long_babi_table, needles_table, stale_heat_maps
from scripts.mechanism_figures import computed_part, learned_part, stale_mechanism_figures
from scripts.paper_pages import paper_parts
from scripts.result_words import RESULTS, load, missing, provenance
from scripts.scale_tables import checkpoint_tables, cost_tables, memory_tables, traffic_tables
from scripts.speed_tables import loop_overhead_tables, loss_memory_tables, profile_step_tables
from scripts.strategy_table import strategy_table
from scripts.tolerance_table import stale_tolerance_figure
from scripts.zero_shot_tables import lm_eval_table, one_epoch_table, zero_shot_table

ROOT = Path(__file__).parent.parent
RESULTS_PAGE = ROOT / "docs/results/index.md"
COMPARISONS = ("language-models-one-epoch", "language-models-small", "demo", "demo-find-the-block")


def generated_parts() -> dict[Path, dict[str, Callable[[], str]]]:
    """Return the files with generated parts, and what belongs into each."""
    papers = paper_parts()
    comparisons = {name: partial(comparison_table, name) for name in COMPARISONS}
    return {
        ROOT / "README.md": {"support": lambda: support_table(details=False), "demo": lambda: comparison_table("demo")},
        ROOT / "docs/support.md": {
            "support": lambda: support_table(details=True),
            "support-parts": lambda: support_table(PART_COMBINATIONS, details=False),
        },
        ROOT / "docs/benchmarks.md": {
            "layers": layer_tables,
            "multi-token": multi_token_tables,
            "decode": decode_tables,
            "model-step": model_step_tables,
            "tile-steps": tile_step_tables,
        },
        ROOT / "docs/claims.md": {"claims": claim_table},
        ROOT / "docs/data.md": {"loader": loader_tables, "preparation": preparation_tables},
        ROOT / "docs/faults.md": {"faults": fault_table},
        ROOT / "docs/parallel.md": {"strategies": strategy_table},
        ROOT / "docs/speed.md": {
            "profile-step": profile_step_tables,
            "loss-memory": loss_memory_tables,
            "loop-overhead": loop_overhead_tables,
        },
        ROOT / "docs/scale.md": {
            "scale-cost": cost_tables,
            "scale-memory": memory_tables,
            "scale-traffic": traffic_tables,
            "scale-checkpoints": checkpoint_tables,
        },
        ROOT / "docs/pictures.md": {"computed": computed_part, "learned": learned_part},
        ROOT / "docs/long-context.md": {"needles": needles_table, "long-babi": long_babi_table},
        ROOT / "docs/zero-shot.md": {
            "zero-shot": zero_shot_table,
            "zero-shot-one-epoch": one_epoch_table,
            "zero-shot-in-lm-eval": lm_eval_table,
        },
        ROOT / "docs/upcycling.md": {"upcycling": upcycling_table},
        **papers,
        RESULTS_PAGE: {**papers[RESULTS_PAGE], **comparisons},
    }


def comparison_table(name: str, folder: Path = RESULTS) -> str:
    """Return headline and table of the committed comparison results/NAME.json, and where it comes from."""
    result = load(name, folder)
    if result is None:
        return missing(name) + "\n"
    headers = ["arm", *columns(result)]
    lines = [f"| {' | '.join(headers)} |", "|---|" + "--:|" * (len(headers) - 1)]
    for row in rows(result):
        cells = [f"{cell.text}<br>{cell.remark}" if cell.remark else cell.text for cell in row.cells]
        lines.append(f"| {row.arm} | {' | '.join(cells)} |")
    return "\n".join([" ".join(headline(result)), "", *lines, "", provenance(name, result)]) + "\n"


def upcycling_table() -> str:
    """Return the figures of the committed run of examples/upcycle_llama.py, and where they come from."""
    name = "upcycling-wiki2015"
    result = json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))
    settings, environment, parameters = result["settings"], result["environment"], result["parameters"]
    lines = [
        f"`{settings['add']}`: {parameters['new']:,} new of {parameters['all']:,} parameters. Largest logit difference "
        f"at step 0: {result['largest logit difference at step 0']:.2g} (largest logit {result['largest logit']:.3g}).",
        "",
        f"| held-out loss, nats per token | before | after {settings['steps']} steps |",
        "|---|--:|--:|",
        *(f"| {arm} | {result[arm]['before']:.4f} | {result[arm]['after']:.4f} |" for arm in ("plain", "upcycled")),
        "",
        f"Upcycled better by {result['upcycled better by']:.4f} ± {result['standard error over rows']:.4f} (standard "
        f"error over {result['held-out rows']} rows; one seed, so training noise is not in it).",
        "",
        f"`{environment['command']}`, {environment['cpu']}, {environment['threads']} threads, commit "
        f"{environment['source']['commit'][:10]}; all figures in `results/{name}.json`.",
    ]
    return "\n".join(lines) + "\n"


def render(text: str, name: str, content: str) -> str:
    """Return `text` with the part called `name` replaced."""
    pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"no part <!-- begin {name} --> ... <!-- end {name} --> to fill.")
    return pattern.sub(lambda match: match[1] + content + match[2], text)


def stale_files() -> dict[Path, str]:
    """Return the generated files and those with generated parts that differ from what they should be, with their new
    text.
    """
    stale = stale_figures()
    for path, parts in generated_parts().items():
        old = new = path.read_text(encoding="utf-8")
        for name, content in parts.items():
            new = render(new, name, content())
        if new != old:
            stale[path] = new
    return stale


def stale_figures() -> dict[Path, str]:
    """Return the figures that were not drawn from the results as they are, drawn anew."""
    stale = stale_tolerance_figure() | stale_mechanism_figures() | stale_heat_maps()
    for file, result in results_of("multi-token").items():
        path = ROOT / "docs/figures" / figure_name(file)
        if not path.exists() or mark_of(result) not in path.read_text(encoding="utf-8"):
            stale[path] = multi_token_figure(result)
    return stale


def main() -> int:
    """Write or check."""
    stale = stale_files()
    for path, text in stale.items():
        if "--check" in sys.argv[1:]:
            print(f"{path.relative_to(ROOT)} is stale; run make tables")
        else:
            write_text_atomically(path, text)
            print(f"wrote {path.relative_to(ROOT)}")
    return 1 if stale and "--check" in sys.argv[1:] else 0


if __name__ == "__main__":
    sys.exit(main())
