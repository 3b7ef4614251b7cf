"""Exported folders: the same numbers with heedful, without it, and after the way back; nothing half-written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from bundled_process import compute
from transformers import AutoModelForCausalLM, AutoTokenizer

from heedful import DecoderLM, decoder_config, load_decoder
from heedful.cli import main
from heedful.cli.export import Export
from heedful.data.tokenizers import ByteTokenizer
from heedful.hf import HeedfulForCausalLM, HeedfulForSequenceClassification
from heedful.hf.export import CODE_FILE, export_pretrained, import_native
from heedful.hf.tokenizers import to_transformers
from heedful.nn import PRESETS, Rotary

SCRIPT = Path(__file__).parent / "bundled_process.py"
TOKENS = [[5, 80, 7, 7, 31, 200, 4, 18, 19, 20], [9, 0, 256, 250, 3, 3, 2, 77, 1, 6]]


def decoder(preset="standard", dtype=torch.float32, **fields):
    """A native decoder whose weights are all away from their starts."""
    torch.manual_seed(1)
    sizes = {"vocab_size": 257, "num_layers": 3, "max_positions": 64, "hidden_size": 32, "num_heads": 4}
    model = DecoderLM(decoder_config(preset, **{**sizes, **fields}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def variants():
    llama = {"rotary": Rotary(), "norm": "rms", "activation": "swiglu", "tie_embeddings": False}
    return {
        **{preset.replace("+", "_and_").replace("-", "_"): decoder(preset) for preset in PRESETS},
        "llama": decoder("boosted+multi-token", **llama),
        "windows": decoder("boosted", window=5, num_kv_heads=2, head_bias=True, bias=True),
        "mixed_layers": decoder({1: "boosted", 2: "multi-token"}, default="nonlinear-query", dtype=torch.bfloat16),
    }


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """All variants as folders, the one called llama with a tokenizer, and what they compute here."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "tokens.json").write_text(json.dumps(TOKENS))
    models = variants()
    for name, model in models.items():
        export_pretrained(model, folder / name, tokenizer=ByteTokenizer() if name == "llama" else None)
    return folder, models


def in_another_process(folder, results, *options):
    """Load what is in `folder` without heedful and return what was found; numbers lie in `results`."""
    home = results / "home"
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("HF_MODULES_CACHE", None)
    command = [sys.executable, str(SCRIPT), str(folder), str(results), *options]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=results)
    assert finished.returncode == 0, finished.stderr[-4000:]
    return json.loads((results / "found.json").read_text())


def expected(model):
    return compute(HeedfulForCausalLM.from_decoder(model), torch.tensor(TOKENS))


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def test_every_mechanism_computes_the_same_where_heedful_cannot_be_imported(exported, tmp_path):
    folder, models = exported
    found = in_another_process(folder, tmp_path)
    assert found["transformers"] == transformers.__version__
    assert found["models"].keys() == models.keys()
    for name, model in models.items():
        assert found["models"][name]["module"].startswith("transformers_modules.")
        wanted = expected(model)
        assert_equal(torch.load(tmp_path / f"{name}.pt"), wanted)
        with torch.no_grad():  # and the native model agrees with both
            native = model(torch.tensor(TOKENS))[0]
        tolerance = 2e-2 if native.dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(native, wanted["logits"], rtol=tolerance, atol=tolerance)
    about = found["models"]["llama"]
    assert about["ids"] == ByteTokenizer().encode("hello <|endoftext|> é")
    assert about["classes"] == [2, 3]
    assert about["score"] == about["module"]
    assert "a self-contained copy of heedful holds no Triton kernels" in about["triton"]
    for name in ("again", "after"):  # saved by the copy and loaded again, and the first one beside it
        assert_equal(torch.load(tmp_path / f"{name}.pt"), expected(models["llama"]))
    copy = (tmp_path / "saved" / CODE_FILE).read_text()
    assert copy == (folder / "llama" / CODE_FILE).read_text()


def test_the_installed_classes_are_used_where_heedful_is_installed(exported, tmp_path):
    folder, models = exported
    one = tmp_path / "models"
    one.mkdir()
    (one / "tokens.json").symlink_to(folder / "tokens.json")
    (one / "llama").symlink_to(folder / "llama")
    found = in_another_process(one, tmp_path, "--with-heedful")
    about = found["models"]["llama"]
    assert about["module"] == about["score"] == "heedful.hf.modeling"  # although trust_remote_code=True
    assert "holds no Triton kernels" not in about["triton"]
    assert_equal(torch.load(tmp_path / "llama.pt"), expected(models["llama"]))


