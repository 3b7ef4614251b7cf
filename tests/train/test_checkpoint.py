from __future__ import annotations

import errno
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import CopyData, metric_lines, run, same_weights, signal_at, tiny_config, tiny_model, validate
from torch import nn

from heedful.train import OptimizerConfig, best_folder, load_best, train
from heedful.train.checkpoint import Checkpoints
from heedful.train.processes import ALONE
from heedful.train.state import CheckpointError, TrainingState
from heedful.train.training_step import TrainingStep


@pytest.fixture(scope="module")
def half_way(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run interrupted after step 13: best checkpoint 8, last checkpoint 13."""
    folder = tmp_path_factory.mktemp("half-way")
    run(folder, data=CopyData(signal_at(12)))
    return folder


@pytest.fixture
def folder(half_way: Path, tmp_path: Path) -> Path:
    return shutil.copytree(half_way, tmp_path / "run")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_only_best_and_last_are_kept(folder: Path) -> None:
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert names == ["best.json", "last.json", "step-00000008", "step-00000013"]
    assert best_folder(folder).name == "step-00000008"


def test_all_checkpoints_are_kept_when_asked(tmp_path: Path) -> None:
    run(tmp_path, keep="all")
    names = {path.name for path in (tmp_path / "checkpoints").glob("step-*")}
    assert {f"step-{step:08d}" for step in (5, 10, 15, 20, 24)} <= names


def test_the_best_weights_are_those_of_the_lowest_validation_loss(tmp_path: Path) -> None:
    weights = {}
    losses = iter([3.0, 1.0, 2.0])

    def evaluate(model: nn.Module) -> dict[str, float]:
        loss = next(losses)
        weights[loss] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        return {"val/loss": loss}

    result = train(tiny_model(), CopyData(), tiny_config(), tmp_path, evaluate=evaluate, report=lambda line: None)
    assert (result.best_step, result.best, result.final["val/loss"]) == (16, {"val/loss": 1.0}, 2.0)
    best = load_best(tmp_path)
    assert all(torch.equal(tensor, weights[1.0][name]) for name, tensor in best.state_dict().items())


def test_an_evaluation_owed_after_an_interruption_can_still_be_the_best(tmp_path: Path) -> None:
    losses = iter([1.0, 2.0, 3.0])

    def attempt(data: CopyData) -> int:
        result = train(
            tiny_model(),
            data,
            tiny_config(),
            tmp_path,
            evaluate=lambda model: {"val/loss": next(losses)},
            resume=True,
            report=lambda line: None,
        )
        return result.best_step

    attempt(CopyData(signal_at(7)))  # saved after step 8, before its evaluation
    assert attempt(CopyData()) == 8
    assert best_folder(tmp_path).name == "step-00000008.1"  # a checkpoint in use is never rewritten


def test_without_an_evaluation_the_newest_counts_as_best(tmp_path: Path) -> None:
    model = tiny_model()
    result = train(model, CopyData(), tiny_config(), tmp_path, report=lambda line: None)
    assert same_weights(load_best(tmp_path), model)
    assert result.best == result.final
    assert result.best_step == 24


def test_a_folder_without_a_run_has_no_best(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"best.json is missing"):
        load_best(tmp_path)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


STATE = "state/shard-00001-model-00001-of-00001.safetensors"
FILES = ["model.safetensors", "training.safetensors", "training.json", "config.json", STATE]


@pytest.mark.parametrize("damage", [flip, truncate, empty, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_refused_by_name_and_nothing_is_written(
    name: str, damage: Callable[[Path], None], folder: Path
) -> None:
    damage(folder / "checkpoints" / "step-00000013" / name)
    before = contents(folder)
    expected = rf"step-00000013/{name} is (damaged|missing)"
    with pytest.raises(ValueError, match=expected):
        run(folder, resume=True)
    assert contents(folder) == before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"step": 13}', '"x"'])
def test_a_damaged_pointer_is_refused(text: str, folder: Path) -> None:
    (folder / "checkpoints" / "last.json").write_text(text)
    before = contents(folder)
    with pytest.raises(ValueError, match=r"last.json is damaged"):
        run(folder, resume=True)
    assert contents(folder) == before


def test_a_checkpoint_that_is_gone_is_refused(folder: Path) -> None:
    shutil.rmtree(folder / "checkpoints" / "step-00000013")
    with pytest.raises(ValueError, match=r"step-00000013/training.json is missing, although .*last.json names it"):
        run(folder, resume=True)


def test_a_pointer_cannot_lead_out_of_the_run(folder: Path) -> None:
    pointer = folder / "checkpoints" / "last.json"
    pointer.write_text(json.dumps({**json.loads(pointer.read_text()), "folder": "../../elsewhere/step-00000013"}))
    assert run(folder, resume=True)[0].steps == 24  # only the last part of the name counts


def test_damaged_best_weights_are_refused_now_rather_than_when_the_run_is_over(folder: Path) -> None:
    flip(folder / "checkpoints" / "step-00000008" / "model.safetensors")
    with pytest.raises(ValueError, match=r"step-00000008/model.safetensors is damaged"):
        load_best(folder)
    with pytest.raises(ValueError, match=r"step-00000008/model.safetensors is damaged"):
        run(folder, resume=True)


def test_a_checkpoint_of_another_format_is_refused(folder: Path) -> None:
    from heedful.files import file_sha256

    file, pointer = folder / "checkpoints" / "step-00000013" / "training.json", folder / "checkpoints" / "last.json"
    file.write_text(file.read_text().replace('"format": 2', '"format": 1'))
    pointer.write_text(json.dumps({**json.loads(pointer.read_text()), "sha256": file_sha256(file)}))
    with pytest.raises(ValueError, match=r"training.json is of format 1, and this version reads format 2"):
        run(folder, resume=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": 5}, r"train.seed is 0 there and 5 here\. Resume"),
        (
            {"steps": 30, "evaluate_every": 9},
            "train.steps is 24 there and 30 here; train.evaluate_every is 8 there and 9 here",
        ),
        ({"optimizer": OptimizerConfig(learning_rate=0.5)}, "train.optimizer.learning_rate is 0.01 there and 0.5 here"),
        (
            {"optimizer": OptimizerConfig(learning_rate=0.01, betas=(0.5, 0.95))},
            r"betas is \[0.9, 0.95\] there and \[0.5",
        ),
    ],
)
def test_another_configuration_is_refused_field_by_field(fields: dict[str, Any], message: str, folder: Path) -> None:
    before = contents(folder)
    with pytest.raises(ValueError, match=message):
        run(folder, resume=True, **fields)
    assert contents(folder) == before


def resume_with(folder: Path, model: nn.Module, data: CopyData | None = None) -> None:
    train(model, data or CopyData(), tiny_config(), folder, evaluate=validate, resume=True, report=lambda line: None)


def test_other_data_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"data.fingerprint is 'copy' there and 'other' here"):
        resume_with(folder, tiny_model(), CopyData(fingerprint="other"))


def test_another_model_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"model.dropout is 0.1 there and 0.2 here"):
        resume_with(folder, tiny_model(dropout=0.2))


def test_a_model_with_another_mechanism_is_refused_in_a_readable_length(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"'multi-token' there and 'standard' here; .*; and \d+ more\. Resume"
    ) as error:
        resume_with(folder, tiny_model("standard"))
    assert len(str(error.value)) < 1000


def test_the_configuration_in_the_checkpoint_is_compared_too(folder: Path) -> None:
    """config.json lies in the open; what counts is what the weights were trained with."""
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"seed": 0', '"seed": 5'))
    with pytest.raises(
        ValueError, match=r"step-00000013/training.json belongs to another run: train.seed is 0 there and 5"
    ):
        run(folder, resume=True, seed=5)


class Plain(nn.Module):
    """A model without a configuration, so that only names and shapes can tell it from another."""

    def __init__(self, width: int = 4, *, bias: bool = True) -> None:
        super().__init__()
        self.layer = nn.Linear(3, width, bias=bias)

    def save(self, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        from safetensors.torch import save_file

        save_file(weights, folder / "model.safetensors")


def checkpoints_of(folder: Path, model: Plain, **fields: Any) -> Checkpoints:
    step = TrainingStep(model, CopyData(), tiny_config(), torch.device("cpu"), ALONE)
    options: Any = {"keep_last": 1, "asynchronous": False, "export": model.save, **fields}
    return Checkpoints(folder, step, {"train": 1}, **options)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Plain(5), r"model/layer.weight is \(4, 3\) there and \(5, 3\) here; model/layer.bias is \(4,\) there and"),
        (Plain(bias=False), "model/layer.bias is not in this run"),
    ],
)
def test_weights_of_another_shape_are_refused_before_anything_is_changed(
    other: Plain, message: str, tmp_path: Path
) -> None:
    checkpoints_of(tmp_path, Plain()).save(TrainingState(step=3), is_best=False)
    weights = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    random_state = torch.get_rng_state()
    with pytest.raises(ValueError, match=message):
        checkpoints_of(tmp_path, other).load()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in other.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_written_in_the_background_it_holds_the_state_of_its_moment(tmp_path: Path) -> None:
    model = Plain()
    began, go_on = threading.Event(), threading.Event()

    def slow_export(folder: Path, weights: dict[str, torch.Tensor]) -> None:
        began.set()
        go_on.wait(60)
        model.save(folder, weights)

    checkpoints = checkpoints_of(tmp_path, model, asynchronous=True, export=slow_export)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    state = TrainingState(step=3, metrics={"train/loss": 2.0}, best_step=3, best={"val/loss": 1.0})
    checkpoints.save(state, is_best=True)
    state.metrics["train/loss"] = 1.0  # training goes on meanwhile
    assert began.wait(60)
    assert not (tmp_path / "last.json").exists()
    with torch.no_grad():
        model.layer.weight.add_(1)
    torch.rand(3)
    go_on.set()
    checkpoints.wait()
    checkpoints.close()
    other = Plain()
    found = checkpoints_of(tmp_path, other).load()
    assert found == TrainingState(step=3, metrics={"train/loss": 2.0}, best_step=3, best={"val/loss": 1.0})
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_failure_in_the_background_is_told_at_the_next_opportunity(tmp_path: Path) -> None:
    def full_disk(folder: Path, weights: dict[str, torch.Tensor]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoints = checkpoints_of(tmp_path, Plain(), asynchronous=True, export=full_disk)
    checkpoints.save(TrainingState(step=3), is_best=True)
    with pytest.raises(CheckpointError, match=r"step 3 could not be written to .* \(No space left on device\)"):
        checkpoints.save(TrainingState(step=4), is_best=True)
    checkpoints.close()
    assert list(tmp_path.iterdir()) == []


def test_a_run_with_background_checkpoints_equals_one_without(tmp_path: Path) -> None:
    _, plain = run(tmp_path / "plain")
    run(tmp_path / "background", data=CopyData(signal_at(12)), asynchronous_checkpoints=True)
    _, model = run(tmp_path / "background", resume=True, asynchronous_checkpoints=True)
    assert same_weights(model, plain)
    assert same_weights(load_best(tmp_path / "background"), load_best(tmp_path / "plain"))


def test_the_newest_checkpoints_are_kept_as_many_as_asked(tmp_path: Path) -> None:
    train(tiny_model(), CopyData(), tiny_config(keep_last=3), tmp_path, report=lambda line: None)
    names = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert names == ["step-00000015", "step-00000020", "step-00000024"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A finished run that kept all of its checkpoints."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, run(folder, keep="all")[1]


@pytest.mark.parametrize("name", ["step-00000010", "step-00000020"])
def test_a_run_goes_back_to_a_checkpoint_that_is_named(
    name: str, finished: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    folder = shutil.copytree(finished[0], tmp_path / "run")
    flip(folder / "checkpoints" / "step-00000024" / "model.safetensors")
    with pytest.raises(ValueError, match=r"--checkpoint NAME .*: there are .*step-00000010, .*step-00000020"):
        run(folder, resume=True, keep="all")
    _, model = run(folder, resume=True, checkpoint=name, keep="all")
    assert same_weights(model, finished[1])
    assert metric_lines(folder) == metric_lines(finished[0])
    assert same_weights(load_best(folder), load_best(finished[0]))


def test_a_run_that_went_back_and_was_killed_goes_on_from_there(
    finished: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    """Else the lines of metrics that it is about to write again would be lost."""
    folder = shutil.copytree(finished[0], tmp_path / "run")

    def fail(step: int) -> None:
        if step == 12:
            raise OSError("killed")

    with pytest.raises(OSError, match="killed"):
        run(folder, data=CopyData(fail), resume=True, checkpoint="step-00000010", keep="all")
    _, model = run(folder, resume=True, keep="all")
    assert same_weights(model, finished[1])
    assert metric_lines(folder) == metric_lines(finished[0])


def test_a_named_checkpoint_is_checked_as_any_other(finished: tuple[Path, nn.Module], tmp_path: Path) -> None:
    folder = shutil.copytree(finished[0], tmp_path / "run")
    for name in ("training.json", "training.json.sha256", STATE):
        file = folder / "checkpoints" / "step-00000010" / name
        before = file.read_bytes()
        flip(file)
        with pytest.raises(ValueError, match=r"step-00000010/.* is damaged"):
            run(folder, resume=True, checkpoint="step-00000010", keep="all")
        file.write_bytes(before)


def test_what_a_crash_left_is_removed_also_where_all_checkpoints_stay(
    finished: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    folder = shutil.copytree(finished[0], tmp_path / "run")
    (folder / "checkpoints" / ".step-00000015.new.abc").mkdir()
    run(folder, resume=True, checkpoint="step-00000020", keep="all")
    assert not list((folder / "checkpoints").glob(".step-*"))


def test_a_run_that_is_no_longer_evaluated_keeps_its_best_checkpoint(folder: Path) -> None:
    train(tiny_model(), CopyData(), tiny_config(), folder, resume=True, report=lambda line: None)
    assert best_folder(folder).name == "step-00000008"


def test_before_the_first_evaluation_the_last_checkpoint_is_the_best(tmp_path: Path) -> None:
    run(tmp_path, data=CopyData(signal_at(2)))
    assert best_folder(tmp_path).name == "step-00000003"


@pytest.mark.parametrize("name", ["step-00000001", "../checkpoints", "last.json"])
def test_a_checkpoint_that_is_not_there_is_refused(name: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no checkpoint .*; there are step-00000008, step-00000013"):
        run(folder, resume=True, checkpoint=name)


def test_a_crash_before_the_pointer_is_written_leaves_the_checkpoint_before(folder: Path) -> None:
    checkpoints = folder / "checkpoints"
    shutil.copytree(checkpoints / "step-00000013", checkpoints / "step-00000014")  # complete, but nothing points to it
    (checkpoints / ".step-00000015.new.abc").mkdir()  # half-written
    result, _ = run(folder, resume=True)
    assert result.steps == 24
    assert {path.name for path in checkpoints.glob("*step-*")} == {best_folder(folder).name, "step-00000024"}


def test_a_failing_save_leaves_the_checkpoint_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(self: nn.Module, target: Path, weights: dict[str, torch.Tensor]) -> None:
        (Path(target) / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    before = {path.name for path in (folder / "checkpoints").iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr("heedful.models.DecoderLM.save", full_disk)
        with pytest.raises(CheckpointError, match=r"step 15 could not be written .*No space left .* --resume goes on"):
            run(folder, resume=True)
    assert {path.name for path in (folder / "checkpoints").iterdir()} == before
    assert run(folder, resume=True)[0].steps == 24


def test_there_is_no_pickle_in_a_run(folder: Path) -> None:
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file() and "tfevents" not in path.name}
    assert suffixes <= {".json", ".jsonl", ".safetensors", ".sha256", ".diff"}
