"""`result.json`: everything a comparison measured, in plain values, and the statistics computed from it.

Top level: what was compared (recipe, task, data with hashes), where (environment, command, commit), `arms` (one entry
each: costs, chosen learning rate, means), `comparisons` (paired differences to the baseline and to controls) and `runs`
(one entry each, with its validation curve). The report and the terminal table are made from this alone.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from statistics import fmean
from typing import Any

from heedful.schema import to_mapping
from heedful.study.arms import attention_label
from heedful.study.plan import Plan, PlannedArm
from heedful.study.recipe_file import recipe_mapping
from heedful.study.statistics import holm, paired_difference, proportion, summarise
from heedful.study.wording import rate
from heedful.train import describe_environment
from heedful.train.device import resolve_device

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class ArmRecords:
    """What came out of one arm.

    `runs` holds the records of all its runs, those of the `sweep` included; `findings` the tests by seed, of the chosen
    `learning_rate` only. `learning_rate` is None when at every rate of the sweep a run diverged.
    """

    arm: PlannedArm
    sweep: list[dict[str, Any]]
    learning_rate: float | None
    runs: list[dict[str, Any]]
    findings: dict[int, dict[str, Any]]

    def tests(self, metric: str) -> dict[int, float]:
        """Return a test metric by seed."""
        return {seed: finding["test"][metric] for seed, finding in self.findings.items()}


def build_result(plan: Plan, records: list[ArmRecords]) -> dict[str, Any]:
    """Put together the result of a comparison whose runs are all done."""
    recipe, workload = plan.recipe, plan.workload
    environment = describe_environment(resolve_device(recipe.train.device))
    comparisons = _comparisons(plan, records)
    findings = [finding for arm in records for finding in arm.findings.values()]
    result = {
        "format": FORMAT,
        "name": recipe.name,
        "title": recipe.title,
        "description": recipe.description,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "heedful": environment["packages"]["heedful"],
        "command": environment["command"],
        "commit": environment["source"],
        "environment": environment,
        "machines": sorted({run["machine"] for arm in records for run in arm.runs}),
        "recipe": recipe_mapping(recipe),
        "data": workload.describe(),
        "metrics": list(workload.metrics),
        "curve": workload.curve,
        "context_rule": findings[0]["test"]["context_rule"] if findings else None,
        "tokens_per_step": plan.tokens_per_step,
        "probe_tokens": workload.probe_tokens().numel(),
        "baseline": recipe.baseline,
        "tests": sum(item["p_value"] is not None and item["metric"] == workload.metrics[0] for item in comparisons),
        "runs_at_once": max(run.get("runs_at_once", 1) for arm in records for run in arm.runs),
        "commits": _commits(records),
        "arms": [_arm(arm, plan) for arm in records],
        "comparisons": comparisons,
        "runs": [run for arm in records for run in _runs(arm)],
    }
    return _finite(to_mapping(result))


def _arm(records: ArmRecords, plan: Plan) -> dict[str, Any]:
    arm = records.arm
    finished = [run for run in records.runs if run["status"] == "finished" and _chosen(run, records)]
    first = records.findings.get(plan.recipe.seeds[0], {"sample": None, "diagnostics": []})
    return {
        "name": arm.name,
        "attention": arm.arm.attention,
        "attention_label": attention_label(arm.arm),
        "match": to_mapping(arm.arm.match),
        "config": to_mapping(arm.config),
        "shape": {
            "hidden_size": arm.config.hidden_size,
            "num_layers": arm.config.num_layers,
            "intermediate_size": arm.config.feed_forward_size,
        },
        "notes": list(arm.notes),
        "parameters": arm.parameters,
        "parameters_without_embeddings": arm.parameters_without_embeddings,
        "multiply_adds_per_token": arm.multiply_adds_per_token,
        "cache_bytes_per_token": arm.cache_bytes_per_token,
        "steps": arm.train.steps,
        # Forward, and backward at twice the forward.
        "training_multiply_adds": 3 * arm.multiply_adds_per_token * plan.tokens_per_step * arm.train.steps,
        "learning_rate": records.learning_rate,
        "learning_rate_note": _edge_note(records),
        "sweep": [_rate(learning_rate, records) for learning_rate in records.arm.learning_rates],
        "tokens_per_second": _speed(finished),
        "peak_memory_bytes": max((run["peak_memory_bytes"] for run in finished), default=None),
        "metrics": {
            metric: asdict(summarise(list(records.tests(metric).values()))) for metric in plan.workload.metrics
        },
        "error_interval": _pooled_error(records),
        "sample": first["sample"],
        "diagnostics": first["diagnostics"],
        "attention_maps": first.get("attention_maps"),
    }


def _commits(records: list[ArmRecords]) -> list[str]:
    """Return the commits that the runs were trained from; a comparison that went on may have several."""
    sources = [run.get("source") for arm in records for run in arm.runs]
    return sorted({f"{item['commit']}{' with changes' if item['dirty'] else ''}" for item in sources if item})


def _speed(finished: list[dict[str, Any]]) -> float | None:
    """Return the mean of some runs, None where several shared the machine: that is no speed of one of them."""
    if not finished or any(run.get("runs_at_once", 1) > 1 for run in finished):
        return None
    return fmean(run["tokens_per_second"] for run in finished)


def _rate(learning_rate: float, records: ArmRecords) -> dict[str, Any]:
    """Sum up the runs of the sweep with one learning rate; a rate at which one diverged has no loss."""
    runs = [run for run in records.sweep if run["learning_rate"] == learning_rate]
    finished = all(run["status"] == "finished" for run in runs)
    return {
        "learning_rate": learning_rate,
        "status": "finished" if finished else "diverged",
        "validation_loss": fmean(run["best"]["val/loss"] for run in runs) if finished else None,
    }


def _edge_note(records: ArmRecords) -> str:
    """Say when the best learning rate is the lowest or the highest tried: the true best may lie beyond."""
    rates = records.arm.learning_rates
    if len(rates) < 2 or records.learning_rate not in (rates[0], rates[-1]):
        return ""
    assert records.learning_rate is not None
    end = "lowest" if records.learning_rate == rates[0] else "highest"
    found = f"the {end} rate tried, {rate(records.learning_rate)}"
    return f"{records.arm.name} does best with {found}: a better one may lie beyond."


def _pooled_error(records: ArmRecords) -> dict[str, Any] | None:
    tests = [finding["test"] for finding in records.findings.values() if "errors" in finding["test"]]
    if not tests:
        return None
    pooled = proportion(sum(test["errors"] for test in tests), sum(test["samples"] for test in tests))
    return {"errors": pooled.errors, "samples": pooled.count, "low": 100 * pooled.low, "high": 100 * pooled.high}


def _comparisons(plan: Plan, records: list[ArmRecords]) -> list[dict[str, Any]]:
    """Compare each arm with the baseline, and each arm that has a control with its control."""
    by_name = {arm.arm.name: arm for arm in records}
    baseline = plan.recipe.baseline
    pairs = [(name, baseline, "baseline") for name in by_name if name != baseline]
    for arm in plan.recipe.arms:  # a control of the baseline is compared above, in the other direction
        if arm.match is not None and baseline not in (arm.name, arm.match.arm):
            pairs.append((arm.match.arm, arm.name, "control"))
    comparisons = []
    for metric in plan.workload.metrics:
        items = [
            {
                "arm": name,
                "reference": reference,
                "kind": kind,
                "metric": metric,
                **asdict(paired_difference(by_name[name].tests(metric), by_name[reference].tests(metric))),
            }
            for name, reference, kind in pairs
        ]
        corrected = holm([item["p_value"] for item in items])
        comparisons += [{**item, "p_holm": p} for item, p in zip(items, corrected, strict=True)]
    return comparisons


def _runs(records: ArmRecords) -> list[dict[str, Any]]:
    return [
        {
            **run,
            "chosen": _chosen(run, records),
            "test": records.findings[run["seed"]]["test"]
            if _chosen(run, records) and run["seed"] in records.findings
            else None,
        }
        for run in records.runs
    ]


def _chosen(run: dict[str, Any], records: ArmRecords) -> bool:
    return run["learning_rate"] == records.learning_rate


def _finite(value: Any) -> Any:
    """Replace numbers that JSON has no word for by None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
