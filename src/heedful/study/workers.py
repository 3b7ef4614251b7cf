"""Who carries out the jobs of a comparison: this process one by one, or several worker processes at a time.

Several small models at once make better use of a large GPU, or of many cores, than one. The workers share nothing but
the comparison's folder: each makes the plan from the recipe and writes its runs there, so what is finished when one of
them is killed stays, and a run in work goes on from its last checkpoint.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from heedful.study.plan import Plan, make_plan
from heedful.study.recipe import Recipe
from heedful.study.runs import Report, Run, score_run, train_run
from heedful.study.schedule import Job
from heedful.train.parent_watch import watch_parent


class Crew(Protocol):
    """Carries out jobs."""

    def has_room(self) -> bool:
        """Return whether another job can start now."""
        ...

    def start(self, job: Job) -> None:
        """Begin a job."""
        ...

    def wait(self) -> tuple[Job, dict[str, Any]]:
        """Return the next job that is done, with what came out."""
        ...


@contextmanager
def open_crew(plan: Plan, folder: Path, workers: int, report: Report | None) -> Iterator[Crew]:
    """Yield who carries out the jobs of `plan`; on leaving, what is still in work is stopped and kept.

    Args:
        workers: runs at a time; 1 takes no further process.
        report: takes the progress lines of a run in this process.

    Raises:
        ValueError: a worker process was killed.
    """
    if workers == 1:
        yield _OneByOne(plan, folder, report)
        return
    with _Workers(plan, folder, workers) as crew:
        yield crew


def carry_out(job: Job, plan: Plan, folder: Path, report: Report | None) -> dict[str, Any]:
    """Do `job` unless that is done already, and return its record or its findings."""
    if job.task == "train":
        return train_run(job.run, plan.workload, folder, report)
    return score_run(job.run, plan.workload, folder, with_pictures=job.with_pictures)


class _OneByOne:
    def __init__(self, plan: Plan, folder: Path, report: Report | None) -> None:
        self._plan, self._folder, self._report = plan, folder, report
        self._waiting: deque[Job] = deque()

    def has_room(self) -> bool:
        return not self._waiting

    def start(self, job: Job) -> None:
        self._waiting.append(job)

    def wait(self) -> tuple[Job, dict[str, Any]]:
        job = self._waiting.popleft()
        return job, carry_out(job, self._plan, self._folder, self._report)


class _Workers:
    """A pool of processes. Each has its share of the threads, so that together they use as many as one alone would."""

    def __init__(self, plan: Plan, folder: Path, workers: int) -> None:
        threads = max(1, torch.get_num_threads() // workers)
        self._workers = workers
        self._others = set(multiprocessing.active_children())
        self._jobs: dict[Future[dict[str, Any]], Job] = {}
        self._pool = ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),  # a forked process cannot use CUDA
            initializer=_begin_work,
            initargs=(plan.recipe, folder, workers, threads),
        )

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        if kind is not None:
            for process in set(multiprocessing.active_children()) - self._others:
                process.terminate()  # SIGTERM: a training ends after its step, with a checkpoint
        self._pool.shutdown(cancel_futures=True)

    def has_room(self) -> bool:
        return len(self._jobs) < self._workers

    def start(self, job: Job) -> None:
        run = job.run
        future = self._pool.submit(_work, job.task, run.arm.name, run.learning_rate, run.seed, job.with_pictures)
        self._jobs[future] = job

    def wait(self) -> tuple[Job, dict[str, Any]]:
        done, _ = wait(self._jobs, return_when=FIRST_COMPLETED)
        future = done.pop()
        job = self._jobs.pop(future)
        try:
            return job, future.result()
        except BrokenProcessPool as error:
            raise ValueError(
                "a worker process ended before its run did; perhaps the memory was not enough. What is finished is "
                "kept, and the same command goes on from there; fewer --workers need less."
            ) from error


class _Place:
    """What a worker process knows between its jobs."""

    plan: Plan
    folder: Path
    workers: int


def _begin_work(recipe: Recipe, folder: Path, workers: int, threads: int) -> None:
    # Ctrl-C reaches all processes of a terminal. A training has handlers of its own; between trainings only the
    # process that hands out the jobs shall answer it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    watch_parent()
    torch.set_num_threads(threads)
    _Place.plan, _Place.folder, _Place.workers = make_plan(recipe), folder, workers


def _work(task: Any, arm: str, learning_rate: float, seed: int, with_pictures: bool) -> dict[str, Any]:
    plan = _Place.plan
    planned = next(item for item in plan.arms if item.name == arm)
    run = Run(arm=planned, learning_rate=learning_rate, seed=seed, at_once=_Place.workers)
    try:
        return carry_out(Job(task=task, run=run, with_pictures=with_pictures), plan, _Place.folder, _silent)
    except KeyboardInterrupt:
        # Stopped, with a checkpoint. To wait for another job now could be for ever: whoever hands them out may be gone,
        # or wait for this process to end.
        os._exit(1)


def _silent(line: str) -> None:
    pass
