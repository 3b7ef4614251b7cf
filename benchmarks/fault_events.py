"""What the fault campaign writes down: one event for each fault, what was wrong with it, and rows that sum them up."""

from __future__ import annotations

import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.fault_runs import REFERENCES, STEPS, Run, Started, write_recipe

CONTINUED = "continued identically"
RESTARTED = "began again identically, no checkpoint yet"
REFUSED = "stopped with a sentence"
FINISHED = "ended undisturbed, identically"
# Seconds until the last process must be gone once the started one is.
PATIENCE_AFTERWARDS = 10.0
# A traceback through heedful's own files is one that a user sees for a fault of the world's; torchrun prints its own.
_OWN_TRACEBACK = re.compile(r'File ".*heedful/[a-z_/]+\.py", line')
# Exit codes of the workers, as torchrun tells them at its end.
_WORKER_STATUS = re.compile(r"exitcode  +: (-?\d+)")


@dataclass
class Event:
    """One fault.

    Attributes:
        fault: what was done.
        setting: to which run.
        killed: whether it was a kill.
        while_saving: whether a checkpoint was half-written at that moment.
        outcome: what became of the run, "" until that is known.
        status: exit status of the process that was started.
        worker_status: exit statuses of torchrun's workers, as far as it tells them.
        seconds: from the fault to the end of the last process.
        lost: checkpoints that were complete before and are not afterwards.
        left: processes that were left.
    """

    fault: str
    setting: str
    killed: bool = False
    while_saving: bool = False
    outcome: str = ""
    status: int | None = None
    worker_status: tuple[int, ...] = ()
    seconds: float = 0.0
    lost: int = 0
    left: int = 0


class Campaign:
    """The folder of all runs, the undisturbed ones to compare with, and everything that happened."""

    def __init__(self, home: Path, kills: int, generator: random.Random) -> None:
        self.home, self.kills, self.random = home.resolve(), kills, generator
        self.steps = STEPS
        self.events: list[Event] = []
        self.violations: list[str] = []
        self.references: dict[str, Run] = {}
        self.count = 0

    def prepare(self) -> None:
        """Write corpus and recipe, and train the undisturbed runs."""
        write_recipe(self.home)
        for setting in REFERENCES:
            run = self.references[setting.name] = Run(self.home, f"reference {setting.name}", setting)
            if run.finished():  # of an earlier campaign in the same folder
                continue
            started = run.start()
            if started.wait(600) != 0:
                raise RuntimeError(f"the undisturbed run {setting.name} failed:\n{started.text()}")
            print(f"reference: {setting.name}", flush=True)

    def new_run(self, setting: Any, folder: Path | None = None) -> Run:
        """Return a run in a folder that nothing is in."""
        self.count += 1
        run = Run(self.home, f"{self.count} {setting.name}", setting, folder)
        shutil.rmtree(run.folder, ignore_errors=True)  # of an earlier campaign
        return run

    def require(self, holds: bool, event: Event, what: str) -> None:
        """Write down a violation unless something holds."""
        if not holds:
            self.violations.append(f"{event.fault}, {event.setting}: {what}")
            print(f"!! {self.violations[-1]}", flush=True)

    def after(
        self,
        event: Event,
        run: Run,
        started: Started,
        *,
        before: int,
        statuses: Iterable[int],
        worker_statuses: Iterable[int] = (),
        traceback_allowed: bool = False,
        damaged: bool = False,
        patience: float = PATIENCE_AFTERWARDS,
    ) -> None:
        """Wait for the end of what a fault hit, and look at everything that must hold right then.

        Args:
            before: the step of the last checkpoint before the fault.
            statuses: exit statuses that are right.
            worker_statuses: the same for torchrun's workers.
            traceback_allowed: it was hit before heedful's own code ran.
            damaged: the checkpoints are broken because that is the fault.
            patience: seconds until the last process must be gone once the started one is.
        """
        began = time.monotonic()
        event.status = started.wait()
        event.left = started.left_behind(patience)
        event.seconds = time.monotonic() - began
        text = started.text()
        event.worker_status = tuple(int(found) for found in _WORKER_STATUS.findall(text))
        self.require(event.status is not None, event, "did not end in time")
        self.require(event.status in (*statuses, None), event, f"exit status {event.status}: {text[-400:]}")
        if worker_statuses:
            wrong = set(event.worker_status) - {*worker_statuses}
            self.require(not wrong, event, f"exit statuses {event.worker_status} of workers")
        self.require(event.left == 0, event, f"{event.left} processes were left")
        self.require(
            traceback_allowed or not _OWN_TRACEBACK.search(text), event, f"a traceback was shown: {text[-1500:]}"
        )
        broken = [] if damaged else run.broken_checkpoints()
        went_back = run.last_step() < before
        event.lost = len(broken) + went_back
        self.require(event.lost == 0, event, f"checkpoints lost: {broken or 'last.json went back'}")
        self.events.append(event)
        print(
            f"{event.fault}; {event.setting}: status {event.status} {event.worker_status or ''} after "
            f"{event.seconds:.1f} s, step {run.last_step()}{', while saving' if event.while_saving else ''}",
            flush=True,
        )

    def refused(
        self, event: Event, run: Run, started: Started, *, saying: str, workers: bool = False, damaged: bool = False
    ) -> None:
        """Write down a stop that must have come with a sentence and status 2 (of the workers where there are some)."""
        expected = (1,) if workers else (2,)
        # torchrun stops the other workers when the first has ended.
        self.after(
            event,
            run,
            started,
            before=run.last_step(),
            statuses=expected,
            worker_statuses=(2, 3, -15),
            damaged=damaged,
        )
        said = re.search(saying, started.text(), re.DOTALL) is not None
        self.require(said, event, f"does not say {saying!r}: {started.text()[-600:]}")
        event.outcome = REFUSED

    def finish(self, run: Run, events: list[Event], *, outcome: str = CONTINUED, options: tuple[str, ...] = ()) -> None:
        """Let a run go on to its end, undisturbed, and compare it with the run that always was."""
        event = events[-1] if events else Event("none", run.setting.name)
        if not run.finished():
            started = run.start(*options)
            status = started.wait(600)
            self.require(status == 0, event, f"did not go on: status {status}: {started.text()[-1500:]}")
            self.require(started.left_behind(PATIENCE_AFTERWARDS) == 0, event, "processes were left after the end")
            if status != 0:
                return
        differences = run.differences(self.references[run.setting.reference])
        self.require(not differences, event, f"ended differently: {differences[:4]}")
        for event in events:
            if not differences and not event.outcome:
                event.outcome = outcome

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each fault and setting, in the order they first happened."""
        groups: dict[tuple[str, str], list[Event]] = {}
        for event in self.events:
            groups.setdefault((event.fault, event.setting), []).append(event)
        return [_row(fault, setting, events) for (fault, setting), events in groups.items()]


def _row(fault: str, setting: str, events: list[Event]) -> dict[str, Any]:
    workers = Counter(status for event in events for status in event.worker_status)
    return {
        "fault": fault,
        "setting": setting,
        "times": len(events),
        "kill": events[0].killed,
        "while_saving": sum(event.while_saving for event in events),
        "outcomes": dict(Counter(event.outcome or "violated an expectation" for event in events)),
        "statuses": {str(status): count for status, count in Counter(event.status for event in events).items()},
        "worker_statuses": {str(status): count for status, count in workers.items()},
        "checkpoints_lost": sum(event.lost for event in events),
        "processes_left": sum(event.left for event in events),
        "longest_seconds_to_end": round(max(event.seconds for event in events), 1),
    }
