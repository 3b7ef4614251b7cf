"""A training step never waits for its device.

On the CPU this is shown with torch's fake tensors, which have no values: weights, and the batch as it comes to the
device, are fake, so whatever asks for a value on the device ends with an error. Batches are made of real tensors, on
the host. What a registered operator does inside is not seen by this: the walk of multi-token attention is shown by
itself. Copies to the device, which wait unless the memory is pinned, are shown with tensors on the meta device.

There is one exception: with documents, the walk reads where they begin.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_run import CONTEXT, CopyData, tiny_config, tiny_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from heedful.data.batches import Batch
from heedful.nn import Rotary
from heedful.ops import AttentionMask
from heedful.ops.multi_token.blockwise import _Call
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


def walk_both_ways(mode: FakeTensorMode, documents: Tensor | None) -> Tensor:
    """Run the inside of the operators of multi-token attention on fake tensors and return a gradient."""
    with mode:
        query, kernel, mixing = torch.randn(2, 4, 9, 8), torch.randn(4, 3, 3), torch.randn(2, 2, 2)
        ids = None if documents is None else mode.from_tensor(documents)
        call = _Call(
            query, query, query, kernel, kernel, mixing, mixing, None, ids, None,
            window=None, exact_mask=False, is_causal=True, scale=1.0, dropout_p=0.0, context=0, block=4, mixer="torch",
        )  # fmt: skip
        output = call.walk().forward(*call.inputs, call.mixers())
        return call.walk().backward(output, *call.inputs, call.mixers([True] * 4))[0]


def test_the_walk_asks_for_no_value_on_the_device(fake: FakeTensorMode) -> None:
    assert walk_both_ways(fake, None).shape == (2, 4, 9, 8)


def test_with_documents_the_walk_asks_where_they_begin(fake: FakeTensorMode) -> None:
    with pytest.raises(DataDependentOutputException):
        walk_both_ways(fake, torch.tensor([[0] * 4 + [1] * 5] * 2))


class CopiedError(AssertionError):
    """A tensor went from one device to another."""


class NoCopies(TorchDispatchMode):
    """Refuses copies between devices."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            devices = {leaf.device.type for leaf in tree_leaves((args, result)) if isinstance(leaf, Tensor)}
            if len(devices) > 1:
                raise CopiedError(f"{func} between {devices}")
        return result


@pytest.mark.parametrize(
    "positions", [{"position_embedding": "learned"}, {"rotary": Rotary()}], ids=["table", "rotary"]
)
@pytest.mark.parametrize("preset", mechanisms())
def test_no_mechanism_copies_anything_to_the_device(preset: str, positions: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = tiny_model(preset, norm="rms", **positions)
    batch = DocumentData().batch(0)
    assert batch.document_ids is not None
    tokens, mask = batch.tokens.to("meta"), AttentionMask(document_ids=batch.document_ids.to("meta"))
    with NoCopies():
        model(tokens, mask)[0].sum().backward()


def test_a_copy_to_the_device_is_noticed() -> None:
    with NoCopies(), pytest.raises(CopiedError):
        torch.zeros(3).to("meta")


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
