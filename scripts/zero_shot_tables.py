"""The tables of docs/zero-shot.md, printed from the results of `benchmarks/zero_shot.py` and its neighbour."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from heedful.study.wording import NONE, number_of, p_value, signed
from scripts.benchmark_tables import ROOT, Result, table

FILE = ROOT / "results/zero-shot-small.json"
ONE_EPOCH_FILE = ROOT / "results/zero-shot-one-epoch.json"
LM_EVAL_FILE = ROOT / "results/zero-shot-lm-eval-small.json"
HEADERS = (
    "arm",
    "seeds",
    "BLiMP, %",
    "difference",
    "p (Holm)",
    "LAMBADA, %",
    "difference",
    "nats per word",
    "difference",
)


def zero_shot_table(file: Path = FILE) -> str:
    """Return one line for each arm, what was scored, what chance is, and where the figures come from."""
    if not file.exists():
        return "not measured yet: `python -m benchmarks.zero_shot COMPARISON --lambada FILE --blimp FILE`\n"
    result: Result = json.loads(file.read_text(encoding="utf-8"))
    if not result["complete"]:
        done, planned = len(result["runs"]), len(result["comparison"]["runs"])
        return f"not finished: {done} of {planned} runs are scored; `{result['command']}` goes on.\n"
    return "\n".join([*_what(result), "", _arms(result), *_groups(result), *_where(result, file)]) + "\n"


def _what(result: Result) -> list[str]:
    """Say how many examples were scored, what the models read, and what guessing gives."""
    runs, chance, data = result["runs"], result["chance"], result["data"]
    passages, pairs = result["examples"]["lambada"], result["examples"]["blimp"]

    def most(task: str, name: str) -> int:
        return max(run[task][name] for run in runs)

    before = "end of text" if not result["settings"]["start"] else f"`{result['settings']['start']}`"
    sentences = [
        f"LAMBADA: {passages:,} of {data['lambada']['examples']:,} passages. BLiMP: {sum(pairs.values()):,} of "
        f"{data['blimp']['pairs']:,} pairs, the mean over {len(pairs)} phenomena, {before} before each sentence.",
        f"The models read {_listed(sorted({run['max_context'] for run in runs}))} tokens at a time: **of "
        f"{most('lambada', 'cut'):,} of the {passages:,} passages they did not read the beginning**, and "
        f"{most('blimp', 'cut'):,} pairs hold a longer sentence.",
        f"Guessing gives {100 * chance['blimp_accuracy']:.0f} % of BLiMP, and {100 * chance['lambada_accuracy']:.2g} % "
        f"of LAMBADA at {math.log(chance['lambada_perplexity']):.2f} nats per word.",
        "Means over seeds; differences to the baseline seed by seed, with 95 % intervals of Student's t.",
    ]
    lost, incomplete = most("lambada", "incomplete_targets"), most("blimp", "incomplete")
    equal = most("blimp", "indistinguishable")
    if lost or incomplete or equal:
        sentences.append(
            f"The tokenizer lost characters of {lost:,} last words and in {incomplete:,} pairs; {equal:,} pairs are "
            "equal to it and count as wrong."
        )
    return [" ".join(sentences)]


def _arms(result: Result) -> str:
    baseline = result["comparison"]["baseline"]
    found = {(item["arm"], item["metric"]): item for item in result["comparisons"] if item["kind"] == "baseline"}
    lines = []
    for arm in result["arms"]:
        name, metrics = arm["name"], arm["metrics"]
        blimp, lambada, nats = (metrics[key] for key in ("blimp_accuracy", "lambada_accuracy", "lambada_nats_per_word"))
        if blimp["mean"] is None:
            lines.append([name, "0", *[NONE] * 7])
            continue
        grammar = found.get((name, "blimp_accuracy"))
        lines.append(
            [
                f"{name} (baseline)" if name == baseline else name,
                str(blimp["count"]),
                f"{100 * blimp['mean']:.2f}",
                _difference(grammar, 100, 2),
                p_value(grammar["p_holm"]) if grammar else "",
                f"{100 * lambada['mean']:.2f}",
                _difference(found.get((name, "lambada_accuracy")), 100, 2),
                f"{nats['mean']:.3f}",
                _difference(found.get((name, "lambada_nats_per_word")), 1, 3),
            ]
        )
    return table(HEADERS, lines, 1)


def _difference(item: dict[str, Any] | None, factor: float, digits: int) -> str:
    if item is None:
        return ""
    if item["mean"] is None:
        return NONE
    text = signed(factor * item["mean"], digits)
    if item["low"] is None:
        return f"{text}<br>{item['note']}"
    return f"{text}<br>{signed(factor * item['low'], digits)} to {signed(factor * item['high'], digits)}"


def _groups(result: Result) -> list[str]:
    """Return the baseline's accuracy by group of phenomena, and how wide the interval of one run is."""
    baseline = result["comparison"]["baseline"]
    own = [run for run in result["runs"] if run["arm"] == baseline]
    if not own:
        return []
    first = own[0]
    terms = [
        [term.replace("_", " "), f"{100 * share:.1f}", f"{100 * low:.1f} to {100 * high:.1f}"]
        for term, (share, low, high) in first["blimp"]["terms"].items()
    ]
    low, high = first["blimp"]["interval"]
    text = (
        f"{baseline}, seed {first['seed']}, by group of phenomena. Of this one run the mean over phenomena is "
        f"{100 * first['blimp']['accuracy']:.2f} % ({100 * low:.2f} to {100 * high:.2f} over other pairs"
    )
    over = first["blimp"]["interval_over_phenomena"]
    text += f", {100 * over[0]:.2f} to {100 * over[1]:.2f} over other phenomena)" if over else ")"
    low, high = first["lambada"]["accuracy_interval"]
    text += f", and LAMBADA {100 * first['lambada']['accuracy']:.2f} % ({100 * low:.2f} to {100 * high:.2f})."
    return [text, "", table(("group", "%", "95 %"), terms, 1)]


