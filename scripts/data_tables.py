"""The tables of docs/data.md, printed from results/benchmarks."""

from __future__ import annotations

from pathlib import Path

from scripts.benchmark_tables import RESULTS, Result, missing, results_of, source, table


def loader_tables(folder: Path = RESULTS) -> str:
    """Return one table per result of `benchmarks/loader.py`."""
    parts = []
    for file, result in results_of("loader", folder).items():
        parts.append(
            f"{source(file, result, 'standard attention')} `times training`: tokens per second of the batches over "
            f"those of the model's training step in the same round; the target is at least {result['target']:g}.\n"
        )
        lines = []
        for name, setting in result["settings"].items():
            own = [row for row in result["rows"] if row["model"] == name]
            shape = (
                f"{name}: width {setting['hidden_size']}, {setting['layers']} layers, "
                f"{setting['batch']} x {setting['context']} tokens"
            )
            lines += [
                [
                    shape if row["kind"] == "step" else "",
                    "training step" if row["kind"] == "step" else row["kind"],
                    f"{row['tokens_per_second']:,.0f}",
                    "1" if row["kind"] == "step" else f"{row['times_training']:,.0f}",
                ]
                for row in own
            ]
        parts.append(table(["model and batch", "what", "tokens/s", "times training"], lines, 2))
    return "\n".join(parts) or _missing("loader")


def preparation_tables(folder: Path = RESULTS) -> str:
    """Return the tables of every result of `benchmarks/preparation.py`."""
    parts = []
    for file, result in results_of("preparation", folder).items():
        options, large, killed = result["options"], result["large"], result["killed"]
        shape = f"{result['cores']} cores, load {result['load_before']:.1f} before it began"
        parts.append(f"{source(file, {**result, 'dtype': 'text to tokens'}, shape)}\n")
        rows = [*result["compared"], large]
        parts.append(table(_HEADERS, [_cells(row) for row in rows], 2))
        documents = sum(split["documents"] for split in large["splits"].values())
        verdict = "within" if large["peak"]["resident_bytes"] <= result["target_bytes"] else "beyond"
        parts.append(
            f"The large corpus has {documents:,} documents; its preparation stayed {verdict} the target of "
            f"{_mebibytes(result['target_bytes'])} for all processes together. Opening it again takes "
            f"{large['seconds_to_open_again']:.1f} s, `import torch` included. Killed with SIGKILL after "
            f"{killed['seconds_until_killed']:.0f} s of {killed['seconds_of_an_undisturbed']:.0f} s, the "
            f"{options['comparison_megabytes']} MB went on and took {killed['seconds_of_the_resumed']:.0f} s more, "
            f"with {'the same' if killed['same_shards'] else 'OTHER'} shards.\n"
        )
    return "\n".join(parts) or _missing("preparation")


_HEADERS = (
    "text",
    "tokenizer",
    "workers",
    "seconds",
    "MB/s",
    "peak memory, all processes (RSS)",
    "shared pages once (PSS)",
    "main process",
    "a worker",
)


def _cells(row: Result) -> list[str]:
    return [
        f"{row['text_bytes'] / 1e6:,.0f} MB",
        row["tokenizer"],
        str(row["workers"]),
        f"{row['seconds']:.0f}",
        f"{row['megabytes_per_second']:.1f}",
        _mebibytes(row["peak"]["resident_bytes"]),
        _mebibytes(row["peak"]["proportional_bytes"]),
        _mebibytes(row["peak_of_main_process"]),
        _mebibytes(row["peak_of_a_worker"]),
    ]


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


def _missing(module: str) -> str:
    return missing(module).replace(" --device cpu", "")
