from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from heedful.data.tokenizers import (
    END_OF_TEXT,
    BpeTokenizer,
    ByteTokenizer,
    Tokenizer,
    load_gpt2,
    open_tokenizer,
    pieces,
    train_bpe,
    train_whitespace_bpe,
)

# The second part teaches BPE to join what Python, but not the tokenizers, takes for white space.
TEXT = inspect.getsource(inspect) + " .\x1c.\x1cx" * 500
HOSTILE = [END_OF_TEXT, f"a{END_OF_TEXT}b", "<pad><unk>", "é\u2003\x1c\r\n \n\t ¹²", "🦉\u200d🦉", "'s 're  x", ""]


@pytest.fixture(scope="module")
def bpe() -> BpeTokenizer:
    return train_bpe([TEXT], 600)


@pytest.fixture(scope="module")
def whitespace() -> BpeTokenizer:
    return train_whitespace_bpe([TEXT], 600)


@pytest.fixture(scope="module")
def gpt2_folder(bpe: BpeTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tokenizer in the two files that GPT-2's is published in."""
    folder = tmp_path_factory.mktemp("gpt2")
    bpe.save(folder)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "encoder.json").write_text(json.dumps({**model["vocab"], END_OF_TEXT: len(model["vocab"])}))
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    (folder / "vocab.bpe").write_text(f"#version: 0.2\n{merges}")
    return folder


@pytest.mark.parametrize("text", [TEXT, *HOSTILE])
def test_lossless_tokenizers_give_every_text_back(bpe: BpeTokenizer, text: str) -> None:
    for tokenizer in (ByteTokenizer(), bpe):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.end_of_text not in ids
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
        assert tokenizer.lossless


@given(st.text())
def test_lossless_tokenizers_give_any_text_back(bpe: BpeTokenizer, text: str) -> None:
    for tokenizer in (ByteTokenizer(), bpe):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.encode_many([text, "", text]) == [tokenizer.encode(text), [], tokenizer.encode(text)]


def test_end_of_text_is_the_last_entry_and_readable(bpe: BpeTokenizer, gpt2_folder: Path) -> None:
    for tokenizer in (ByteTokenizer(), bpe, load_gpt2(gpt2_folder)):
        assert tokenizer.end_of_text == tokenizer.vocab_size - 1
        assert tokenizer.decode([*tokenizer.encode("a"), tokenizer.end_of_text]) == f"a{END_OF_TEXT}"
    assert bpe.vocab_size == 600


def test_broken_utf8_decodes_to_the_replacement_character(bpe: BpeTokenizer) -> None:
    for tokenizer in (ByteTokenizer(), bpe):
        assert tokenizer.decode(tokenizer.encode("🦉")[:1]) == "\ufffd"


def test_the_whitespace_bpe_drops_white_space_and_unknown_characters(whitespace: BpeTokenizer) -> None:
    assert not whitespace.lossless
    assert whitespace.encode("def   parse ( x )\n\n\tpass") == whitespace.encode("def parse(x) pass")
    assert whitespace.encode("🦉") == []
    assert whitespace.encode("<unk>") == [1], "the paper's tokenizer declares it, and text that spells it means it"
    assert whitespace.vocab_size == 600
    assert whitespace.decode([whitespace.end_of_text]) == END_OF_TEXT


