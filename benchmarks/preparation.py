"""Preparing a large corpus: memory of all processes, megabytes per second, workers, and a kill.

    python -m benchmarks.preparation --corpus python-stdlib

The corpus is made of the documents of a real one, said again and again, each paragraph below a line that numbers it, so
that no two are equal. `heedful prepare` runs as a process of its own; while it does, /proc says how much memory it and
its workers hold: resident (RSS, in which pages that several share count for each) and proportional (PSS, in which they
count once). The result is written to results/benchmarks/preparation-cpu.json.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks.measuring import describe, write_result
from heedful.data import open_dataset
from heedful.data.corpora import open_corpus
from heedful.data.parts import PART_BYTES

TARGET_BYTES = 2**30
"""A corpus of 1 GB is to be prepared within so much resident memory, workers included."""
_FILES = 8
_LOOK_EVERY_SECONDS = 0.2

RECIPE = """
name = "preparation"
seeds = [1]
baseline = "standard"
learning_rates = [1e-3]
[data]
corpus = "{corpus}"
documents = "paragraph"
tokenizer = "{tokenizer}"
vocab_size = {vocab_size}
valid_fraction = 0.001
test_fraction = 0.001
cache_folder = "{cache}"
[train]
steps = 1000
batch_size = 8
context_length = 256
[[arms]]
name = "standard"
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure the preparation of a large corpus."""

    corpus: str = "python-stdlib"
    """Real text to repeat: a file, a folder, or python-stdlib."""

    megabytes: int = 1000
    """Size of the large corpus."""

    comparison_megabytes: int = 48
    """Size of the corpus on which numbers of workers are compared, and that is killed."""

    workers: tuple[int, ...] = (1, 2)
    """Numbers of workers to compare; the last one prepares the large corpus."""

    tokenizer: Literal["bytes", "bpe"] = "bpe"
    """The tokenizer of the comparison and the kill."""

    large_tokenizer: Literal["bytes", "bpe"] = "bytes"
    """The tokenizer of the large corpus: bytes make the most tokens and take the least time."""

    vocab_size: int = 4096
    """Entries of bpe."""

    folder: Path | None = None
    """Where corpus and shards are put for the time being; a temporary folder by default."""


def write_corpus(name: str, folder: Path, megabytes: int) -> int:
    """Write a corpus of `megabytes` from the paragraphs of another one; return its bytes."""
    folder.mkdir(parents=True)
    written, part = 0, megabytes * 1_000_000 // _FILES + 1
    paragraphs = _numbered(name)
    for number in range(_FILES):
        with open(folder / f"{number}.txt", "w", encoding="utf-8") as file:
            start = file.tell()
            while file.tell() - start < part:
                file.write("".join(next(paragraphs) for _ in range(1000)))
            written += file.tell()
    return written


def _numbered(name: str) -> Iterator[str]:
    copy = 0
    while True:
        copy += 1
        for place, document in enumerate(open_corpus(name).documents()):
            for number, paragraph in enumerate(document.split("\n\n")):
                if paragraph.strip():
                    yield f"copy {copy}, document {place}, paragraph {number}\n{paragraph}\n\n"


def prepare(
    options: Options,
    corpus: Path,
    cache: Path,
    workers: int,
    *,
    tokenizer: str,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run `heedful prepare` and watch it; kill it as soon as `stop()` says so."""
    recipe = cache.with_suffix(".toml")
    recipe.write_text(RECIPE.format(corpus=corpus, cache=cache, tokenizer=tokenizer, vocab_size=options.vocab_size))
    command = [sys.executable, "-m", "heedful", "prepare", str(recipe), "--workers", str(workers)]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak: dict[str, int] = {"resident_bytes": 0, "proportional_bytes": 0}
    largest: dict[int, int] = {}
    while process.poll() is None:
        family = {pid: memory_of(pid) for pid in (process.pid, *children_of(process.pid))}
        for kind in peak:
            peak[kind] = max(peak[kind], sum(memory.get(kind, 0) for memory in family.values()))
        for pid, memory in family.items():
            largest[pid] = max(largest.get(pid, 0), memory.get("resident_bytes", 0))
        if stop():
            process.kill()
        time.sleep(_LOOK_EVERY_SECONDS)
    output = process.communicate()[0]
    own = largest.pop(process.pid, 0)
    row = {
        "tokenizer": tokenizer,
        "workers": workers,
        "seconds": time.monotonic() - began,
        "peak": peak,
        "peak_of_main_process": own,
        "peak_of_a_worker": max(largest.values(), default=0),
        "status": process.returncode,
    }
    if process.returncode == 0:
        manifest = open_dataset(output.split()[-1]).manifest
        row["splits"] = manifest["splits"]
        row["text_bytes"] = sum(split["bytes"] for split in manifest["splits"].values())
        row["megabytes_per_second"] = row["text_bytes"] / 1e6 / row["seconds"]
        print(
            f"{row['text_bytes'] / 1e6:.0f} MB, {workers} workers: {row['seconds']:.0f} s, "
            f"{peak['resident_bytes'] / 2**20:.0f} MiB resident in all",
            flush=True,
        )
    return row


