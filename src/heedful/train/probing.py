"""The probe of a run: a few numbers about the inside of the model, for metrics.jsonl.

It is a forward pass of its own, without gradients, over a few rows of a batch, so the training step stays what it is:
the same backends, the same compiled code, and no attention map anywhere.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch
from torch import Tensor, nn

from heedful.data.batches import Batch
from heedful.models.decoder import DecoderLM
from heedful.models.probes import probe
from heedful.train.loss import attention_mask

PROBED_ROWS = 2
SCORE_ROWS = 8


def probe_metrics(model: nn.Module, batch: Batch) -> dict[str, float]:
    """Return what the first `PROBED_ROWS` rows of a batch show of the model, under names that begin with "probe/".

    | name                                        | what                                                             |
    |---------------------------------------------|------------------------------------------------------------------|
    | probe/L/score_max, score_std                | `score_sizes` of layer L's first round, of `SCORE_ROWS` queries  |
    | probe/L/nonlinear_ratio                     | norm of the nonlinear query term over that of its anchor         |
    | probe/L/kq_pre_distance, head_pre_distance, | Frobenius norm of kernel or mixing minus identity                |
    | ... kq_post_distance, head_post_distance    |                                                                  |
    | probe/L/lambda, head_gate_mean, ...         | whatever single numbers the layer's mechanism shows              |
    | probe/L/round_R/...                         | the same of further rounds R = 1, ..., with gate_mean, gate_std  |
    | probe/score_max, probe/score_std            | the largest of all layers and rounds                             |
    | probe/kernel_distance                       | root of the sum of all squared distances                         |
    | probe/gate_mean, probe/nonlinear_ratio      | mean over all layers and rounds that have them                   |

    It waits for the device. Weights, gradients, random states and the modes of the modules stay as they are. Where
    weights are spread over processes, all of them must call, and each returns the numbers of its own rows. Call it
    under the `autocast` of the run for the numbers of its precision.

    Args:
        model: a `DecoderLM`, its blocks compiled, recomputed or sharded as they may be.
        batch: rows of a training batch, on any device; documents are kept apart as in the loss.

    Raises:
        ValueError: a model that is no `DecoderLM`.
    """
    if not isinstance(model, DecoderLM):
        raise ValueError(
            f"probe_every looks into a heedful.models.DecoderLM, not into a {type(model).__name__}; set it to 0."
        )
    device = next(model.parameters()).device
    tokens, _, document_ids = batch
    few = None if document_ids is None else document_ids[:PROBED_ROWS].to(device)
    mask = attention_mask(few)
    layers = probe(model, tokens[:PROBED_ROWS].to(device), mask, score_rows=SCORE_ROWS)
    metrics: dict[str, float] = {}
    for index, (layer, block) in enumerate(zip(layers, model.block_list, strict=True)):
        for number, found in enumerate(_rounds(layer)):
            place = f"probe/{index}/" + (f"round_{number}/" if number else "")
            metrics |= {place + name: value for name, value in found.items() if isinstance(value, float)}
            for name, identity in _identities(block.attention.rounds[number]).items():
                metrics[f"{place}{name}_distance"] = float((torch.tensor(found[name]) - identity).norm())
    return metrics | _totals(metrics)


def _rounds(layer: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what was observed of each round, gates with the round they belong to."""
    further = layer.get("further_rounds", [])
    gates = {name: layer[name] for name in ("gate_mean", "gate_std") if name in layer}
    found = [{**observed, **{name: gates[name][i] for name in gates}} for i, observed in enumerate(further)]
    return [{name: value for name, value in layer.items() if name not in gates}, *found]


def _identities(attention_round: nn.Module) -> dict[str, Tensor]:
    rule: Any = attention_round.rule
    return {name: value.float().cpu() for name, value in getattr(rule, "identity_values", dict)().items()}


def _totals(metrics: dict[str, float]) -> dict[str, float]:
    def values(*endings: str) -> list[float]:
        return [value for name, value in metrics.items() if name.endswith(endings)]

    totals = {name: max(values(f"/{name}")) for name in ("score_max", "score_std") if values(f"/{name}")}
    for name in ("gate_mean", "nonlinear_ratio"):
        if values(f"/{name}"):
            totals[name] = statistics.fmean(values(f"/{name}"))
    if values("_distance"):
        totals["kernel_distance"] = math.hypot(*values("_distance"))
    return {f"probe/{name}": value for name, value in totals.items()}
