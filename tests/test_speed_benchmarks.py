"""The benchmarks of training's speed measure what they say, at sizes that take no time; their tables can be written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import loop_overhead, loss_memory, measuring, profile_step
from scripts import speed_tables

from heedful.train.step_timing import PHASES
from tolerance import ORDER, largest_difference

SIZES = loss_memory.Options(vocabularies=(300, 501), tokens=(64,), hidden_size=8, chunk_tokens=16, rounds=1)


@pytest.fixture(scope="module")
def losses() -> dict[str, Any]:
    return loss_memory.measure(SIZES)


@pytest.fixture(scope="module")
def overhead() -> dict[str, Any]:
    return loop_overhead.measure(loop_overhead.Options(shapes=("tiny",), blocks=2, log_every=2))


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    traces = tmp_path_factory.mktemp("traces")
    result = profile_step.measure(profile_step.Options(shape="tiny", steps=1, traces=traces))
    assert {file.name for file in traces.iterdir()} == {"tiny-standard-cpu.json.gz", "tiny-multi-token-cpu.json.gz"}
    return result


def test_all_forms_of_the_loss_give_the_same_gradients() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(40, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(301, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(301, (40,))
    expected = torch.autograd.grad(loss_memory.whole(hidden, weight, targets), [hidden, weight])
    for form in (loss_memory.chunked, loss_memory.recomputed):
        found = torch.autograd.grad(form(hidden, weight, targets, chunk_tokens=7), [hidden, weight])
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_chunks_save_memory(losses: dict[str, Any]) -> None:
    rows = {(row["vocabulary"], row["form"]): row for row in losses["rows"]}
    assert len(rows) == 6
    for vocabulary in SIZES.vocabularies:
        whole, chunked = rows[vocabulary, "whole"], rows[vocabulary, "chunked"]
        assert whole["memory_ratio"] == whole["time_ratio"] == 1
        assert whole["peak_bytes"] > 2 * 4 * 64 * vocabulary
        assert chunked["peak_bytes"] < 4 * 64 * vocabulary
        assert chunked["memory_ratio"] == chunked["peak_bytes"] / whole["peak_bytes"]


def test_the_three_forms_of_the_loop_train_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[torch.nn.Module] = []
    build = loop_overhead.DecoderLM
    monkeypatch.setattr(loop_overhead, "DecoderLM", lambda given: models.append(build(given)) or models[-1])
    loop_overhead.measure_shape("tiny", loop_overhead.Options(blocks=1, log_every=2))
    by_hand, bare, trained = (model.state_dict() for model in models)
    shape, steps = loop_overhead.SHAPES["tiny"], loop_overhead.WARM_UP + 3
    torch.manual_seed(0)
    model = build(loop_overhead.decoder_of(shape, "standard")).double()
    take = loop_overhead.by_hand(model, loop_overhead.config_of(shape, steps, 2))
    for step, batch in enumerate(loop_overhead.batches_of(shape, steps)):
        take(step, batch)
    for name, exact in model.state_dict().items():
        assert torch.equal(bare[name], trained[name])
        rounding = largest_difference(by_hand[name].double(), exact)
        assert rounding > 0  # it moved
        assert largest_difference(trained[name].double(), exact) <= ORDER * rounding


def test_times_of_the_loop_are_those_between_its_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((0.0, 10.0, 11.0, 111.0, 112.0, 115.0, 116.0))
    monkeypatch.setattr(loop_overhead.time, "perf_counter", lambda: next(clock))
    batches: list[Any] = [loop_overhead.Batch(torch.zeros(1, 1), torch.zeros(1, 1))] * 2
    data = loop_overhead.Interleaved(batches, {"bare": lambda step, batch: None})
    data.batch(0)  # a look that does not count
    data.batch(0)  # bare from 0 to 10, handed over at 11
    data.batch(1)  # asked for at 111; bare from 112 to 115, handed over at 116
    assert [taken.seconds for taken in data.taken["bare"]] == [10, 3]
    assert [taken.seconds for taken in data.taken["train"]] == [100]
    options = loop_overhead.Options(blocks=2, log_every=3)
    assert loop_overhead._blocks([99.0, 1, 2, 3, 4, 5, 6], options) == [2, 5]


def test_the_loop_is_compared_by_both_clocks(overhead: dict[str, Any]) -> None:
    (row,) = overhead["rows"]
    for clock in loop_overhead.Taken._fields:
        assert min(row[clock][form] for form in ("by hand", "bare", "train")) > 0
        assert row[clock]["train / bare"] > 0


def test_a_profile_has_shares_and_operators(profiled: dict[str, Any]) -> None:
    assert [row["arm"] for row in profiled["rows"]] == ["standard", "multi-token"]
    for row in profiled["rows"]:
        assert tuple(row["shares"]) == PHASES
        assert row["utilisation"] is None
        assert row["operators"][0]["milliseconds"] <= row["profiled_milliseconds"]


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown shape 'huge'"):
        profile_step.measure(profile_step.Options(shape="huge"))


def test_results_become_tables(
    losses: dict[str, Any], overhead: dict[str, Any], profiled: dict[str, Any], tmp_path: Path
) -> None:
    for name, result in (("loss-memory", losses), ("loop-overhead", overhead), ("profile-step", profiled)):
        measuring.write_result(result, f"{name}-cpu", tmp_path)
        json.loads((tmp_path / f"{name}-cpu.json").read_text(encoding="utf-8"))
    text = speed_tables.loss_memory_tables(tmp_path)
    assert "| vocabulary | tokens | whole, memory | chunked, memory |" in text
    assert "| 501 | 64 |" in text
    assert "| tiny: 1 layers of 16" in speed_tables.loop_overhead_tables(tmp_path)
    assert "multi-token, costliest operators" in speed_tables.profile_step_tables(tmp_path)
    tables = (speed_tables.loss_memory_tables, speed_tables.loop_overhead_tables, speed_tables.profile_step_tables)
    for part in (write(tmp_path) for write in tables):
        blocks = [block.splitlines() for block in part.split("\n\n")]
        for rows in ([line for line in block if line.startswith("|")] for block in blocks):
            assert len({line.count("|") for line in rows}) <= 1


def test_a_part_without_results_says_how_to_measure_it(tmp_path: Path) -> None:
    assert "benchmarks.loss_memory --device cpu" in speed_tables.loss_memory_tables(tmp_path)
    assert "benchmarks.loop_overhead`" in speed_tables.loop_overhead_tables(tmp_path)
    assert "benchmarks.profile_step --device cuda" in speed_tables.profile_step_tables(tmp_path)
