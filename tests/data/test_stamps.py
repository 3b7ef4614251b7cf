from __future__ import annotations

import os
from pathlib import Path

import pytest

from heedful.data import DataConfig, open_dataset, prepare
from heedful.data.stamps import FileHashes
from heedful.files import file_sha256


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of any size are worth remembering, and settled at once."""
    monkeypatch.setattr("heedful.data.stamps.WORTH_REMEMBERING", 0)
    monkeypatch.setattr("heedful.data.stamps.SETTLED_NANOSECONDS", -1)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read whole."""
    found: list[Path] = []

    def counted(path: Path) -> str:
        found.append(path)
        return file_sha256(path)

    monkeypatch.setattr("heedful.data.stamps.file_sha256", counted)
    return found


def look(memory: Path, file: Path, **options: bool) -> str:
    hashes = FileHashes(memory, [file], **options)
    found = hashes.sha256(file)
    hashes.save()
    return found


def edit(file: Path) -> None:
    file.write_bytes(file.read_bytes()[::-1])


def edit_and_hide(file: Path) -> None:
    """Change the content and put size and modification time back."""
    before = file.stat()
    edit(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(file: Path) -> None:
    """Put another file of the same size and time in its place."""
    before = file.stat()
    other = file.with_suffix(".other")
    other.write_bytes(file.read_bytes()[::-1])
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("change", [edit, edit_and_hide, replace, truncate])
def test_a_file_is_read_again_exactly_when_it_may_have_changed(tmp_path: Path, reads: list[Path], change) -> None:
    memory, file = tmp_path / "memory" / "known.json", tmp_path / "file"
    file.write_bytes(bytes(range(200)))
    first = look(memory, file)
    assert look(memory, file) == first == file_sha256(file)
    assert reads == [file]
    change(file)
    assert look(memory, file) == file_sha256(file) != first
    assert reads == [file, file]


@pytest.mark.usefixtures("always")
def test_verifying_reads_whatever_the_stamps_say(tmp_path: Path, reads: list[Path]) -> None:
    memory, file = tmp_path / "memory" / "known.json", tmp_path / "file"
    file.write_bytes(b"text")
    look(memory, file)
    look(memory, file, verify=True)
    assert reads == [file, file]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("content", ["", "[]", '{"x": 3}', "\0"])
def test_a_damaged_memory_is_no_memory(tmp_path: Path, reads: list[Path], content: str) -> None:
    memory, file = tmp_path / "memory" / "known.json", tmp_path / "file"
    file.write_bytes(b"text")
    look(memory, file)
    memory.write_text(content)
    assert look(memory, file) == file_sha256(file)
    assert reads == [file, file]


def test_a_file_that_was_just_written_is_not_remembered(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heedful.data.stamps.WORTH_REMEMBERING", 0)
    monkeypatch.setattr("heedful.data.stamps.SETTLED_NANOSECONDS", 10**15)
    memory, file = tmp_path / "memory" / "known.json", tmp_path / "file"
    file.write_bytes(b"text")
    look(memory, file)
    look(memory, file)
    assert reads == [file, file]


def test_small_files_are_always_read(tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heedful.data.stamps.SETTLED_NANOSECONDS", -1)
    memory, file = tmp_path / "memory" / "known.json", tmp_path / "file"
    file.write_bytes(b"text")
    look(memory, file)
    look(memory, file)
    assert reads == [file, file]
    assert not memory.exists()


@pytest.mark.usefixtures("always")
def test_shards_and_corpora_are_read_whole_once_and_changes_are_still_noticed(
    tmp_path: Path, reads: list[Path]
) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("".join(f"Paragraph {i}.\n\n" for i in range(100)))
    config = DataConfig(corpus=str(corpus), cache_folder=str(tmp_path / "cache"), tokenizer="bytes")
    folder = prepare(config).folder
    assert len(reads) == 7, "the corpus, and tokens and starts of three splits"
    assert prepare(config).folder == folder
    assert len(reads) == 7
    open_dataset(folder, verify=True)
    assert len(reads) == 13
    edit_and_hide(folder / "train.tokens")
    with pytest.raises(ValueError, match=r"train\.tokens is not what was written"):
        prepare(config)
    edit_and_hide(folder / "train.tokens")
    prepare(config)
    edit_and_hide(corpus)
    assert prepare(config).folder != folder
