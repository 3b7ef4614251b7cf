"""Any configuration that can be written down is either refused with a ValueError or works: runs, decodes, trains."""

import json

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layers_for_nn import decode, text

from heedful.nn import (
    AnnealedQuery,
    Attention,
    AttentionConfig,
    BlendedHeadOutput,
    Boosting,
    DifferentialRule,
    DifferentialV2Rule,
    HeadOutput,
    IdentityQuery,
    LinearQuery,
    MultiTokenRule,
    NonlinearQuery,
    PartialIdentityQuery,
    Rotary,
    StandardRule,
    TalkingHeadsRule,
    TwicingRule,
)
from heedful.ops import AttentionMask
from heedful.schema import from_mapping, to_mapping
from tolerance import assert_close

FITS = st.sampled_from(["exact", "slice", "tile"])
MIXING = st.sampled_from([None, "all", 1, 2])
NONLINEAR = st.builds(
    NonlinearQuery,
    bottleneck=st.sampled_from([None, 3]),
    activation=st.sampled_from(["gelu", "silu", "relu", "relu-squared", "none"]),
    input_norm=st.sampled_from(["rms", "layer", "none"]),
    output_norm=st.sampled_from(["layer", "rms", "none"]),
    output_norm_scope=st.sampled_from(["full", "head"]),
    anchor=st.sampled_from(["identity", "linear", "none"]),
    anchor_fit=FITS,
)
QUERIES = st.one_of(
    st.builds(LinearQuery, anchor=st.sampled_from(["none", "identity"]), gain=st.just(0.7), anchor_fit=FITS),
    st.builds(IdentityQuery, anchor_fit=FITS),
    st.builds(PartialIdentityQuery),
    NONLINEAR,
    st.builds(AnnealedQuery, target=NONLINEAR.filter(lambda query: query.anchor != "linear")),
)
RULES = st.one_of(
    st.sampled_from([StandardRule(), TwicingRule(), DifferentialRule(), DifferentialV2Rule(), TalkingHeadsRule()]),
    st.builds(
        MultiTokenRule,
        pre_convolution=st.booleans(),
        post_convolution=st.booleans(),
        query_kernel_size=st.integers(1, 3),
        key_kernel_size=st.integers(1, 4),
        pre_mixing=MIXING,
        post_mixing=MIXING,
        key_query_mask=st.sampled_from(["double", "exact"]),
        convolution_every=st.just(2),
        convolution_offset=st.integers(0, 1),
    ),
)
FIELDS = st.fixed_dictionaries(
    {
        "hidden_size": st.just(8),
        "num_heads": st.sampled_from([1, 2, 3, 4]),
        "num_kv_heads": st.sampled_from([None, 1, 2]),
        "head_dim": st.sampled_from([None, None, 2, 3, 4]),
        "query": QUERIES,
        "rule": RULES,
        "boosting": st.none()
        | st.builds(
            Boosting,
            rounds=st.integers(1, 3),
            kv_source=st.sampled_from(["residual", "input"]),
            residual_coefficient=st.sampled_from([1.0, 0.0, -1.0]),
            gate=st.sampled_from(["vector", "head", "scalar", "none", "scaled-vector"]),
            gate_bias=st.booleans(),
        ),
        "head_output": st.none()
        | st.builds(BlendedHeadOutput, norm=st.booleans(), gate=st.sampled_from(["none", "scalar", "elementwise"]))
        | st.builds(
            HeadOutput,
            norm=st.booleans(),
            gate=st.sampled_from(["none", "scalar", "elementwise"]),
        ),
        "rotary": st.sampled_from([None, Rotary(), Rotary(layout="interleaved")]),
        "qk_norm": st.booleans(),
        "bias": st.booleans(),
        "output_bias": st.sampled_from([None, True, False]),
        "window": st.sampled_from([None, 1, 4]),
        "scale": st.sampled_from([None, 0.3]),
        "layer_index": st.sampled_from([None, 0, 1]),
        "backend": st.sampled_from(["auto", "auto", "reference", "sdpa"]),
    }
)


@settings(max_examples=200)
@given(fields=FIELDS, seed=st.integers(0, 99), pieces=st.sampled_from([[1] * 7, [3, 1, 3], [6, 1]]))
def test_what_is_not_refused_runs_decodes_and_trains(fields, seed, pieces):
    try:
        config = AttentionConfig(**fields)
    except ValueError:
        return
    assert from_mapping(AttentionConfig, json.loads(json.dumps(to_mapping(config)))) == config
    torch.manual_seed(seed)
    layer = Attention(config).double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = text(7, hidden=8).requires_grad_()
    mask = AttentionMask(document_ids=torch.tensor([[0, 0, 0, 0, 1, 1, 1]]))
    y, _ = layer(x, mask)
    assert y.shape == x.shape
    (gradient,) = torch.autograd.grad(y[:, 4:].square().sum(), x, retain_graph=True)
    assert float(gradient[:, :4].abs().max()) == 0.0, "nothing crosses a document border"
    y.square().sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in layer.parameters())
    full = layer(x)[0].detach()
    assert_close(decode(layer, x.detach(), pieces)[0], full)