def test_a_folder_loads_without_trust_in_a_process_that_knows_heedful(exported):
    folder, models = exported
    model = AutoModelForCausalLM.from_pretrained(folder / "llama")
    assert type(model) is HeedfulForCausalLM
    assert_equal(compute(model, torch.tensor(TOKENS)), expected(models["llama"]))
    assert model.config.eos_token_id == model.generation_config.eos_token_id == 256
    assert model.generation_config.pad_token_id == 256
    assert model.config.pad_token_id is None  # else the embedding of the end of text would not be trained
    assert AutoTokenizer.from_pretrained(folder / "llama").model_max_length == 64


@pytest.mark.parametrize("name", ["llama", "windows", "mixed_layers", "differential"])
def test_the_way_back_keeps_every_bit(exported, tmp_path, name):
    folder, models = exported
    back, model = import_native(folder / name), models[name]
    assert back.config == model.config
    assert_same_weights(back, model)
    Export(folder / name, tmp_path / "native", native=True).run({})
    assert_same_weights(load_decoder(tmp_path / "native"), model)
    Export(tmp_path / "native", tmp_path / "again", hf=True).run({})
    assert_same_weights(import_native(tmp_path / "again"), model)
    assert not (tmp_path / "again" / "tokenizer.json").exists()


@pytest.mark.parametrize("kind", ["body", "classifier", "no architectures"])
def test_a_folder_without_the_head_is_no_native_model(kind, tmp_path):
    """A head would be drawn at random."""
    model = HeedfulForCausalLM.from_decoder(decoder(tie_embeddings=False))
    model.save_pretrained(tmp_path / "model")
    if kind == "classifier":
        model = HeedfulForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=3)
    (model.model if kind == "body" else model).save_pretrained(tmp_path / "other")
    if kind == "no architectures":
        written = json.loads((tmp_path / "other" / "config.json").read_text())
        del written["architectures"]
        (tmp_path / "other" / "config.json").write_text(json.dumps({**written, "head_bias": True}))
    with pytest.raises(ValueError, match="weights do not fit"):
        import_native(tmp_path / "other")


def test_saving_an_exported_model_again_names_no_code_that_is_not_there(exported, tmp_path):
    folder, _ = exported
    AutoModelForCausalLM.from_pretrained(folder / "llama").save_pretrained(tmp_path / "again")
    assert "auto_map" not in json.loads((tmp_path / "again" / "config.json").read_text())
    AutoModelForCausalLM.from_pretrained(tmp_path / "again")


def assert_same_weights(first, second):
    ours, theirs = first.state_dict(), second.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor), name


def test_weights_come_in_shards_of_the_size_asked_for(tmp_path):
    model = decoder("boosted")
    export_pretrained(HeedfulForCausalLM.from_decoder(model), tmp_path / "model", max_shard_size="40KB")
    shards = sorted(path.name for path in (tmp_path / "model").glob("*.safetensors"))
    assert len(shards) > 2
    assert (tmp_path / "model" / "model.safetensors.index.json").is_file()
    assert_same_weights(import_native(tmp_path / "model"), model)
    (tmp_path / "model" / shards[1]).unlink()
    with pytest.raises(ValueError, match="a file is missing or damaged"):
        import_native(tmp_path / "model")


def test_the_model_card_says_what_is_there_and_how_to_load_it(exported):
    folder, models = exported
    card = (folder / "llama" / "README.md").read_text()
    assert "| attention | `boosted+multi-token` |" in card
    assert f"| parameters | {sum(p.numel() for p in models['llama'].parameters()):,}, float32 |" in card
    assert 'AutoModelForCausalLM.from_pretrained("FOLDER", trust_remote_code=True)' in card
    assert "AutoTokenizer" in card
    mixed = (folder / "mixed_layers" / "README.md").read_text()
    assert "layer 0: `nonlinear-query`; layer 1: `boosted`; layer 2: `multi-token`" in mixed
    assert "AutoTokenizer" not in mixed


