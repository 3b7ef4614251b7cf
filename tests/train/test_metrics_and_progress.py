from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from tiny_run import CopyData, run, tiny_config, tiny_model, validate

from heedful.train import BarReporter, LineReporter, read_metrics, train
from heedful.train.metrics import MetricsWriter
from heedful.train.progress import choose_reporter, format_metrics


def test_lines_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, 0, 0) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"train/loss": step / 2})
            writer.write(step, {"val/loss": step / 4})
    with MetricsWriter(tmp_path, 2, 1):  # the evaluation of step 2 is owed
        pass
    assert read_metrics(tmp_path) == [
        {"step": 1, "train/loss": 0.5},
        {"step": 1, "val/loss": 0.25},
        {"step": 2, "train/loss": 1.0},
    ]


def test_a_half_written_last_line_is_dropped_and_a_damaged_one_in_the_middle_refused(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "x": 1.0}\n{"step": 2, "x"')
    assert read_metrics(tmp_path) == [{"step": 1, "x": 1.0}]
    with MetricsWriter(tmp_path, 5, 5) as writer:
        writer.write(6, {"x": 2.0})
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 6]
    file.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl:2 is damaged: 'nonsense'"):
        read_metrics(tmp_path)


def test_every_line_is_strict_json(tmp_path: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    with MetricsWriter(tmp_path, 0, 0) as writer:
        writer.write(1, {"a": float("nan"), "b": float("inf"), "c": 1.0})
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line == {"step": 1, "a": None, "b": None, "c": 1.0}


def test_a_folder_without_metrics_has_none(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="TensorBoard is an extra")
def test_tensorboard_has_the_same_points_also_after_a_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tiny_run import signal_at

    run(tmp_path, data=CopyData(signal_at(9)))
    run(tmp_path, resume=True)
    accumulator = EventAccumulator(str(tmp_path / "tensorboard"))
    accumulator.Reload()
    for name in ("train/loss", "val/loss"):
        expected = [(line["step"], line[name]) for line in read_metrics(tmp_path) if name in line]
        points = [(event.step, event.value) for event in accumulator.Scalars(name)]
        assert [step for step, _ in points] == [step for step, _ in expected]
        assert [value for _, value in points] == pytest.approx([value for _, value in expected], rel=1e-6)


def test_without_tensorboard_a_run_writes_its_lines_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    run(tmp_path, steps=4)
    assert not (tmp_path / "tensorboard").exists()
    assert read_metrics(tmp_path)[-1]["step"] == 4


def test_plain_lines_are_few_and_whole(tmp_path: Path) -> None:
    lines: list[str] = []
    reporter = LineReporter(lines.append, pause_seconds=1000)
    train(tiny_model(), CopyData(), tiny_config(), tmp_path, evaluate=validate, report=reporter)
    assert len(lines) == 4  # one training line in the pause, three evaluations
    assert lines[0].startswith("step 4/24  train/loss ")
    assert [line.split("  ")[0] for line in lines[1:]] == ["step 8/24", "step 16/24", "step 24/24"]
    assert "(best)" in lines[1]


def test_the_bar_shows_the_newest_metrics_and_evaluations_above(tmp_path: Path) -> None:
    screen = io.StringIO()
    reporter = BarReporter(Console(file=screen, force_terminal=True, width=160))
    train(tiny_model(), CopyData(), tiny_config(), tmp_path, evaluate=validate, report=reporter)
    shown = screen.getvalue()
    assert "24/24" in shown
    assert "step 16/24  val/loss" in shown
    assert "train/loss" in shown


def test_the_bar_is_taken_down_when_the_run_fails(tmp_path: Path) -> None:
    def fail(step: int) -> None:
        if step == 5:
            raise OSError("gone")

    reporter = BarReporter(Console(file=io.StringIO(), force_terminal=True))
    with pytest.raises(OSError, match="gone"):
        train(tiny_model(), CopyData(fail), tiny_config(), tmp_path, report=reporter)
    assert not reporter._bar.live.is_started


def test_a_pipe_gets_lines(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert isinstance(choose_reporter(None), LineReporter)
    train(tiny_model(), CopyData(), tiny_config(), tmp_path, evaluate=validate)
    output = capsys.readouterr()
    assert "step 8/24  val/loss" in output.err
    assert output.out == ""  # standard output belongs to results


def test_metrics_read_well() -> None:
    metrics = {"train/loss": 2.34567, "lr": 0.000312345, "speed": 12345.6, "val/perplexity": 123.456, "zero": 0.0}
    assert format_metrics(metrics) == "train/loss 2.3457  lr 0.000312  speed 12,346  val/perplexity 123.5  zero 0"
