"""Saving and loading: every mechanism, shards, devices, types; damage is refused in one sentence."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_hf import KERNELS, MECHANISMS, byte_tokenizer, config_of, examples_of, largest_difference, model_of
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)

from heedful.hf import HeedfulConfig, HeedfulForCausalLM, HeedfulForSequenceClassification, HeedfulModel
from heedful.nn import PRESETS

SUMS = ("boosted+nonlinear-query", "nonlinear-query+multi-token", "boosted+multi-token", "boosted+differential")
TOKENS = torch.stack([example["input_ids"] for example in examples_of(2, length=24)])


@torch.no_grad()
def logits_of(model, tokens=TOKENS):
    return model.eval()(tokens).logits


def saved(folder, attention="boosted", **fields):
    model = model_of(attention, **fields)
    model.save_pretrained(folder)
    return model


def rewrite_config(folder, **changes):
    path = folder / "config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps(config), encoding="utf-8")


def rewrite_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("attention", [*PRESETS, *SUMS])
def test_a_saved_model_comes_back_bit_for_bit(attention, tied, tmp_path):
    model = saved(tmp_path, attention, num_hidden_layers=3, tie_word_embeddings=tied)
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == ["model.safetensors"]
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) is not tied
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is HeedfulForCausalLM
    assert not again.training
    assert again.config.decoder_config() == model.config.decoder_config()
    assert (again.lm_head.weight is again.model.embed_tokens.weight) is tied
    assert torch.equal(logits_of(again), logits_of(model))


@pytest.mark.parametrize(
    "fields",
    [
        {
            "attention": ["standard", KERNELS],
            "sliding_window": 8,
            "layer_types": ["full_attention", "sliding_attention"],
        },
        {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True, "head_bias": True, "norm": "layer"},
        {"position_embedding": "learned", "hidden_act": "gelu_new", "scale_residual_init": True},
        {"share_layers": True, "norm_position": "post", "position_embedding": "none", "hidden_act": "gelu"},
        {"norm": "none", "attention_skip": False, "tie_word_embeddings": True, "head_bias": True},
        {"attention": "twicing", "rope_parameters": {"rope_type": "linear", "factor": 2.0}, "head_dim": 16},
    ],
    ids=["by-layer", "biases", "learned", "shared", "skipless", "rope"],
)
def test_every_part_of_the_configuration_survives(fields, tmp_path):
    model = saved(tmp_path, **fields)
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    where = {"_name_or_path": None}
    assert {**again.config.to_dict(), **where} == {**model.config.to_dict(), **where}
    assert torch.equal(logits_of(again), logits_of(model))


def test_a_model_in_many_shards_comes_back(tmp_path):
    model = model_of(KERNELS)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert torch.equal(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path)), logits_of(model))


@pytest.mark.parametrize("attention", MECHANISMS.values(), ids=MECHANISMS)
def test_weights_load_in_another_type(attention, tmp_path):
    model = saved(tmp_path, attention)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.bfloat16}
    assert torch.equal(logits_of(again), logits_of(model.to(torch.bfloat16)))


def test_a_bfloat16_checkpoint_loads_in_its_own_type(tmp_path):
    model = model_of(KERNELS).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.dtype == torch.bfloat16
    assert torch.equal(logits_of(again), logits_of(model))


@pytest.mark.parametrize("attention", MECHANISMS.values(), ids=MECHANISMS)
def test_a_device_map_puts_the_model_there(attention, tmp_path):
    model = saved(tmp_path / "model", attention)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model", device_map={"": "cpu"})
    assert torch.equal(logits_of(again), logits_of(model))


@pytest.mark.parametrize("attention", MECHANISMS.values(), ids=MECHANISMS)
def test_layers_offloaded_to_disk_compute_and_generate_the_same(attention, tmp_path):
    model = saved(tmp_path / "model", attention)
    where = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    where |= {"model.norm": "cpu", "lm_head": "cpu"}
    again = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=where, offload_folder=tmp_path / "offloaded"
    )
    assert next(again.model.layers[1].parameters()).device.type == "meta"
    assert torch.equal(logits_of(again), logits_of(model))
    generated = [m.generate(TOKENS, max_new_tokens=6, do_sample=False, pad_token_id=0) for m in (again, model)]
    assert torch.equal(*generated)


def test_the_auto_classes_know_the_models(tmp_path):
    model = saved(tmp_path, KERNELS)
    assert type(AutoConfig.from_pretrained(tmp_path)) is HeedfulConfig
    body = AutoModel.from_pretrained(tmp_path)
    assert type(body) is HeedfulModel
    with torch.no_grad():
        assert torch.equal(body(TOKENS).last_hidden_state, model.model(TOKENS).last_hidden_state)
    assert type(AutoModelForCausalLM.from_config(model.config)) is HeedfulForCausalLM
    assert type(AutoModelForSequenceClassification.from_config(model.config)) is HeedfulForSequenceClassification


def test_the_body_alone_saves_and_loads_into_itself_and_into_the_causal_model(tmp_path):
    body = model_of(KERNELS, tie_word_embeddings=True).model
    body.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = body(TOKENS).last_hidden_state
        assert torch.equal(again(TOKENS).last_hidden_state, expected)
        assert torch.equal(whole.model(TOKENS).last_hidden_state, expected)


@pytest.mark.parametrize("attention", MECHANISMS.values(), ids=MECHANISMS)
def test_a_classifier_from_a_causal_checkpoint_trains_at_the_last_real_token(attention, tmp_path):
    model = saved(tmp_path / "causal", attention, pad_token_id=0)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "causal", num_labels=3)
    assert type(classifier) is HeedfulForSequenceClassification
    assert torch.equal(classifier.model.embed_tokens.weight, model.model.embed_tokens.weight)
    lengths = torch.tensor([24, 15])
    rows = torch.where(torch.arange(24) < lengths[:, None], TOKENS, 0)
    mask = (torch.arange(24) < lengths[:, None]).long()
    with torch.no_grad():
        hidden = classifier.model(rows, attention_mask=mask).last_hidden_state
        expected = classifier.score(hidden[torch.arange(2), lengths - 1])
        assert largest_difference(classifier(rows, attention_mask=mask).logits, expected) < 1e-6
    optimizer = torch.optim.AdamW(classifier.train().parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        loss = classifier(rows, attention_mask=mask, labels=torch.tensor([2, 0])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 < losses[0]
    classifier.eval().save_pretrained(tmp_path / "classifier")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier")
    with torch.no_grad():
        assert torch.equal(again(rows, attention_mask=mask).logits, classifier(rows, attention_mask=mask).logits)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("size", [300, 256, 200])
def test_a_resized_vocabulary_keeps_the_logits_of_its_tokens(tied, size, tmp_path):
    model = model_of(KERNELS, tie_word_embeddings=tied, head_bias=True)
    before = logits_of(model)
    model.resize_token_embeddings(size, mean_resizing=False)
    assert model.config.vocab_size == size
    after = logits_of(model)
    assert after.shape[-1] == size
    kept = min(size, 256)
    assert largest_difference(after[..., :kept], before[..., :kept]) < 1e-6
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    model.save_pretrained(tmp_path)
    assert torch.equal(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path)), after)
    with torch.no_grad():
        assert largest_difference(model.to_decoder()(TOKENS)[0], after) < 1e-6
    labels = TOKENS.clone()
    assert torch.isfinite(model(TOKENS, labels=labels).loss)


@pytest.mark.parametrize(
    ("attention", "names"),
    [
        ("standard", ("auto", "eager", "reference", "sdpa")),
        (KERNELS, ("auto", "eager", "reference", "blockwise")),
        ("boosted+nonlinear-query", ("auto", "eager", "reference", "sdpa")),
    ],
    ids=["standard", "multi-token", "boosted+nonlinear-query"],
)
def test_every_backend_can_be_asked_for_by_name_and_computes_the_same(attention, names, tmp_path):
    model = saved(tmp_path, attention)
    expected = logits_of(model)
    for name in names:
        backend = "reference" if name == "eager" else name
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=name)
        made = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path), attn_implementation=name)
        switched = AutoModelForCausalLM.from_pretrained(tmp_path)
        switched.set_attn_implementation(name)
        for other in (loaded, made, switched):
            assert other.config._attn_implementation == name
            assert {layer.attention.config.backend for layer in other.model.layers} == {backend}
        for other in (loaded, switched):
            assert largest_difference(logits_of(other), expected) < 1e-5
            assert causal(other)


def causal(model):
    """Whether later tokens change nothing before them."""
    changed = TOKENS.clone()
    changed[:, 12:] = (changed[:, 12:] + 7) % 256
    return largest_difference(logits_of(model)[:, :12], logits_of(model, changed)[:, :12]) < 1e-6


@pytest.mark.parametrize(
    ("attention", "name", "words"),
    [
        ("standard", "blockwise", "blockwise"),
        (KERNELS, "sdpa", "sdpa"),
        ("standard", "spda", "spda.*[Dd]id you mean 'sdpa'"),
        ("standard", "flash_attention_2", "flash"),
        ("standard", "flex_attention", "flex_attention.*auto.*sdpa|auto.*sdpa.*flex_attention"),
    ],
)
def test_a_backend_that_cannot_run_is_refused_with_the_reason(attention, name, words, tmp_path):
    model = saved(tmp_path, attention)
    with pytest.raises(ValueError, match=words):
        AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=name)
    with pytest.raises(ValueError, match=words):
        AutoModelForCausalLM.from_config(model.config, attn_implementation=name)
    before, expected = model.config._attn_implementation, logits_of(model)
    with pytest.raises(ValueError, match=words):
        model.set_attn_implementation(name)
    assert model.config._attn_implementation == before
    assert torch.equal(logits_of(model), expected)


# Damaged and unfitting checkpoints


def refused(folder, words):
    """One ValueError that names the folder or the reason, without a half-loaded model."""
    with pytest.raises(ValueError, match=words) as caught:
        AutoModelForCausalLM.from_pretrained(folder)
    return str(caught.value)


@pytest.mark.parametrize("kept", [0, 4, 100, 2000, -1])
def test_a_truncated_weight_file_is_refused(kept, tmp_path):
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert str(tmp_path) in refused(tmp_path, "is damaged")


def test_a_weight_file_of_other_bytes_is_refused(tmp_path):
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\xff" * path.stat().st_size)
    assert str(tmp_path) in refused(tmp_path, "is damaged")


def test_a_truncated_shard_is_refused(tmp_path):
    model_of("boosted").save_pretrained(tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-7])
    assert str(tmp_path) in refused(tmp_path, "is damaged")


@pytest.mark.parametrize("text", ["{bad", "[]", '{"metadata": {}}'], ids=["no-json", "a-list", "no-map"])
def test_a_damaged_index_of_shards_is_refused(text, tmp_path):
    model_of("boosted").save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    assert str(tmp_path) in refused(tmp_path, "index")


def test_a_missing_shard_is_refused(tmp_path):
    model_of("boosted").save_pretrained(tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises((ValueError, OSError), match=shard.name):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path):
    config_of("boosted").save_pretrained(tmp_path)
    with pytest.raises(OSError, match="no file named"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_missing_weight_is_refused_by_name(tmp_path):
    saved(tmp_path)
    rewrite_weights(tmp_path, lambda weights: weights.pop("model.layers.1.attention.o_proj.weight"))
    refused(tmp_path, r"missing.*model\.layers\.1\.attention\.o_proj\.weight")


def test_an_unexpected_weight_is_refused_by_name(tmp_path):
    saved(tmp_path)
    rewrite_weights(tmp_path, lambda weights: weights.update({"model.layers.1.attention.extra": torch.ones(3)}))
    refused(tmp_path, r"unexpected.*model\.layers\.1\.attention\.extra")


def test_a_missing_head_is_refused_where_the_model_is_a_causal_one(tmp_path):
    saved(tmp_path)
    rewrite_weights(tmp_path, lambda weights: weights.pop("lm_head.weight"))
    refused(tmp_path, r"missing.*lm_head\.weight")


def test_a_weight_of_another_shape_is_refused_by_name(tmp_path):
    saved(tmp_path)
    name = "model.layers.0.attention.o_proj.weight"
    rewrite_weights(tmp_path, lambda weights: weights.update({name: torch.ones(32, 16)}))
    refused(tmp_path, r"do not fit config\.json(.|\n)*model\.layers\.0\.attention\.o_proj\.weight")


def test_weights_of_another_mechanism_are_refused(tmp_path):
    saved(tmp_path / "boosted", "boosted")
    saved(tmp_path / "standard", "standard")
    for source, target, kind in (("boosted", "standard", "unexpected"), ("standard", "boosted", "missing")):
        mixed = tmp_path / f"{source}-as-{target}"
        shutil.copytree(tmp_path / source, mixed)
        shutil.copy(tmp_path / target / "config.json", mixed)
        refused(mixed, kind)


def test_weights_of_fewer_layers_are_refused(tmp_path):
    saved(tmp_path)
    rewrite_config(tmp_path, num_hidden_layers=3, layer_types=None)
    refused(tmp_path, "missing")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention": "bosted"}, "unknown preset 'bosted'.*Did you mean 'boosted'"),
        ({"attention": "twicing+differential"}, "contradicts itself"),
        ({"attention": {"preset": "boosted", "windw": 3}}, "windw"),
        ({"attention": ["boosted"]}, "one entry per layer"),
        ({"attnetion": "boosted"}, "no field 'attnetion'.*'attention'"),
        ({"num_key_value_head": 2}, "no field 'num_key_value_head'.*'num_key_value_heads'"),
        ({"hidden_act": "relu"}, "hidden_act must be one of"),
        ({"norm": "batch"}, "norm"),
        ({"num_attention_heads": 5}, "num_heads must divide hidden_size"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type must be one of"),
        ({"layer_types": ["full_attention"]}, "layer_types must name 2 layers"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_window is None"),
        ({"pad_token_id": 256}, "pad_token_id"),
        ({"num_hidden_layers": 0, "layer_types": []}, "num_layers must be at least 1"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_a_configuration_that_makes_no_sense_is_refused_with_the_reason(changes, words, tmp_path):
    saved(tmp_path)
    rewrite_config(tmp_path, **changes)
    refused(tmp_path, words)


@pytest.mark.parametrize(
    "changes", [{"hidden_size": "wide"}, {"num_hidden_layers": 1.5}, {"tie_word_embeddings": "yes"}], ids=str
)
def test_a_configuration_with_a_wrong_type_is_refused_by_the_field(changes, tmp_path):
    saved(tmp_path)
    rewrite_config(tmp_path, **changes)
    with pytest.raises(Exception, match=next(iter(changes))):  # huggingface_hub's own error class
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_damaged_config_file_is_refused(tmp_path):
    saved(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "heedful", ', encoding="utf-8")
    with pytest.raises((OSError, ValueError), match="config"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_model_and_tokenizer_share_a_folder(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = byte_tokenizer()
    saved(tmp_path, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "Größe, 3 × 4\n"
    assert again.decode(again(text)["input_ids"]) == text
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model(**again(text, return_tensors="pt")).logits.shape[-1] == 258