def test_a_place_that_is_taken_is_refused_and_what_is_there_stays(tmp_path):
    model, place = decoder(), tmp_path / "place"
    export_pretrained(model, place)
    before = contents(place)
    with pytest.raises(ValueError, match=r"exists; choose another folder, or replace it with --force"):
        export_pretrained(decoder("boosted"), place)
    assert contents(place) == before
    export_pretrained(decoder("boosted"), place, force=True)
    assert contents(place) != before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "note.txt").write_text("keep me")
    with pytest.raises(ValueError, match="is not the folder of a model, so it is not replaced"):
        export_pretrained(model, tmp_path / "notes", force=True)
    with pytest.raises(ValueError, match="is not a folder"):
        export_pretrained(model, tmp_path / "notes" / "note.txt", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "place"]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_nothing_is_left_of_an_export_that_fails(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("heedful.hf.export.model_card", fail)
    with pytest.raises(OSError, match="disk full"):
        export_pretrained(decoder(), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the tokenizer has 257 ids but the model only 100"):
        export_pretrained(decoder(vocab_size=100), tmp_path / "model", tokenizer=ByteTokenizer())
    with pytest.raises(ValueError, match="expected a DecoderLM or a HeedfulForCausalLM"):
        export_pretrained(torch.nn.Linear(2, 2), tmp_path / "model")
    with pytest.raises(ValueError, match="expected a tokenizer of heedful or of transformers, got str"):
        export_pretrained(decoder(), tmp_path / "model", tokenizer="bytes")
    assert list(tmp_path.iterdir()) == []


def test_a_transformers_tokenizer_goes_along_as_it_is(tmp_path):
    tokenizer = to_transformers(ByteTokenizer())
    export_pretrained(decoder(), tmp_path / "model", tokenizer=tokenizer)
    assert AutoTokenizer.from_pretrained(tmp_path / "model").get_vocab() == tokenizer.get_vocab()


def test_damaged_and_foreign_folders_are_named(exported, tmp_path):
    folder = tmp_path / "model"
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        import_native(folder)
    export_pretrained(decoder(), folder)
    config = json.loads((folder / "config.json").read_text())
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(ValueError, match="damaged"):
        import_native(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no \*\.safetensors"):
        import_native(folder)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2, "layer_types": None}))
    with pytest.raises(ValueError, match="weights do not fit"):
        import_native(folder)
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    with pytest.raises(ValueError, match="describes a model of type 'llama'; expected 'heedful'"):
        import_native(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="expected a JSON object, got list"):
        import_native(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        import_native(folder)


RECIPE = """
name = "tiny"
seeds = [0]
baseline = "standard"
learning_rates = [1e-3]
[data]
corpus = "CORPUS"
documents = "file"
tokenizer = "bytes"
valid_fraction = 0.2
test_fraction = 0.2
[model]
hidden_size = 16
num_layers = 1
num_heads = 2
[task]
kind = "language-modelling"
prompt_tokens = 8
sample_tokens = 8
[train]
steps = 2
batch_size = 2
context_length = 16
evaluate_every = 2
checkpoint_every = 2
device = "cpu"
[train.schedule]
warmup_steps = 1
[[arms]]
name = "standard"
"""


def test_a_run_is_exported_with_its_tokenizer(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HEEDFUL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "texts").mkdir()
    for number in range(12):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"text number {number} says hello to the world. " * 8)
    (tmp_path / "tiny.toml").write_text(RECIPE.replace("CORPUS", str(tmp_path / "texts")))
    run = tmp_path / "run"
    assert main(["train", str(tmp_path / "tiny.toml"), "--arm", "standard", "--folder", str(run)]) == 0
    capsys.readouterr()
    Export(run, tmp_path / "model", hf=True).run({})
    assert capsys.readouterr().out.endswith("from_pretrained, with its tokenizer\n")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    prompt = AutoTokenizer.from_pretrained(tmp_path / "model")("hello", return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=3, do_sample=False).shape[1] <= 8
    inside = tmp_path / "comparison" / "runs" / "standard" / "lr-0.001" / "seed-0"  # as heedful compare lays it out
    inside.parent.mkdir(parents=True)
    run.rename(inside)
    for name in ("recipe.json", "tokenizer"):
        (inside / name).rename(tmp_path / "comparison" / name)
    Export(inside, tmp_path / "model", hf=True, force=True).run({})
    assert capsys.readouterr().out.endswith("from_pretrained, with its tokenizer\n")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "needs one of --hf and --native to say what to write; neither was given"),
        ({"hf": True, "native": True}, "both were given"),
        ({"hf": True, "source": "nowhere"}, "there is no folder 'nowhere'"),
        ({"hf": True}, "already is a folder for transformers, with a model of type 'heedful'"),
        ({"native": True, "destination": "model"}, "overlap; choose a destination of its own"),
        ({"native": True, "destination": "."}, "overlap; choose a destination of its own"),
        ({"native": True, "destination": "other"}, "exists; choose another folder"),
        ({"hf": True, "source": "other"}, r"holds no recipe\.json"),
        ({"native": True, "source": "other"}, r"holds no config\.json"),
    ],
)
def test_wrong_commands_say_what_to_do(exported, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(exported[0] / "llama")
    Path("other").mkdir()
    Path("other", "note.txt").write_text("keep me")
    if options.get("destination") in ("model", "."):
        Path("model").unlink()
        export_pretrained(decoder(), "model")
    given = {"source": "model", "destination": "new", **options}
    given = {name: Path(value) if isinstance(value, str) else value for name, value in given.items()}
    with pytest.raises(ValueError, match=words):
        Export(**given).run({})
    assert not Path("new").exists()


def test_the_classifier_of_a_folder_starts_from_its_decoder(exported):
    folder, _ = exported
    torch.manual_seed(0)
    model = HeedfulForSequenceClassification.from_pretrained(folder / "llama", num_labels=3, pad_token_id=0)
    causal = HeedfulForCausalLM.from_pretrained(folder / "llama")
    for name, tensor in causal.model.state_dict().items():
        assert torch.equal(model.model.state_dict()[name], tensor)
