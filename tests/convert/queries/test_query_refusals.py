"""What is not exact is refused with the reason; what is asked for all the same is measured, never called lossless."""

import json

import pytest
import torch
from query_nets import LAYERS, NO_SKIPS, SIZE, VOCABULARY, error, net, tokens

from heedful.convert.queries import audit, convert_queries
from heedful.convert.queries import verification as verification_module
from heedful.nn import LinearQuery, Rotary
from heedful.schema import to_mapping

REFUSALS = {
    "pre-norm, RMSNorm": ("standard", {"norm": "rms", "rotary": Rotary()}, "pre-norm, as in GPT-2 and Llama"),
    "pre-norm, LayerNorm": ("standard", {"norm": "layer", "tie_embeddings": True}, "pre-norm, as in GPT-2 and Llama"),
    "pre-norm, one skip": ("standard", {"norm": "rms", "attention_skip": False}, "triangular but not the identity"),
    "pre-norm, no skips": ("standard", {"norm": "rms", **NO_SKIPS}, "triangular but not the identity"),
    "post-norm": ("standard", {"norm": "layer", "norm_position": "post"}, "post-norm, as in BERT"),
    "tied head": ("standard", {"tie_embeddings": True, "num_layers": 1}, "new d x d matrix before the tied head"),
    "tied head, shared": ("standard", {"tie_embeddings": True, "share_layers": True, **NO_SKIPS}, "tied head"),
    "boosted": ("boosted", NO_SKIPS, "further ones read x - a F"),
    "nonlinear": ("nonlinear-query", NO_SKIPS, "not x W_Q"),
    "identity": ("identity-query", NO_SKIPS, "already is the stream itself"),
    "differential, version 2": ("differential-v2", NO_SKIPS, "factors of differential attention"),
}


@pytest.mark.parametrize("case", list(REFUSALS))
def test_refusals_name_the_reason(case):
    names, fields, reason = REFUSALS[case]
    model = net(names, **fields)
    with pytest.raises(ValueError, match=reason):
        convert_queries(model)
    found = audit(model)
    assert found.removable == ()
    assert found.net_saved == 0
    assert all(layer.reason for layer in found.layers)
    assert any(reason in layer.reason for layer in found.layers)


def test_a_layer_that_reads_the_stream_holds_tied_layers_back():
    model = net({1: "boosted"})
    with pytest.raises(ValueError, match="tie its basis to that of layer 1, which reads the stream as it stands"):
        convert_queries(model)
    assert audit(model).layers[0].verdict == "approximate"
    assert audit(model).layers[1].verdict == "no"


def test_audit_of_a_norm_free_residual_model_explains_that_one_layer_goes():
    found = audit(net())
    assert len(found.removable) == 1
    assert found.net_saved == SIZE * SIZE
    assert "1 of 4" in found.summary
    kept = [layer for layer in found.layers if layer.verdict != "exact"]
    assert all("not block diagonal by heads" in layer.reason for layer in kept)
    assert any("impossible for all layers at once" in warning for warning in found.warnings)


def test_audit_warns_at_net_saving_zero():
    found = audit(net(tie_embeddings=True))
    assert found.net_saved == 0
    assert any(warning.startswith("net saving 0: the tied head needs") for warning in found.warnings)
    change = VOCABULARY * SIZE - SIZE * SIZE
    assert any(f"by {change:+,} parameters" in warning for warning in found.warnings)


def test_a_conversion_that_grows_the_model_says_so():
    model = net(tie_embeddings=True, vocab_size=100)
    converted, report = convert_queries(model, untie_head=True)
    assert report.net_saved == SIZE * SIZE - 100 * SIZE < 0
    assert any("outweighs" in warning for warning in report.warnings)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert error(converted(ids)[0], model(ids)[0]) < 1e-11


