"""The benchmarks of the data measure what they say, at sizes that take no time, and their tables can be drawn."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from benchmarks import loader, measuring, preparation
from scripts import data_tables

from heedful.data.corpora import open_corpus

TINY = loader.Setting(16, 3, 2, 257, 16, 8)
HEAD = {"machine": "a machine", "dtype": "float32", "dirty": True, "commit": "0" * 40, "command": "python"}


def test_every_kind_of_batch_is_measured_against_the_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    generated = loader.SETTINGS["find-the-block"]._replace(hidden_size=16, batch=2)
    monkeypatch.setattr(loader, "SETTINGS", {"tiny": TINY, "find-the-block": generated})
    options = loader.Options(settings=("tiny", "find-the-block"), tokens=5000, rounds=1)
    rows = loader.measure(options)
    kinds = [row["kind"] for row in rows if row["model"] == "tiny"]
    assert kinds == ["step", "plain", "documents masked", "three sources mixed", "rows of one of 8 processes"]
    assert [row["kind"] for row in rows if row["model"] != "tiny"] == ["step", "generated"]
    for row in rows:
        tokens = row["batch"] * row["context"] / (8 if "processes" in row["kind"] else 1)
        assert row["tokens_per_second"] * row["seconds"] == pytest.approx(tokens)
        assert (row["times_training"] == 1) == (row["kind"] == "step")
    settings = {name: setting._asdict() for name, setting in loader.SETTINGS.items()}
    measuring.write_result({**HEAD, "settings": settings, "target": 10.0, "rows": rows}, "loader-cpu", tmp_path)
    text = data_tables.loader_tables(tmp_path)
    assert "| tiny: width 16, 3 layers, 8 x 16 tokens | training step |" in text
    assert "|  | three sources mixed |" in text


def test_the_shares_of_processes_are_the_rows_of_one(tmp_path: Path) -> None:
    calls: Any = loader.loaders(TINY, tmp_path, 5000)
    assert calls["plain"]().tokens.shape == (8, 16)
    assert calls["rows of one of 8 processes"]().tokens.shape == (1, 16)
    assert calls["documents masked"]().document_ids is not None


def test_the_corpus_has_the_size_and_no_two_equal_documents(tmp_path: Path) -> None:
    written = preparation.write_corpus("python-stdlib", tmp_path / "corpus", 9)
    documents = list(open_corpus(str(tmp_path / "corpus"), "paragraph").documents())
    assert 9_000_000 <= written < 12_000_000
    assert sum(len(document.encode()) for document in documents) == written
    assert len(set(documents)) > 0.9 * len(documents)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from /proc")
def test_memory_is_that_of_the_process_and_what_it_started() -> None:
    block = bytearray(64 << 20)
    before = preparation.memory_of(os.getpid())
    assert before["resident_bytes"] >= len(block)
    assert 0 < before["proportional_bytes"] <= before["resident_bytes"]
    assert preparation.memory_of(2**30) == {}
    assert os.getpid() in preparation.children_of(os.getppid())


def test_results_become_tables(tmp_path: Path) -> None:
    peak = {"resident_bytes": 500 << 20, "proportional_bytes": 400 << 20}
    splits = {name: {"documents": 1000} for name in ("train", "valid", "test")}
    row = {
        "tokenizer": "bpe",
        "workers": 2,
        "seconds": 12.0,
        "peak": peak,
        "peak_of_main_process": 300 << 20,
        "peak_of_a_worker": 100 << 20,
        "text_bytes": 48_000_000,
        "megabytes_per_second": 4.0,
        "splits": splits,
    }
    killed = {
        "seconds_until_killed": 6.0,
        "seconds_of_the_resumed": 7.0,
        "seconds_of_an_undisturbed": 12.0,
        "same_shards": True,
    }
    result = {
        **HEAD,
        "cores": 2,
        "load_before": 0.5,
        "target_bytes": 2**30,
        "options": {"comparison_megabytes": 48},
        "compared": [row],
        "killed": killed,
        "large": {**row, "text_bytes": 10**9, "seconds_to_open_again": 3.0},
    }
    measuring.write_result(result, "preparation-cpu", tmp_path)
    text = data_tables.preparation_tables(tmp_path)
    assert "| 1,000 MB | bpe | 2 | 12 | 4.0 | 500 MiB | 400 MiB | 300 MiB | 100 MiB |" in text
    assert "3,000 documents; its preparation stayed within the target of 1,024 MiB" in text
    assert "with the same shards" in text


def test_a_part_without_results_says_how_to_measure_it(tmp_path: Path) -> None:
    assert "`python -m benchmarks.loader`" in data_tables.loader_tables(tmp_path)
    assert "`python -m benchmarks.preparation`" in data_tables.preparation_tables(tmp_path)
