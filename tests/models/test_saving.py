"""Saving and loading a decoder: bit for bit, and every damaged folder refused with a sentence."""

import json
import shutil
import struct

import pytest
import torch
from tiny_models import config_of, jolted, logits_of, model_of, tokens_of

from heedful.models import DecoderLM, load_decoder
from heedful.nn import PRESETS, Rotary
from tolerance import largest_difference


@pytest.mark.parametrize("names", [*PRESETS, "boosted+nonlinear-query+multi-token", {1: "boosted"}])
def test_saving_and_loading_is_lossless(names, tmp_path):
    model = model_of(names, bias=True, qk_norm=True, rotary=Rotary(), tie_embeddings=False)
    model.save(tmp_path)
    loaded = load_decoder(tmp_path).eval()
    assert loaded.config == model.config
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert largest_difference(logits_of(loaded, tokens_of()), logits_of(model, tokens_of())) == 0.0
    assert all(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_type_of_the_weights_is_kept(dtype, tmp_path):
    model = model_of().to(dtype)
    model.save(tmp_path)
    assert {parameter.dtype for parameter in load_decoder(tmp_path).parameters()} == {dtype}


def test_a_loaded_model_trains_on_independently_of_its_file(tmp_path):
    model_of().save(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    loaded = load_decoder(tmp_path)
    loaded(tokens_of())[0].square().sum().backward()
    torch.optim.SGD(loaded.parameters(), lr=0.1).step()
    assert (tmp_path / "model.safetensors").read_bytes() == before
    loaded.save(tmp_path)
    assert torch.equal(load_decoder(tmp_path).final_norm.weight, loaded.final_norm.weight)


def test_a_tied_head_stays_tied_and_is_stored_once(tmp_path):
    model = model_of()
    model.save(tmp_path)
    loaded = load_decoder(tmp_path)
    assert loaded.head is None
    stored = sum(p.numel() * p.element_size() for p in model.parameters())
    assert stored < (tmp_path / "model.safetensors").stat().st_size < stored + 8192


def test_saving_changes_nothing_about_a_model_in_training_and_leaves_only_two_files(tmp_path):
    model = model_of().train()
    model.save(tmp_path / "deep" / "folder")
    assert model.training
    assert sorted(file.name for file in (tmp_path / "deep" / "folder").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_loading_draws_no_random_numbers(tmp_path):
    model_of().save(tmp_path)
    before = torch.get_rng_state()
    load_decoder(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    jolted(DecoderLM(config_of("boosted"))).save(folder)
    return folder


def changed_config(change):
    def damage(folder):
        mapping = json.loads((folder / "config.json").read_text())
        change(mapping)
        (folder / "config.json").write_text(json.dumps(mapping))

    return damage


def changed_weights(change):
    def damage(folder):
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return damage


def overwritten(name, make):
    def damage(folder):
        (folder / name).write_bytes(make((folder / name).read_bytes()))

    return damage


DAMAGES = {
    "no config": (
        lambda folder: (folder / "config.json").unlink(),
        r"holds no config\.json; expected a folder written",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"holds no model\.safetensors"),
    "no folder": (shutil.rmtree, r"holds no config\.json"),
    "config is a folder": (
        lambda folder: ((folder / "config.json").unlink(), (folder / "config.json").mkdir()),
        r"holds no config\.json",
    ),
    "config cut": (overwritten("config.json", lambda data: data[:-20]), r"config\.json is not valid JSON"),
    "config empty": (overwritten("config.json", lambda data: b""), r"config\.json is not valid JSON"),
    "config binary": (overwritten("config.json", lambda data: b"\xff\xfe\x00"), r"config\.json is not valid JSON"),
    "config a list": (overwritten("config.json", lambda data: b"[1, 2]"), r"expected a table of DecoderConfig"),
    "config null": (overwritten("config.json", lambda data: b"null"), r"expected a table of DecoderConfig"),
    "unknown key": (changed_config(lambda m: m.update(vocabsize=3)), r"unknown key 'vocabsize'\. Did you mean 'vocab_"),
    "missing key": (changed_config(lambda m: m.pop("num_layers")), r"key 'num_layers' is missing"),
    "wrong type": (changed_config(lambda m: m.update(vocab_size="19")), r"vocab_size: expected int, got '19' \(str\)"),
    "wrong choice": (changed_config(lambda m: m.update(norm="batch")), r"norm: expected one of 'layer', 'rms'"),
    "wrong inside": (
        changed_config(lambda m: m["attention"]["boosting"].update(rounds=0)),
        r"attention\.boosting: rounds must be at least 1, got 0",
    ),
    "attention missing": (changed_config(lambda m: m.update(attention=None)), r"attention"),
    "other depth": (changed_config(lambda m: m.update(num_layers=3)), r"blocks\.2\..* found None"),
    "other width": (changed_config(lambda m: m.update(vocab_size=20)), r"token_embedding\.weight should .*\(20, 16\)"),
    "other rounds": (
        changed_config(lambda m: m["attention"]["boosting"].update(rounds=1)),
        r"does not fit its configuration: blocks\.0\.attention\.gates\.0\.\S+ should have shape None",
    ),
    "weights cut": (overwritten("model.safetensors", lambda data: data[:-7]), r"damaged or no safetensors file"),
    "weights empty": (overwritten("model.safetensors", lambda data: b""), r"damaged or no safetensors file"),
    "weights of text": (overwritten("model.safetensors", lambda data: b"hello world, this is"), r"damaged"),
    "header too long": (
        overwritten("model.safetensors", lambda data: struct.pack("<Q", 2**40) + data[8:]),
        r"damaged or no safetensors file",
    ),
    "weight missing": (changed_weights(lambda w: w.pop("final_norm.weight")), r"final_norm\.weight .* found None"),
    "weight too many": (
        changed_weights(lambda w: w.update(extra=torch.zeros(2))),
        r"extra should have shape None, found \(2,\)",
    ),
    "weight reshaped": (
        changed_weights(lambda w: w.update({"final_norm.weight": torch.zeros(4, 4)})),
        r"final_norm\.weight should have shape \(16,\), found \(4, 4\)",
    ),
    "weight of integers": (
        changed_weights(lambda w: w.update({"final_norm.weight": torch.zeros(16, dtype=torch.long)})),
        r"final_norm\.weight should have shape \(16,\), found torch\.int64",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_and_named(damage, saved, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    spoil, message = DAMAGES[damage]
    spoil(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load_decoder(folder)
    assert str(folder) in str(caught.value)


def test_a_flipped_byte_in_the_header_is_noticed(saved, tmp_path):
    data = (saved / "model.safetensors").read_bytes()
    shutil.copytree(saved, tmp_path / "run")
    length = struct.unpack("<Q", data[:8])[0]
    for place in range(8, 8 + length, 97):
        flipped = bytearray(data)
        flipped[place] ^= 0x01
        (tmp_path / "run" / "model.safetensors").write_bytes(bytes(flipped))
        try:
            loaded = load_decoder(tmp_path / "run")
        except ValueError:
            continue
        # A header can change harmlessly only in white space or in a note; the weights are then as they were.
        assert torch.equal(loaded.final_norm.weight, load_decoder(saved).final_norm.weight)
