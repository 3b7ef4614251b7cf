"""`heedful convert queries` as a user meets it, and that nothing half-written stays behind."""

import json
import shutil
import types
from pathlib import Path

import pytest
import torch
import tyro
from query_nets import NO_SKIPS, error, net

from heedful.cli import convert_queries as command_module
from heedful.cli.convert_queries import REPORT_FILE, ConvertQueries
from heedful.data import open_tokenizer
from heedful.data.tokenizers import ByteTokenizer
from heedful.models import load_decoder
from heedful.nn import Rotary


def saved(folder, tokenizer=False, **fields):
    model = net(**fields)
    model.save(folder)
    if tokenizer:
        ByteTokenizer().save(folder)
    return model


def parsed(*arguments):
    return tyro.cli(ConvertQueries, args=[str(a) for a in arguments], config=(tyro.conf.OmitArgPrefixes,))


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_audit_prints_reasons_and_writes_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    saved(tmp_path / "model", norm="rms", rotary=Rotary())
    parsed(tmp_path / "model", "--json", tmp_path / "audit.json").run({})
    out = capsys.readouterr().out
    assert "pre-norm, as in GPT-2 and Llama" in out
    assert "0-3" in out, "layers with one reason are one row"
    assert "value-output-gauge" in out
    found = json.loads((tmp_path / "audit.json").read_text())
    assert found["net_saved"] == 0
    assert len(found["layers"]) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit.json", "model"], "an audit converts nothing"


def test_conversion_writes_a_native_model_with_report_and_tokenizer(tmp_path, capsys):
    model = saved(tmp_path / "model", tokenizer=True, vocab_size=257, **NO_SKIPS, rotary=Rotary())
    text = tmp_path / "text.txt"
    text.write_text("What is read is what is converted. " * 3, encoding="utf-8")
    arguments = ["--tokens-from", text, "--json", tmp_path / "report.json"]
    parsed(tmp_path / "model", tmp_path / "out", *arguments).run({})
    converted = load_decoder(tmp_path / "out")
    assert error(converted.eval(), model) < 1e-11
    report = json.loads((tmp_path / "out" / REPORT_FILE).read_text())
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert report["removed"] == [0, 1, 2, 3]
    assert report["net_saved"] == 4 * 48 * 48
    assert report["verification"]["given_tokens"] < 1e-11
    assert open_tokenizer(tmp_path / "out").encode("a") == ByteTokenizer().encode("a")
    assert "written to" in capsys.readouterr().out


def test_types_reductions_and_layer(tmp_path):
    model = saved(tmp_path / "model", bias=True)
    command = parsed(
        tmp_path / "model", tmp_path / "out", "--dtype", "float32", "--layer", "1",
        "--reductions", "drop-key-bias", "fold-value-bias",
    )  # fmt: skip
    command.run({})
    converted = load_decoder(tmp_path / "out")
    assert next(converted.parameters()).dtype == torch.float32
    assert error(converted.double().eval(), model) < 1e-3
    assert json.loads((tmp_path / "out" / REPORT_FILE).read_text())["removed"] == [1]


def test_reductions_alone(tmp_path):
    saved(tmp_path / "model", norm="rms", rotary=Rotary())
    parsed(tmp_path / "model", tmp_path / "out", "--reductions", "rotation", "--no-eliminate").run({})
    report = json.loads((tmp_path / "out" / REPORT_FILE).read_text())
    assert [one["name"] for one in report["reductions"]] == ["fold-norms", "rotation"]


def test_overwriting_prints_that_it_is_not_lossless(tmp_path, capsys):
    saved(tmp_path / "model", tokenizer=True, vocab_size=257, norm="rms", rotary=Rotary())
    (tmp_path / "text.txt").write_text("some words and some more words, " * 4, encoding="utf-8")
    arguments = ["--approximate", "identity", "--tokens-from", tmp_path / "text.txt"]
    parsed(tmp_path / "model", tmp_path / "out", *arguments).run({})
    assert "NOT lossless" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / REPORT_FILE).read_text())
    assert report["lossless"] is False
    assert report["approximation"]["loss_before"] != report["approximation"]["loss_after"]


def test_a_refusal_writes_nothing(tmp_path):
    saved(tmp_path / "model", norm="rms")
    with pytest.raises(ValueError, match="pre-norm"):
        parsed(tmp_path / "model", tmp_path / "out").run({})
    saved(tmp_path / "other", **NO_SKIPS)
    with pytest.raises(ValueError, match="above the limit 2 for float64"):
        parsed(tmp_path / "other", tmp_path / "out", "--max-condition", "2").run({})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "other"]


def test_an_existing_destination_stays_as_it_is(tmp_path):
    saved(tmp_path / "model", **NO_SKIPS)
    saved(tmp_path / "out", seed=1)
    before = contents(tmp_path / "out")
    with pytest.raises(ValueError, match="exists; choose another folder, or replace it with --force"):
        parsed(tmp_path / "model", tmp_path / "out").run({})
    assert contents(tmp_path / "out") == before
    parsed(tmp_path / "model", tmp_path / "out", "--force").run({})
    assert load_decoder(tmp_path / "out").config.layers[0].query.kind == "identity"


def test_force_replaces_models_only_and_never_the_source(tmp_path):
    saved(tmp_path / "model", **NO_SKIPS)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "text.md").write_text("keep")
    with pytest.raises(ValueError, match="is not the folder of a model"):
        parsed(tmp_path / "model", tmp_path / "notes", "--force").run({})
    with pytest.raises(ValueError, match="overlap; choose a destination of its own"):
        parsed(tmp_path / "model", tmp_path / "model", "--force").run({})
    with pytest.raises(ValueError, match="is not a folder"):
        parsed(tmp_path / "model", tmp_path / "notes" / "text.md", "--force").run({})
    assert (tmp_path / "notes" / "text.md").read_text() == "keep"


