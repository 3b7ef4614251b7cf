from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heedful.data import DataConfig, TokenDataset, TokenSplit, open_dataset, prepare
from heedful.data.parts import token_dtype
from heedful.data.split_writer import SplitWriter
from heedful.data.tokenizers import ByteTokenizer, train_bpe, train_whitespace_bpe

PARAGRAPHS = [f"Paragraph {i} says that {i} times {i} is {i * i}.\n\n" for i in range(200)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("".join(PARAGRAPHS), encoding="utf-8")
    return path


def config_for(corpus: Path, **fields: object) -> DataConfig:
    usual = {"corpus": str(corpus), "cache_folder": str(corpus.parent / "cache"), "tokenizer": "bytes"}
    return DataConfig(**{**usual, **fields})  # type: ignore[arg-type]


def documents_of(dataset: TokenDataset, split: TokenSplit) -> list[str]:
    ends = [*split.document_starts[1:], split.num_tokens]
    return [
        dataset.tokenizer.decode(split.tokens[a:b].tolist()) for a, b in zip(split.document_starts, ends, strict=True)
    ]


def splits_of(dataset: TokenDataset) -> list[TokenSplit]:
    return [dataset.train, dataset.valid, dataset.test]


def left_in(folder: Path) -> list[str]:
    """What lies in the folder of shards, lock files aside."""
    return sorted(path.name for path in (folder / "shards").iterdir() if not path.name.endswith(".lock"))


@settings(max_examples=25)
@given(st.lists(st.text("ab é\t", min_size=1, max_size=12).filter(str.strip), min_size=3, max_size=25, unique=True))
def test_every_document_is_in_one_split_and_nothing_is_lost(texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.txt"
        corpus.write_bytes("".join(f"{text}\n" for text in texts).encode())
        dataset = prepare(config_for(corpus, documents="line"))
        found = [documents_of(dataset, split) for split in splits_of(dataset)]
        assert all(found)
        assert Counter(itertools.chain(*found)) == Counter(f"{text}\n<|endoftext|>" for text in texts)
        for split, documents in zip(splits_of(dataset), found, strict=True):
            assert split.num_bytes == sum(len(text.removesuffix("<|endoftext|>").encode()) for text in documents)
            assert split.num_documents == len(documents)
            assert split.num_tokens == split.num_bytes + len(documents), "one token a byte, one separator a document"
            assert [texts.index(text.split("\n")[0]) for text in documents] == sorted(
                texts.index(text.split("\n")[0]) for text in documents
            ), "documents keep the order of the corpus"


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe", "bpe-whitespace"])
@pytest.mark.parametrize("separator", [True, False])
def test_each_tokenizer_gives_the_text_of_each_document(corpus: Path, tokenizer: str, separator: bool) -> None:
    dataset = prepare(config_for(corpus, tokenizer=tokenizer, vocab_size=300, separator=separator))
    assert dataset.manifest["lossless"] is (tokenizer != "bpe-whitespace")
    assert dataset.vocab_size == dataset.tokenizer.vocab_size == dataset.manifest["vocab_size"]
    end = dataset.tokenizer.end_of_text
    for split in splits_of(dataset):
        assert split.tokens.dtype == np.uint16
        assert int((split.tokens == end).sum()) == (split.num_documents if separator else 0)
        for text in documents_of(dataset, split):
            text = text.removesuffix("<|endoftext|>")
            if dataset.tokenizer.lossless:
                assert text in PARAGRAPHS
            else:
                assert text.replace(" ", "") in {"".join(paragraph.split()) for paragraph in PARAGRAPHS}


def test_the_tokenizer_is_trained_on_the_train_split_alone(corpus: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("zyzzyva zyzzyva zyzzyva\n\n" * 500, encoding="utf-8")
    named = {"valid_corpus": str(other), "test_corpus": str(other), "tokenizer": "bpe", "vocab_size": 400}
    dataset = prepare(config_for(corpus, **named))
    assert len(dataset.tokenizer.encode("Paragraph")) == 1
    assert len(dataset.tokenizer.encode("zyzzyva")) == 7
    assert dataset.train.num_documents == 200
    assert set(documents_of(dataset, dataset.valid)) == {"zyzzyva zyzzyva zyzzyva\n\n<|endoftext|>"}
    assert [record["name"] for record in dataset.manifest["corpora"]] == [str(corpus), str(other), str(other)]
    split = prepare(config_for(corpus, tokenizer="bpe", vocab_size=400, separator=False))
    assert split.tokenizer.sha256 == train_bpe(documents_of(split, split.train), 400).sha256


def test_the_papers_tokenizer_is_trained_on_the_first_lines_that_are_not_blank(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heedful.data.tokenizer_choice.WHITESPACE_SAMPLE_LINES", 30)
    dataset = prepare(config_for(corpus, tokenizer="bpe-whitespace", vocab_size=60))
    by_bytes = prepare(config_for(corpus, separator=False))
    lines = "".join(documents_of(by_bytes, by_bytes.train)).split()
    assert dataset.tokenizer.sha256 == train_whitespace_bpe(lines[: 30 * 9], 60).sha256, "a line has nine words here"


@pytest.mark.parametrize("limit", [1, 40, 777])
def test_a_limit_keeps_the_first_tokens_and_counts_their_bytes(corpus: Path, limit: int) -> None:
    whole = prepare(config_for(corpus, tokenizer="bpe", vocab_size=300))
    cut = prepare(config_for(corpus, tokenizer="bpe", vocab_size=300, max_train_tokens=limit, max_eval_tokens=5))
    assert cut.train.tokens.tolist() == whole.train.tokens[:limit].tolist()
    kept = cut.train.document_starts
    assert kept.tolist() == [start for start in whole.train.document_starts if start < limit]
    text = cut.tokenizer.decode(cut.train.tokens.tolist()).replace("<|endoftext|>", "")
    assert cut.train.num_bytes == len(text)
    assert cut.valid.num_tokens == cut.test.num_tokens == 5


def test_a_limit_beyond_the_split_changes_nothing(corpus: Path) -> None:
    whole, cut = prepare(config_for(corpus)), prepare(config_for(corpus, max_train_tokens=10**9))
    assert cut.train.tokens.tolist() == whole.train.tokens.tolist()


def test_the_second_time_the_shards_are_only_opened(corpus: Path) -> None:
    stages: list[str] = []
    first = prepare(config_for(corpus), stages.append)
    assert any("reading" in stage for stage in stages)
    again = prepare(config_for(corpus), lambda stage: pytest.fail(f"built again: {stage}"))
    assert again.manifest == first.manifest
    assert again.folder == first.folder
    assert open_dataset(first.folder).train.tokens.tolist() == first.train.tokens.tolist()


def test_shards_are_built_anew_when_what_they_were_made_of_changes(corpus: Path) -> None:
    fields = [{}, {"separator": False}, {"documents": "line"}, {"valid_fraction": 0.2}, {"max_eval_tokens": 7}]
    fields += [{"tokenizer": "bpe", "vocab_size": 300}, {"tokenizer": "bpe", "vocab_size": 301}]
    folders = [prepare(config_for(corpus, **change)).folder for change in fields]
    corpus.write_text("".join(PARAGRAPHS[1:]), encoding="utf-8")
    folders.append(prepare(config_for(corpus)).folder)
    assert len(set(folders)) == len(folders)


def test_what_the_shards_do_not_depend_on_does_not_build_them_anew(corpus: Path) -> None:
    assert prepare(config_for(corpus, vocab_size=999)).folder == prepare(config_for(corpus)).folder
    assert prepare(config_for(corpus, valid_corpus=str(corpus), valid_fraction=0.3)).folder == (
        prepare(config_for(corpus, valid_corpus=str(corpus))).folder
    )


def test_the_corpus_hash_is_that_of_the_text_wherever_it_lies(corpus: Path) -> None:
    moved = corpus.parent / "moved.md"
    moved.write_bytes(corpus.read_bytes())
    hashes = [prepare(config_for(path)).manifest["corpus_sha256"] for path in (corpus, moved)]
    assert hashes[0] == hashes[1]
    assert prepare(config_for(corpus)).folder != prepare(config_for(moved)).folder


def test_the_hash_of_a_split_covers_where_documents_start(corpus: Path) -> None:
    whole = {"valid_corpus": str(corpus), "test_corpus": str(corpus), "separator": False}
    paragraphs, file = (prepare(config_for(corpus, documents=rule, **whole)).train for rule in ("paragraph", "file"))
    assert paragraphs.tokens.tolist() == file.tokens.tolist()
    assert paragraphs.sha256 != file.sha256


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def change_format(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))


def forget_a_split(path: Path) -> None:
    manifest = json.loads(path.read_text())
    del manifest["splits"]["test"]
    path.write_text(json.dumps(manifest))


def forge_the_tokenizer_hash(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_sha256": "0"}))


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("train.tokens", flip_a_byte, "train.tokens is not what was written"),
        ("train.tokens", truncate, r"train.tokens has \d+ bytes instead of \d+"),
        ("valid.starts", flip_a_byte, "valid.starts is not what was written"),
        ("test.starts", truncate, r"test.starts has \d+ bytes instead of \d+"),
        ("test.tokens", Path.unlink, "test.tokens"),
        ("manifest.json", Path.unlink, "manifest.json"),
        ("manifest.json", truncate, "manifest.json is damaged"),
        ("manifest.json", change_format, "manifest.json has format 99, this version reads 1"),
        ("manifest.json", forget_a_split, "manifest.json describes the splits train, valid"),
        ("manifest.json", forge_the_tokenizer_hash, "its tokenizer is not the one in the manifest"),
        ("heedful_tokenizer.json", Path.unlink, "heedful_tokenizer.json is missing"),
    ],
)
def test_damaged_shards_are_noticed_and_the_error_says_how_to_rebuild(
    corpus: Path, file: str, damage, message: str
) -> None:
    folder = prepare(config_for(corpus)).folder
    damage(folder / file)
    with pytest.raises(ValueError, match=message) as caught:
        prepare(config_for(corpus))
    assert f"token shards {folder} cannot be used" in str(caught.value)
    assert "Delete that folder to have it built anew." in str(caught.value)


@pytest.mark.parametrize("stage", ["reading", "training", "train:", "test:"])
def test_an_interrupted_build_leaves_only_what_it_goes_on_from(corpus: Path, stage: str) -> None:
    def interrupt(message: str) -> None:
        if message.startswith(stage):
            raise KeyboardInterrupt

    config = config_for(corpus, tokenizer="bpe", vocab_size=300)
    with pytest.raises(KeyboardInterrupt):
        prepare(config, interrupt)
    (work,) = left_in(corpus.parent / "cache")
    assert work.startswith(".corpus.txt-bpe300-")
    assert work.endswith(".work")
    dataset = prepare(config)
    assert dataset.train.num_tokens > 0
    assert left_in(corpus.parent / "cache") == [dataset.folder.name]


KILLED_BUILD = """
import os, sys
from heedful.data import DataConfig, prepare
prepare(DataConfig(corpus=sys.argv[1], cache_folder=sys.argv[2], tokenizer="bytes"),
        lambda stage: os._exit(9) if stage.startswith("test:") else None)
"""


def test_a_killed_build_is_never_opened_and_its_remains_are_cleared(corpus: Path) -> None:
    cache = corpus.parent / "cache"
    killed = subprocess.run([sys.executable, "-c", KILLED_BUILD, str(corpus), str(cache)], env=dict(os.environ))
    assert killed.returncode == 9
    assert [name.startswith(".corpus.txt") for name in left_in(cache)] == [True, True], "the remains this is about"
    dataset = prepare(config_for(corpus))
    assert left_in(cache) == [dataset.folder.name]
    assert dataset.train.num_documents == 180


def test_of_two_builds_at_once_one_waits_and_opens_what_the_other_built(corpus: Path) -> None:
    second_waits = threading.Event()
    stages: list[str] = []
    datasets: list[TokenDataset] = []

    def slow(stage: str) -> None:
        if stage.startswith("reading"):
            second = threading.Thread(target=lambda: datasets.append(prepare(config_for(corpus), impatient)))
            second.start()
            threads.append(second)
            assert second_waits.wait(timeout=60)

    def impatient(stage: str) -> None:
        stages.append(stage)
        second_waits.set()

    threads: list[threading.Thread] = []
    first = prepare(config_for(corpus), slow)
    threads[0].join(timeout=60)
    assert [stage.split(":")[0] for stage in stages] == [f"another process is building {first.folder}"]
    assert datasets[0].manifest == first.manifest


def test_a_corpus_that_changes_during_the_build_is_an_error(corpus: Path) -> None:
    def change(stage: str) -> None:
        if stage.startswith("training"):
            corpus.write_text("".join(PARAGRAPHS[:-1]), encoding="utf-8")

    with pytest.raises(ValueError, match="changed while it was being read: run again"):
        prepare(config_for(corpus, tokenizer="bpe", vocab_size=300), change)


def test_a_cache_that_cannot_be_made_is_an_error_that_says_what_to_set(corpus: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be kept in .*: set cache_folder or \$HEEDFUL_CACHE"):
        prepare(config_for(corpus, cache_folder=str(corpus)))


def test_an_empty_corpus_is_an_error(corpus: Path) -> None:
    corpus.write_text(" \n\n", encoding="utf-8")
    with pytest.raises(ValueError, match="is empty: it has no document with text"):
        prepare(config_for(corpus))


def test_a_corpus_of_one_document_is_an_error(corpus: Path) -> None:
    with pytest.raises(ValueError, match="has 1 distinct document, too few to split"):
        prepare(config_for(corpus, documents="file"))


def test_a_split_without_any_known_character_is_an_error(corpus: Path, tmp_path: Path) -> None:
    unknown = tmp_path / "unknown.txt"
    unknown.write_text("🦉🦉\n", encoding="utf-8")
    with pytest.raises(ValueError, match="the valid split has no tokens"):
        prepare(config_for(corpus, tokenizer="bpe-whitespace", vocab_size=100, valid_corpus=str(unknown)))


def test_large_vocabularies_take_wider_tokens_and_none_overflows() -> None:
    assert [token_dtype(size).name for size in (257, 2**16, 2**16 + 1, 2**32)] == ["uint16"] * 2 + ["uint32"] * 2
    with pytest.raises(ValueError, match="does not fit the uint32"):
        token_dtype(2**32 + 1)


def test_an_id_beyond_the_vocabulary_is_an_error(tmp_path: Path) -> None:
    with SplitWriter(tmp_path, "train", ByteTokenizer(), separator=True, max_tokens=None) as writer:
        writer.add("x", [257], ends_document=True)
        with pytest.raises(ValueError, match="gave id 257, beyond its vocabulary of 257"):
            writer.finish()


def test_a_document_in_pieces_is_the_document_in_one(tmp_path: Path) -> None:
    records = []
    for name, parts in (("whole", ["abcdef"]), ("pieces", ["ab", "", "cdef"])):
        with SplitWriter(tmp_path, name, ByteTokenizer(), separator=True, max_tokens=None) as writer:
            for document in range(3):
                for last, part in enumerate(parts, start=1):
                    writer.add(part, list(part.encode()), ends_document=last == len(parts))
                assert not writer.full, document
            records.append(writer.finish())
    assert records[0] == records[1]
    assert records[0].documents == 3


def test_the_default_corpus_needs_nothing_but_python(tmp_path: Path) -> None:
    dataset = prepare(DataConfig(tokenizer="bytes", cache_folder=str(tmp_path)))
    assert dataset.train.num_bytes > 4_000_000
    assert dataset.valid.num_documents > 5
    assert dataset.test.num_documents > 5
    assert "def " in dataset.tokenizer.decode(dataset.test.tokens[:20_000].tolist())
