"""Preparing a corpus in parts: the same shards whoever does it, however often it is stopped, and nothing mixed."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from heedful.data import DataConfig, TokenDataset, prepare
from heedful.data.parts import read_part, write_part
from heedful.data.split_writer import SplitWriter
from heedful.data.tokenizers import ByteTokenizer, train_whitespace_bpe
from heedful.data.tokenizing import tokenize_source
from heedful.data.workers import PARALLEL_FROM_BYTES, WorkerProcesses, default_workers

PARAGRAPHS = [f"Paragraph {i} says that {i} times {i} is {i * i}.\n\n" for i in range(400)]
PROCESS = Path(__file__).parent / "preparing_process.py"

# What the first version of the builder, one process that wrote document after document, made of this corpus.
GOLDEN = {
    "train": (
        15_000,
        14_692,
        "d04ce6e726ecc66b3d055df94664a9eae69665e851f8535d916dc30e65f1234f",
        "fca59f33583997f77797742d7b74a8f29adc11616f087c97220b12ce6e988026",
    ),
    "valid": (
        700,
        686,
        "01d926b6320f26763c63153ed60403d19226610c8b83c0600d61469ae2d23733",
        "41794d4777239a8861ad90edb1e7fa97628846adadec14b2d9c5b6528c968bdc",
    ),
    "test": (
        700,
        686,
        "4ad4e8c5afaba65f4f0bc4478bd27225dd250a469732cf51634b9e1e83a5766b",
        "bafb6b38373698880f3c8162ea73e0b539d1ff8195ce6a4c7fd1e0c9094e58a4",
    ),
}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("".join(PARAGRAPHS), encoding="utf-8")
    return path


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heedful.data.tokenizing.PART_BYTES", 1000)


def config_for(corpus: Path, cache: str = "cache", **fields: Any) -> DataConfig:
    usual = {"corpus": str(corpus), "cache_folder": str(corpus.parent / cache), "tokenizer": "bytes"}
    return DataConfig(**{**usual, **fields})


def content_of(dataset: TokenDataset) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(dataset.folder.iterdir())}


def work_folder(corpus: Path, cache: str = "cache") -> Path:
    (work,) = (corpus.parent / cache / "shards").glob(".*.work")
    return work


def interrupted_at(stage: str, config: DataConfig, **options: Any) -> None:
    def interrupt(message: str) -> None:
        if message.startswith(stage):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(config, interrupt, **options)


@pytest.mark.parametrize("part_bytes", [150, 700, 4 << 20])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_shards_are_those_of_one_process_that_writes_document_after_document(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, part_bytes: int, workers: int
) -> None:
    monkeypatch.setattr("heedful.data.tokenizing.PART_BYTES", part_bytes)
    dataset = prepare(config_for(corpus, max_train_tokens=15_000, max_eval_tokens=700), workers=workers)
    assert dataset.folder.name == "corpus.txt-bytes-ade157897fff020c", "shards of earlier versions are still found"
    for name, expected in GOLDEN.items():
        record = dataset.manifest["splits"][name]
        assert (record["tokens"], record["bytes"], record["tokens_sha256"], record["starts_sha256"]) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"tokenizer": "bpe", "vocab_size": 290},
        {"tokenizer": "bpe-whitespace", "vocab_size": 60, "separator": False},
        {"documents": "line", "max_train_tokens": 3001, "max_eval_tokens": 17},
    ],
)
@pytest.mark.usefixtures("small_parts")
def test_the_number_of_workers_changes_nothing(corpus: Path, fields: dict) -> None:
    contents = [
        content_of(prepare(config_for(corpus, f"cache-{workers}", **fields), workers=workers)) for workers in (0, 1, 3)
    ]
    assert contents[0] == contents[1] == contents[2]


def test_parts_say_the_same_as_documents_one_by_one(tmp_path: Path) -> None:
    tokenizer = train_whitespace_bpe(["abc abc bca cab"], 9)
    texts = ["abc", "dd", "abc d cab", "", "d", "bca " * 6000, "d"]  # "d" is unknown, so it leaves no token
    whole = tokenizer.encode_many(texts)
    for separator in (True, False):
        write_part(tmp_path / "part", {"train": texts}, tokenizer, separator=separator)
        part = read_part(tmp_path / "part", tokenizer.sha256)
        assert part is not None
        records = []
        for name in ("one-by-one", "part"):
            with SplitWriter(tmp_path, name, tokenizer, separator=separator, max_tokens=None) as writer:
                if name == "part":
                    writer.extend(part["train"])
                else:
                    for text, ids in zip(texts, whole, strict=True):
                        writer.add(text, ids, ends_document=True)
                records.append(writer.finish())
        assert records[0] == records[1]
        assert records[0].documents == 3


def test_a_part_is_only_taken_whole_and_of_its_tokenizer(tmp_path: Path) -> None:
    path, tokenizer = tmp_path / "part", ByteTokenizer()
    assert read_part(path, tokenizer.sha256) is None
    write_part(path, {"train": ["text"], "test": []}, tokenizer, separator=True)
    good = path.read_bytes()
    found = read_part(path, tokenizer.sha256)
    assert found is not None
    assert found["train"].tokens.tolist() == [*b"text", 256]
    assert len(found["test"].tokens) == found["test"].num_bytes == 0
    assert read_part(path, "of another tokenizer") is None
    for position in range(0, len(good), 7):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        assert read_part(path, tokenizer.sha256) is None
        path.write_bytes(good[:position])
        assert read_part(path, tokenizer.sha256) is None


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_finished_is_not_done_again(corpus: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    config = config_for(corpus, tokenizer="bpe", vocab_size=290)
    interrupted_at("test:", config, workers=workers)
    parts = {path: path.stat().st_mtime_ns for path in work_folder(corpus).glob("parts-0/*")}
    assert len(parts) > 10
    damaged, missing = sorted(parts)[1:3]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    missing.unlink()
    written: list[Path] = []

    def spy(path: Path, *arguments: Any, **options: Any) -> None:
        written.append(path)
        write_part(path, *arguments, **options)

    monkeypatch.setattr("heedful.data.workers.write_part", spy)
    monkeypatch.setattr("heedful.data.tokenizer_choice.train_bpe", lambda *_: pytest.fail("trained again"))
    stages: list[str] = []
    resumed = prepare(config, stages.append, workers=0)
    assert written == [damaged, missing]
    assert any(stage.startswith("going on with") for stage in stages)
    monkeypatch.undo()
    assert content_of(resumed) == content_of(prepare(config_for(corpus, "fresh", tokenizer="bpe", vocab_size=290)))
    assert [path.name for path in resumed.folder.parent.iterdir() if not path.name.endswith(".lock")] == [
        resumed.folder.name
    ]


def test_a_kept_first_reading_is_not_done_again_unless_it_is_damaged(corpus: Path) -> None:
    interrupted_at("train:", config_for(corpus))
    kept = work_folder(corpus) / "survey-0"
    before = (kept / "hashes").stat().st_mtime_ns
    interrupted_at("train:", config_for(corpus))
    assert (kept / "hashes").stat().st_mtime_ns == before
    content = (kept / "hashes").read_bytes()
    (kept / "hashes").write_bytes(b"\0" * len(content))
    interrupted_at("train:", config_for(corpus))
    assert (kept / "hashes").read_bytes() == content


def start(corpus: Path, cache: Path, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(PROCESS), str(corpus), str(cache), json.dumps(options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], beginning: str) -> list[str]:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if line.startswith(beginning):
            return lines
    pytest.fail(f"ended before it said {beginning!r}: {lines} {process.communicate()[1]}")


def finished(process: subprocess.Popen[str]) -> list[str]:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output.splitlines()


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # ended, but whoever inherited it has not asked yet


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see whether processes have ended")
def test_killed_at_random_moments_it_goes_on_to_the_same_shards(corpus: Path, tmp_path: Path) -> None:
    text = "".join(f"{i} " * (i % 90) + "\n\n" for i in range(3000))
    corpus.write_text(text, encoding="utf-8")
    undisturbed = prepare(config_for(corpus, "undisturbed"), workers=0)
    cache, moments = tmp_path / "cache", random.Random(5)
    began = time.monotonic()
    prepared = start(corpus, tmp_path / "timed", part_bytes=20_000)
    wait_for(prepared, "ready")
    finished(prepared)
    usual_seconds = time.monotonic() - began
    workers: list[int] = []
    longest, resumed, kills = usual_seconds / 4, 0, 0
    while kills < 8:
        process = start(corpus, cache, part_bytes=20_000)
        wait_for(process, "ready")
        while kills == 0 and process.poll() is None and not list(cache.glob("shards/.*.work/parts-0/*")):
            time.sleep(0.001)  # the first is killed with something to go on from, the others whenever it happens
        time.sleep(moments.uniform(0, longest))
        process.kill()
        said = process.communicate()[0].splitlines()
        if process.returncode != -signal.SIGKILL:  # it was quicker than the kill
            longest /= 2
            shutil.rmtree(cache)
            continue
        kills += 1
        resumed += any(line.startswith("going on with") for line in said)
        workers += [int(line.split()[1]) for line in said if line.startswith("worker")]
    finished(start(corpus, cache, part_bytes=20_000))
    assert content_of(prepare(config_for(corpus), lambda line: pytest.fail(line))) == content_of(undisturbed)
    assert resumed >= 1
    patience = time.monotonic() + 60
    while any(map(is_running, workers)) and time.monotonic() < patience:
        time.sleep(0.05)
    assert not any(map(is_running, workers)), "workers end when the one that started them does"


def test_a_killed_worker_is_an_error_and_what_is_finished_is_kept(corpus: Path, tmp_path: Path) -> None:
    corpus.write_text("".join(PARAGRAPHS * 25), encoding="utf-8")
    cache = tmp_path / "cache"
    process = start(corpus, cache, part_bytes=1000, workers=1)
    worker = int(wait_for(process, "worker")[-1].split()[1])
    while not (list(cache.glob("shards/.*.work/parts-0/*"))):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.kill(worker, signal.SIGKILL)
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 1
    assert "refused: the data could not be prepared: a worker process ended with status -9" in errors
    assert "What is finished is kept" in errors
    assert any(line.startswith("going on with") for line in finished(start(corpus, cache, part_bytes=1000)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_is_an_error_and_with_more_room_it_goes_on(corpus: Path, tmp_path: Path, workers: int) -> None:
    # A largest size of files is the full disk that needs no other file system: the write itself fails, in whichever
    # process writes. Parts fit, the train split does not.
    cache = tmp_path / "cache"
    full = start(corpus, cache, part_bytes=1000, workers=workers, largest_file=12_000)
    errors = full.communicate(timeout=300)[1]
    assert full.returncode == 1
    assert f"refused: the data could not be prepared: {os.strerror(errno.EFBIG)}" in errors
    assert list(cache.glob("shards/.*.work/parts-0/*"))
    assert not list(cache.glob("shards/[!.]*")), "nothing half-written under the final name"
    again = finished(start(corpus, cache, part_bytes=1000, workers=workers))
    assert any(line.startswith("going on with") for line in again)
    fresh = prepare(config_for(corpus, "fresh"))
    assert content_of(prepare(config_for(corpus))) == content_of(fresh)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_part_that_cannot_be_written_names_the_file(corpus: Path, tmp_path: Path, workers: int) -> None:
    full = start(corpus, tmp_path / "cache", part_bytes=100_000, workers=workers, largest_file=5000)
    errors = full.communicate(timeout=300)[1]
    assert full.returncode == 1
    assert os.strerror(errno.EFBIG) in errors
    assert "same command goes on from there" in errors


def test_a_file_that_vanishes_is_an_error_that_names_it(corpus: Path) -> None:
    def unlink(stage: str) -> None:
        if stage.startswith("training"):
            corpus.unlink()

    with pytest.raises(ValueError, match=rf"could not be prepared: No such file or directory: {corpus}"):
        prepare(config_for(corpus, tokenizer="bpe", vocab_size=290), unlink)


@pytest.mark.usefixtures("small_parts")
def test_a_corpus_that_changes_before_the_resume_is_built_anew_and_never_mixed(corpus: Path) -> None:
    interrupted_at("test:", config_for(corpus))
    old = work_folder(corpus)
    original = corpus.read_text(encoding="utf-8")
    corpus.write_text(original.replace("Paragraph 7 ", "Paragraph seven "), encoding="utf-8")
    stages: list[str] = []
    changed = prepare(config_for(corpus), stages.append)
    assert f"{old} is of a preparation from other text or settings" in "\n".join(stages)
    assert not any(stage.startswith("going on") for stage in stages)
    assert content_of(changed) == content_of(prepare(config_for(corpus, "fresh")))
    corpus.write_text(original, encoding="utf-8")
    resumed = prepare(config_for(corpus), stages.append)
    assert any(stage.startswith("going on") for stage in stages)
    assert content_of(resumed) == content_of(prepare(config_for(corpus, "fresh")))
    assert resumed.folder != changed.folder


@pytest.mark.parametrize("stage", ["reading", "train:", "test:"])
def test_a_corpus_that_is_written_to_during_the_build_is_an_error_even_where_it_was_read_already(
    corpus: Path, stage: str
) -> None:
    def change(said: str) -> None:
        if said.startswith(stage):
            corpus.write_text("".join(PARAGRAPHS[::-1]), encoding="utf-8")

    with pytest.raises(ValueError, match="changed while it was being read: run again"):
        prepare(config_for(corpus), change)
    assert not list((corpus.parent / "cache" / "shards").glob("*.work")), "nothing of it is gone on from"
    assert content_of(prepare(config_for(corpus))) == content_of(prepare(config_for(corpus, "fresh")))


def test_what_another_version_of_the_tokenizers_library_left_is_not_gone_on_from(corpus: Path) -> None:
    interrupted_at("test:", config_for(corpus))
    record = work_folder(corpus) / "work.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "tokenizers": "0.0"}))
    stages: list[str] = []
    prepare(config_for(corpus), stages.append)
    assert not any(stage.startswith("going on") for stage in stages)


def test_what_a_kill_at_the_last_moment_leaves_is_cleared(corpus: Path) -> None:
    dataset = prepare(config_for(corpus))
    left = dataset.folder.parent / f".{dataset.folder.name}.work"
    (left / "parts-0").mkdir(parents=True)
    prepare(config_for(corpus))
    assert not left.exists()


def test_workers_can_be_started_from_a_thread(corpus: Path) -> None:
    found: list[TokenDataset] = []
    thread = threading.Thread(target=lambda: found.append(prepare(config_for(corpus), workers=2)))
    thread.start()
    thread.join(timeout=120)
    assert content_of(found[0]) == content_of(prepare(config_for(corpus, "fresh"), workers=0))


def test_workers_do_not_run_the_program_that_started_them(corpus: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"  # without a main guard
    script.write_text(
        "import sys\nprint('once')\nfrom heedful.data import DataConfig, prepare\n"
        f"prepare(DataConfig(corpus={str(corpus)!r}, tokenizer='bytes', cache_folder={str(tmp_path / 'cache')!r}), "
        "workers=2)\n"
    )
    environment = {**os.environ, "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "nowhere"}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "once\n"
    assert done.stderr == ""


def test_only_large_corpora_are_worth_workers() -> None:
    assert default_workers(PARALLEL_FROM_BYTES - 1) == 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert default_workers(PARALLEL_FROM_BYTES) == (cores if cores > 1 else 0)


def test_an_interruption_ends_the_workers(corpus: Path, tmp_path: Path) -> None:
    ByteTokenizer().save(tmp_path)
    crew = WorkerProcesses(2, tmp_path, separator=True)

    def interrupted() -> None:
        with crew:
            crew.submit(tmp_path / "part", {"train": ["text " * 10**6]})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(process.poll() is not None for process in crew._processes)


def test_no_more_parts_are_under_way_than_the_workers_can_take(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting: list[int] = []
    under_way = 0

    def watched(*arguments: Any) -> None:
        nonlocal under_way
        crew = arguments[3]
        submit = crew.submit

        def counted(path: Path, texts: Any) -> Any:
            nonlocal under_way
            under_way += 1
            waiting.append(under_way)
            return submit(path, texts)

        crew.submit = counted
        tokenize_source(*arguments)

    def taken(path: Path, sha256: str) -> Any:
        nonlocal under_way
        found = read_part(path, sha256)
        under_way -= found is not None
        return found

    monkeypatch.setattr("heedful.data.tokenizing.PART_BYTES", 500)
    monkeypatch.setattr("heedful.data.tokenizing.read_part", taken)
    monkeypatch.setattr("heedful.data.building.tokenize_source", watched)
    prepare(config_for(corpus), workers=2)
    assert len(waiting) > 20
    assert max(waiting) <= 4


@pytest.mark.parametrize("workers", [-1])
def test_a_negative_number_of_workers_is_refused(corpus: Path, workers: int) -> None:
    with pytest.raises(ValueError, match="workers must be 0 or more, got -1"):
        prepare(config_for(corpus), workers=workers)
