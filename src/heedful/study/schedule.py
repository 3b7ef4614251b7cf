"""Which runs of a comparison can start when: the learning rates of an arm are tried first, then its other seeds are
trained with the best one, and what is trained is tested.

Nothing is trained here. Whoever carries out the jobs, one after the other or several at a time, takes them from
`Schedule.next` and brings back what came out.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from heedful.study.plan import Plan, PlannedArm
from heedful.study.results import ArmRecords
from heedful.study.runs import Run


@dataclass(frozen=True, kw_only=True)
class Job:
    """Train or test one run; pictures are made of the first seed's test alone."""

    task: Literal["train", "test"]
    run: Run
    with_pictures: bool = False


class Schedule:
    """The jobs of a comparison, arm after arm where nothing else stands in the way."""

    def __init__(self, plan: Plan) -> None:
        self._arms = [_ArmSchedule(arm, plan.recipe.sweep_seeds) for arm in plan.arms]
        self._of = {arm.arm.name: arm for arm in self._arms}

    def next(self) -> Job | None:
        """Take the first job that can start, None where all that is left waits for others."""
        waiting = next((arm.ready for arm in self._arms if arm.ready), None)
        return waiting.pop(0) if waiting else None

    def done(self, job: Job, outcome: dict[str, Any]) -> None:
        """Bring back the record of a training, or the findings of a test."""
        self._of[job.run.arm.name].done(job, outcome)

    def records(self) -> list[ArmRecords]:
        """Return what came out, when all jobs are done."""
        return [arm.records() for arm in self._arms]


class _ArmSchedule:
    def __init__(self, arm: PlannedArm, sweep_seeds: int) -> None:
        self.arm = arm
        self._tries = arm.seeds[:sweep_seeds]
        self._trained: dict[tuple[float, int], dict[str, Any]] = {}
        self._findings: dict[int, dict[str, Any]] = {}
        self._learning_rate: float | None = None
        self.ready = [self._train(rate, seed) for rate in arm.learning_rates for seed in self._tries]

    def done(self, job: Job, outcome: dict[str, Any]) -> None:
        if job.task == "test":
            self._findings[job.run.seed] = outcome
            return
        self._trained[job.run.learning_rate, job.run.seed] = outcome
        if self._learning_rate is not None:
            self._test(outcome)
        elif len(self._trained) == len(self.arm.learning_rates) * len(self._tries):
            self._choose()

    def _choose(self) -> None:
        sweep = self._sweep()
        self._learning_rate = chosen = choose(sweep)
        if chosen is None:
            return
        self.ready += [self._train(chosen, seed) for seed in self.arm.seeds[len(self._tries) :]]
        for record in sweep:
            if record["learning_rate"] == chosen:
                self._test(record)

    def _train(self, learning_rate: float, seed: int) -> Job:
        return Job(task="train", run=Run(arm=self.arm, learning_rate=learning_rate, seed=seed))

    def _test(self, record: dict[str, Any]) -> None:
        if record["status"] == "finished":
            run = Run(arm=self.arm, learning_rate=record["learning_rate"], seed=record["seed"])
            self.ready.append(Job(task="test", run=run, with_pictures=run.seed == self.arm.seeds[0]))

    def _sweep(self) -> list[dict[str, Any]]:
        return [self._trained[rate, seed] for rate in self.arm.learning_rates for seed in self._tries]

    def records(self) -> ArmRecords:
        chosen = self._learning_rate
        rest = [] if chosen is None else [self._trained[chosen, seed] for seed in self.arm.seeds[len(self._tries) :]]
        sweep = self._sweep()
        findings = {seed: self._findings[seed] for seed in self.arm.seeds if seed in self._findings}
        return ArmRecords(arm=self.arm, sweep=sweep, learning_rate=chosen, runs=[*sweep, *rest], findings=findings)


def choose(sweep: list[dict[str, Any]]) -> float | None:
    """Return the learning rate with the lowest mean validation loss (of equals the lower rate), if any.

    A rate at which any of the sweep's seeds diverged is not chosen.
    """
    records: dict[float, list[dict[str, Any]]] = {}
    for record in sweep:
        records.setdefault(record["learning_rate"], []).append(record)
    losses = {
        rate: fmean(record["best"]["val/loss"] for record in tries)
        for rate, tries in records.items()
        if all(record["status"] == "finished" for record in tries)
    }
    return min(losses, key=lambda rate: (losses[rate], rate), default=None)
