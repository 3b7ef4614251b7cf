from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import (
    CONTEXT,
    ROWS,
    CopyData,
    metric_lines,
    run,
    same_weights,
    signal_at,
    tiny_config,
    tiny_model,
    validate,
)
from torch import nn

from heedful.data.batches import Batch
from heedful.schema import to_mapping
from heedful.train import (
    DivergenceError,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
    learning_rate,
    read_metrics,
    train,
)


def silent(line: str) -> None:
    pass


@pytest.mark.parametrize("preset", ["standard", "boosted+multi-token"])
def test_it_learns_what_a_model_that_cannot_look_back_cannot(preset: str, tmp_path: Path) -> None:
    """Each scored token was drawn uniformly from 11: without the first half the loss is log 11 = 2.4 at best."""
    config = tiny_config(
        steps=80,
        batch_size=64,
        accumulation=1,
        checkpoint_every=1000,
        optimizer=OptimizerConfig(learning_rate=1e-2),
        schedule=ScheduleConfig(warmup_steps=10),
    )
    model = tiny_model(preset, dropout=0.0, hidden_size=32)
    result = train(model, CopyData(rows=64), config, tmp_path, report=silent)
    assert result.final["train/loss"] < 0.5


def test_a_run_is_a_function_of_its_seed(tmp_path: Path) -> None:
    _, one = run(tmp_path / "one", seed=1)
    torch.rand(5)  # what the caller does with the global state in between does not matter
    _, again = run(tmp_path / "again", seed=1)
    _, other = run(tmp_path / "other", seed=2)
    assert same_weights(one, again)
    assert not same_weights(one, other), "dropout follows the seed"


def test_the_callers_random_state_is_left_alone(tmp_path: Path) -> None:
    model = tiny_model()
    torch.manual_seed(123)
    before = torch.get_rng_state()
    train(model, CopyData(), tiny_config(), tmp_path, evaluate=validate, report=silent)
    assert torch.equal(torch.get_rng_state(), before)


def train_by_hand(config: TrainConfig, dtype: torch.dtype) -> list[torch.Tensor]:
    model = tiny_model(dropout=0.0).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    for step in range(config.steps):
        optimizer.param_groups[0]["lr"] = learning_rate(step, config.steps, config.optimizer, config.schedule)
        batch = CopyData().batch(step)
        logits, _ = model(batch.tokens)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    return [parameter.detach().double() for parameter in model.parameters()]


def test_it_equals_a_loop_written_by_hand(tmp_path: Path) -> None:
    """AdamW divides by the size of the gradient, so rounding is no small part of the smallest ones: how much, the same
    loop in float32 and float64 says.
    """
    config = tiny_config(accumulation=1, optimizer=OptimizerConfig(learning_rate=1e-2, decay="all", gradient_clip=0.5))
    model = tiny_model(dropout=0.0)
    train(model, CopyData(), config, tmp_path, report=silent)
    exact, rounded = train_by_hand(config, torch.float64), train_by_hand(config, torch.float32)
    rounding = max(float((one - other).abs().max()) for one, other in zip(rounded, exact, strict=True))
    for parameter, weights in zip(model.parameters(), exact, strict=True):
        assert (parameter - weights).abs().max() < 4 * rounding


def test_the_run_folder_says_what_was_run(tmp_path: Path) -> None:
    result, model = run(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["train"] == json.loads(json.dumps(to_mapping(tiny_config())))
    assert config["model"] == json.loads(json.dumps(to_mapping(model.config)))
    assert config["data"] == {"fingerprint": "copy", "tokens_per_batch": ROWS * CONTEXT}
    assert json.loads((tmp_path / "result.json").read_text()) == to_mapping(result)
    assert json.loads((tmp_path / "environment.json").read_text())["device"] == "cpu"


def test_metrics_are_written_at_their_intervals(tmp_path: Path) -> None:
    result, _ = run(tmp_path)
    lines = read_metrics(tmp_path)
    training = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in training] == [4, 8, 12, 16, 20, 24]
    names = {"step", "train/loss", "lr", "grad_norm", "tokens_per_second", "memory", "seconds"}
    assert all(line.keys() == names for line in training)
    config = tiny_config()
    rates = [learning_rate(line["step"] - 1, 24, config.optimizer, config.schedule) for line in training]
    assert [line["lr"] for line in training] == rates
    evaluations = [line for line in lines if "val/loss" in line]
    assert [line["step"] for line in evaluations] == [8, 16, 24]
    best = min(evaluations, key=lambda line: line["val/loss"])
    assert (result.best_step, result.best["val/loss"]) == (best["step"], best["val/loss"])
    assert result.final["train/loss"] == training[-1]["train/loss"]
    assert result.final["val/loss"] == evaluations[-1]["val/loss"]


