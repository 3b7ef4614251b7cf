"""Every preset trains under bfloat16 autocast, as `precision = "bfloat16"` does: no type clash, norms in float32."""

import pytest
import torch

from heedful.models import DecoderLM, decoder_config
from heedful.nn.norms import RMSNorm
from heedful.support import mechanisms


@pytest.mark.parametrize("preset", mechanisms())
def test_forward_and_backward_under_autocast(preset):
    config = decoder_config(
        preset, vocab_size=20, hidden_size=16, num_layers=3, num_heads=4, max_positions=16, norm="rms", qk_norm=True
    )
    model = DecoderLM(config)
    tokens = torch.randint(20, (2, 9))
    exact, _ = model(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        logits, _ = model(tokens)
    rounding = 12 * torch.finfo(torch.bfloat16).eps  # a dozen roundings of activations
    assert float((logits.float() - exact).detach().abs().max()) < rounding * float(exact.detach().abs().max())
    logits.float().square().mean().backward()
    assert all(
        p.grad is None or (p.grad.dtype == torch.float32 and bool(p.grad.isfinite().all())) for p in model.parameters()
    )


def test_norms_are_computed_in_float32_under_autocast():
    norm, x = RMSNorm(64), 1e3 * torch.randn(5, 64)
    with torch.autocast("cpu", torch.bfloat16):
        inside = norm(x)
        rounded = norm(x.bfloat16())
    assert torch.equal(inside, norm(x))
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, norm(x.bfloat16().float()).bfloat16())
