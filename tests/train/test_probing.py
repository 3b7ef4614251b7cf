"""What the probe writes into the metrics of a run."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from tiny_run import tiny_model
from torch import nn

from heedful.data.batches import Batch
from heedful.models.probes import probe
from heedful.ops import AttentionMask
from heedful.train.probing import PROBED_ROWS, SCORE_ROWS, probe_metrics
from tolerance import relative_rounding


def batch_of(rows: int = 3, *, documents: bool = False) -> Batch:
    tokens = torch.randint(12, (rows, 10), generator=torch.Generator().manual_seed(0))
    return Batch(tokens, tokens, torch.tensor([[0] * 4 + [1] * 6] * rows) if documents else None)


def test_the_metrics_are_those_of_the_probe_by_layer_and_round():
    model, batch = tiny_model("boosted+nonlinear-query", num_layers=3), batch_of()
    layers = probe(model, batch.tokens[:PROBED_ROWS], score_rows=SCORE_ROWS)
    expected = {}
    for index, layer in enumerate(layers):
        for name in ("score_max", "score_std", "nonlinear_ratio"):
            expected[f"probe/{index}/{name}"] = layer[name]
            expected[f"probe/{index}/round_1/{name}"] = layer["further_rounds"][0][name]
        for name in ("gate_mean", "gate_std"):
            expected[f"probe/{index}/round_1/{name}"] = layer[name][0]
    found = probe_metrics(model, batch)
    totals = {"probe/score_max", "probe/score_std", "probe/gate_mean", "probe/nonlinear_ratio"}
    assert {name: value for name, value in found.items() if name not in totals} == expected
    assert found["probe/score_max"] == max(value for name, value in expected.items() if name.endswith("score_max"))
    gates = [value for name, value in expected.items() if name.endswith("gate_mean")]
    assert found["probe/gate_mean"] == pytest.approx(statistics.fmean(gates), rel=relative_rounding())


def test_kernels_are_as_far_from_their_identity_as_they_were_moved():
    model, moved = tiny_model("multi-token", num_layers=3), {}
    assert probe_metrics(model, batch_of())["probe/kernel_distance"] == 0.0
    with torch.no_grad():
        for name in model.identity_values():
            change = torch.randn(model.get_parameter(name).shape)
            model.get_parameter(name).add_(change)
            layer, kernel = name.split(".")[1], name.rpartition(".")[2]
            moved[f"probe/{layer}/{kernel}_distance"] = float(change.norm())
    found = probe_metrics(model, batch_of())
    assert {name for name in found if name.endswith("_distance")} == {*moved, "probe/kernel_distance"}
    for name, distance in moved.items():
        assert found[name] == pytest.approx(distance, rel=relative_rounding(torch.float32))
    assert found["probe/kernel_distance"] == pytest.approx(math.hypot(*moved.values()), rel=1e-4)
    assert "probe/0/head_gate_mean" in found


def test_documents_are_kept_apart():
    model, batch = tiny_model("standard"), batch_of(documents=True)
    mask = AttentionMask(document_ids=batch.document_ids[:PROBED_ROWS])
    expected = probe(model, batch.tokens[:PROBED_ROWS], mask, score_rows=SCORE_ROWS)[1]["score_std"]
    assert probe_metrics(model, batch)["probe/1/score_std"] == expected
    assert probe_metrics(model, batch_of())["probe/1/score_std"] != expected


def test_another_model_is_refused():
    with pytest.raises(ValueError, match="DecoderLM, not into a Linear"):
        probe_metrics(nn.Linear(2, 2), batch_of())
