"""The tables of docs/benchmarks.md, printed from results/benchmarks; a part without results says how to measure it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from scripts.benchmark_plots import figure_name

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results/benchmarks"
Result = dict[str, Any]
KINDS = {"forward": "Forward", "training": "Forward and backward"}
LEVELS = {"decode operation": "operation", "decode layer": "layer", "decode model": "model of four layers"}


def results_of(prefix: str, folder: Path = RESULTS) -> dict[Path, Result]:
    """Return the results whose file names begin so, in the order of the names."""
    return {file: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob(f"{prefix}-*.json"))}


def missing(module: str) -> str:
    """Say that nothing was measured, and how to."""
    return f"not measured yet: `python -m benchmarks.{module} --device cpu`\n"


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], texts: int) -> str:
    """Return a Markdown table whose first `texts` columns are text."""
    rule = "---|" * texts + "--:|" * (len(headers) - texts)
    return "\n".join([f"| {' | '.join(headers)} |", f"|{rule}", *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def source(file: Path, result: Result, shape: str) -> str:
    """Say where a table comes from."""
    dirty = ", with changes that were not committed" if result["dirty"] else ""
    return (
        f"**{result['machine']}**, {result['dtype']}, {shape}, commit {result['commit'][:10]}{dirty} "
        f"(`results/benchmarks/{file.name}`; `{result['command']}`)."
    )


def layer_tables(folder: Path = RESULTS) -> str:
    """Return one table per result of `benchmarks/layers.py`."""
    parts = []
    for file, result in results_of("layers", folder).items():
        shape = f"batch {result['batch']}, {result['heads']} heads of {result['head_dim']}"
        parts.append(
            f"{source(file, result, shape)} Medians, as multiples of standard attention (SDPA) in the same run.\n"
        )
        lengths = sorted({row["length"] for row in result["rows"]})
        found = {(row["mechanism"], row["length"]): row for row in result["rows"]}
        lines = []
        for mechanism in dict.fromkeys(row["mechanism"] for row in result["rows"]):
            own = [found.get((mechanism, n)) for n in lengths]
            backends = dict.fromkeys(row["backend"] for row in own if row)
            cells = [
                f"{row[kind]:.2f}" if row else "not run"
                for row in own
                for kind in ("forward_ratio", "training_ratio", "memory_ratio")
            ]
            lines.append([mechanism, ", ".join(backends), *cells])
        heads = [f"N={n} {what}" for n in lengths for what in ("forward", "forward + backward", "peak memory")]
        parts.append(table(["mechanism", "backend", *heads], lines, 2))
    return "\n".join(parts) + "\n" if parts else missing("layers")


def multi_token_tables(folder: Path = RESULTS) -> str:
    """Return the tables of time and memory of every result of `benchmarks/multi_token.py`, and its figure."""
    parts = []
    for file, result in results_of("multi-token", folder).items():
        batches = ", ".join(f"{batch} at N={length}" for length, batch in result["batch"].items())
        if len(set(result["batch"].values())) == 1:
            batches = str(next(iter(result["batch"].values())))
        parts.append(source(file, result, f"batch {batches}, {result['heads']} heads of {result['head_dim']}") + "\n")
        for kind, title in KINDS.items():
            rows = [row for row in result["rows"] if row["kind"] == kind]
            if rows:
                parts.append(f"{title}, time as a multiple of SDPA's:\n\n{_operation_table(rows)}")
        rows = [row for row in result["rows"] if row["kind"] == "memory"]
        if rows:
            parts.append(f"Peak memory of forward and backward, inputs not counted:\n\n{_memory_table(rows)}")
            parts.append(f"![Time and memory against N](figures/{figure_name(file)})\n")
    return "\n".join(parts) + "\n" if parts else missing("multi_token")


def _by_form(rows: list[Result]) -> tuple[list[int], dict[tuple[str, str], dict[int, Result]]]:
    """Return the lengths, and for each case and implementation its rows by length."""
    forms: dict[tuple[str, str], dict[int, Result]] = {}
    for row in rows:
        forms.setdefault((row["case"], row["implementation"]), {})[row["length"]] = row
    order = {case: number for number, case in enumerate(dict.fromkeys(row["case"] for row in rows))}
    return sorted({row["length"] for row in rows}), dict(sorted(forms.items(), key=lambda item: order[item[0][0]]))


def _operation_table(rows: list[Result]) -> str:
    lengths, forms = _by_form(rows)
    lines = []
    for (case, name), own in forms.items():
        cells = [_time_cell(own.get(n), absolute=name == "sdpa") for n in lengths]
        targets = [f"N={n}: {own[n]['target']:g}" for n in lengths if n in own and own[n].get("target")]
        lines.append([case, name, *cells, ", ".join(targets)])
    notes = _refusals(rows)
    return table(["case", "implementation", *(f"N={n}" for n in lengths), "target"], lines, 2) + notes


def _time_cell(row: Result | None, *, absolute: bool) -> str:
    if row is None or "not_run" in row:
        return "–"
    return f"{row['ratio']:.2f} ({1000 * row['seconds']:.3g} ms)" if absolute else f"{row['ratio']:.2f}"


def _refusals(rows: list[Result]) -> str:
    """List why figures are missing, each reason once."""
    reasons: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        if "not_run" in row:
            reasons.setdefault((row["implementation"], row["not_run"]), []).append(row["length"])
    listed = [
        f"{name} at N={', '.join(map(str, sorted(set(lengths))))}: {reason}"
        for (name, reason), lengths in reasons.items()
    ]
    return f"\nNot run: {'; '.join(listed)}.\n" if listed else ""


def _memory_table(rows: list[Result]) -> str:
    lengths, forms = _by_form(rows)
    lines = []
    for (case, name), own in forms.items():
        cells = ["–" if "bytes" not in own.get(n, {}) else _memory_cell(own[n]) for n in lengths]
        growth = [
            f"{row['growth']:.2f}{_aim(row.get('growth_target'))}"
            for row in own.values()
            if row.get("growth") is not None
        ]
        saved = [
            f"N={n}: 1/{1 / own[n]['of_materialised']:.1f}"
            + (f" (target 1/{1 / own[n]['of_materialised_target']:.0f})" if own[n]["of_materialised_target"] else "")
            for n in lengths
            if own.get(n, {}).get("of_materialised")
        ]
        lines.append([case, name, *cells, growth[-1] if growth else "", ", ".join(saved[-1:])])
    heads = [*(f"N={n}" for n in lengths), "last doubling of N", "part of materialised"]
    return table(["case", "implementation", *heads], lines, 2) + _refusals(rows)


def _memory_cell(row: Result) -> str:
    return f"{row['bytes'] / 2**20:.1f} MiB ({row['ratio']:.2f})"


def _aim(value: float | None) -> str:
    return "" if value is None else f" (target {value:g})"


def decode_tables(folder: Path = RESULTS) -> str:
    """Return the tables of decoding of every result of `benchmarks/multi_token.py`."""
    parts = []
    for file, result in results_of("multi-token", folder).items():
        rows = [row for row in result["rows"] if row["kind"] in LEVELS]
        if not rows:
            continue
        parts.append(
            f"{source(file, result, 'batch 1, {} heads of {}'.format(result['heads'], result['head_dim']))} "
            "Time of one new token as a multiple of the standard step's.\n"
        )
        contexts = sorted({row["length"] for row in rows})
        forms: dict[tuple[str, str], dict[int, Result]] = {}
        for row in rows:
            forms.setdefault((row["kind"], row["case"]), {})[row["length"]] = row
        lines = []
        for (kind, arm), own in forms.items():
            standard = next(iter(own.values()))["implementation"] != "decode"
            cells = [_time_cell(own.get(n), absolute=standard) for n in contexts]
            targets = [f"{n}: {own[n]['target']:g}" for n in contexts if n in own and own[n]["target"]]
            lines.append([LEVELS[kind], arm, *cells, ", ".join(targets)])
        parts.append(table(["step of", "arm", *(f"context {n}" for n in contexts), "target"], lines, 2))
    return "\n".join(parts) + "\n" if parts else missing("multi_token")


def model_step_tables(folder: Path = RESULTS) -> str:
    """Return one table per result of `benchmarks/model_step.py`."""
    parts = []
    for file, result in results_of("model-step", folder).items():
        parts.append(source(file, result, "whole models") + "\n")
        lines = []
        for row in result["rows"]:
            name = f"{row['model']}, context {row['context']}, batch {row['batch']}"
            if "not_run" in row:
                lines.append([name, row["arm"], f"not run: {row['not_run']}", "–", "–", "–"])
                continue
            speed, memory = row["speed_target"], row["memory_target"]
            lines.append(
                [
                    name,
                    row["arm"],
                    f"{row['tokens_per_second']:.0f}",
                    f"{row['speed_ratio']:.2f}" + ("" if speed is None else f" (target at least {speed:g})"),
                    f"{row['peak_bytes'] / 2**20:.0f} MiB",
                    f"{row['memory_ratio']:.2f}" + ("" if memory is None else f" (target at most {memory:g})"),
                ]
            )
        headers = ["model", "arm", "tokens/s", "multiple", "peak memory", "multiple"]
        parts.append(table(headers, lines, 2))
    return "\n".join(parts) + "\n" if parts else missing("model_step")


def tile_step_tables(folder: Path = RESULTS) -> str:
    """Return the tables of every result of `benchmarks/tile_steps.py`."""
    parts = []
    for file, result in results_of("tile-steps", folder).items():
        rows_of_tile, (row_taps, key_taps) = result["rows_of_tile"], result["kernel"]
        shape = f"tiles of {result['heads']} heads x {rows_of_tile} rows, kernel {row_taps} x {key_taps}"
        parts.append(f"{source(file, result, shape)} Milliseconds, and as a multiple of the tile's Q K^T.\n")
        widths = sorted({row["keys"] for row in result["rows"]})
        found = {(row["form"], row["keys"]): row for row in result["rows"]}
        lines = [
            [form, *(f"{row['seconds'] * 1e3:.2f} ({row['ratio']:.2f})" for row in (found[form, n] for n in widths))]
            for form in dict.fromkeys(row["form"] for row in result["rows"])
        ]
        parts.append(table(["step and form", *(f"{n} keys" for n in widths)], lines, 1))
        context = result["decoding"][0]["keys"]
        parts.append(f"Decoding one token at {context} keys with all four parts, as a multiple of SDPA's step:\n")
        lines = [[row["step"], f"{row['seconds'] * 1e3:.2f}", f"{row['ratio']:.2f}"] for row in result["decoding"]]
        parts.append(table(["step", "ms", "multiple"], lines, 1))
        memory = result["operation_to_sdpa_by_freed_memory"]
        parts.append(
            f"The convolution before the softmax, forward and backward at N={result['length']}, as a multiple of SDPA: "
            + "; ".join(f"freed memory {name} {ratio:.2f}" for name, ratio in memory.items())
            + ".\n"
        )
    return "\n".join(parts) or missing("tile_steps").replace(" --device cpu", "")
