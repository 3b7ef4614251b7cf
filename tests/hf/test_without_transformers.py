"""Where transformers is not installed, the commands that need it say how to get it, and the others work."""

import subprocess
import sys

import pytest

from heedful import DecoderLM, decoder_config

WITHOUT = "import sys; sys.modules['transformers'] = None; from heedful.cli import main; sys.exit(main(sys.argv[1:]))"


def command(*arguments):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def native(tmp_path):
    sizes = {"vocab_size": 20, "num_layers": 2, "max_positions": 16, "hidden_size": 8, "num_heads": 2}
    skipless = {"norm": "none", "attention_skip": False, "feed_forward_skip": False}
    DecoderLM(decoder_config("standard", **sizes, **skipless)).save(tmp_path / "native")
    return tmp_path / "native"


@pytest.mark.parametrize(
    "arguments", [("export", "{}", "out", "--hf"), ("convert", "upcycle", "{}", "out", "--add", "boosted")]
)
def test_a_command_that_needs_transformers_says_so(native, tmp_path, arguments):
    out = tmp_path / "out"
    filled = [str(native) if a == "{}" else str(out) if a == "out" else a for a in arguments]
    code, _, errors = command(*filled)
    assert (code, errors) == (
        2,
        "heedful: this needs transformers, which is not installed: pip install 'heedful[hf]'.\n",
    )
    assert not out.exists()


def test_queries_of_native_models_need_nothing_else(native, tmp_path):
    code, printed, errors = command("convert", "queries", native, tmp_path / "converted")
    assert (code, errors) == (0, "")
    assert "W_Q removed in layers: 0, 1" in printed