def test_a_failure_while_writing_leaves_nothing_behind(tmp_path, monkeypatch):
    saved(tmp_path / "model", tokenizer=True, **NO_SKIPS)
    saved(tmp_path / "out", seed=1)
    before = contents(tmp_path / "out")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(shutil, "copyfile", fail)
    for destination in ("out", "new"):
        with pytest.raises(OSError, match="disk full"):
            parsed(tmp_path / "model", tmp_path / destination, "--force").run({})
    assert contents(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "there is no folder"),
        (lambda folder: folder.mkdir(), "holds no config.json"),
        (lambda folder: (folder.mkdir(), (folder / "config.json").write_text("{")), "not valid JSON"),
        (lambda folder: (folder.mkdir(), (folder / "config.json").write_text("{}")), "holds no model.safetensors"),
        (lambda folder: (folder / "checkpoints").mkdir(parents=True), "holds no recipe.json"),
    ],
)
def test_folders_that_hold_no_model(tmp_path, prepare, message):
    prepare(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        parsed(tmp_path / "model").run({})


def test_texts_that_cannot_be_used(tmp_path):
    saved(tmp_path / "plain", **NO_SKIPS)
    saved(tmp_path / "model", tokenizer=True, vocab_size=257, **NO_SKIPS)
    for name, data in (("short", b"a"), ("binary", b"\xff\xfe\xff")):
        (tmp_path / name).write_bytes(data)
    for source, text, message in (
        ("plain", "short", "holds no tokenizer"),
        ("model", "short", "gives 1 tokens; at least two"),
        ("model", "binary", "is not UTF-8"),
    ):
        with pytest.raises(ValueError, match=message):
            parsed(tmp_path / source, tmp_path / "out", "--tokens-from", tmp_path / text).run({})
    assert not (tmp_path / "out").exists()


def test_dotted_options_are_refused(tmp_path):
    with pytest.raises(ValueError, match="heedful convert queries reads no recipe"):
        parsed(tmp_path).run({"train.steps": 1})


def test_a_run_of_training_is_a_source(tmp_path, monkeypatch):
    """The loader of runs has its own tests; here only what is done with its answer."""
    model = net(**NO_SKIPS)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    ByteTokenizer().save(tmp_path / "run" / "tokenizer")
    run = types.SimpleNamespace(model=model, home=tmp_path / "run")
    monkeypatch.setattr("heedful.cli.run_folder.open_run", lambda folder, overrides: run)
    parsed(tmp_path / "run", tmp_path / "out").run({})
    assert (tmp_path / "out" / "heedful_tokenizer.json").is_file()
    assert error(load_decoder(tmp_path / "out"), model) < 1e-11


@pytest.fixture
def importing(monkeypatch):
    """Return a function that sets what the importer of Hugging Face weights returns, which has its own tests."""
    return lambda model: monkeypatch.setattr("heedful.hf.importing.import_decoder", lambda folder: model)


def test_a_damaged_checkpoint_is_refused_and_not_audited_by_its_name(tmp_path):
    folder = hugging_face(tmp_path / "hub", model_type="llama", hidden_size=16)
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="damaged"):
        parsed(folder).run({})


def test_a_report_overwrites_nothing(tmp_path):
    net(**NO_SKIPS).save(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    before = weights.read_bytes()
    with pytest.raises(ValueError, match="lies inside"):
        parsed(tmp_path / "model", tmp_path / "out", "--json", weights).run({})
    (tmp_path / "notes.json").write_text("mine")
    with pytest.raises(ValueError, match="exists; choose another name"):
        parsed(tmp_path / "model", tmp_path / "out", "--json", tmp_path / "notes.json").run({})
    with pytest.raises(ValueError, match="is a folder; give the name of a file"):
        parsed(tmp_path / "model", tmp_path / "out", "--json", tmp_path).run({})
    assert weights.read_bytes() == before
    assert (tmp_path / "notes.json").read_text() == "mine"
    assert not (tmp_path / "out").exists()


def hugging_face(folder, **config):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_a_hugging_face_model_is_imported(tmp_path, importing):
    model = net(**NO_SKIPS)
    importing(model)
    parsed(hugging_face(tmp_path / "hub", model_type="llama"), tmp_path / "out").run({})
    assert error(load_decoder(tmp_path / "out"), model) < 1e-11
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"


def test_an_unsupported_hugging_face_model_still_gets_its_reasons(tmp_path, capsys):
    folder = hugging_face(tmp_path / "hub", model_type="gemma2", tie_word_embeddings=True)
    parsed(folder, "--json", tmp_path / "audit.json").run({})
    out = capsys.readouterr().out
    assert "sandwich norm" in out
    assert "models of type 'gemma2' cannot be read" in out
    written = json.loads((tmp_path / "audit.json").read_text())
    assert written["verdict"] == "approximate"
    assert "models of type 'gemma2' cannot be read" in written["not_read"]
    with pytest.raises(ValueError, match=r"cannot be converted: models of type .* not exact, refused: sandwich norm"):
        parsed(folder, tmp_path / "out").run({})
    assert not (tmp_path / "out").exists()


def test_the_number_of_scored_tokens_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(command_module, "SCORED_TOKENS", 32)
    saved(tmp_path / "model", tokenizer=True, vocab_size=257, norm="rms", rotary=Rotary())
    (tmp_path / "text.txt").write_text("x" * 5000)
    arguments = ["--approximate", "identity", "--tokens-from", tmp_path / "text.txt"]
    parsed(tmp_path / "model", tmp_path / "out", *arguments).run({})
    assert json.loads((tmp_path / "out" / REPORT_FILE).read_text())["approximation"]["tokens"] == 32