def test_a_training_line_is_the_mean_since_the_line_before(tmp_path: Path) -> None:
    run(tmp_path / "each", log_every=1)
    run(tmp_path / "fourth", log_every=4)
    each = [line["train/loss"] for line in metric_lines(tmp_path / "each") if "train/loss" in line]
    fourth = [line["train/loss"] for line in metric_lines(tmp_path / "fourth") if "train/loss" in line]
    assert fourth == pytest.approx([sum(each[i : i + 4]) / 4 for i in range(0, 24, 4)])


def test_the_last_step_is_logged_evaluated_and_saved_whatever_the_intervals(tmp_path: Path) -> None:
    result, _ = run(tmp_path, steps=7, log_every=100, evaluate_every=100, checkpoint_every=100)
    assert [line["step"] for line in metric_lines(tmp_path)] == [7, 7]
    assert result.best_step == 7
    assert json.loads((tmp_path / "checkpoints" / "last.json").read_text())["step"] == 7


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_very_short_run_has_a_result_too(steps: int, tmp_path: Path) -> None:
    result, _ = run(tmp_path, steps=steps, schedule=ScheduleConfig(warmup_steps=0))
    assert result.steps == steps
    assert result.tokens_per_second > 0
    assert result.peak_memory_bytes > 0
    assert result.seconds > 0


class PoisonedData(CopyData):
    """Makes the model's weights infinite while the batch of one step is made."""

    def __init__(self, model: nn.Module, step: int) -> None:
        super().__init__()
        self.model, self.step = model, step

    def batch(self, step: int, rows: range | None = None) -> Batch:
        if step == self.step:
            with torch.no_grad():
                next(self.model.parameters()).fill_(math.inf)
        return super().batch(step, rows)


def test_divergence_stops_the_run_and_names_the_step(tmp_path: Path) -> None:
    model = tiny_model()
    with pytest.raises(
        DivergenceError, match=r"diverged at step 7: train/loss nan  grad_norm nan, learning rate 0\.00"
    ) as error:
        train(model, PoisonedData(model, 6), tiny_config(log_every=4), tmp_path, evaluate=validate, report=silent)
    assert "last checkpoint" in str(error.value)
    line = metric_lines(tmp_path)[-1]
    assert line == {"step": 7, "train/loss": None, "grad_norm": None, "lr": line["lr"], "diverged": 1.0}
    pointer = json.loads((tmp_path / "checkpoints" / "last.json").read_text())
    assert pointer["step"] == 5
    result, _ = run(tmp_path, resume=True)  # with a healthy model it goes on from the checkpoint before
    assert result.steps == 24
    assert all(value is not None for line in metric_lines(tmp_path) for value in line.values())


def test_divergence_is_seen_before_a_checkpoint_is_written(tmp_path: Path) -> None:
    model = tiny_model()
    with pytest.raises(DivergenceError, match=r"at step 9: .* There was no checkpoint yet"):
        train(model, PoisonedData(model, 8), tiny_config(log_every=100, checkpoint_every=12), tmp_path, report=silent)
    assert not (tmp_path / "checkpoints").exists()


def test_divergence_is_seen_before_an_evaluation_is_blamed_for_it(tmp_path: Path) -> None:
    model = tiny_model()
    config = tiny_config(log_every=100, checkpoint_every=100)
    with pytest.raises(DivergenceError, match="diverged at step 7: train/loss nan"):
        train(model, PoisonedData(model, 6), config, tmp_path, evaluate=validate, report=silent)


def test_a_validation_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(DivergenceError, match="at step 8: val/loss nan"):
        train(
            tiny_model(),
            CopyData(),
            tiny_config(),
            tmp_path,
            evaluate=lambda model: {"val/loss": math.nan},
            report=silent,
        )


def test_an_evaluation_without_the_deciding_metric_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'evaluate must return "val/loss".*got \[\'accuracy\'\]'):
        train(
            tiny_model(), CopyData(), tiny_config(), tmp_path, evaluate=lambda model: {"accuracy": 1.0}, report=silent
        )


