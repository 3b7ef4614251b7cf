from __future__ import annotations

import gzip
import lzma
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from heedful.data.corpora import open_corpus

PARAGRAPHS = "one\nstill one\n\ntwo\n\nthree\n"
WIKITEXT = "\n = A = \n\ntext\n\n = B = \n\ntext\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8"))
    return path


def test_the_standard_library_is_a_corpus_of_its_modules_without_tests() -> None:
    corpus = open_corpus("python-stdlib")
    names = {path.relative_to(corpus.root).as_posix() for path in corpus.files}  # type: ignore[attr-defined]
    assert {"argparse.py", "json/decoder.py", "asyncio/events.py"} <= names
    assert not [name for name in names if "/test" in name or name.startswith(("test/", "idlelib", "site-packages"))]
    documents = list(corpus.documents())
    assert len(documents) > 200
    assert any("class ArgumentParser" in document for document in documents)


@pytest.mark.parametrize(("name", "opener"), [("a.txt", open), ("a.txt.xz", lzma.open), ("a.md.gz", gzip.open)])
def test_a_file_is_read_compressed_or_not_with_its_line_ends_untouched(tmp_path: Path, name: str, opener: Any) -> None:
    with opener(tmp_path / name, "wb") as file:
        file.write(b"one\r\nstill one\n\ntwo \xc3\xa9\n")
    corpus = open_corpus(str(tmp_path / name))
    assert list(corpus.documents()) == ["one\r\nstill one\n\n", "two é\n"]
    assert list(corpus.documents()) == list(corpus.documents())


@pytest.mark.parametrize(
    ("files", "rule"),
    [
        ({"a.txt": PARAGRAPHS}, "paragraph"),
        ({"a.txt": WIKITEXT}, "wikitext"),
        ({"folder/a.txt": PARAGRAPHS, "folder/b.py": "x = 1\n"}, "file"),
        ({"folder/a.txt": WIKITEXT, "folder/b.txt": WIKITEXT}, "wikitext"),
    ],
)
def test_auto_documents_follow_the_stated_rule(tmp_path: Path, files: dict[str, str], rule: str) -> None:
    for name, text in files.items():
        write(tmp_path / name, text)
    first = next(iter(files))
    assert open_corpus(str(tmp_path / Path(first).parts[0])).rule == rule
    assert open_corpus(str(tmp_path / Path(first).parts[0]), "line").rule == "line"


def test_a_folder_is_read_in_the_order_of_its_paths_and_says_what_it_left_out(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.py", "a.txt", ".hidden/x.txt", "picture.png", "a/.hidden.txt"):
        write(tmp_path / name, name)
    (tmp_path / "broken.txt").symlink_to(tmp_path / "nowhere")
    corpus = open_corpus(str(tmp_path))
    assert list(corpus.documents()) == ["a/z.py", "a.txt", "b.txt"]
    assert "3 text files" in corpus.description
    assert "1 others left out" in corpus.description


def test_the_fingerprint_changes_with_content_and_rule_but_not_with_place_or_time(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write(tmp_path / folder / "a.txt", PARAGRAPHS)
    before = open_corpus(str(tmp_path / "one")).fingerprint()
    assert open_corpus(str(tmp_path / "two")).fingerprint() == before
    assert open_corpus(str(tmp_path / "one"), "line").fingerprint() != before
    write(tmp_path / "two" / "a.txt", PARAGRAPHS.replace("two", "tow"))
    assert open_corpus(str(tmp_path / "two")).fingerprint() != before


def test_a_misspelt_name_is_answered_with_the_near_one() -> None:
    with pytest.raises(ValueError, match="Did you mean 'python-stdlib'"):
        open_corpus("python-stdlb")


@pytest.mark.parametrize("name", ["missing.txt", "missing/folder"])
def test_a_missing_file_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="is not a file or folder here"):
        open_corpus(name)


def test_an_unknown_extension_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no extension of a text file"):
        open_corpus(str(write(tmp_path / "weights.bin", "text")))


def test_a_folder_without_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no files at all"):
        open_corpus(str(tmp_path))
    write(tmp_path / "picture.png", "x")
    with pytest.raises(ValueError, match=r"holds no text file .*only \.png"):
        open_corpus(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"text\xff\xfe", "is not UTF-8 text"),
        ("a.txt", b"text\0text", "is a binary file"),
        ("a.txt.xz", b"not xz", "is damaged or not really xz"),
        ("a.txt.gz", b"not gz", "is damaged or not really gz"),
        ("a.txt.xz", lzma.compress(b"text\n" * 1000)[:-20], "is damaged or not really xz"),
        ("a.txt.gz", gzip.compress(b"text\n" * 1000, mtime=0)[:-20], "is damaged or not really gz"),
    ],
)
def test_what_is_not_text_is_an_error_that_names_the_file(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        list(open_corpus(str(path), "line").documents())
    assert str(path) in str(caught.value)


class FakeDataset:
    """The part of a `datasets.Dataset` that is used."""

    column_names = ("text", "label")
    _fingerprint = "abc"

    def __init__(self, rows: list[str]) -> None:
        self.rows, self.num_rows = rows, len(rows)

    def iter(self, batch_size: int) -> Any:
        for start in range(0, len(self.rows), batch_size):
            yield {"text": self.rows[start : start + batch_size]}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """A stand-in for the datasets library, which need not be installed; the calls it got."""
    calls: list[tuple] = []

    def load_dataset(*names: str, split: str) -> FakeDataset:
        calls.append((*names, split))
        if names[0] == "unknown":
            raise FileNotFoundError("no such data set")
        return FakeDataset(["", " = A = \n", "", "text\n", "", " = B = ", "\n", "text"])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))  # type: ignore[arg-type]
    return calls


def test_hub_names_are_owner_name_configuration_and_split(asked: list[tuple]) -> None:
    for name in ("hf:wiki", "hf:owner/wiki#test", "hf:owner/wiki/raw"):
        open_corpus(name)
    assert asked == [("wiki", "train"), ("owner/wiki", "test"), ("owner/wiki", "raw", "train")]


def test_hub_rows_are_documents_or_the_lines_of_one_text(asked: list[tuple]) -> None:
    assert list(open_corpus("hf:wiki").documents()) == [" = A = \n", "text\n", " = B = ", "text"]
    assert list(open_corpus("hf:wiki", "wikitext").documents()) == ["\n = A = \n\ntext\n\n", " = B = \n\ntext\n"]
    assert open_corpus("hf:wiki").fingerprint() != open_corpus("hf:wiki", "line").fingerprint()


def test_hub_errors_are_one_sentence(asked: list[tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="could not be loaded by datasets: no such data set"):
        open_corpus("hf:unknown")
    with pytest.raises(ValueError, match="expected hf:NAME"):
        open_corpus("hf:a/b/c/d")
    monkeypatch.setattr(FakeDataset, "column_names", ("story",))
    with pytest.raises(ValueError, match="has no column 'text', only story"):
        open_corpus("hf:wiki")
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if it were not installed
    with pytest.raises(ValueError, match="needs the datasets library: pip install"):
        open_corpus("hf:wiki")
