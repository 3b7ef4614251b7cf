"""The same checkpoints scored here and by lm-eval, on the same passages and pairs.

    python -m benchmarks.zero_shot_in_lm_eval RUN... --lambada lambada_test.jsonl --blimp blimp.tsv --blimp-limit 50

lm-eval scores each run by its own definitions of `lambada_openai` and of BLiMP's tasks, with local data in place of
those it would download. Pairs with a sentence that is longer than the context, at which lm-eval stops, are left out.
Written to results/zero-shot-lm-eval-small.json.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import tyro

from benchmarks.measuring import ROOT, describe
from heedful.cli.evaluate_task import open_model
from heedful.data import Tokenizer
from heedful.files import write_json_atomically
from heedful.models import DecoderLM
from heedful.tasks.blimp import MinimalPair, draw_pairs, evaluate_blimp, pairs_sha256, read_blimp
from heedful.tasks.lambada import evaluate_lambada, read_lambada
from heedful.tasks.task_files import content_sha256, draw

OUTPUT = ROOT / "results/zero-shot-lm-eval-small.json"
LAMBADA = "local_lambada"
# Name, and where and of which form the data are.
_OF_THE_DATA = r"task|tag|dataset_\w+|\w+_split|should_decontaminate|doc_to_decontamination_query"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Score runs with both harnesses."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of runs."""

    lambada: Path
    """File with one {"text": ...} per line."""

    blimp: Path
    """Table of BLiMP's pairs, or the folder of its .jsonl files."""

    lambada_limit: int | None = None
    """Passages, drawn by the seed."""

    blimp_limit: int | None = None
    """Pairs of each phenomenon, drawn by the seed."""

    seed: int = 0
    """Of the draws."""

    output: Path = OUTPUT
    """Where the result goes."""


def score_in_lm_eval(
    model: DecoderLM,
    tokenizer: Tokenizer,
    texts: list[str],
    pairs: list[MinimalPair],
    *,
    max_context: int,
    start: str = "",
    batch_size: int = 32,
) -> dict[str, Any]:
    """Return lm-eval's accuracy and perplexity on passages, and its accuracy on each phenomenon.

    Returns:
        {"lambada_accuracy": ..., "lambada_perplexity": ..., "blimp": {uid: accuracy}}.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from heedful.hf import HeedfulForCausalLM, to_transformers

    rows: dict[str, list[dict[str, str]]] = {LAMBADA: [{"text": text} for text in texts]}
    for pair in pairs:
        rows.setdefault(pair.uid, []).append({"sentence_good": pair.good, "sentence_bad": pair.bad})
    lambada, blimp = _definition("lambada/lambada_openai.yaml"), _definition("blimp/_template_yaml")
    if start:
        blimp = blimp.replace('doc_to_text: ""', f"doc_to_text: {json.dumps(start)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, own in rows.items():
            data = folder / f"{name}.jsonl"
            data.write_text("".join(json.dumps(row) + "\n" for row in own), encoding="utf-8")
            head = f"task: {name}\ndataset_path: json\ntest_split: train\n"
            head += f"dataset_kwargs:\n  data_files: {data}\n  cache_dir: {folder / 'cache'}\n"
            (folder / f"{name}.yaml").write_text(head + (lambada if name == LAMBADA else blimp), encoding="utf-8")
        scored = HFLM(
            pretrained=HeedfulForCausalLM.from_decoder(model),
            tokenizer=to_transformers(tokenizer),
            device=str(next(model.parameters()).device),
            batch_size=batch_size,
            max_length=max_context,
        )
        answer = lm_eval.simple_evaluate(
            model=scored,
            tasks=list(rows),
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            bootstrap_iters=0,
            num_fewshot=0,
            log_samples=False,
        )
    found = answer["results"]
    return {
        "lambada_accuracy": found[LAMBADA]["acc,none"],
        "lambada_perplexity": found[LAMBADA]["perplexity,none"],
        "blimp": {uid: found[uid]["acc,none"] for uid in rows if uid != LAMBADA},
    }


def score_here(
    model: DecoderLM,
    tokenizer: Tokenizer,
    texts: list[str],
    pairs: list[MinimalPair],
    *,
    max_context: int,
    start: str = "",
) -> dict[str, Any]:
    """Return the same of heedful's own harness."""
    lambada = evaluate_lambada(model, tokenizer, texts, max_context=max_context)
    blimp = evaluate_blimp(model, tokenizer, pairs, start=start, max_context=max_context)
    return {
        "lambada_accuracy": lambada.accuracy,
        "lambada_perplexity": lambada.perplexity,
        "blimp": {phenomenon.uid: phenomenon.accuracy for phenomenon in blimp.phenomena},
    }


