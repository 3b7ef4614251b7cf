"""The page of one run, `report.html` in its folder: what it is, where it stands, its curves and where it came from.

Like the report of a comparison it is one file that loads nothing. It is made from what is on disk, so it can be drawn
while the run goes on, and again when it is over.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import heedful
from heedful.files import write_text_atomically
from heedful.study.run_facts import RunFacts, command_to_resume, run_facts
from heedful.study.run_plots import curve, loss_curves, probe_curves, rates
from heedful.study.svg import VARIABLES
from heedful.study.wording import NONE, count, memory, number_of, rate
from heedful.train.metrics import read_metrics
from heedful.train.progress import format_duration
from heedful.train.run_state import RunState, run_state

SHOWN_DIFF_CHARACTERS = 100_000


def write_run_page(folder: Path, output: Path | None = None) -> Path:
    """Write the page of the run in `folder`, into it unless `output` names another file, and return where it is.

    Raises:
        ValueError: the folder holds no run, one that has not started, or a damaged one.
    """
    output = folder / "report.html" if output is None else output
    write_text_atomically(output, render_run_page(folder))
    return output


def render_run_page(folder: Path) -> str:
    """Return the page of the run in `folder` as HTML; raises as `write_run_page` does."""
    import jinja2

    state = run_state(folder)
    if state.state == "damaged":
        raise ValueError(f"{folder} cannot be shown: {state.reason}")
    if state.steps is None:
        raise ValueError(f"{folder} holds no run that has started.")
    facts, lines = run_facts(folder), read_metrics(folder)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("run.html.j2").render(
        title=_title(folder, facts),
        version=heedful.__version__,
        lead=_lead(facts, state),
        state=state,
        done=100 * state.step / state.steps,
        standing=_standing(state),
        tiles=_tiles(state),
        figures=_figures(lines, facts, state),
        probes=_probes(lines, facts),
        command=command_to_resume(facts.processes[-1]) if facts.processes else None,
        started_by=_started_by(facts),
        what=_what(facts),
        checkpoints=[
            (item.name, NONE if item.step is None else f"{item.step:,}", memory(item.bytes), ", ".join(item.roles))
            for item in facts.checkpoints
        ],
        processes=[_process_row(number, process) for number, process in enumerate(facts.processes, start=1)],
        diffs=_diffs(folder, facts),
        config_text=_pretty(facts.config),
        recipe_text=None if facts.recipe is None else _pretty(facts.recipe),
        data_text=_pretty(facts.data) if facts.data else None,
        footer=f"Written {datetime.now(UTC).isoformat(timespec='seconds')} by heedful {heedful.__version__}, from the "
        "files of the run. `heedful report` draws it again.",
    )


def _title(folder: Path, facts: RunFacts) -> str:
    recipe = facts.recipe or {}
    name = recipe.get("title") or recipe.get("name") or folder.resolve().name
    return f"{name}: {facts.arm}" if facts.arm else name


def _lead(facts: RunFacts, state: RunState) -> str:
    train = facts.config["train"]
    size = "" if facts.parameters is None else f", {count(facts.parameters)} parameters"
    tokens = count((state.steps or 0) * facts.config["data"]["tokens_per_batch"])
    learning_rate = rate(train["optimizer"]["learning_rate"])
    return (
        f"Attention: {facts.mechanism}{size}; {tokens} tokens at learning rate {learning_rate}, seed {train['seed']}."
    )


def _standing(state: RunState) -> str:
    where = f"step {state.step:,} of {state.steps:,}"
    if state.state == "running":
        left = "" if state.seconds_left is None else f", about {format_duration(state.seconds_left)} left"
        return f"Running: {where}{left}."
    if state.state == "finished":
        took = "" if state.seconds is None else f" in {format_duration(state.seconds)}"
        return f"Finished: {state.steps:,} steps{took}."
    if state.state == "interrupted":
        return f"Interrupted at {where}; everything up to there is saved."
    if state.state == "diverged":
        return f"Diverged {state.reason} of {state.steps:,}: a loss or a gradient norm was not finite."
    return f"Stopped at {where}: its process was killed or failed."


def _tiles(state: RunState) -> list[tuple[str, str, str]]:
    """Return the numbers that one looks for first: name, value, remark."""
    best = "" if state.best_step is None else f"at step {state.best_step:,}"
    return [
        ("best validation loss", _loss(state.best_loss), best),
        ("latest validation loss", _loss(state.val_loss), ""),
        ("latest training loss", _loss(state.train_loss), "mean over a log interval"),
        ("tokens seen", count(state.tokens), f"{count(state.tokens_per_second)} per second"),
        ("training time", NONE if state.seconds is None else format_duration(state.seconds), "of all processes"),
    ]


def _figures(lines: list[dict[str, Any]], facts: RunFacts, state: RunState) -> list[dict[str, Any]]:
    figures = []
    resumed = " Dotted lines: the run was resumed." if facts.resumes else ""
    if curve(lines, "train/loss") or curve(lines, "val/loss"):
        tokens_per_step = facts.config["data"]["tokens_per_batch"]
        legend = [("training", "--series-0"), ("validation", "--series-1")]
        figures.append(
            {
                "title": "Loss",
                "svg": loss_curves(lines, tokens_per_step, state.best_step, facts.resumes),
                "legend": legend if curve(lines, "val/loss") else legend[:1],
                "caption": "Training: means over log intervals, without the penalties that are trained on; the best "
                f"validation is ringed. The axis leaves out the first tenth of the steps.{resumed}",
            }
        )
    if curve(lines, "lr"):
        figures.append(
            {
                "title": "Rates",
                "svg": rates(lines, facts.resumes),
                "legend": [],
                "caption": "The gradient norm is the one before clipping; where many lines share a pixel, the largest "
                f"of them. Speed leaves out evaluations and checkpoints.{resumed}",
            }
        )
    return figures


def _probes(lines: list[dict[str, Any]], facts: RunFacts) -> list[dict[str, Any]]:
    pictures = probe_curves(lines, facts.resumes)
    for picture in pictures:
        picture["lines"] = [(name, VARIABLES[colour], dashed) for name, colour, dashed in picture["lines"]]
    return pictures


def _started_by(facts: RunFacts) -> str | None:
    return facts.processes[-1].get("command") if facts.processes else None


def _what(facts: RunFacts) -> list[tuple[str, str]]:
    train, optimizer, schedule = (facts.config["train"], *map(facts.config["train"].get, ("optimizer", "schedule")))
    rows = [("arm", facts.arm)] if facts.arm else []
    rows += [("attention", facts.mechanism)]
    if facts.parameters is not None:
        model = facts.config["model"]
        attention = model["attention"][0] if isinstance(model["attention"], list) else model["attention"]
        rows += [
            (
                "model",
                f"{facts.parameters:,} parameters: {model['num_layers']} layers, width {attention['hidden_size']}, "
                f"{number_of(attention['num_heads'], 'head')}, vocabulary {model['vocab_size']:,}",
            )
        ]
    rows += [(name, value) for name, value in facts.data.get("facts", [])]
    tokens = facts.config["data"]["tokens_per_batch"]
    rows += [
        (
            "training",
            f"{train['steps']:,} steps of {train['batch_size']} sequences of up to {train['context_length']} tokens "
            f"({count(tokens)} a step, {count(train['steps'] * tokens)} in all), {train['precision']}",
        ),
        (
            "optimiser",
            f"{optimizer.get('kind', 'adamw')}, learning rate {rate(optimizer['learning_rate'])}, "
            f"weight decay {optimizer['weight_decay']:g}, gradients clipped at {optimizer['gradient_clip']:g}",
        ),
        ("schedule", f"{schedule['warmup_steps']:,} warm-up steps, then {schedule['kind']}"),
        ("seed", str(train["seed"])),
        ("fingerprint of the data", facts.config["data"]["fingerprint"]),
    ]
    return rows


def _process_row(number: int, process: dict[str, Any]) -> list[str]:
    several = process.get("processes") or 1
    spread = (
        f"{process.get('strategy') or 'single'} \N{MULTIPLICATION SIGN} {several}" if several > 1 else "one process"
    )
    source = process.get("source")
    diff = (source or {}).get("diff")
    if source is None:
        commit = "not in a checkout"
    else:
        commit = source["commit"][:12]
        if diff is not None:
            commit += f" + {diff['file'] or 'a diff too large to keep'}"
        elif source.get("dirty"):
            commit += " with changes"
    packages = process.get("packages") or {}
    return [
        str(number),
        process.get("time", NONE).replace("T", " ").removesuffix("+00:00"),
        f"{process.get('from_step', 0):,}",
        process.get("gpu") or process.get("cpu") or NONE,
        spread,
        ", ".join(f"{name} {packages[name]}" for name in ("heedful", "torch") if packages.get(name)),
        commit,
    ]


def _diffs(folder: Path, facts: RunFacts) -> list[tuple[str, str]]:
    """Return the kept diffs, each once, a long one cut with a word about it (the file is whole)."""
    kept = [((process.get("source") or {}).get("diff") or {}).get("file") for process in facts.processes]
    diffs = []
    for name in dict.fromkeys(name for name in kept if name):
        file = folder / Path(name).name
        if file.is_file():
            text = file.read_text(encoding="utf-8", errors="replace")
            rest = len(text) - SHOWN_DIFF_CHARACTERS
            diffs.append((name, text if rest <= 0 else f"{text[:SHOWN_DIFF_CHARACTERS]}\n... {rest:,} characters more"))
    return diffs


def _loss(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
