"""Verdicts from a Hugging Face configuration alone."""

import json

import pytest

from heedful.convert.queries import audit_config_json
from heedful.schema import to_mapping

CASES = [
    ({"model_type": "bert"}, "post-norm", "tied"),
    ({"model_type": "gemma2"}, "sandwich norm", "tied"),
    ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}, "sandwich norm", "tied"),
    ({"model_type": "olmo2"}, "on the output of each sublayer", ""),
    ({"model_type": "llama"}, "pre-norm, RMSNorm", ""),
    ({"model_type": "qwen3"}, "pre-norm, RMSNorm", ""),
    ({"model_type": "gpt2"}, "pre-norm, LayerNorm", "tied"),
    ({"model_type": "gpt_neox"}, "two parallel branches", ""),
    ({"model_type": "gpt_neox", "use_parallel_residual": False}, "pre-norm, LayerNorm", ""),
    ({"model_type": "opt"}, "pre-norm, LayerNorm", "tied"),
    ({"model_type": "opt", "do_layer_norm_before": False}, "post-norm", "tied"),
    ({"model_type": "qwen2", "tie_word_embeddings": True}, "pre-norm", "tied"),
]


@pytest.mark.parametrize(("config", "reason", "tied"), CASES)
def test_published_architectures_are_refused_with_their_reason(config, reason, tied):
    found = audit_config_json(config)
    assert found.verdict == "approximate"
    assert found.reasons[0].startswith("not exact, refused: ")
    assert reason in found.reasons[0]
    assert any("head is tied" in line for line in found.reasons) is bool(tied)
    json.dumps(to_mapping(found))


def test_what_stays_possible_depends_on_positions_and_ties():
    llama, gpt2 = audit_config_json({"model_type": "llama"}), audit_config_json({"model_type": "gpt2"})
    assert any("one rotation" in line for line in llama.still_exact)
    assert not any("one rotation" in line for line in gpt2.still_exact)
    assert any("query-key gauge" in line for line in gpt2.still_exact)
    assert not any("query-key gauge" in line for line in llama.still_exact)
    assert not any("rotation" in line for line in audit_config_json({"model_type": "gemma2"}).still_exact)


def test_widths_of_the_heads():
    wide = {"model_type": "qwen3", "hidden_size": 1024, "num_attention_heads": 16, "head_dim": 128}
    assert audit_config_json(wide).verdict == "no"
    assert "2048 wide and the stream 1024" in audit_config_json(wide).reasons[1]
    assert "fewer than the stream's 4096" in audit_config_json({**wide, "hidden_size": 4096}).reasons[1]


def test_architectures_without_a_plain_query_matrix_and_unknown_ones():
    assert "low-rank" in audit_config_json({"model_type": "deepseek_v3"}).reasons[0]
    assert "no attention" in audit_config_json({"model_type": "mamba"}).reasons[0]
    unknown = audit_config_json({"model_type": "something-new"})
    assert (unknown.verdict, unknown.still_exact) == ("no", ())
    assert "'something-new'" in unknown.reasons[0]


@pytest.mark.parametrize("config", [{}, {"model_type": 3}])
def test_not_a_configuration(config):
    with pytest.raises(ValueError, match="model_type"):
        audit_config_json(config)
