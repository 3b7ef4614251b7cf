"""Run by test_annotations.py in a fresh interpreter: annotated calls, checked by jaxtyping and beartype.

The annotations exist under TYPE_CHECKING only, so that torch.compile never meets them; here it is set while the package
is imported.
"""

import typing

import beartype as beartype  # before TYPE_CHECKING is set: its own imports must not see that
import jaxtyping
import torch

typing.TYPE_CHECKING = True
with jaxtyping.install_import_hook(["heedful.ops", "heedful.nn", "heedful.models"], "beartype.beartype"):
    import heedful.models as models
    import heedful.nn as nn
    import heedful.ops as ops
typing.TYPE_CHECKING = False


torch.set_num_threads(1)


def draw(*shape):
    return torch.randn(shape)


real = torch.tensor([[True] * 5, [False] * 2 + [True] * 3])
documents = torch.tensor([[0, 0, 1, 1, 1]])
MASKS = [
    None,
    ops.AttentionMask(window=2),
    ops.AttentionMask(key_padding=real),
    ops.AttentionMask(document_ids=documents),
    ops.AttentionMask(document_ids=documents.int(), key_padding=real, window=3),
    ops.AttentionMask.from_cumulative_lengths(torch.tensor([0, 2, 5])),
]
Q, K, V = draw(2, 4, 5, 6), draw(2, 2, 5, 6), draw(2, 2, 5, 3)

for mask in MASKS:
    for backend in ("reference", "sdpa"):
        options = {"mask": mask, "backend": backend}
        ops.standard_attention(Q, K, V, **options)
        ops.standard_attention(Q[:, :, 3:], K, V, **options)
        ops.twicing_attention(Q, K, V, **options)
        ops.twicing_step(Q[:, :, 3:], K, V, past_corrected=draw(2, 4, 3, 3), **options)
        for factor in (torch.tensor(0.5), draw(2)):
            ops.differential_attention(Q, K, V[:, :1], factor, **options)
        ops.differential_attention_v2(Q, K, V, draw(2, 2, 5), **options)
    ops.talking_heads_attention(Q, K, V, draw(4, 4), draw(4, 4), mask=mask)
    for key_query_mask in ("double", "exact"):
        parts = {
            "kq_pre": draw(4, 2, 3),
            "kq_post": draw(4, 3, 4),
            "head_pre": draw(2, 2, 2),
            "head_post": draw(1, 4, 4),
        }
        for backend in ("reference", "blockwise"):
            tensors = [t.clone().requires_grad_() for t in (Q, K, V)]
            options = {"mask": mask, "key_query_mask": key_query_mask, "backend": backend}
            ops.multi_token_attention(*tensors, **parts, **options).sum().backward()
        ops.multi_token_decode(Q[:, :, 4:], Q[:, :, :4], K, V, **parts, mask=mask, backend="blockwise")
    ops.multi_token_attention(Q, K, V, head_post=draw(1, 4, 4), mask=mask, backend="sdpa")

for name in nn.PRESETS:
    for rotary in (None, nn.Rotary()):
        config = nn.attention_config(
            name, hidden_size=16, num_heads=4, num_kv_heads=2, qk_norm=True, bias=True, rotary=rotary
        )
        layer = nn.Attention(config)
        for mask in MASKS:
            _, state = layer(draw(2, 5, 16), mask, layer.empty_state())
        layer(draw(2, 1, 16), None, state)

nn.BoostedRetrieval(4)(draw(3, 4), draw(5, 4))
for gate in ("vector", "head", "scalar", "none"):
    nn.Attention(nn.attention_config(hidden_size=16, num_heads=4, boosting=nn.Boosting(gate=gate)))(draw(2, 5, 16))

model = models.DecoderLM(
    models.decoder_config("boosted", vocab_size=7, num_layers=2, max_positions=16, hidden_size=16, num_heads=4)
)
for mask in MASKS:
    model(torch.randint(7, (2, 5)), mask)
model.generate(torch.randint(7, (2, 5)), 2, key_padding=real, temperature=1.0)


def refused(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except jaxtyping.TypeCheckError:
        return
    except Exception as error:
        raise AssertionError(f"{call} was stopped by {type(error).__name__}, not by its annotation") from error
    raise AssertionError(f"{call} took wrong shapes")


layer = nn.Attention(nn.attention_config(hidden_size=16, num_heads=4))
refused(ops.standard_attention, Q, K[:, :, :4], V)
refused(ops.standard_attention, Q, K, V.long())
refused(ops.twicing_attention, Q, K[:1], V)
refused(ops.differential_attention, Q, K, V, torch.zeros(1, 1))
refused(ops.differential_attention_v2, Q, K, V, draw(2, 2, 6))
refused(ops.multi_token_attention, Q, K, V, kq_pre=draw(4, 2))
refused(ops.talking_heads_attention, Q, K, V, draw(4, 3), draw(4, 4))
refused(ops.AttentionMask, key_padding=torch.ones(2, 5))
refused(ops.AttentionMask, key_padding=real, document_ids=torch.zeros(2, 4, dtype=torch.long))
refused(layer, draw(5, 16))
refused(layer.rounds[0], draw(2, 5, 16), draw(2, 4, 16), None, None, None, 0)
refused(model, torch.zeros(5, dtype=torch.long))
refused(model.generate, draw(2, 5), 1)
print("all calls checked")
