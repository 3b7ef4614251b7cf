"""What a reader must know to judge and repeat a comparison: its setting, where it was computed, what it cannot show."""

from __future__ import annotations

from typing import Any

from heedful.study.wording import count, listed, number_of, rate

BUDGETS = {
    "steps": "the same number of steps for every arm, models as given",
    "parameters": "the same number of parameters (feed-forward width resized to the baseline's count) and of steps",
    "compute": "the same training multiply-adds (each arm's number of steps scaled to the baseline's)",
}


def setting(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what was compared, as pairs of name and value."""
    recipe, train = result["recipe"], result["recipe"]["train"]
    steps = {arm["steps"] for arm in result["arms"]}
    length = f"{min(steps):,} steps" if len(steps) == 1 else f"{min(steps):,} to {max(steps):,} steps"
    tokens = f"{count(min(steps) * result['tokens_per_step'])} tokens"
    optimizer, schedule = train["optimizer"], train["schedule"]
    decayed = "all parameters" if optimizer["decay"] == "all" else "matrices"
    decay = f"weight decay {optimizer['weight_decay']:g} on {decayed}"
    clip = f"gradients clipped at {optimizer['gradient_clip']:g}" if optimizer["gradient_clip"] else "no clipping"
    fall = "" if schedule["kind"] == "constant" else f" to {schedule['final_ratio']:g} of the peak"
    rates = {arm["learning_rate"] for arm in result["arms"] if arm["learning_rate"] is not None}
    chosen = (
        f"learning rate {rate(rates.pop())} for every arm"
        if len(rates) == 1
        else "learning rate by arm (see the list of arms)"
    )
    facts = [(name, value) for name, value in result["data"]["facts"]]
    facts += [
        ("model", _model(result)),
        ("budget", BUDGETS[recipe["budget"]]),
        (
            "training",
            f"{length} of {train['batch_size']} sequences of {train['context_length']} tokens ({tokens}), "
            f"{train['precision']}",
        ),
        (
            "optimiser",
            f"AdamW, {chosen}, betas {optimizer['betas'][0]:g} and {optimizer['betas'][1]:g}, {decay}, {clip}",
        ),
        ("schedule", f"{schedule['warmup_steps']:,} warm-up steps, then {schedule['kind']}{fall}"),
        (
            "seeds",
            f"{_seed_numbers(recipe)}: each draws initial weights, batches and dropout",
        ),
        ("selection", "checkpoint with the lowest validation loss; the test split is read once, with that checkpoint"),
    ]
    if result["context_rule"]:
        facts.append(("test", result["context_rule"]))
    return facts


def _model(result: dict[str, Any]) -> str:
    config = next(arm for arm in result["arms"] if arm["name"] == result["baseline"])["config"]
    attention = config["attention"][0] if isinstance(config["attention"], list) else config["attention"]
    positions = "learned positions" if config["position_embedding"] == "learned" else "no learned positions"
    if attention["rotary"]:
        positions = "rotary positions"
    norm = {"layer": "LayerNorm", "rms": "RMSNorm"}[config["norm"]]
    activation = {"gelu": "GELU", "gelu-tanh": "GELU (tanh)", "swiglu": "SwiGLU"}[config["activation"]]
    head = "tied" if config["tie_embeddings"] else "untied"
    dropout = f", dropout {config['dropout']:g}" if config["dropout"] else ""
    return (
        f"decoder with {config['num_layers']} layers, width {attention['hidden_size']}, "
        f"{number_of(attention['num_heads'], 'head')}, {norm} {config['norm_position']}-norm, {activation}, "
        f"{positions}, {head} embeddings{dropout} (the baseline; arms differ as listed)"
    )


def sample_note(result: dict[str, Any]) -> str:
    """Say how the samples of text were made."""
    task = result["recipe"]["task"]
    temperature = task.get("temperature")
    how = "greedily" if temperature == 0 else f"at temperature {temperature}, with the same random numbers"
    return (
        f"The opening of a test document (grey), continued {how} by the best checkpoint of each arm's first seed. One "
        "sample shows what such text looks like; it measures nothing."
    )


def provenance(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return where the result comes from: source, versions, machine, hashes of the data."""
    environment, data = result["environment"], result["data"]
    source = result["commit"]
    commit = "not in a checkout" if source is None else source["commit"] + (" with changes" if source["dirty"] else "")
    trained = result.get("commits", [])
    if len(trained) > 1 or trained not in ([], [commit]):
        commit += f" (result); runs trained from {listed(trained)}"
    versions = [f"{name} {version}" for name, version in environment["packages"].items() if version]
    facts = [
        ("commit", commit),
        ("versions", ", ".join([f"python {environment['python']}", *versions])),
        ("machine", f"{', '.join(result['machines'])}; {number_of(environment['threads'], 'thread')}"),
        ("system", environment["platform"]),
    ]
    if "corpus_sha256" in data:
        facts += [("text sha256", data["corpus_sha256"]), ("tokenizer sha256", data["tokenizer_sha256"])]
        facts += [(f"{name} tokens sha256", sha) for name, sha in data["tokens_sha256"].items()]
    return facts


def limits(result: dict[str, Any]) -> list[str]:
    """Return what the comparison cannot show."""
    recipe = result["recipe"]
    largest = max(arm["parameters"] for arm in result["arms"])
    tokens = max(arm["steps"] for arm in result["arms"]) * result["tokens_per_step"]
    lines = [
        f"Small models, short training: at most {count(largest)} parameters and {count(tokens)} training tokens. The "
        "order of mechanisms can change with size, data and length of training."
    ]
    if "perplexity" in result["metrics"]:
        lines.append(
            "Perplexity is per token of this tokenizer on this split: compare it within this report only. Bits per "
            "byte do not depend on the tokenizer, but on the text."
        )
        if not result["data"]["lossless"]:
            lines.append("This tokenizer drops white space: bits per byte leave out what it would cost to predict.")
        if result["data"]["corpus"] == "python-stdlib":
            lines.append(
                "The text is a stand-in: the source of Python's standard library, real text that every machine has, "
                "but programs and not prose."
            )
        else:
            lines.append("The result is about this text; it says nothing about another corpus.")
    else:
        lines.append("A made-up task isolates one ability; it says nothing about language.")
    seeds = seeds_in_words(recipe)
    lines.append(
        f"{seeds[0].upper()}{seeds[1:]}: they vary initial weights, order of batches and dropout, not the text or its "
        "splits. "
        "With few seeds an interval is wide and a normal distribution of differences is an assumption."
    )
    if all(len(arm["sweep"]) < 2 for arm in result["arms"]):
        lines.append(
            "The learning rate was not tuned arm by arm: an arm that would do better with another one is at a "
            "disadvantage."
        )
    else:
        lines.append(f"Learning rates were chosen {sweep_rule(recipe)}, on the validation split.")
    if recipe["budget"] == "steps" and len({arm["multiply_adds_per_token"] for arm in result["arms"]}) > 1:
        lines.append(
            "Equal steps are not equal cost: arms differ in parameters and in multiply-adds per token, as the table "
            "says. Controls show what an equally large or equally expensive standard model does."
        )
    if result.get("runs_at_once", 1) > 1:
        lines.append(
            f"{number_of(result['runs_at_once'], 'run').capitalize()} at a time shared the machine, so there are no "
            "speeds to compare."
        )
    else:
        lines.append(
            "Tokens per second and memory are those of this implementation on this machine, the arms having run one "
            "after the other; they say little about an optimised kernel."
        )
    if len(result["machines"]) > 1:
        lines.append(
            f"The runs were spread over several machines ({listed(result['machines'])}): speeds do not compare."
        )
    return lines


def seeds_in_words(recipe: dict[str, Any]) -> str:
    """Say how many seeds the arms have."""
    seeds = len(recipe["seeds"])
    more: dict[int, list[str]] = {}
    for arm in recipe["arms"]:
        if arm.get("further_seeds"):
            more.setdefault(seeds + len(arm["further_seeds"]), []).append(arm["name"])
    rest = "; ".join(f"{number_of(total, 'seed')} of {listed(names)}" for total, names in more.items())
    return number_of(seeds, "seed") + (f" ({rest})" if rest else "")


def _seed_numbers(recipe: dict[str, Any]) -> str:
    further = list(dict.fromkeys(seed for arm in recipe["arms"] for seed in arm.get("further_seeds", ())))
    rest = f", and {listed([str(seed) for seed in further])} for some arms" if further else ""
    return listed([str(seed) for seed in recipe["seeds"]]) + rest


def sweep_rule(recipe: dict[str, Any]) -> str:
    """Say which seeds tried the learning rates."""
    tries = recipe.get("sweep_seeds", 1)
    return "with the first seed" if tries == 1 else f"by the mean over the first {number_of(tries, 'seed')}"
