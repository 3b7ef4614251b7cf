"""The tables of docs/speed.md, printed from results/benchmarks; a part without results says how to measure it."""

from __future__ import annotations

from pathlib import Path

from scripts.benchmark_tables import RESULTS, missing, results_of, source, table

LISTED_OPERATORS = 8


def loss_memory_tables(folder: Path = RESULTS) -> str:
    """Return one table per result of `benchmarks/loss_memory.py`."""
    parts = []
    for file, result in results_of("loss-memory", folder).items():
        width = result["hidden_size"]
        parts.append(
            f"{source(file, result, f'hidden size {width}')} Forward and backward of the loss: peak memory with its "
            "multiple of whole logits, and time as such a multiple.\n"
        )
        sizes = list(dict.fromkeys((row["vocabulary"], row["tokens"]) for row in result["rows"]))
        forms = list(dict.fromkeys(row["form"] for row in result["rows"]))
        found = {(row["vocabulary"], row["tokens"], row["form"]): row for row in result["rows"]}
        lines = []
        for vocabulary, tokens in sizes:
            rows = [found[vocabulary, tokens, form] for form in forms]
            memory = [f"{row['peak_bytes'] / 2**20:.0f} MiB ({row['memory_ratio']:.2f})" for row in rows]
            times = [f"{row['time_ratio']:.2f}" for row in rows[1:]]
            lines.append([f"{vocabulary:,}", f"{tokens:,}", *memory, *times])
        heads = [*(f"{form}, memory" for form in forms), *(f"{form}, time" for form in forms[1:])]
        parts.append(table(["vocabulary", "tokens", *heads], lines, 0))
    return "\n".join(parts) + "\n" if parts else missing("loss_memory")


def loop_overhead_tables(folder: Path = RESULTS) -> str:
    """Return one table per result of `benchmarks/loop_overhead.py`."""
    parts = []
    for file, result in results_of("loop-overhead", folder).items():
        parts.append(f"{source(file, result, 'batches made beforehand')} Medians.\n")
        lines = []
        for row in result["rows"]:
            clock, processor = row["seconds"], row["processor_seconds"]
            sizes = f"{row['layers']} layers of {row['hidden_size']}, vocabulary {row['vocabulary']:,}"
            lines.append(
                [
                    f"{row['model']}: {sizes}, {row['batch']} x {row['context']} tokens",
                    f"{1000 * clock['bare']:.1f} ms",
                    *(f"{clock[pair]:.3f}" for pair in ("train / bare", "train / by hand")),
                    *(f"{processor[pair]:.3f}" for pair in ("train / bare", "train / by hand")),
                    f"{1000 * processor['added']:.2f} ms",
                    f"{row['target']:g}",
                ]
            )
        heads = ["step", "loop / bare", "loop / by hand", "loop / bare, processor time"]
        heads += ["loop / by hand, processor time", "added, processor time", "target"]
        parts.append(table(["model", *heads], lines, 1))
    return "\n".join(parts) + "\n" if parts else missing("loop_overhead").replace(" --device cpu", "")


def profile_step_tables(folder: Path = RESULTS) -> str:
    """Return the tables of every result of `benchmarks/profile_step.py`: shares of phases, and operators."""
    parts = []
    for file, result in results_of("profile-step", folder).items():
        first = result["rows"][0]
        shape = f"model {first['model']}, {first['batch']} x {first['context']} tokens, precision {first['precision']}"
        parts.append(f"{source(file, result, shape)}\n")
        phases = list(first["shares"])
        lines = []
        for row in result["rows"]:
            used = "–" if row["utilisation"] is None else f"{100 * row['utilisation']:.1f} %"
            shares = [f"{100 * row['shares'][phase]:.1f} %" for phase in phases]
            speed = f"{row['tokens_per_second']:,.0f}"
            lines.append([row["arm"], speed, used, f"{row['peak_bytes'] / 2**20:,.0f} MiB", *shares])
        parts.append(table(["arm", "tokens/s", "MFU", "peak memory", *phases], lines, 1))
        for row in result["rows"]:
            lines = [
                [
                    f"`{operator['name'][:70]}`",
                    f"{operator['calls']:.0f}",
                    f"{operator['milliseconds']:.2f}",
                    f"{100 * operator['milliseconds'] / row['profiled_milliseconds']:.1f} %",
                ]
                for operator in row["operators"][:LISTED_OPERATORS]
            ]
            parts.append(f"{row['arm']}, costliest operators of a step, without what they call:\n")
            parts.append(table(["operator", "calls", "ms", "part"], lines, 1))
    return "\n".join(parts) + "\n" if parts else missing("profile_step").replace(" cpu", " cuda")