def memory_of(pid: int) -> dict[str, int]:
    """Return resident and proportional bytes of a process; nothing where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return {}
    found = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("Rss:", "Pss:"))}
    if len(found) < 2:
        return {}
    return {"resident_bytes": 1024 * int(found["Rss"]), "proportional_bytes": 1024 * int(found["Pss"])}


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started and that are there."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            if parent == pid:
                found.append(int(folder.name))
    return found


def measure(options: Options, folder: Path) -> dict[str, Any]:
    """Return the rows of all measurements."""
    small, large = folder / "small", folder / "large"
    write_corpus(options.corpus, small, options.comparison_megabytes)
    usual, kind = options.workers[-1], options.tokenizer
    compared = [prepare(options, small, folder / f"cache-{n}", n, tokenizer=kind) for n in options.workers]
    parts = options.comparison_megabytes * 1_000_000 // PART_BYTES
    cache = folder / "cache-killed"

    def half_done() -> bool:
        return len(list(cache.glob("shards/.*.work/parts-0/[0-9]*"))) >= parts // 2

    killed = prepare(options, small, cache, usual, tokenizer=kind, stop=half_done)
    resumed = prepare(options, small, cache, usual, tokenizer=kind)
    shutil.rmtree(small)
    write_corpus(options.corpus, large, options.megabytes)
    row = prepare(options, large, folder / "cache-large", usual, tokenizer=options.large_tokenizer)
    began = time.monotonic()
    prepare(options, large, folder / "cache-large", usual, tokenizer=options.large_tokenizer)
    return {
        "compared": compared,
        "killed": {
            "seconds_until_killed": killed["seconds"],
            "status": killed["status"],
            "seconds_of_the_resumed": resumed["seconds"],
            "seconds_of_an_undisturbed": compared[-1]["seconds"],
            "same_shards": resumed["splits"] == compared[-1]["splits"],
        },
        "large": {**row, "seconds_to_open_again": time.monotonic() - began},
    }


def main() -> None:
    """Measure and write."""
    options = tyro.cli(Options, prog="python -m benchmarks.preparation")
    if not Path("/proc/self/smaps_rollup").exists():
        sys.exit("memory is read from /proc/PID/smaps_rollup, which this system does not have")
    head = describe("preparation", "cpu")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = {
            **head,
            "cores": len(os.sched_getaffinity(0)),
            "load_before": os.getloadavg()[0],
            "options": {**asdict(options), "folder": None},
            "target_bytes": TARGET_BYTES,
            **measure(options, Path(folder)),
        }
    write_result(result, "preparation-cpu")


if __name__ == "__main__":
    main()
