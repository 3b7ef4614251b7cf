"""LAMBADA and BLiMP on every tested run of a comparison, and paired differences over seeds.

    python -m benchmarks.zero_shot runs/language-models-small --lambada lambada_test.jsonl --blimp blimp.tsv

The comparison must be finished; the best-validation checkpoint of each run with its arm's chosen learning rate is
scored, in the context of its training. The result is written after every run, and the same command goes on where it
stopped. A result of other runs, data, settings or source is refused. Data are known by their hashes: only the names of
files are kept.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from benchmarks.measuring import ROOT, describe
from heedful.cli.evaluate_task import open_model
from heedful.data import open_tokenizer
from heedful.files import write_json_atomically
from heedful.schema import to_mapping
from heedful.study.compare import load_result
from heedful.study.recipe_file import load_recipe
from heedful.study.statistics import holm, paired_difference, summarise
from heedful.tasks.blimp import BlimpResult, MinimalPair, draw_pairs, evaluate_blimp, pairs_sha256, read_blimp
from heedful.tasks.lambada import LambadaResult, evaluate_lambada, read_lambada
from heedful.tasks.task_files import content_sha256, draw
from heedful.train.device import computing_on, resolve_device
from heedful.train.run_folder import read_json

OUTPUT = ROOT / "results/zero-shot-small.json"
METRICS = ("lambada_accuracy", "lambada_nats_per_word", "blimp_accuracy")
# What a result is of; everything else in it is where and when.
IDENTITY = ("comparison", "data", "settings")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Score the runs of a comparison on LAMBADA and BLiMP."""

    comparison: Annotated[Path, tyro.conf.Positional]
    """Folder of a finished `heedful compare` on text."""

    lambada: Path
    """File with one {"text": ...} per line."""

    blimp: Path
    """Table of BLiMP's pairs, or the folder of its .jsonl files."""

    lambada_limit: int | None = None
    """Passages, drawn by the seed; all by default."""

    blimp_limit: int | None = None
    """Pairs of each phenomenon, drawn by the seed; all by default."""

    seed: int = 0
    """Draws passages and pairs, the same for all runs."""

    start: str = ""
    """What stands before BLiMP's sentences; end of text by default. Use "." for models trained without it."""

    workers: int = 1
    """Runs to score at a time, each in a process of its own on the same device."""

    output: Path = OUTPUT
    """Where the result goes."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """What all runs are scored on."""

    texts: list[str]
    pairs: list[MinimalPair]
    start: str


def measure(options: Options) -> dict[str, Any]:
    """Score what is not scored yet, writing after each run, and return the whole result.

    Raises:
        ValueError: no finished comparison of language models, data of something else, or an output that holds the
            result of others; nothing was written.
    """
    comparison = load_result(options.comparison)
    recipe = load_recipe(options.comparison / "recipe.json", {})
    if recipe.task.kind != "language-modelling":
        raise ValueError(f"{options.comparison} compares models of {recipe.task.kind}; these tasks need text.")
    if options.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {options.workers}.")
    texts, pairs = read_lambada(options.lambada), read_blimp(options.blimp)
    examples = Examples(
        texts=draw(texts, options.lambada_limit, options.seed, "lambada"),
        pairs=draw_pairs(pairs, options.blimp_limit, options.seed),
        start=options.start,
    )
    result = {
        **_head(options, resolve_device(recipe.train.device).type),
        "comparison": _comparison(comparison, options.comparison),
        "data": {
            "lambada": {"file": options.lambada.name, "sha256": content_sha256(texts), "examples": len(texts)},
            "blimp": {"file": options.blimp.name, "sha256": pairs_sha256(pairs), "pairs": len(pairs)},
        },
        "settings": {
            "lambada_limit": options.lambada_limit,
            "blimp_limit": options.blimp_limit,
            "seed": options.seed,
            "start": options.start,
        },
        "examples": {"lambada": len(examples.texts), "blimp": _pairs_by_phenomenon(examples.pairs)},
        "separator": recipe.data.separator,
        "seconds": 0.0,
        "complete": False,
        "runs": [],
    }
    result |= _earlier(options.output, result)
    tested = [_name(run) for run in _tested(comparison)]
    left = [run for run in _tested(comparison) if not _find(result, run)]
    begin, before = time.perf_counter(), result["seconds"]
    for run, found in scored(left, options, examples):
        result["runs"].append({**_name(run), **found})
        result["runs"].sort(key=lambda done: tested.index(_name(done)))
        result["seconds"] = before + time.perf_counter() - begin
        write_json_atomically(options.output, result)
        print(f"{run['arm']}, seed {run['seed']}: BLiMP {100 * found['blimp']['accuracy']:.2f} %", flush=True)
    result["complete"] = True
    result |= summary(result["runs"], comparison)
    write_json_atomically(options.output, result)
    return result


def scored(
    runs: Sequence[Mapping[str, Any]], options: Options, examples: Examples
) -> Iterator[tuple[Mapping[str, Any], dict[str, Any]]]:
    """Yield runs with what each scores, as they are done."""
    folders = [_folder(options.comparison, run) for run in runs]
    if options.workers == 1:
        yield from zip(runs, (score(folder, examples) for folder in folders), strict=True)
        return
    threads = max(1, torch.get_num_threads() // options.workers)
    context = get_context("spawn")  # a forked process cannot use CUDA
    with ProcessPoolExecutor(options.workers, context, _begin_work, (threads, examples)) as pool:
        work = {pool.submit(_score_here, folder): run for run, folder in zip(runs, folders, strict=True)}
        for done in as_completed(work):
            yield work[done], done.result()


class _Place:
    """What a worker process knows between its runs."""

    examples: Examples


def _begin_work(threads: int, examples: Examples) -> None:
    torch.set_num_threads(threads)
    _Place.examples = examples


def _score_here(folder: Path) -> dict[str, Any]:
    return score(folder, _Place.examples)


def score(folder: Path, examples: Examples) -> dict[str, Any]:
    """Return what one run scores."""
    opened = open_model(folder, {})
    model, tokenizer, length = opened["model"], opened["tokenizer"], opened["max_context"]
    with computing_on(next(model.parameters()).device):
        lambada = evaluate_lambada(model, tokenizer, examples.texts, max_context=length)
        blimp = evaluate_blimp(model, tokenizer, examples.pairs, start=examples.start, max_context=length)
    return {"max_context": length, "lambada": _lambada_facts(lambada), "blimp": _blimp_facts(blimp)}


def summary(runs: list[dict[str, Any]], comparison: Mapping[str, Any]) -> dict[str, Any]:
    """Return means by arm, chance, and the paired differences that the comparison itself has."""
    arms = {arm["name"]: [run for run in runs if run["arm"] == arm["name"]] for arm in comparison["arms"]}
    values = {
        metric: {arm: {run["seed"]: _value(run, metric) for run in own} for arm, own in arms.items()}
        for metric in METRICS
    }
    sides = dict.fromkeys((item["arm"], item["reference"], item["kind"]) for item in comparison["comparisons"])
    differences = []
    for metric in METRICS:
        items = [
            {
                "arm": arm,
                "reference": reference,
                "kind": kind,
                "metric": metric,
                **asdict(paired_difference(values[metric][arm], values[metric][reference])),
            }
            for arm, reference, kind in sides
        ]
        corrected = holm([item["p_value"] for item in items])
        differences += [{**item, "p_holm": p} for item, p in zip(items, corrected, strict=True)]
    first = runs[0] if runs else None
    return {
        "chance": None
        if first is None
        else {
            "lambada_accuracy": first["lambada"]["chance_accuracy"],
            "lambada_perplexity": first["lambada"]["chance_perplexity"],
            "blimp_accuracy": first["blimp"]["chance"],
        },
        "arms": [
            {"name": arm, "metrics": {m: asdict(summarise(list(values[m][arm].values()))) for m in METRICS}}
            for arm in arms
        ],
        "comparisons": differences,
    }


def _value(run: dict[str, Any], metric: str) -> float:
    task, _, name = metric.partition("_")
    return run[task][name]


def _lambada_facts(found: LambadaResult) -> dict[str, Any]:
    facts = to_mapping(found)
    return {key: value for key, value in facts.items() if key != "max_context"}


def _blimp_facts(found: BlimpResult) -> dict[str, Any]:
    """Keep the counts of each phenomenon only: shares and their intervals follow from them."""
    facts = to_mapping(found)
    facts["phenomena"] = {item["uid"]: item["correct"] for item in facts["phenomena"]}
    facts["terms"] = {item["term"]: [item["accuracy"], *item["interval"]] for item in facts["terms"]}
    return {key: value for key, value in facts.items() if key not in ("max_context", "start")}


def _pairs_by_phenomenon(pairs: list[MinimalPair]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for pair in pairs:
        counts[pair.uid] = counts.get(pair.uid, 0) + 1
    return counts


def _head(options: Options, device: str) -> dict[str, Any]:
    """Describe the process, with the names of files for their paths."""
    given = {str(path): path.name for path in (options.comparison, options.lambada, options.blimp, options.output)}
    head = describe("zero_shot", device)
    arguments = [given.get(argument, argument) for argument in sys.argv[1:]]
    head["command"] = f"python -m benchmarks.zero_shot {shlex.join(arguments)}".strip()
    head["environment"].pop("command")
    return {**head, "dtype": "float32"}


def _comparison(comparison: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return what the scored runs are known by: the comparison's recipe and data, and each run's weights."""
    runs = {
        f"{run['arm']}, seed {run['seed']}": {
            "learning_rate": run["learning_rate"],
            "checkpoint": read_json(_folder(folder, run) / "checkpoints" / "best.json")["sha256"],
        }
        for run in _tested(comparison)
    }
    if not runs:
        raise ValueError(f"{folder} holds no run that was tested; let heedful compare finish first.")
    return {
        "name": comparison["name"],
        "title": comparison["title"],
        "commit": comparison["commit"],
        "corpus": [_name_of(corpus) for corpus in comparison["data"]["corpus"].split(", ")],
        "tokenizer_sha256": open_tokenizer(folder / "tokenizer").sha256,
        "baseline": comparison["baseline"],
        "runs": runs,
    }


