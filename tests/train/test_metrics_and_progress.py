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
from heedful.train.progress import (
    SilentReporter,
    choose_reporter,
    format_duration,
    format_metrics,
    seconds_per_step,
)
from heedful.train.trackers import open_trackers


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


def test_lines_of_probes_share_a_step_and_go_with_the_training_lines(tmp_path: Path) -> None:
    def write(writer: MetricsWriter, step: int) -> None:
        writer.write(step, {"train/loss": step / 2})
        writer.write(step, {"probe/layer-0/gate": step / 8})
        writer.write(step, {"val/loss": step / 4})

    with MetricsWriter(tmp_path, 0, 0) as writer:
        for step in (1, 2, 3):
            write(writer, step)
    before = (tmp_path / "metrics.jsonl").read_text()
    with MetricsWriter(tmp_path, 2, 1) as writer:
        assert [(line["step"], len(line)) for line in read_metrics(tmp_path)] == [
            (1, 2),
            (1, 2),
            (1, 2),
            (2, 2),
            (2, 2),
        ]
        writer.write(2, {"val/loss": 2 / 4})
        write(writer, 3)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_a_last_line_cut_at_any_byte_spoils_no_resume(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    with MetricsWriter(tmp_path, 0, 0) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"train/loss": step / 7, "lr": float("nan")})
    whole = file.read_bytes()
    beginning = whole.rindex(b"\n", 0, -1) + 1
    for end in range(beginning, len(whole) + 1):
        for resumed in (2, 3):  # from before the cut line, and from a checkpoint after it
            file.write_bytes(whole[:end])
            kept = [1, 2, 3][: 3 if end >= len(whole) - 1 else 2]
            assert [line["step"] for line in read_metrics(tmp_path)] == kept
            with MetricsWriter(tmp_path, resumed, resumed) as writer:
                writer.write(4, {"train/loss": 1.0})
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            assert [line["step"] for line in lines] == [*(step for step in kept if step <= resumed), 4]
            assert file.read_bytes().endswith(b"\n")


def test_a_full_disk_is_told_and_leaves_whole_lines(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with MetricsWriter(tmp_path, 0, 0, trackers=open_trackers(())) as writer:
        writer.write(1, {"train/loss": 1.0})
        before = (tmp_path / "metrics.jsonl").read_bytes()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, hard))  # room for a part of the next line
            with pytest.raises(OSError, match=r"too large: .*metrics\.jsonl"):
                writer.write(2, {"train/loss": 0.5})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (tmp_path / "metrics.jsonl").read_bytes() == before
        writer.write(2, {"train/loss": 0.5})  # there is room again
        writer.sync()
    assert read_metrics(tmp_path) == [{"step": 1, "train/loss": 1.0}, {"step": 2, "train/loss": 0.5}]


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


class Clock:
    """Stands in for `time.monotonic`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("heedful.train.progress.time.monotonic", lambda: self.now)


@pytest.mark.parametrize("first", [0, 600])
def test_lines_say_when_the_run_will_be_over(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    clock, lines = Clock(monkeypatch), []
    reporter = LineReporter(lines.append, pause_seconds=0)
    metrics = {"train/loss": 2.0, "lr": 1e-3, "tokens_per_second": 10.0}
    reporter.start(first, 1000)
    durations = [60.0, 7.0, 5.0] + [0.5] * 17  # the first steps compile and fill caches
    for step, seconds in enumerate(durations, start=first + 1):
        clock.now += seconds
        reporter.advance(step)
        if step - first in (3, 20):
            reporter.training(step, metrics)
    clock.now += 34.0  # an evaluation after step 20, before the next
    for step in range(first + 21, first + 41):
        clock.now += 0.5
        reporter.advance(step)
    reporter.training(first + 40, metrics)
    assert "ETA" not in lines[0]
    assert lines[1].endswith(f"  ETA {format_duration((980 - first) * 0.5)}")
    assert lines[2].endswith(f"  ETA {format_duration((960 - first) * (0.5 + 34 / 37))}")


def test_a_step_in_the_long_run() -> None:
    assert seconds_per_step([]) is None
    assert seconds_per_step([2.0]) == 2.0
    assert seconds_per_step([1.0, 1.1, 0.9, 1.0, 2.9]) == 1.0  # jitter
    assert seconds_per_step([1.0] * 9 + [11.0]) == pytest.approx(2.0)  # a pause of ten seconds in ten steps
    # Where steps only queue up work for a device and one in four waits for it, the sum counts.
    assert seconds_per_step([0.01, 0.01, 0.01, 4.0] * 5) == pytest.approx(4.03 / 4)


def test_durations_read_well() -> None:
    durations = [0.2, 45, 59.6, 60, 725, 3600, 12000, 86399, 187200]
    assert [format_duration(seconds) for seconds in durations] == [
        "0 s", "45 s", "1 min 0 s", "1 min 0 s", "12 min 5 s", "1 h 0 min", "3 h 20 min", "23 h 59 min", "2 d 4 h"
    ]  # fmt: skip


def test_only_the_first_process_speaks(capfd: pytest.CaptureFixture[str]) -> None:
    reporter = choose_reporter(SilentReporter())
    reporter.start(0, 10)
    reporter.advance(1)
    reporter.training(1, {"train/loss": 1.0})
    reporter.message("something")
    reporter.close()
    output = capfd.readouterr()
    assert output.out == output.err == ""


def test_metrics_read_well() -> None:
    metrics = {"train/loss": 2.34567, "lr": 0.000312345, "speed": 12345.6, "val/perplexity": 123.456, "zero": 0.0}
    assert format_metrics(metrics) == "train/loss 2.3457  lr 0.000312  speed 12,346  val/perplexity 123.5  zero 0"
