"""Score a model with lm-eval on LAMBADA and BLiMP read from local files; nothing is downloaded.

    python examples/evaluate_with_lm_eval.py --model my-model --lambada lambada_test.jsonl --blimp blimp.tsv --limit 500

--lambada is a file with one {"text": ...} per line, whose last word is to be predicted; --blimp a table with tabs
between its columns, of which sentence_good and sentence_bad are read. Both may end in .xz. The tasks are defined as
lm-eval defines its own `lambada_openai` and `blimp_*`, with all phenomena of BLiMP in one. Without --model a small
model with random weights is scored, which shows what chance gives.
"""

import csv
import json as json_module
import lzma
import os
import tempfile
from pathlib import Path
from typing import TextIO

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when these libraries are imported
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import lm_eval
import torch
import tyro
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from heedful.data.tokenizers import ByteTokenizer
from heedful.hf import HeedfulConfig, HeedfulForCausalLM, to_transformers

CHANCE = {"local_lambada": "about 0", "local_blimp": "0.5"}
LAMBADA = """
output_type: loglikelihood
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' '+text.split(' ')[-1]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
BLIMP = """
output_type: multiple_choice
doc_to_text: ""
doc_to_target: 0
doc_to_choice: "{{[sentence_good, sentence_bad]}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""


def opened(path: Path) -> TextIO:
    """Open a text file, compressed or not."""
    opener = lzma.open if path.suffix == ".xz" else open
    return opener(path, "rt", encoding="utf-8", newline="\n")


def spread(rows: list[dict], limit: int | None) -> list[dict]:
    """Return at most so many rows, at equal distances."""
    if limit is None or limit >= len(rows):
        return rows
    return [rows[index * len(rows) // limit] for index in range(limit)]


def write_task(folder: Path, name: str, rows: list[dict], definition: str) -> None:
    """Write a task of lm-eval and its data."""
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json_module.dumps(row) + "\n" for row in rows), encoding="utf-8")
    head = f"task: {name}\ndataset_path: json\ntest_split: train\n"
    head += f"dataset_kwargs:\n  data_files: {data}\n  cache_dir: {folder / 'cache'}\n"
    (folder / f"{name}.yaml").write_text(head + definition, encoding="utf-8")


def random_model(seed: int):
    """Return a small byte-level model that has learned nothing, and its tokenizer."""
    torch.manual_seed(seed)
    tokenizer = to_transformers(ByteTokenizer(), max_length=2048)
    config = HeedfulConfig(
        attention="boosted+nonlinear-query",
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=tokenizer.eos_token_id,
    )
    return HeedfulForCausalLM(config).eval(), tokenizer


def main(
    lambada: Path | None = None,
    blimp: Path | None = None,
    model: str | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    max_length: int | None = None,
    seed: int = 1,
    json: Path | None = None,
) -> None:
    """Print accuracies with their standard errors and with the level of chance.

    Args:
        lambada: file of LAMBADA.
        blimp: file of BLiMP.
        model: folder of a model and its tokenizer, heedful's or another; None for random weights.
        limit: score so many examples of each, taken at equal distances.
        batch_size: rows at a time.
        max_length: how many tokens the model reads at a time, at most its positions; longer texts lose their beginning.
        seed: of the random weights.
        json: write lm-eval's results into this file.
    """
    found: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if lambada is not None:
            with opened(lambada) as file:
                found["local_lambada"] = spread([json_module.loads(line) for line in file], limit)
            write_task(folder, "local_lambada", found["local_lambada"], LAMBADA)
        if blimp is not None:
            with opened(blimp) as file:
                found["local_blimp"] = spread(list(csv.DictReader(file, delimiter="\t")), limit)
            write_task(folder, "local_blimp", found["local_blimp"], BLIMP)
        if not found:
            raise SystemExit("give --lambada, --blimp or both.")
        if model is None:
            network, tokenizer = random_model(seed)
            scored = HFLM(
                pretrained=network, tokenizer=tokenizer, device="cpu", batch_size=batch_size, max_length=max_length
            )
        else:
            scored = HFLM(pretrained=model, device="cpu", dtype="float32", batch_size=batch_size, max_length=max_length)
        answer = lm_eval.simple_evaluate(
            model=scored,
            tasks=list(found),
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            num_fewshot=0,
            log_samples=False,
        )
    for name, rows in found.items():
        figures = answer["results"][name]
        line = f"{name}: accuracy {figures['acc,none']:.4f} +- {figures['acc_stderr,none']:.4f}"
        line += f" (standard error; {len(rows)} examples; chance {CHANCE[name]})"
        if "perplexity,none" in figures:
            line += f", perplexity of the last word {figures['perplexity,none']:.4g}"
        print(line)
    if json is not None:
        kept = {name: {**answer["results"][name], "examples": len(rows)} for name, rows in found.items()}
        facts = {"model": model, "limit": limit, "results": kept}
        json.write_text(json_module.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main)
