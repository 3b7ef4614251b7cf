"""The learning-rate range test: what it does step by step, when it says nothing, and its command."""

from __future__ import annotations

import json
import math
import operator
from pathlib import Path

import pytest
import torch
from tiny_run import CONTEXT, VOCABULARY, CopyData, tiny_config, tiny_model

from heedful.cli import main
from heedful.data.batches import Batch
from heedful.train.config import LossConfig
from heedful.train.gradients import forward_backward
from heedful.train.loss import TrainingLoss
from heedful.train.optimisation import Optimization
from heedful.train.range_test import RangeTestResult, learning_rate_range_test
from tolerance import relative_rounding

CONFIG = tiny_config(seed=3)


class CountingData(CopyData):
    """Rows that count, so that each token follows from the one before: learned in a few steps."""

    def batch(self, step: int) -> Batch:
        starts = torch.randint(VOCABULARY, (self.rows, 1), generator=torch.Generator().manual_seed(step))
        rows = (starts + torch.arange(CONTEXT + 1)) % VOCABULARY
        return Batch(rows[:, :-1], rows[:, 1:])


def range_test(lowest: float, highest: float, steps: int) -> RangeTestResult:
    return learning_rate_range_test(lambda: tiny_model("standard"), CountingData(), CONFIG, lowest, highest, steps)


def test_the_rates_rise_by_a_constant_factor_and_each_loss_is_that_of_its_step() -> None:
    found = range_test(1e-4, 1e-1, 13)
    assert found.rates == pytest.approx([1e-4 * 10 ** (step / 4) for step in range(13)])
    model, device = tiny_model("standard"), torch.device("cpu")
    with torch.random.fork_rng(devices=[]):
        optimization, loss = Optimization(model, CONFIG.optimizer), TrainingLoss(model, LossConfig())
        torch.manual_seed(3)
        tiny_model("standard")  # seeds anew, as the test's own model does
        for step in range(13):
            value, _ = forward_backward(
                loss, CountingData().batch(step), accumulation=2, device=device, precision="float32"
            )
            assert found.losses[step] == float(value)
            optimization.clip(CONFIG.optimizer.gradient_clip)
            optimization.step(found.rates[step])


def test_the_smoothed_loss_is_the_weighted_mean_of_its_past() -> None:
    found = range_test(1e-4, 1e-1, 13)
    for step, value in enumerate(found.smoothed):
        weights = [0.9 ** (step - earlier) for earlier in range(step + 1)]
        mean = sum(map(operator.mul, weights, found.losses)) / sum(weights)
        assert value == pytest.approx(mean, rel=relative_rounding())


def test_the_suggestion_is_a_tenth_of_the_rate_of_the_lowest_smoothed_loss() -> None:
    found = range_test(1e-4, 30.0, 60)
    best = found.rates[found.smoothed.index(min(found.smoothed))]
    assert found.suggestion == best / 10
    assert 1e-4 < found.suggestion < 1.0
    assert f"a tenth of {best:.2g}" in found.reason


def test_it_stops_when_the_loss_explodes() -> None:
    found = range_test(1e-3, 1e4, 60)
    assert found.exploded
    assert len(found.rates) == len(found.losses) == len(found.smoothed) < 60
    assert all(map(math.isfinite, found.losses))
    assert found.suggestion is not None
    assert found.suggestion < found.rates[-1] / 10


def test_it_says_nothing_where_the_loss_still_falls_or_never_fell() -> None:
    falling = range_test(1e-4, 1e-2, 60)
    assert falling.suggestion is None
    assert "still falling near the highest rate" in falling.reason
    for lowest, highest in ((1e-9, 1e-8), (100.0, 1000.0)):
        flat = range_test(lowest, highest, 20)
        assert flat.suggestion is None
        assert "never fell clearly" in flat.reason


def test_it_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(17)
    before = torch.get_rng_state()
    first, second = (
        learning_rate_range_test(lambda: tiny_model("standard", seed=4), CopyData(), CONFIG, 1e-4, 1e-1, 10)
        for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert first == second
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1.0, 20), "lowest and highest must be rising and above 0, got 0 and 1"),
        ((1.0, 0.1, 20), "rising"),
        ((1e-3, math.inf, 20), "rising"),
        ((1e-3, 1.0, 9), "steps must be 10 or more"),
    ],
)
def test_a_range_that_makes_no_sense_is_refused(arguments: tuple[float, float, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        range_test(*arguments)


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="one process"):
        range_test(1e-3, 1.0, 10)


RECIPE = """
name = "tiny"
seeds = [5]
baseline = "standard"
learning_rates = [1e-3, 1e-2]

[task]
kind = "find-the-block"

[model]
hidden_size = 16
num_layers = 1
num_heads = 2

[train]
steps = 6
batch_size = 2

[train.schedule]
warmup_steps = 1

[[arms]]
name = "standard"

[[arms]]
name = "boosted"
attention = "boosted"
"""


def test_the_command_writes_two_files_and_prints_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(RECIPE, encoding="utf-8")
    command = ["range-test", "tiny.toml", "--arm", "boosted", "--steps", "10", "--highest", "1e-4"]
    assert main(command) == 0
    folder = tmp_path / "runs" / "tiny-boosted-range-test"
    assert sorted(path.name for path in folder.iterdir()) == ["range-test.json", "range-test.png"]
    found = json.loads((folder / "range-test.json").read_text(encoding="utf-8"))
    assert found["arm"] == "boosted"
    assert found["seed"] == 5
    assert found["recipe"]["name"] == "tiny"
    assert len(found["rates"]) == len(found["losses"]) == 10
    assert (folder / "range-test.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "10 steps from 1e-05 to 0.0001, to the end of the range" in printed
    assert "No suggestion: " in printed
    assert main(command) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["range-test", "tiny.toml", "--arm", "boosting"]) == 2
    assert "has no arm 'boosting'" in capsys.readouterr().err
    assert main(["range-test", "tiny.toml", "--folder", "other", "--steps", "3"]) == 2
    assert not (tmp_path / "other").exists()
