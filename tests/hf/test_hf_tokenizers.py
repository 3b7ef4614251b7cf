"""Tokenizers in transformers' form: the ids and texts of heedful's own, also after saving and loading."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from heedful.data.tokenizers import ByteTokenizer, train_bpe, train_whitespace_bpe
from heedful.hf.tokenizers import to_transformers

TEXTS = ["The quick brown fox jumps over the lazy dog. ", "the then there, they are the ones! "] * 30
OURS = {
    "bytes": ByteTokenizer(),
    "bpe": train_bpe(TEXTS, 290),
    "bpe-whitespace": train_whitespace_bpe(TEXTS, 60),
}
AWKWARD = ["", "<|endoftext|>", "a<|endoftext|> the", "<pad> <unk> the", "é漢😀\x00\ufffd", "  the\r\n\n\tthe  ", "'ll"]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """Each kind as it is made, and as it is read from a folder."""
    found = {}
    for kind, tokenizer in OURS.items():
        made = to_transformers(tokenizer)
        folder = tmp_path_factory.mktemp(kind)
        made.save_pretrained(folder)
        found[kind] = (made, AutoTokenizer.from_pretrained(folder))
    return found


def assert_same(ours, theirs, text):
    ids = ours.encode(text)
    for tokenizer in theirs:
        assert tokenizer.encode(text) == tokenizer(text)["input_ids"] == ids
        assert tokenizer.decode(ids) == ours.decode(ids)


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_texts_have_the_same_ids(theirs, kind, text):
    assert_same(OURS[kind], theirs[kind], text)


@pytest.mark.parametrize("kind", OURS)
@settings(max_examples=60)
@given(text=st.text(max_size=40) | st.lists(st.sampled_from([*AWKWARD, "the ", "ox", " "]), max_size=8).map("".join))
def test_any_text_has_the_same_ids(theirs, kind, text):
    assert_same(OURS[kind], theirs[kind], text)


@pytest.mark.parametrize("kind", OURS)
@settings(max_examples=60)
@given(data=st.data())
def test_any_ids_have_the_same_text(theirs, kind, data):
    ids = data.draw(st.lists(st.integers(0, OURS[kind].vocab_size - 1), max_size=12))
    for tokenizer in theirs[kind]:
        assert tokenizer.decode(ids) == OURS[kind].decode(ids)


@pytest.mark.parametrize("kind", OURS)
def test_sizes_and_special_tokens(theirs, kind):
    for tokenizer in theirs[kind]:
        assert len(tokenizer) == OURS[kind].vocab_size
        assert tokenizer.eos_token_id == tokenizer.pad_token_id == OURS[kind].end_of_text
        assert tokenizer.padding_side == "left"
        batch = tokenizer(["the", "the the the"], padding=True)
        assert sorted(batch) == ["attention_mask", "input_ids"]
        assert batch["attention_mask"][0][0] == 0
        assert batch["input_ids"][0][0] == OURS[kind].end_of_text
        assert tokenizer.decode([OURS[kind].end_of_text], skip_special_tokens=True) == ""


def test_bytes_are_numbered_by_their_values():
    vocabulary = to_transformers(ByteTokenizer()).get_vocab()
    assert sorted(vocabulary.values()) == list(range(257))
    assert vocabulary["A"] == ord("A")
    assert vocabulary["<|endoftext|>"] == 256


def test_other_tokenizers_are_refused():
    with pytest.raises(ValueError, match=r"only the tokenizers of heedful\.data can be exported, got str"):
        to_transformers("bytes")