def _tested(comparison: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [run for run in comparison["runs"] if run["chosen"] and run["test"] is not None]


def _earlier(output: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Return the runs that an unfinished result of the same holds.

    Raises:
        ValueError: it is of other runs, data or settings.
    """
    if not output.exists():
        return {}
    found = read_json(output)
    if not isinstance(found, dict) or "runs" not in found:
        raise ValueError(f"{output} holds something else; choose another --output.")
    differing = [
        f"{part}.{key} is {found.get(part, {}).get(key)!r} there and {result[part].get(key)!r} here"
        for part in IDENTITY
        for key in dict.fromkeys([*found.get(part, {}), *result[part]])
        if found.get(part, {}).get(key) != result[part].get(key)
    ]
    if differing:
        shown = "; ".join(text if len(text) < 200 else f"{text[:200]}..." for text in differing)
        raise ValueError(f"{output} is the result of something else: {shown}. Choose another --output, or remove it.")
    if found.get("commit") != result["commit"]:
        raise ValueError(
            f"{output} was begun at commit {found.get('commit')} and this is {result['commit']}: a result is of one "
            "commit. Go on at that one, choose another --output, or remove it."
        )
    return {"runs": found["runs"], "seconds": found["seconds"], "dirty": found["dirty"] or result["dirty"]}


def _find(result: dict[str, Any], run: Mapping[str, Any]) -> bool:
    return any(_name(done) == _name(run) for done in result["runs"])


def _name(run: Mapping[str, Any]) -> dict[str, Any]:
    return {key: run[key] for key in ("arm", "learning_rate", "seed")}


def _name_of(corpus: str) -> str:
    return corpus if corpus.startswith("hf:") else Path(corpus).name


def _folder(comparison: Path, run: Mapping[str, Any]) -> Path:
    return comparison / "runs" / run["arm"] / f"lr-{run['learning_rate']!r}" / f"seed-{run['seed']}"


def main() -> None:
    """Score and write."""
    options = tyro.cli(Options, prog="python -m benchmarks.zero_shot")
    try:
        measure(options)
    except ValueError as error:
        sys.exit(str(error))
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
