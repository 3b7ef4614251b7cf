"""Noticing that the process which started this one is gone.

torchrun stops its workers when it is stopped itself. When it is killed (SIGKILL, out of memory) they become orphans:
the groups they have joined go on working without it, so they would train to the end, hold their GPUs and keep the run
folder locked against the run that is started again. The workers of a comparison would do the same.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS_BETWEEN_LOOKS = 1.0
# Asked when the module is imported: preparing data may take long, and torchrun may be gone when that is over.
_parent = os.getppid()


def _remember_parent() -> None:
    global _parent
    _parent = os.getppid()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_remember_parent)


def is_torchrun_worker() -> bool:
    """Return whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def watched_parent(seconds: float = SECONDS_BETWEEN_LOOKS) -> Iterator[None]:
    """Send this process a SIGTERM when the torchrun that started it is gone; nothing where torchrun did not start it.

    A run that trains ends as with any SIGTERM: after the current step, with a checkpoint. The system gives an orphan
    another parent, so asking for the parent's number is enough. It takes a thread, because the main one may be waiting
    for a GPU or for another process; then the signal is noticed when that is over.

    Args:
        seconds: between two looks.
    """
    if not is_torchrun_worker():
        yield
        return
    over = threading.Event()
    thread = watch_parent(seconds, over)
    try:
        yield
    finally:
        over.set()
        thread.join()


def watch_parent(seconds: float = SECONDS_BETWEEN_LOOKS, over: threading.Event | None = None) -> threading.Thread:
    """Send this process a SIGTERM when the one that started it is gone, from a thread that looks until `over`."""
    over = threading.Event() if over is None else over

    def watch() -> None:
        while os.getppid() == _parent:
            if over.wait(seconds):
                return
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=watch, name="parent watch", daemon=True)
    thread.start()
    return thread