def test_an_evaluation_sees_the_model_in_evaluation_mode_and_training_goes_on_in_training_mode(tmp_path: Path) -> None:
    modes = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        modes.append(model.training)
        assert not torch.is_grad_enabled()
        model.train()  # a careless callback
        model.eval()
        return {"val/loss": 1.0}

    class Watched(CopyData):
        def batch(self, step: int, rows: range | None = None) -> Batch:
            if step:
                modes.append(model.training)
            return super().batch(step, rows)

    model = tiny_model()
    train(model, Watched(), tiny_config(), tmp_path, evaluate=evaluate, report=silent)
    assert modes.count(False) == 3
    assert modes.count(True) == 23


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 8}, r"batches of 4 sequences of 10 tokens, the configuration says batch_size=8"),
        ({"context_length": 9}, r"and context_length=9 \(at most\)"),
        ({"device": "gpu"}, "device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        ({"device": "meta"}, "heedful trains on cpu and cuda, got device 'meta'"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", **fields)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows the refusal on a machine without CUDA")
def test_cuda_is_refused_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"device 'cuda:1' is not available: torch .* finds no GPU"):
        run(tmp_path / "run", device="cuda:1")


def test_bfloat16_is_refused_where_the_device_only_emulates_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    with pytest.raises(ValueError, match="precision bfloat16 is not available on this CPU"):
        run(tmp_path / "run", precision="bfloat16")


def test_models_of_another_precision_vocabulary_or_kind_are_refused(tmp_path: Path) -> None:
    def attempt(model: nn.Module) -> None:
        train(model, CopyData(), tiny_config(), tmp_path / "run", report=silent)

    with pytest.raises(ValueError, match=r"token_embedding.weight is torch.float64; use model.float\(\)"):
        attempt(tiny_model().double())
    with pytest.raises(ValueError, match="the data has token 11, but the model a vocabulary of 5: they were made with"):
        attempt(tiny_model(vocab_size=5))
    with pytest.raises(ValueError, match="context_length is 10, but the model has max_positions=9"):
        attempt(tiny_model(max_positions=9))
    with pytest.raises(ValueError, match=r"Linear has no save\(folder, weights\) method"):
        attempt(nn.Linear(2, 2))
    assert not (tmp_path / "run").exists()


def test_a_file_where_the_folder_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(ValueError, match="run is a file"):
        run(tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine"


def test_bfloat16_trains_float32_weights(tmp_path: Path) -> None:
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        pytest.skip("this CPU has no bfloat16")
    model, exact = tiny_model("boosted"), tiny_model("boosted")
    result = train(model, CopyData(), tiny_config(precision="bfloat16"), tmp_path / "low", report=silent)
    reference = train(exact, CopyData(), tiny_config(), tmp_path / "full", report=silent)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert result.final["train/loss"] == pytest.approx(reference.final["train/loss"], abs=0.1)
    assert not same_weights(model, exact)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # the compiler looks at everything
def test_compiling_is_for_training_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        graphs.append(torch.is_grad_enabled())
        return graph.forward

    compile_block = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda block: compile_block(block, backend=backend))
    _, compiled = run(tmp_path / "compiled", compile=True)
    assert graphs
    assert all(graphs), "an evaluation was compiled"
    _, plain = run(tmp_path / "plain")
    assert same_weights(compiled, plain)


def test_a_run_that_failed_before_it_got_anywhere_does_not_block_its_folder(tmp_path: Path) -> None:
    def fail(step: int) -> None:
        if step == 1:
            raise MemoryError

    with pytest.raises(MemoryError):
        run(tmp_path, data=CopyData(fail))
    assert (tmp_path / "config.json").exists()
    result, _ = run(tmp_path, seed=3)
    assert result.steps == 24
    assert json.loads((tmp_path / "config.json").read_text())["train"]["seed"] == 3


def test_documents_of_the_batches_reach_the_model(tmp_path: Path) -> None:
    class Documents(CopyData):
        def batch(self, step: int, rows: range | None = None) -> Batch:
            batch = super().batch(step, rows)
            return batch._replace(document_ids=(torch.arange(CONTEXT) >= 5).long().expand(ROWS, -1))

    masked, plain = tiny_model(), tiny_model()
    train(masked, Documents(), tiny_config(), tmp_path / "masked", report=silent)
    train(plain, CopyData(), tiny_config(), tmp_path / "plain", report=silent)
    assert not same_weights(masked, plain)


def test_an_interrupted_run_says_so(tmp_path: Path) -> None:
    lines: list[str] = []
    result = train(
        tiny_model(), CopyData(signal_at(9)), tiny_config(), tmp_path, evaluate=validate, report=lines.append
    )
    assert result.interrupted
    assert lines[-1] == "SIGINT: saved after step 10; --resume goes on from there."
    assert json.loads((tmp_path / "result.json").read_text())["interrupted"] is True
    assert result.best_step == 8
