"""On a CUDA device a training step waits for nothing, and its loss is what it is on the CPU."""

from typing import Any

import pytest
import torch

from heedful.data.batches import IGNORED, Batch
from heedful.models import DecoderLM, decoder_config
from heedful.nn import Rotary
from heedful.train import ScheduleConfig, TrainConfig
from heedful.train.chunked_cross_entropy import chunked_cross_entropy
from heedful.train.cross_entropy_rows import choose_rows, torch_rows, triton_rows
from heedful.train.step_timing import time_steps, training_step
from tolerance import bound, largest_difference

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; `make gpu` runs it"),
]

ROWS, CONTEXT, VOCABULARY = 4, 64, 320


class RandomData:
    """Rows of random tokens, of two documents each if wanted, not all of them scored."""

    tokens_per_batch = ROWS * CONTEXT
    fingerprint = "random"

    def __init__(self, documents=True):
        self.documents = documents

    def batch(self, step, rows=None):
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(VOCABULARY, (ROWS, CONTEXT + 1), generator=generator)
        targets = tokens[:, 1:].clone()
        targets[:, :5] = IGNORED
        documents = (torch.arange(CONTEXT) >= 20).long().expand(ROWS, CONTEXT).contiguous()
        return Batch(tokens[:, :-1], targets, documents if self.documents else None)


def step_of(preset, *, documents=True, rotary=False, **fields):
    sizes: dict[str, Any] = {"hidden_size": 128, "num_layers": 4, "num_heads": 4, "max_positions": CONTEXT}
    positions: dict[str, Any] = {"rotary": Rotary()} if rotary else {"position_embedding": "learned"}
    model = DecoderLM(decoder_config(preset, vocab_size=VOCABULARY, norm="rms", **positions, **sizes))
    config = TrainConfig(
        steps=20,
        batch_size=ROWS,
        context_length=CONTEXT,
        device="cuda",
        schedule=ScheduleConfig(warmup_steps=2),
        **fields,
    )
    return training_step(model, RandomData(documents), config)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("preset", ["standard", "boosted", "nonlinear-query", "multi-token", "twicing", "differential"])
@pytest.mark.parametrize("rotary", [False, True], ids=["learned", "rotary"])
def test_a_step_waits_for_nothing(preset, precision, rotary):
    documents = preset != "multi-token"  # it reads where they begin, once a layer and pass
    with step_of(preset, precision=precision, accumulation=2, documents=documents, rotary=rotary) as step:
        for _ in range(3):  # caches are filled and kernels compiled first
            step.take()
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            loss, norm, _ = step.take()
        finally:
            torch.cuda.set_sync_debug_mode(before)
        assert bool(loss.isfinite() & norm.isfinite())


def test_a_step_is_measured():
    with step_of("standard", precision="bfloat16") as step:
        timing = time_steps(step, steps=3)
    assert timing.device == torch.cuda.get_device_name()
    assert timing.seconds > 0
    assert sum(timing.shares.values()) == pytest.approx(1.0)
    assert timing.peak_memory_bytes > 16 * sum(parameter.numel() for parameter in step.model.parameters())


@pytest.mark.parametrize("chunk_tokens", [7, None])
def test_the_chunked_loss_in_float32_is_that_of_float64_on_the_cpu(chunk_tokens):
    hidden, weight = torch.randn(3, 33, 16), torch.randn(501, 16)
    targets = torch.randint(501, (3, 33))
    targets[0, :9] = IGNORED

    def loss_and_gradients(hidden, weight):
        hidden, weight = (tensor.detach().requires_grad_() for tensor in (hidden, weight))
        on_device = targets.to(hidden.device)
        objective, _ = chunked_cross_entropy(hidden, weight, None, on_device, z_loss=0.1, chunk_tokens=chunk_tokens)
        return [objective, *torch.autograd.grad(objective, [hidden, weight])]

    exact = loss_and_gradients(hidden.double(), weight.double())
    found = loss_and_gradients(hidden.cuda(), weight.cuda())
    scale = torch.finfo(torch.float32).eps / torch.finfo(torch.float64).eps
    for index, (one, other) in enumerate(zip(found, exact, strict=True)):
        allowed = scale * bound(lambda h, w, index=index: loss_and_gradients(h, w)[index], hidden, weight)
        assert largest_difference(one.cpu().double(), other) <= allowed


@pytest.mark.parametrize("chunk_tokens", [7, None])
@pytest.mark.parametrize("vocabulary", [501, 512, 16384])
def test_the_chunked_loss_in_bfloat16_is_as_near_to_float64_as_torch_operations_make_it(vocabulary, chunk_tokens):
    assert choose_rows(torch.device("cuda"), torch.bfloat16) is triton_rows
    hidden, weight, bias = torch.randn(3, 33, 16), torch.randn(vocabulary, 16), torch.randn(vocabulary)
    targets = torch.randint(vocabulary, (3, 33))
    targets[0, :9] = IGNORED

    def loss_and_gradients(hidden, weight, bias, rows):
        hidden, weight, bias = inputs = [tensor.detach().requires_grad_() for tensor in (hidden, weight, bias)]
        options: dict[str, Any] = {"z_loss": 0.1, "chunk_tokens": chunk_tokens, "rows": rows}
        objective, _ = chunked_cross_entropy(hidden, weight, bias, targets.to(hidden.device), **options)
        return [objective, *torch.autograd.grad(objective, inputs)]

    def errors(rows):
        with torch.autocast("cuda", torch.bfloat16):
            found = loss_and_gradients(hidden.cuda(), weight.cuda(), bias.cuda(), rows=rows)
        pairs = zip(found, exact, strict=True)
        return [float((one.cpu().double() - right).detach().square().mean().sqrt()) for one, right in pairs]

    exact = loss_and_gradients(hidden.double(), weight.double(), bias.double(), rows=torch_rows)
    assert all(one <= 2 * other for one, other in zip(errors(None), errors(torch_rows), strict=True))
