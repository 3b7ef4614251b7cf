"""Files are written whole or not at all."""

import hashlib
import json
import os
import stat

import pytest

from heedful.files import (
    atomic_folder,
    file_sha256,
    write_bytes_atomically,
    write_json_atomically,
    write_text_atomically,
)


class Interrupted(BaseException):
    """Stands for a signal: no `except Exception` may swallow it."""


@pytest.mark.parametrize("fails_at", ["fsync", "replace", "chmod"])
def test_a_failure_leaves_the_old_content_and_no_rubbish(fails_at, tmp_path, monkeypatch):
    target = tmp_path / "file.bin"
    write_bytes_atomically(target, b"old")

    def fail(*arguments):
        raise Interrupted

    with monkeypatch.context() as patched:
        patched.setattr(os, fails_at, fail)
        with pytest.raises(Interrupted):
            write_bytes_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.bin"]
    write_bytes_atomically(target, b"new")
    assert target.read_bytes() == b"new"


def test_readers_never_see_a_part_even_while_it_is_written(tmp_path, monkeypatch):
    target = tmp_path / "file.bin"
    write_bytes_atomically(target, b"old")
    seen = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (seen.append(target.read_bytes()), fsync(handle)))
    write_bytes_atomically(target, b"new" * 100_000)
    assert seen == [b"old", b"new" * 100_000]  # the file before it is renamed, the folder that names it afterwards


def test_folders_on_the_way_are_made_and_others_may_read(tmp_path):
    target = tmp_path / "a" / "b" / "file.txt"
    write_text_atomically(target, "größer\n")
    assert target.read_bytes() == "größer\n".encode()
    assert stat.S_IMODE(target.stat().st_mode) == 0o644


def test_json_is_readable_and_refuses_what_it_cannot_say(tmp_path):
    target = tmp_path / "file.json"
    write_json_atomically(target, {"ä": [1, None]})
    assert json.loads(target.read_text(encoding="utf-8")) == {"ä": [1, None]}
    assert "ä" in target.read_text(encoding="utf-8")
    with pytest.raises(TypeError):
        write_json_atomically(target, {"x": object()})
    assert json.loads(target.read_text(encoding="utf-8")) == {"ä": [1, None]}


def test_a_folder_appears_at_once_and_whole(tmp_path):
    target = tmp_path / "deep" / "folder"
    with atomic_folder(target) as temporary:
        assert not target.exists()
        assert temporary.parent == target.parent, "on the same file system, so that renaming is atomic"
        (temporary / "inner").mkdir()
        (temporary / "inner" / "file").write_text("x")
    assert (target / "inner" / "file").read_text() == "x"
    assert os.listdir(target.parent) == ["folder"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o755


def test_a_failing_folder_vanishes_and_spares_the_old_one(tmp_path):
    target = tmp_path / "folder"
    with atomic_folder(target) as temporary:
        (temporary / "file").write_text("old")

    def interrupted():
        with atomic_folder(target) as temporary:
            (temporary / "file").write_text("new")
            raise Interrupted

    with pytest.raises(Interrupted):
        interrupted()
    assert (target / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["folder"]


def test_a_new_folder_takes_the_old_ones_place_with_nothing_of_it_left(tmp_path):
    target = tmp_path / "folder"
    for name in ("first", "second"):
        with atomic_folder(target) as temporary:
            (temporary / name).write_text(name)
    assert os.listdir(target) == ["second"]
    assert os.listdir(tmp_path) == ["folder"]


def test_a_crash_between_the_two_renames_leaves_the_old_folder_whole(tmp_path, monkeypatch):
    target = tmp_path / "folder"
    with atomic_folder(target) as temporary:
        (temporary / "file").write_text("old")
    replace, calls = os.replace, []

    def second_rename_fails(source, destination):
        calls.append(source)
        if len(calls) == 2:
            raise Interrupted
        replace(source, destination)

    monkeypatch.setattr(os, "replace", second_rename_fails)

    def crash():
        with atomic_folder(target) as temporary:
            (temporary / "file").write_text("new")

    with pytest.raises(Interrupted):
        crash()
    monkeypatch.undo()
    complete = [folder for folder in tmp_path.iterdir() if (folder / "file").exists()]
    assert [(folder / "file").read_text() for folder in complete] == ["old"]
    with atomic_folder(target) as temporary:
        (temporary / "file").write_text("new")
    assert os.listdir(tmp_path) == ["folder"]


def test_hashes_are_those_of_the_bytes(tmp_path):
    data = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(data)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()
