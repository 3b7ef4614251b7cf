"""Importing: every setting is honoured or refused, and the logits are the original's."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_checkpoints import CLASSES, FAMILIES, config_of, exact, logits_of, original, tokens_of
from transformers import LlamaForSequenceClassification
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from heedful.hf.importing import import_decoder
from heedful.hf.modeling import HeedfulForCausalLM
from heedful.models import DecoderLM, decoder_config
from tolerance import ORDER, assert_close

YARN = {"rope_type": "yarn", "rope_theta": 300.0, "factor": 4.0, "original_max_position_embeddings": 10}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
WINDOWS = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}
SETTINGS = {
    "llama": ("llama", {}),
    "llama without groups": ("llama", {"num_key_value_heads": 4}),
    "llama with one key head": ("llama", {"num_key_value_heads": 1}),
    "llama with wide heads": ("llama", {"head_dim": 6}),
    "llama with attention biases": ("llama", {"attention_bias": True}),
    "llama with all biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama with another epsilon": ("llama", {"rms_norm_eps": 0.03}),
    "llama with another theta": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}),
    "llama linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}}),
    "llama 3": ("llama", {"rope_parameters": LLAMA3}),
    "llama yarn": ("llama", {"rope_parameters": YARN}),
    "llama yarn with bounds": ("llama", {"rope_parameters": {**YARN, "beta_fast": 3.0, "beta_slow": 0.5}}),
    "llama yarn with its factor": ("llama", {"rope_parameters": {**YARN, "attention_factor": 1.1386294361119891}}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral with a window": ("mistral", {"sliding_window": 4}),
    "mistral with wide heads": ("mistral", {"head_dim": 8}),
    "qwen2": ("qwen2", {}),
    "qwen2 with windows": ("qwen2", WINDOWS),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2 yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen3": ("qwen3", {}),
    "qwen3 with biases": ("qwen3", {"attention_bias": True}),
    "qwen3 with windows": ("qwen3", {**WINDOWS, "layer_types": ["sliding_attention", "full_attention"] * 2}),
    "qwen3 tied with another epsilon": ("qwen3", {"tie_word_embeddings": True, "rms_norm_eps": 0.02}),
    "gpt2": ("gpt2", {}),
    "gpt2 untied": ("gpt2", {"tie_word_embeddings": False}),
    "gpt2 exact gelu": ("gpt2", {"activation_function": "gelu"}),
    "gpt2 with another width": ("gpt2", {"n_inner": 20, "layer_norm_epsilon": 0.02}),
    "gpt2 unscaled": ("gpt2", {"scale_attn_weights": False}),
    "gpt2 scaled by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt2 scaled by layer only": ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False}),
}


@pytest.mark.parametrize(("family", "fields"), SETTINGS.values(), ids=SETTINGS)
def test_logits_are_the_originals(family, fields):
    """In float64 to its rounding; in float32 to what both lose against float64."""
    model = original(family, **fields)
    tokens = tokens_of()
    decoder = import_decoder(model)
    rough, ours = logits_of(model, tokens), logits_of(decoder, tokens)
    wide = import_decoder(model, dtype=torch.float64)
    truth = logits_of(exact(model, wide), tokens)
    assert_close(logits_of(wide, tokens), truth)
    smallest = torch.finfo(torch.float32).eps * float(truth.abs().max())
    loss = max(float((rough.double() - truth).abs().max()), smallest)
    assert float((ours.double() - truth).abs().max()) <= ORDER * loss
    assert not decoder.training


@pytest.mark.parametrize("fields", [LLAMA3, YARN, {**YARN, "beta_fast": 3.0, "beta_slow": 0.5}], ids=str)
def test_frequencies_are_those_of_transformers(fields):
    """The float64 comparison above takes our frequencies; here they meet theirs."""
    config = config_of("llama", rope_parameters=fields)
    theirs, amplitude = ROPE_INIT_FUNCTIONS[fields["rope_type"]](config, torch.device("cpu"))
    rotary = import_decoder(original("llama", rope_parameters=fields)).config.layers[0].rotary
    torch.testing.assert_close(rotary.scaling.frequencies(rotary.theta, 4).float(), theirs)
    assert rotary.scaling.amplitude == pytest.approx(amplitude)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_gives_the_same_as_the_model(family, tmp_path):
    model = original(family)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    decoder, from_folder = import_decoder(model), import_decoder(tmp_path)
    assert from_folder.config == decoder.config
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(tensor, from_folder.state_dict()[name]), name


def test_the_import_shares_no_memory_with_the_model():
    for family in FAMILIES:
        model = original(family)
        theirs = {tensor.data_ptr() for tensor in model.state_dict().values()}
        assert theirs.isdisjoint(tensor.data_ptr() for tensor in import_decoder(model).state_dict().values())


def test_types_are_kept_or_chosen(tmp_path):
    model = original("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    assert {p.dtype for p in import_decoder(tmp_path).parameters()} == {torch.bfloat16}
    assert {p.dtype for p in import_decoder(model, dtype=torch.float32).parameters()} == {torch.float32}
    model.model.norm.float()
    with pytest.raises(ValueError, match=r"several types \(torch.bfloat16, torch.float32\); choose one as dtype="):
        import_decoder(model)
    with pytest.raises(ValueError, match=r"floating-point type such as torch.bfloat16, got torch.int64"):
        import_decoder(original("llama"), dtype=torch.int64)


def test_legacy_configurations_of_files_are_understood(tmp_path):
    model = original("llama", rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0})
    model.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    del fields["rope_parameters"], fields["dtype"]
    fields |= {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}, "torch_dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert_close(logits_of(import_decoder(tmp_path), tokens_of()), logits_of(import_decoder(model), tokens_of()))


def test_the_weights_decide_whether_the_head_is_tied(tmp_path):
    """transformers keeps two different tables apart whatever the configuration says."""
    original("llama", tie_word_embeddings=True).save_pretrained(tmp_path)
    assert import_decoder(tmp_path).config.tie_embeddings
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    decoder = import_decoder(tmp_path)
    assert not decoder.config.tie_embeddings
    assert torch.equal(decoder.head.weight, weights["lm_head.weight"])


def test_gpt2_files_without_prefix_and_with_stored_masks_are_understood(tmp_path):
    model = original("gpt2")
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    weights["h.0.attn.bias"] = torch.ones(1, 1, 40, 40)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert torch.equal(logits_of(import_decoder(tmp_path), tokens_of()), logits_of(import_decoder(model), tokens_of()))


def test_dropouts_are_taken_over_or_chosen():
    config = import_decoder(original("llama", attention_dropout=0.2)).config
    assert (config.layers[0].dropout, config.dropout) == (0.2, 0.0)
    fields = {"attn_pdrop": 0.3, "resid_pdrop": 0.2}
    config = import_decoder(original("gpt2", embd_pdrop=0.2, **fields)).config
    assert (config.layers[0].dropout, config.dropout, config.attention_output_dropout) == (0.3, 0.2, 0.2)
    with pytest.raises(ValueError, match=r"embd_pdrop = 0.1 and resid_pdrop = 0.2 differ.*choose it with dropout="):
        import_decoder(original("gpt2", **fields))
    assert config.activation_dropout == 0.0  # GPT-2 drops nothing there
    config = import_decoder(original("gpt2", **fields), dropout=0.0).config
    assert (config.layers[0].dropout, config.dropout, config.attention_output_dropout) == (0.0, 0.0, 0.0)


def test_heedful_models_are_taken_too(tmp_path):
    fields = {"vocab_size": 29, "num_layers": 3, "max_positions": 40, "hidden_size": 16, "num_heads": 4}
    decoder = DecoderLM(decoder_config("boosted+multi-token", **fields))
    model = HeedfulForCausalLM.from_decoder(decoder).eval()
    model.save_pretrained(tmp_path)
    for source in (model, tmp_path):
        imported = import_decoder(source, dropout=0.1)
        assert imported.config.layers[1].dropout == 0.1
        assert torch.equal(logits_of(imported, tokens_of()), logits_of(model, tokens_of()))


REFUSED = {
    "dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "'dynamic'"),
    "another temperature": (
        "llama",
        {"rope_parameters": {**YARN, "attention_factor": 1.0}},
        "attention_factor must be",
    ),
    "mscale": ("llama", {"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5}}, "mscale is not supported"),
    "not rounded": ("llama", {"rope_parameters": {**YARN, "truncate": False}}, "truncate must be true"),
    "not rounded by null": ("llama", {"rope_parameters": {**YARN, "truncate": None}}, "truncate must be true"),
    "partial": ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "activation": ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu' cannot be imported"),
    "unknown": ("llama", {"strange": 3}, "has strange = 3, which this import does not know"),
    "mistral biases": ("mistral", {"attention_bias": True}, "attention_bias = True cannot be imported"),
    "mistral layers": ("mistral", {"sliding_window": 4, "layer_types": ["full_attention"] * 4}, "other families"),
    "qwen2 layers": ("qwen2", {"layer_types": ["sliding_attention"] * 4}, "sliding_window is not given or not in use"),
    "gpt2 activation": ("gpt2", {"activation_function": "relu"}, "expected one of 'gelu_new', 'gelu'"),
    "gpt2 context": ("gpt2", {"n_ctx": 20}, "n_ctx = 20 and n_positions = 40 contradict"),
    "cross attention": ("gpt2", {"add_cross_attention": True}, "add_cross_attention = True cannot be imported"),
}


@pytest.mark.parametrize(("family", "fields", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_honoured_is_refused(family, fields, reason):
    with pytest.raises(ValueError, match=reason):
        import_decoder(original(family, **fields))


def test_other_objects_and_classes_are_refused():
    with pytest.raises(ValueError, match="expected a LlamaForCausalLM, got a LlamaForSequenceClassification"):
        import_decoder(LlamaForSequenceClassification(config_of("llama", pad_token_id=0)))
    with pytest.raises(ValueError, match="expected a model of transformers or the path of a folder, got Linear"):
        import_decoder(torch.nn.Linear(2, 2))
    bloom = transformers.BloomConfig(hidden_size=8, n_layer=1, n_head=2, vocab_size=9)
    with pytest.raises(ValueError, match="model_type 'bloom' cannot be imported; expected one of llama, mistral"):
        import_decoder(transformers.BloomForCausalLM(bloom))
    model = original("llama")
    model.model.layers[1].self_attn.register_parameter("extra", torch.nn.Parameter(torch.ones(1)))
    with pytest.raises(ValueError, match=r"has a weight 'model.layers.1.self_attn.extra'"):
        import_decoder(model)
    model = original("llama")
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq * 2
    with pytest.raises(ValueError, match="rotary frequencies are not those of its rope_parameters"):
        import_decoder(model)
    model = original("llama")
    model.model.layers[0].mlp.to("meta")
    with pytest.raises(ValueError, match="is not in memory"):
        import_decoder(model)


def changed_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def changed_config(folder, **fields):
    mapping = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**mapping, **fields}))


def cut(folder, size):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:size])


def as_pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


NORM = "model.layers.1.input_layernorm.weight"
DAMAGE = {
    "truncated": (lambda folder: cut(folder, -50), "is damaged or no safetensors file.*not fully covered"),
    "cut in the header": (lambda folder: cut(folder, 6), "is damaged or no safetensors file.*header too small"),
    "empty": (lambda folder: cut(folder, 0), "is damaged"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
    "pickled weights": (as_pickle, "no file named model.safetensors"),
    "a missing tensor": (lambda folder: changed_weights(folder, lambda w: w.pop(NORM)), f"missing: {NORM}"),
    "an extra tensor": (
        lambda folder: changed_weights(folder, lambda w: w.update(extra=torch.ones(1))),
        "left over: extra",
    ),
    "another shape": (
        lambda folder: changed_weights(folder, lambda w: w.update({NORM: torch.ones(3)})),
        f"of another shape: {NORM}",
    ),
    "fewer layers": (lambda folder: changed_config(folder, num_hidden_layers=3), "left over: .* and 6 more"),
    "more layers": (lambda folder: changed_config(folder, num_hidden_layers=5), "missing: .* and 6 more"),
    "another vocabulary": (lambda folder: changed_config(folder, vocab_size=30), "of another shape: lm_head.weight"),
    "another family": (lambda folder: changed_config(folder, model_type="bloom"), "'bloom' cannot be imported"),
    "a wrong type": (lambda folder: changed_config(folder, hidden_size="wide"), "cannot be read.*hidden_size"),
    "quantised": (lambda folder: changed_config(folder, quantization_config={"bits": 4}), "dequantise the model"),
    "its own code": (lambda folder: changed_config(folder, auto_map={"AutoModel": "x.Y"}), "its own model code"),
    "broken json": (lambda folder: (folder / "config.json").write_text("{"), "is not valid JSON"),
    "no table": (lambda folder: (folder / "config.json").write_text("[]"), "expected a table of fields, got list"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
}


@pytest.mark.parametrize(("damage", "reason"), DAMAGE.values(), ids=DAMAGE)
def test_bad_files_are_refused(damage, reason, tmp_path):
    original("llama").save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=reason):
        import_decoder(tmp_path)


def test_a_missing_shard_or_folder_is_refused(tmp_path):
    original("llama").save_pretrained(tmp_path, max_shard_size="10KB")
    next(tmp_path.glob("model-00002-*")).unlink()
    with pytest.raises(ValueError, match=r"cannot be read.*model-00002-of"):
        import_decoder(tmp_path)
    with pytest.raises(
        ValueError, match=r"is no folder; expected a folder with config.json and safetensors, nothing is"
    ):
        import_decoder(tmp_path / "elsewhere")


def test_every_field_of_every_family_is_known():
    """A field that a new version of transformers adds must be looked at before it is ignored."""
    from heedful.hf.architectures import ARCHITECTURES

    for family, (config_class, _, _) in CLASSES.items():
        ARCHITECTURES[family].check_fields(config_class())
