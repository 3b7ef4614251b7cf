"""`heedful bench step`: the figures are those of the measurement, and wrong input is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from heedful.cli import main
from heedful.cli.bench import step_figures
from heedful.models import decoder_config
from heedful.models.counting import training_flops_per_token
from heedful.study.plan import make_plan
from heedful.study.recipe_file import load_recipe
from heedful.train.hardware import gpu_named
from heedful.train.step_timing import PHASES, StepTiming

RECIPE = """
name = "tiny"
seeds = [0]
baseline = "standard"
learning_rates = [1e-3, 3e-3]

[data]
corpus = "CORPUS"
documents = "file"
tokenizer = "bytes"
valid_fraction = 0.2
test_fraction = 0.2

[model]
hidden_size = 16
num_layers = 1
num_heads = 2

[task]
kind = "language-modelling"
prompt_tokens = 8
sample_tokens = 8

[train]
steps = 6
batch_size = 2
context_length = 16
device = "cpu"

[train.schedule]
warmup_steps = 1

[[arms]]
name = "standard"

[[arms]]
name = "boosted"
attention = "boosted"
"""

TIMING = StepTiming(
    device="NVIDIA H100 80GB HBM3",
    processes=2,
    tokens=4096,
    seconds=0.5,
    phase_seconds=dict(zip(PHASES, (0.1, 0.2, 0.4, 0.1, 0.0), strict=True)),
    peak_memory_bytes=123,
)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEEDFUL_CACHE", str(tmp_path / "cache"))
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(12):
        (texts / f"{number}.txt").write_text(f"text number {number} says hello to the world. " * 8)
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE.replace("CORPUS", str(texts)))
    return path


def bench(*arguments: Any) -> int:
    return main(["bench", "step", *map(str, arguments)])


def test_a_step_is_measured_and_printed(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(recipe, "--arm", "boosted", "--steps", 2, "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["arm"] == "boosted"
    assert figures["tokens_per_second"] == pytest.approx(2 * 16 / figures["seconds"])
    assert list(figures["shares"]) == list(PHASES)
    assert sum(figures["shares"].values()) == pytest.approx(1)
    assert min(figures["shares"][phase] for phase in ("data", "forward", "backward", "optimiser")) > 0
    config = decoder_config("boosted", vocab_size=257, hidden_size=16, num_layers=1, num_heads=2, max_positions=16)
    assert figures["flops_per_token"] == training_flops_per_token(config, 16)
    assert figures["utilisation"] is None
    assert figures["peak_memory_bytes"] > 16 * figures["parameters"]  # weights, gradients, two moments
    assert not (recipe.parent / "runs").exists()


def test_a_cpu_has_no_peak_unless_one_is_given(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(recipe, "--steps", 1) == 0
    text = capsys.readouterr().out
    assert "no peak known" in text
    assert "(MFU)" not in text
    assert bench(recipe, "--steps", 1, "--peak-flops", "1e12") == 0
    assert "% of 1.00 TFLOP/s (MFU)" in capsys.readouterr().out


def test_a_trace_is_written_and_operators_are_listed(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = recipe.parent / "new" / "trace.json"
    assert bench(recipe, "--steps", 1, "--profile", trace) == 0
    text = capsys.readouterr().out
    assert "aten::mm" in text or "aten::addmm" in text
    assert str(trace) in text
    assert json.loads(trace.read_text())["traceEvents"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--arm", "bosted"), "has no arm 'bosted'. Did you mean 'boosted'?"),
        (("--peak-flops", "0"), "--peak-flops must be a positive number, got 0."),
        (("--warmup", "1"), "warmup >= 2"),
        (("--train.device", "cuda:99"), "device 'cuda:99'"),
    ],
)
def test_wrong_input_is_one_sentence(
    recipe: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert bench(recipe, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert len(captured.err.strip().splitlines()) == 1


def test_utilisation_is_what_each_device_does_of_its_peak(recipe: Path) -> None:
    planned = make_plan(load_recipe(recipe, {})).arms[0]
    h100 = gpu_named("H100")
    for precision, peak in (("bfloat16", h100.bfloat16_flops), ("float32", h100.float32_flops)):
        own = replace(planned, train=replace(planned.train, precision=precision))
        figures = step_figures(own, TIMING, 10**9)
        assert figures["tokens_per_second"] == 8192
        assert figures["flops_per_second"] == 10**9 * 8192 / 2
        assert figures["peak_flops"] == peak
        assert figures["utilisation"] == 10**9 * 8192 / 2 / peak
    assert step_figures(planned, TIMING, 10**9, 1e13)["utilisation"] == 10**9 * 8192 / 2 / 1e13
    unknown = replace(TIMING, device="NVIDIA H100 NVL")
    assert step_figures(planned, unknown, 10**9)["utilisation"] is None
    assert figures["shares"] == {
        "data": pytest.approx(0.125),
        "forward": pytest.approx(0.25),
        "backward": pytest.approx(0.5),
        "optimiser": pytest.approx(0.125),
        "other": 0,
    }


def test_the_random_state_is_left_alone_by_the_steps(recipe: Path) -> None:
    torch.manual_seed(0)
    assert bench(recipe, "--steps", 1) == 0
    first = torch.rand(())
    torch.manual_seed(5)
    assert bench(recipe, "--steps", 2) == 0
    assert torch.equal(torch.rand(()), first)  # seeded by the recipe, and the dropout of the steps is not in it
