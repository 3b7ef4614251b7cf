"""`heedful convert upcycle`: a complete folder or nothing."""

import json

import pytest
import torch
import tyro
from safetensors.torch import load_file
from tiny_checkpoints import logits_of, original, tokens_of
from transformers import AutoModelForCausalLM

import heedful.hf.upcycling
from heedful.cli.convert_upcycle import ConvertUpcycle
from heedful.hf.importing import import_decoder
from heedful.hf.new_parameters import new_parameter_names
from tolerance import assert_close


@pytest.fixture
def source(tmp_path):
    """A checkpoint with a tokenizer, a licence, and files that are not copied."""
    folder = tmp_path / "source"
    original("llama").double().save_pretrained(folder)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    (folder / "LICENSE").write_text("free")
    (folder / "optimizer.pt").write_text("no")
    (folder / "tokenizer.py").write_text("no")
    return folder


def run(*arguments):
    command = tyro.cli(ConvertUpcycle, args=[str(a) for a in arguments], config=(tyro.conf.OmitArgPrefixes,))
    command.run({})


def test_the_folder_is_complete(source, tmp_path, capsys):
    target = tmp_path / "made" / "target"
    run(source, target, "--add", "multi-token+head-output", "--layers", 0, 3, "--kernel", 2, 3)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("largest difference of logits at random tokens: ")
    assert float(printed[0].split()[7]) < 1e-5
    assert printed[1].startswith("parameters: 8,752 old, ")
    assert printed[2] == f"written: {target}"
    assert sorted(file.relative_to(target).as_posix() for file in target.rglob("*") if file.is_file()) == [
        *("LICENSE", "additional_chat_templates/tools.jinja", "chat_template.jinja", "config.json"),
        *("generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    ]
    model = AutoModelForCausalLM.from_pretrained(target, dtype="auto")
    assert_close(logits_of(model, tokens_of()), logits_of(import_decoder(source), tokens_of()))
    layers = model.config.decoder_config().layers
    assert (layers[3].rule.query_kernel_size, layers[3].rule.key_kernel_size, layers[1].rule.kind) == (2, 3, "standard")


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3", "gpt2"])
def test_every_family_in_sixteen_bits(family, tmp_path, capsys):
    """Compared in float32, written in its own type."""
    original(family).to(torch.bfloat16).save_pretrained(tmp_path / "source")
    run(tmp_path / "source", tmp_path / "target", "--add", "talking-heads")
    assert float(capsys.readouterr().out.split()[7]) < 1e-4
    weights = load_file(tmp_path / "target" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "target", dtype="auto")
    ours, theirs = model.to_decoder().state_dict(), import_decoder(tmp_path / "source").state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert new_parameter_names(model)


def test_the_seed_decides_the_new_weights(source, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(source, tmp_path / name, "--add", "nonlinear-query", "--bottleneck", 3, "--seed", seed)
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    changed = {name for name, tensor in a.items() if not torch.equal(tensor, c[name])}
    assert all(torch.equal(tensor, b[name]) for name, tensor in a.items())
    assert changed
    assert all("query.down_proj" in name or "query.up_proj" in name for name in changed)


def test_other_options_reach_the_model(source, tmp_path):
    run(source, tmp_path / "target", "--add", "boosted+annealed-nonlinear-query", "--rounds", 3, "--anchor-fit", "tile")
    layer = import_decoder(tmp_path / "target").config.layers[0]
    assert (layer.boosting.rounds, layer.query.target.anchor_fit) == (3, "tile")


def test_an_existing_folder_is_replaced_on_request_only(source, tmp_path):
    target = tmp_path / "target"
    run(source, target, "--add", "head-output")
    (target / "mark").write_text("old")
    with pytest.raises(ValueError, match=r"target exists; choose another folder, or replace it with --force"):
        run(source, target, "--add", "talking-heads")
    assert (target / "mark").read_text() == "old"
    run(source, target, "--add", "talking-heads", "--force")
    assert not (target / "mark").exists()
    assert json.loads((target / "config.json").read_text())["attention"] == "talking-heads"


def test_folders_of_value_are_never_replaced(source, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"is not the folder of a model, so it is not replaced"):
        run(source, other, "--add", "head-output", "--force")
    for target in (source, source / "inside", tmp_path):
        with pytest.raises(ValueError, match="overlap; choose a destination of its own"):
            run(source, target, "--add", "head-output", "--force")
    assert (other / "thesis.txt").exists()
    assert (source / "model.safetensors").exists()


REFUSED = {
    "an unknown mechanism": (["--add", "multi-tokn"], "Did you mean 'multi-token'"),
    "no identity at first": (["--add", "twicing"], "cannot be added to trained weights"),
    "an option of another": (["--add", "multi-token", "--rounds", "3"], "It belongs to 'boosted'"),
    "no such layer": (["--add", "boosted", "--layers", "9"], "layers must be different numbers from 0 to 3"),
}


@pytest.mark.parametrize(("arguments", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_writes_nothing(arguments, reason, source, tmp_path):
    with pytest.raises(ValueError, match=reason):
        run(source, tmp_path / "target", *arguments)
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


def test_damaged_files_write_nothing(source, tmp_path):
    data = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(data[:-9])
    with pytest.raises(ValueError, match="is damaged"):
        run(source, tmp_path / "target", "--add", "boosted")
    assert [file.name for file in tmp_path.iterdir()] == ["source"]


def test_a_function_that_changed_writes_nothing(source, tmp_path, monkeypatch):
    """The last guard: whatever goes wrong in between, other logits are never written."""
    real = heedful.hf.upcycling.upcycle

    def spoiled(*arguments, **options):
        model = real(*arguments, **options)
        with torch.no_grad():
            model.model.layers[0].attention.o_proj.weight.add_(0.1)
        return model

    monkeypatch.setattr(heedful.hf.upcycling, "upcycle", spoiled)
    with pytest.raises(ValueError, match="which is more than rounding; nothing was written"):
        run(source, tmp_path / "target", "--add", "boosted")
    assert [file.name for file in tmp_path.iterdir()] == ["source"]
