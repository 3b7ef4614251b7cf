"""The benchmarks measure what they say, at sizes that take no time, and their tables and figures can be drawn."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import layers, measuring, model_step, multi_token, multi_token_forms
from benchmarks.materialised import materialised_attention, materialised_layers
from scripts import benchmark_plots, benchmark_tables

from heedful.models import DecoderLM, decoder_config
from heedful.ops import AttentionMask, multi_token_attention
from tolerance import assert_close

TINY = multi_token.Options(
    lengths=(24, 48),
    contexts=(16,),
    heads=4,
    head_dim=8,
    rounds=2,
    materialised_up_to=24,
    cases=multi_token_forms.CASES,
)


@pytest.fixture(scope="module")
def measured():
    torch.manual_seed(0)
    return multi_token.measure(TINY)


@pytest.fixture(scope="module")
def stepped():
    torch.manual_seed(0)
    return model_step.measure(model_step.Options(shapes=("tiny",), turns=2, steps=1))


@pytest.mark.parametrize("case", multi_token_forms.CASES)
def test_the_materialised_form_is_the_reference(case):
    inputs = multi_token_forms.draw_inputs(2, 4, 17, 8, "cpu", torch.float64)
    parts = multi_token_forms.draw_parts(case, 4, "cpu", torch.float64)
    query, key, value, gradient = inputs
    wanted = [query, key, value, *parts.values()]
    found = materialised_attention(query, key, value, **parts)
    expected = multi_token_attention(query, key, value, **parts, backend="reference")
    assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad(found, wanted, gradient), torch.autograd.grad(expected, wanted, gradient), strict=True
    ):
        assert_close(one, other)


def test_the_materialised_form_repeats_shared_keys():
    query, shared = torch.randn(1, 4, 9, 8, dtype=torch.float64), torch.randn(1, 2, 9, 8, dtype=torch.float64)
    parts = multi_token_forms.draw_parts("all four", 4, "cpu", torch.float64)
    expected = multi_token_attention(query, shared, shared, **parts, backend="reference")
    assert_close(materialised_attention(query, shared, shared, **parts), expected)


def test_a_model_computes_the_materialised_form_while_told_to():
    sizes = {"vocab_size": 11, "num_layers": 3, "max_positions": 16, "hidden_size": 16, "num_heads": 2}
    model = DecoderLM(decoder_config("multi-token", **sizes)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    tokens = torch.arange(11)[None]
    expected = model(tokens)[0]
    with materialised_layers():
        assert_close(model(tokens)[0], expected)
        with pytest.raises(ValueError, match="whole causal sequences"):
            model(tokens, mask=AttentionMask(window=3))


def test_every_case_has_the_parts_it_names():
    found = {case: sorted(multi_token_forms.draw_parts(case, 4, "cpu", torch.float32)) for case in TINY.cases}
    assert found == {
        "pre convolution": ["kq_pre"],
        "v1": ["head_post", "kq_pre"],
        "all four": ["head_post", "head_pre", "kq_post", "kq_pre"],
        "talking heads": ["head_post", "head_pre"],
        "head mixing after": ["head_post"],
        "post convolution": ["kq_post"],
    }


def test_turns_are_ratios_within_a_round(monkeypatch):
    taken = iter([9.0, 9.0, 9.0, 1.0, 2.0, 6.0, 2.0, 8.0])
    monkeypatch.setattr(measuring, "seconds", lambda function, device: next(taken))
    calls = dict.fromkeys(("base", "other", "rare"), lambda: None)
    timings = measuring.in_turns(calls, baseline="base", device="cpu", rounds=2, fewer={"rare": 1})
    assert timings == {"base": (1.5, 1.0), "other": (5.0, 3.0), "rare": (6.0, 6.0)}


def test_multi_token_measures_every_form_or_says_why_not(measured):
    rows = measured["rows"]
    for kind in ("forward", "training", "memory"):
        for case in TINY.cases:
            for length in TINY.lengths:
                names = [
                    row["implementation"]
                    for row in rows
                    if (row["kind"], row["case"], row["length"]) == (kind, case, length)
                ]
                expected = set(multi_token_forms.implementations(case, "cpu"))
                assert set(names) == expected - ({multi_token_forms.WIDE} if kind == "memory" else set())
                assert len(names) == len(set(names))
    refused = {(row["implementation"], row["length"]) for row in rows if "not_run" in row}
    assert refused == {("materialised", 48)}
    assert all(row["ratio"] > 0 for row in rows if "not_run" not in row)
    assert all("growth" in row for row in rows if row["kind"] == "memory" and row["length"] == 48 and "bytes" in row)


def test_decoding_is_measured_at_three_levels(measured):
    rows = [row for row in measured["rows"] if row["kind"] in benchmark_tables.LEVELS]
    assert {row["kind"] for row in rows} == set(benchmark_tables.LEVELS)
    assert {row["length"] for row in rows} == {16}
    assert [row["case"] for row in rows if row["kind"] == "decode model"] == list(model_step.ARMS[:-1])


def test_targets_are_for_this_library_at_the_shape_they_were_set_for():
    assert multi_token_forms.target("cpu", "training", "all four", "blockwise", 2048) == 6.0
    assert multi_token_forms.target("cpu", "training", "all four", "blockwise", 2048, usual=False) is None
    assert multi_token_forms.target("cpu", "training", "all four", "materialised", 2048) is None


def test_the_products_of_the_wide_form_fit_values_of_another_width_and_a_last_block_that_is_short():
    wide, value = torch.randn(1, 2, 10, 48), torch.randn(1, 2, 10, 8)
    multi_token_forms.products(wide, wide, value, None, rows=4)
    multi_token_forms.products(wide, wide, value, value, rows=4)


def test_a_model_step_is_measured_for_every_arm(stepped):
    rows = {row["arm"]: row for row in stepped["rows"]}
    assert tuple(rows) == model_step.ARMS
    assert rows["standard"]["speed_ratio"] == rows["standard"]["memory_ratio"] == 1.0
    assert all(row["tokens_per_second"] > 0 and row["peak_bytes"] > 0 for row in rows.values())
    assert rows["multi-token"]["parameters"] == rows[model_step.MATERIALISED]["parameters"]


def test_an_arm_that_needs_too_much_memory_does_not_end_the_run(monkeypatch):
    build = model_step.build_step

    def limited(arm, *sizes):
        if arm == model_step.MATERIALISED:
            raise torch.OutOfMemoryError("too much")
        return build(arm, *sizes)

    monkeypatch.setattr(model_step, "build_step", limited)
    arms = (model_step.BASELINE, model_step.MATERIALISED)
    rows = model_step.measure(model_step.Options(shapes=("tiny",), arms=arms, turns=1, steps=1))["rows"]
    assert "not_run" not in rows[0]
    assert rows[1]["not_run"] == "out of memory"


def test_unknown_shapes_are_refused():
    with pytest.raises(ValueError, match=r"unknown shapes \['huge'\]"):
        model_step.measure(model_step.Options(shapes=("huge",)))


def test_layers_are_measured(monkeypatch):
    monkeypatch.setattr(layers, "SUMS", ())
    rows = layers.measure(16, layers.Options(rounds=1, heads=4, head_dim=8), torch.float32)
    assert rows[0]["mechanism"] == "standard"
    assert rows[0]["training_ratio"] == 1.0


def test_results_become_tables_and_figures(measured, stepped, tmp_path):
    for name, result in (("multi-token-cpu", measured), ("model-step-cpu", stepped)):
        measuring.write_result(result, name, tmp_path)
    text = benchmark_tables.multi_token_tables(tmp_path)
    assert "| all four | materialised |" in text
    assert "built up to N = 24 only" in text
    assert "(figures/multi-token-cpu.svg)" in text
    assert "| model of four layers | multi-token |" in benchmark_tables.decode_tables(tmp_path)
    assert f"| {model_step.MATERIALISED} |" in benchmark_tables.model_step_tables(tmp_path)
    for part in (text, benchmark_tables.decode_tables(tmp_path), benchmark_tables.model_step_tables(tmp_path)):
        widths = [line.count("|") for line in part.splitlines() if line.startswith("|")]
        assert min(widths) >= 5
    result = json.loads((tmp_path / "multi-token-cpu.json").read_text(encoding="utf-8"))
    drawing = benchmark_plots.multi_token_figure(result)
    assert drawing == benchmark_plots.multi_token_figure(result)
    assert benchmark_plots.mark_of(result) in drawing


def test_targets_stand_beside_the_figures(tmp_path):
    common = {"case": "all four", "implementation": "blockwise", "length": 2048}
    rows = [
        {**common, "kind": "training", "implementation": "sdpa", "seconds": 0.1, "ratio": 1.0, "target": None},
        {**common, "kind": "training", "seconds": 0.5, "ratio": 5.0, "target": 6.0},
        {
            **common,
            "kind": "memory",
            "bytes": 2**20,
            "ratio": 2.0,
            "growth": 2.1,
            "growth_target": 2.2,
            "of_materialised": 0.05,
            "of_materialised_target": 0.125,
        },
        {**common, "kind": "decode layer", "seconds": 0.1, "ratio": 1.2, "implementation": "decode", "target": 1.5},
    ]
    head = {"machine": "a machine", "dtype": "float32", "dirty": True, "commit": "0" * 40, "command": "python"}
    result = {**head, "batch": {"2048": 1}, "heads": 8, "head_dim": 64, "rows": rows}
    (tmp_path / "multi-token-cpu.json").write_text(json.dumps(result), encoding="utf-8")
    text = benchmark_tables.multi_token_tables(tmp_path)
    assert "| all four | sdpa | 1.00 (100 ms) |  |" in text
    assert "| all four | blockwise | 5.00 | N=2048: 6 |" in text
    assert "| 1.0 MiB (2.00) | 2.10 (target 2.2) | N=2048: 1/20.0 (target 1/8) |" in text
    assert "| layer | all four | 1.20 | 2048: 1.5 |" in benchmark_tables.decode_tables(tmp_path)


def test_a_part_without_results_says_how_to_measure_it(tmp_path):
    assert "benchmarks.multi_token" in benchmark_tables.multi_token_tables(tmp_path)
    assert "benchmarks.multi_token" in benchmark_tables.decode_tables(tmp_path)
    assert "benchmarks.model_step" in benchmark_tables.model_step_tables(tmp_path)
    assert "benchmarks.layers" in benchmark_tables.layer_tables(tmp_path)


def test_long_sequences_have_fewer_rounds_and_cases_on_the_cpu():
    options = replace(TINY, rounds=7, long_rounds=3)
    assert [options.rounds_at(length) for length in (2048, 4096, 8192)] == [7, 3, 1]
    assert options.cases_at(8192) == options.long_cases
    assert replace(options, device="cuda").cases_at(8192) == options.cases