def test_audit_reports_conditions_and_dropout():
    model = net(**NO_SKIPS, rotary=Rotary(), dropout=0.1)
    found = audit(model)
    assert all(layer.condition_number is not None and layer.condition_number > 1 for layer in found.layers)
    assert any("bfloat16" in warning for warning in found.warnings)
    assert any("dropout" in warning for warning in found.warnings)


@pytest.mark.parametrize("names", ["standard", "multi-token"])
def test_overwriting_with_the_identity_is_measured_and_not_called_lossless(names):
    model = net(names, norm="rms")
    converted, report = convert_queries(model, approximate="identity", tokens=tokens())
    assert not report.lossless
    assert report.verification is None
    measured = report.approximation
    assert measured is not None
    assert measured.logit_error == pytest.approx(error(converted, model))
    assert measured.logit_error > 0.1
    assert measured.loss_after != measured.loss_before
    assert any("not lossless" in warning for warning in report.warnings)
    assert report.removed == tuple(range(LAYERS))
    json.dumps(to_mapping(report))


def test_overwriting_one_layer():
    _, report = convert_queries(net(norm="rms"), approximate="identity", tokens=tokens(), layer=1)
    assert report.removed == (1,)
    assert report.kept["0"] == "only layer 1 was asked for"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"approximate": "identity"}, "give tokens of real text"),
        ({"approximate": "identity", "tokens": tokens(), "reductions": ["rotation"]}, "convert in two steps"),
        ({"approximate": "tile", "tokens": tokens()}, "approximate must be 'identity' or None, got 'tile'"),
        ({"approximate": "identity", "tokens": tokens(), "layer": 9}, "0 to 3; got 9"),
        ({"layer": 4}, "layer must be one of the 4 stored blocks, 0 to 3; got 4"),
        ({"layer": -1}, "got -1"),
        ({"divisor": 0.0}, "above 0, got 0.0"),
        ({"max_condition": 0.5}, "max_condition must be at least 1"),
        ({"dtype": torch.int8}, "can be stored as float64, float32, float16, bfloat16; got torch.int8"),
        ({"tokens": tokens().float()}, "must be int64"),
        ({"tokens": tokens(length=1)}, "at least two tokens per row"),
        ({"tokens": torch.zeros(1, 99, dtype=torch.int64)}, "99 long, but the model has max_positions = 16"),
        ({"tokens": tokens() + VOCABULARY}, "between 0 and 30"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        convert_queries(net(), **options)


def test_overwriting_needs_queries_that_the_stream_can_fill():
    with pytest.raises(ValueError, match="wider than the stream"):
        convert_queries(net(norm="rms", head_dim=24), approximate="identity", tokens=tokens())
    assert audit(net(norm="rms", head_dim=24)).layers[0].verdict == "no"


def test_a_singular_query_matrix_is_refused():
    model = net(**NO_SKIPS)
    with torch.no_grad():
        model.blocks[2].attention.rounds[0].query.q_proj.weight[0] = 0.0
    with pytest.raises(ValueError, match=r"layer 2 has condition number inf.*cannot be inverted"):
        convert_queries(model)
    assert audit(model).layers[2].verdict == "no"
    assert audit(model).layers[2].reason == "its W_Q is singular"
    converted, report = convert_queries(model, layer=1)
    assert report.removed == (1,)
    assert error(converted, model) < 1e-11


def test_a_conversion_that_does_not_verify_is_not_returned(monkeypatch):
    monkeypatch.setattr(verification_module, "LARGEST_FLOAT64_ERROR", 0.0)
    with pytest.raises(ValueError, match="does not reproduce the logits"):
        convert_queries(net())


def test_reports_are_plain_values():
    model = net(**NO_SKIPS, query=LinearQuery(gain=0.5))
    assert json.loads(json.dumps(to_mapping(audit(model))))["layers"][0]["verdict"] == "exact"
    mapping = json.loads(json.dumps(to_mapping(convert_queries(model)[1])))
    assert mapping["removed"] == [0, 1, 2, 3]
    assert mapping["verification"]["stored"]["dtype"] == "float64"
