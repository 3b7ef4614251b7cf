"""Worker processes that tokenize parts, and the same without any.

Workers are plain programs talked to through pipes, not a process pool: they import neither torch nor the program that
started them, so they are small, start quickly, and do no harm under torchrun, in a notebook or in a script without a
main guard. When the process that started them dies, however suddenly, their input ends and so do they.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, Self

from heedful.data.part_worker import receive, send
from heedful.data.parts import write_part
from heedful.data.tokenizers import Tokenizer

# The packages' __init__ files would import torch, which takes 200 MB and seconds and is of no use here.
_PROGRAM = """
import json, sys, types
paths, sys.path[:] = json.loads(sys.argv[1]), json.loads(sys.argv[2])
for name, path in paths.items():
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = path
from heedful.data.part_worker import serve
serve()
"""
# A part of a corpus is worth a process of its own; starting one is not for a few of them.
PARALLEL_FROM_BYTES = 64 << 20

Texts = Mapping[str, Sequence[str]]


class Workers(Protocol):
    """Whoever writes parts."""

    capacity: int

    def submit(self, path: Path, texts: Texts) -> Future[None]:
        """Begin to write the part `path` from documents by split."""
        ...


def default_workers(corpus_bytes: int) -> int:
    """Return one worker for every core that this process may use, 0 where starting them takes longer than it saves."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores if corpus_bytes >= PARALLEL_FROM_BYTES and cores > 1 else 0


class NoWorkers:
    """Writes parts in this very process, one after the other."""

    capacity = 1

    def __init__(self, tokenizer: Tokenizer, *, separator: bool) -> None:
        """Take what all parts share."""
        self._tokenizer, self._separator = tokenizer, separator

    def __enter__(self) -> Self:
        """Return the object."""
        return self

    def __exit__(self, *error: object) -> None:
        """There is nothing to end."""

    def submit(self, path: Path, texts: Texts) -> Future[None]:
        """Write the part at once; an error is raised here."""
        write_part(path, texts, self._tokenizer, separator=self._separator)
        done: Future[None] = Future()
        done.set_result(None)
        return done


class WorkerProcesses:
    """A fixed number of processes; a context manager, since they end with the `with` block, whatever happened."""

    def __init__(self, count: int, tokenizer_folder: Path, *, separator: bool) -> None:
        """Start `count` processes that tokenize with the tokenizer saved in a folder."""
        self.capacity = count + 2  # beyond the parts being worked on, two that are waiting
        self._processes = [_start() for _ in range(count)]
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="heedful-part")
        self._setup = {"tokenizer": str(tokenizer_folder.absolute()), "separator": separator}

    def __enter__(self) -> Self:
        """Tell the processes what all parts share."""
        for process in self._processes:
            with _explained(process):
                send(_pipe(process.stdin), self._setup)
            self._idle.put(process)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes: at once after an error, else when they see that nothing more comes."""
        for process in self._processes:
            if error is not None:
                process.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process in self._processes:
            with suppress(BrokenPipeError):
                _pipe(process.stdin).close()
            process.wait()
            _pipe(process.stdout).close()

    def submit(self, path: Path, texts: Texts) -> Future[None]:
        """Have a process write the part; its error is the future's."""
        return self._threads.submit(self._write, path, texts)

    def _write(self, path: Path, texts: Texts) -> None:
        process = self._idle.get()
        try:
            with _explained(process):
                send(_pipe(process.stdin), {"path": str(path.absolute()), "texts": texts})
                reply = receive(_pipe(process.stdout))
                if reply is None:
                    raise BrokenPipeError
        finally:
            self._idle.put(process)
        if reply.get("kind") == "system":
            raise OSError(reply["number"], reply["message"], reply["file"])
        if reply:
            raise ValueError(reply["message"])


def _start() -> subprocess.Popen[bytes]:
    paths = {name: list(sys.modules[name].__path__) for name in ("heedful", "heedful.data")}
    # The library's own threads would compete with the other workers.
    environment = {**os.environ, "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, json.dumps(paths), json.dumps(sys.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,  # Ctrl-C in a terminal reaches the parent alone, which then decides about the workers
    )


@contextmanager
def _explained(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        status = process.wait()
        killed = ", killed, perhaps for memory: use fewer workers" if status == -signal.SIGKILL else ""
        raise ChildProcessError(f"a worker process ended with status {status}{killed}") from None


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None  # both ends were asked for
    return stream