def _where(result: Result, file: Path) -> list[str]:
    dirty = ", with changes that were not committed" if result["dirty"] else ""
    comparison, minutes = result["comparison"], result["seconds"] / 60
    took = "less than a minute" if minutes < 1 else number_of(round(minutes), "minute")
    return [
        f"Models of `{comparison['name']}`, trained on {', '.join(comparison['corpus'])}. `{result['command']}`, "
        f"{result['machine']}, {took}, commit {result['commit'][:10]}{dirty}; all "
        f"figures in `results/{file.name}`."
    ]


def one_epoch_table() -> str:
    """Return the same of the larger models."""
    return zero_shot_table(ONE_EPOCH_FILE)


def _listed(values: list[int]) -> str:
    return " or ".join(str(value) for value in values)


def lm_eval_table(file: Path = LM_EVAL_FILE) -> str:
    """Return what both harnesses found of the same checkpoints, and where the figures come from."""
    if not file.exists():
        return "not measured yet: `python -m benchmarks.zero_shot_in_lm_eval RUN... --lambada FILE --blimp FILE`\n"
    result: Result = json.loads(file.read_text(encoding="utf-8"))
    examples, lines = result["examples"], []
    for row in result["rows"]:
        for name, found in (("heedful", row["here"]), ("lm-eval", row["lm_eval"])):
            lines.append(
                [
                    row["run"] if name == "heedful" else "",
                    name,
                    f"{100 * found['lambada_accuracy']:.2f}",
                    f"{math.log(found['lambada_perplexity']):.5f}",
                    f"{100 * found['blimp_accuracy']:.3f}",
                    str(row["phenomena_that_differ"]) if name == "lm-eval" else "",
                ]
            )
    dirty = ", with changes that were not committed" if result["dirty"] else ""
    headers = ("run", "scored by", "LAMBADA, %", "nats per word", "BLiMP, %", "phenomena that differ")
    scored = [f"{count:,}" for count in sorted({row["pairs"] for row in result["rows"]})]
    return (
        f"{examples['lambada']:,} passages, and of {examples['blimp']:,} pairs those {' or '.join(scored)} whose "
        f"sentences fit into the context.\n\n{table(headers, lines, 2)}\n"
        f"`{result['command']}`, lm-eval {result['lm_eval']}, {result['machine']}, commit {result['commit'][:10]}"
        f"{dirty}; all figures in `results/{file.name}`.\n"
    )
