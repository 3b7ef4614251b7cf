"""A training step never waits for its device.

On the CPU this is shown with torch's fake tensors, which have no values: weights, and the batch as it comes to the
device, are fake, so whatever asks for a value on the device ends with an error. Batches are made of real tensors, on
the host.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_run import CONTEXT, CopyData, tiny_config, tiny_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from heedful.data.batches import Batch
from heedful.support import mechanisms
from heedful.train import LossConfig, OptimizerConfig, TrainConfig, gradients, training_step
from heedful.train.interruption import StopRequest
from heedful.train.loop import TrainingLoop
from heedful.train.processes import ALONE
from heedful.train.progress import SilentReporter
from heedful.train.state import TrainingState
from heedful.train.training_step import TrainingStep

CPU = torch.device("cpu")


class DocumentData(CopyData):
    """Batches whose rows hold two documents."""

    def batch(self, step: int, rows: range | None = None) -> Batch:
        batch = super().batch(step, rows)
        ids = (torch.arange(CONTEXT) >= 3).long().expand(batch.tokens.shape)
        return batch._replace(document_ids=ids)


def loop_of(model: nn.Module, data: CopyData, config: TrainConfig) -> TrainingLoop:
    state = TrainingState()
    state.peak_memory_bytes = 1  # measured: that one step may wait
    step = TrainingStep(model, data, config, next(model.parameters()).device, ALONE)
    return TrainingLoop(
        step,
        state,
        None,  # type: ignore[arg-type]  # no step needs checkpoints
        evaluate=None,
        writer=None,
        reporter=SilentReporter(),
        stop=StopRequest(),
        saved=False,
    )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTensorMode:
    """A mode for the device's tensors; batches enter it when they are copied to the device."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def copied(batch: Batch, device: torch.device) -> Batch:
        return Batch(*(None if part is None else mode.from_tensor(part) for part in batch))  # type: ignore[arg-type]

    monkeypatch.setattr(gradients, "to_device", copied)
    monkeypatch.setattr(training_step, "parallelize", lambda *_, **options: None)  # a fake model cannot be moved
    return mode


def take_step(mode: FakeTensorMode, model: nn.Module, data: CopyData, config: TrainConfig) -> TrainingLoop:
    with mode:
        loop = loop_of(model, data, config)
    if loop.step.average is not None:
        loop.step.average._updates = torch.zeros((), dtype=torch.int64)  # a number that the host keeps
    loop._step()
    return loop


CONFIGS = {
    "AdamW": {},
    "bfloat16": {"precision": "bfloat16"},
    "no clipping, no micro-batches": {"accumulation": 1, "optimizer": OptimizerConfig(gradient_clip=0.0)},
    "z-loss in chunks": {"loss": LossConfig(z_loss=1e-4, chunk_tokens=7)},
    "weight average": {"optimizer": OptimizerConfig(ema_decay=0.99)},
    "Muon": {"optimizer": OptimizerConfig(kind="muon")},
}


@pytest.mark.parametrize("fields", CONFIGS.values(), ids=CONFIGS)
def test_no_configuration_asks_for_a_value_on_the_device(fake: FakeTensorMode, fields: dict[str, Any]) -> None:
    with fake:
        model = tiny_model("boosted+multi-token", head_bias=True)
    loop = take_step(fake, model, CopyData(), tiny_config(**fields))
    assert loop.state.step == 1


@pytest.mark.parametrize("data", [CopyData(), DocumentData()], ids=["plain", "documents"])
@pytest.mark.parametrize("preset", mechanisms())
def test_no_mechanism_asks_for_a_value_on_the_device(fake: FakeTensorMode, preset: str, data: CopyData) -> None:
    with fake:
        model = tiny_model(preset, norm="rms", position_embedding="learned")
    assert take_step(fake, model, data, tiny_config(accumulation=1)).state.step == 1


class Curious(nn.Module):
    """A model that looks at its input."""

    def __init__(self, model: nn.Module, look: Any) -> None:
        super().__init__()
        self.inner, self.look = model, look

    def forward(self, tokens: Tensor, mask: Any = None) -> Any:
        self.look(tokens)
        return self.inner(tokens, mask=mask)


@pytest.mark.parametrize("look", [lambda x: x.max().item(), lambda x: bool((x > 3).any()), lambda x: x[x > 3].sum()])
def test_a_model_that_asks_is_noticed(fake: FakeTensorMode, look: Any) -> None:
    with fake:
        model = Curious(tiny_model(), look)
    with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        take_step(fake, model, CopyData(), tiny_config())


def test_reading_the_results_is_what_waits(fake: FakeTensorMode) -> None:
    with fake:
        model = tiny_model()
    loop = take_step(fake, model, CopyData(), tiny_config())
    with pytest.raises(DataDependentOutputException):
        loop.buffer.read()