def test_training_is_deterministic_and_depends_on_the_text(bpe: BpeTokenizer) -> None:
    assert train_bpe([TEXT], 600).sha256 == bpe.sha256
    assert train_bpe([TEXT[: len(TEXT) // 2]], 600).sha256 != bpe.sha256


def test_gpt2_files_make_the_tokenizer_that_wrote_them(bpe: BpeTokenizer, gpt2_folder: Path) -> None:
    gpt2 = load_gpt2(gpt2_folder)
    assert gpt2.vocab_size == bpe.vocab_size
    for text in (TEXT, *HOSTILE):
        assert gpt2.encode(text) == bpe.encode(text)


def test_unusable_gpt2_files_are_errors(gpt2_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no file encoder\.json"):
        load_gpt2(tmp_path)
    (tmp_path / "encoder.json").write_text("{")
    (tmp_path / "vocab.bpe").write_bytes((gpt2_folder / "vocab.bpe").read_bytes())
    with pytest.raises(ValueError, match="are not the two files of GPT-2"):
        load_gpt2(tmp_path)
    vocabulary = json.loads((gpt2_folder / "encoder.json").read_text())
    del vocabulary[END_OF_TEXT]
    (tmp_path / "encoder.json").write_text(json.dumps(vocabulary))
    with pytest.raises(ValueError, match="has no entry"):
        load_gpt2(tmp_path)


def test_vocabularies_that_the_text_cannot_fill_or_that_cannot_hold_it_are_errors() -> None:
    with pytest.raises(ValueError, match=r"vocab_size=5000 is too large .* yields only \d+ entries"):
        train_bpe(["a short text"], 5000)
    with pytest.raises(ValueError, match=r"vocab_size=10 is too small: the characters .* take \d+ entries"):
        train_whitespace_bpe([TEXT], 10)


@given(
    st.lists(st.sampled_from(["def", "x.", "\x1c\x1c", "    ", " ", "\n\n", "\t", "'s", "é🦉", "\u2003"])).map("".join)
)
@pytest.mark.parametrize("size", [1, 7])
def test_pieces_cut_where_the_ids_do_not_change(
    bpe: BpeTokenizer, whitespace: BpeTokenizer, size: int, text: str
) -> None:
    cut = list(pieces(text, size))
    assert "".join(cut) == text
    for tokenizer in (ByteTokenizer(), bpe, whitespace):
        whole = tokenizer.encode_many([text])[0]
        assert [i for ids in tokenizer.encode_many(cut) for i in ids] == whole


def test_long_texts_really_are_cut() -> None:
    assert max(len(piece) for piece in pieces(TEXT, 1000)) < 1100
    assert list(pieces("x" * 5000, 1000)) == ["x" * 5000]


def test_prefix_bytes_count_the_text_of_the_first_tokens(bpe: BpeTokenizer, whitespace: BpeTokenizer) -> None:
    text = TEXT[:2000] + " é " + TEXT[2000:3000]
    for tokenizer in (ByteTokenizer(), bpe):
        ids = tokenizer.encode(text)
        for count in (0, 1, 17, len(ids)):
            assert tokenizer.prefix_bytes(text, count) == len(tokenizer.decode(ids[:count]).encode())
    assert whitespace.prefix_bytes("x  x  x", 2) == 4


@pytest.mark.parametrize("name", ["bytes", "bpe", "whitespace", "gpt2"])
def test_a_saved_tokenizer_opens_as_the_same(
    name: str, bpe: BpeTokenizer, whitespace: BpeTokenizer, gpt2_folder: Path, tmp_path: Path
) -> None:
    tokenizer: Tokenizer = {
        "bytes": ByteTokenizer(),
        "bpe": bpe,
        "whitespace": whitespace,
        "gpt2": load_gpt2(gpt2_folder),
    }[name]
    tokenizer.save(tmp_path)
    opened = open_tokenizer(tmp_path)
    for fact in ("kind", "vocab_size", "end_of_text", "lossless", "sha256"):
        assert getattr(opened, fact) == getattr(tokenizer, fact)
    for text in (TEXT[:5000], *HOSTILE):
        assert opened.encode(text) == tokenizer.encode(text)


def test_the_saved_file_is_one_that_the_tokenizers_library_opens(bpe: BpeTokenizer, tmp_path: Path) -> None:
    bpe.save(tmp_path)
    assert tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("def f").ids == bpe.encode("def f")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", None, "holds no saved tokenizer: tokenizer.json is missing"),
        ("heedful_tokenizer.json", None, "holds no saved tokenizer: heedful_tokenizer.json is missing"),
        ("heedful_tokenizer.json", "{", "is damaged"),
        ("heedful_tokenizer.json", '{"kind": "bpe"}', "is damaged"),
        ("heedful_tokenizer.json", '{"kind": "pbe", "sha256": ""}', "unknown tokenizer kind 'pbe'. Did you mean 'bpe'"),
        ("tokenizer.json", "{}", "is not the tokenizer that was saved"),
    ],
)
def test_a_damaged_tokenizer_is_an_error(
    bpe: BpeTokenizer, tmp_path: Path, file: str, content: str | None, message: str
) -> None:
    bpe.save(tmp_path)
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        open_tokenizer(tmp_path)