def measure(options: Options) -> list[dict[str, Any]]:
    """Return one row for each run."""
    texts = draw(read_lambada(options.lambada), options.lambada_limit, options.seed, "lambada")
    pairs = draw_pairs(read_blimp(options.blimp), options.blimp_limit, options.seed)
    rows = []
    for folder in options.runs:
        opened = open_model(folder, {})
        opened.pop("separator")
        short = [pair for pair in pairs if _fits(pair, opened["tokenizer"], opened["max_context"])]
        ours = score_here(texts=texts, pairs=short, **opened)
        theirs = score_in_lm_eval(texts=texts, pairs=short, **opened)
        different = [abs(ours["blimp"][uid] - theirs["blimp"][uid]) for uid in ours["blimp"]]
        rows.append(
            {
                "run": "/".join(folder.parts[-3:]),
                "max_context": opened["max_context"],
                "pairs": len(short),
                "here": {**ours, "blimp_accuracy": fmean(ours["blimp"].values())},
                "lm_eval": {**theirs, "blimp_accuracy": fmean(theirs["blimp"].values())},
                "phenomena_that_differ": sum(value > 0 for value in different),
            }
        )
        print(f"{rows[-1]['run']}: {rows[-1]['phenomena_that_differ']} phenomena differ", flush=True)
    return rows


def _fits(pair: MinimalPair, tokenizer: Tokenizer, length: int) -> bool:
    """Return whether lm-eval scores both sentences: it stops at one that the model cannot read as a whole."""
    return all(len(tokenizer.encode(f" {text}")) <= length for text in (pair.good, pair.bad))


def _definition(name: str) -> str:
    """Return one of lm-eval's task definitions without its name and without where its data are."""
    import lm_eval

    text = (Path(lm_eval.__file__).parent / "tasks" / name).read_text(encoding="utf-8")
    return re.sub(rf"^(({_OF_THE_DATA}):|  - lambada$).*\n", "", text, flags=re.M)


def main() -> None:
    """Score and write."""
    options = tyro.cli(Options, prog="python -m benchmarks.zero_shot_in_lm_eval")
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")  # before these libraries are imported
    paths = {str(path): path.name for path in (options.lambada, options.blimp, options.output)}
    paths |= {str(run): "/".join(run.parts[-3:]) for run in options.runs}
    head = describe("zero_shot_in_lm_eval", "cpu")
    arguments = shlex.join(paths.get(argument, argument) for argument in sys.argv[1:])
    head["command"] = f"python -m benchmarks.zero_shot_in_lm_eval {arguments}"
    head["environment"].pop("command")
    try:
        texts, pairs = read_lambada(options.lambada), read_blimp(options.blimp)
        rows = measure(options)
    except ValueError as error:
        sys.exit(str(error))
    result = {
        **head,
        "lm_eval": importlib.metadata.version("lm_eval"),
        "data": {"lambada_sha256": content_sha256(texts), "blimp_sha256": pairs_sha256(pairs)},
        "examples": {
            "lambada": len(draw(texts, options.lambada_limit, options.seed, "lambada")),
            "blimp": len(draw_pairs(pairs, options.blimp_limit, options.seed)),
        },
        "rows": rows,
    }
    write_json_atomically(options.output, result)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
