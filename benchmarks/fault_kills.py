"""The kills of the fault campaign: at random moments, by every signal, of one process, of a worker, of torchrun."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from typing import Literal

from benchmarks.fault_events import FINISHED, PATIENCE_AFTERWARDS, RESTARTED, Campaign, Event
from benchmarks.fault_runs import (
    DDP,
    FSDP2,
    FSDP2_BACKGROUND,
    SINGLE,
    SINGLE_BACKGROUND,
    TIMEOUT_SECONDS,
    Run,
    Setting,
    Started,
    wait_until,
)

KILLED, INTERRUPTED = -9, 130
Moment = Literal["starting", "training", "saving"]
# Two thirds while it trains or saves, of which every other one waits for a checkpoint.
MOMENTS: tuple[Moment, ...] = ("training", "saving", "training", "saving", "starting", "saving")
KILLS_OF_A_RUN = 6


@dataclass(frozen=True)
class Kill:
    """A signal to the process that was started (of several: torchrun), or to the worker of a rank."""

    number: int
    rank: int | None = None

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return signal.Signals(self.number).name


SINGLE_KILLS = (Kill(signal.SIGKILL), Kill(signal.SIGTERM), Kill(signal.SIGKILL), Kill(signal.SIGINT))
SEVERAL_KILLS = (
    Kill(signal.SIGKILL, 1),
    Kill(signal.SIGKILL),
    Kill(signal.SIGTERM),
    Kill(signal.SIGKILL, 0),
    Kill(signal.SIGTERM, 1),
    Kill(signal.SIGINT),
    Kill(signal.SIGSTOP, 1),
)


def wait_for(moment: Moment, run: Run, started: Started, campaign: Campaign) -> bool:
    """Wait for a random moment of a kind; False when the run ended before it."""
    if moment == "starting":
        time.sleep(campaign.random.uniform(0.0, 6.0))
        return started.process.poll() is None
    if not wait_until(run.trains, started):
        return False
    slower = 1.0 if run.setting.processes == 1 else 2.0
    time.sleep(campaign.random.uniform(0.0, 2.0 * slower))
    if moment == "saving":
        reached = wait_until(run.is_saving, started, 20)
        time.sleep(campaign.random.uniform(0.0, 0.02))
        return reached
    return started.process.poll() is None


def kill_chains(campaign: Campaign, kills: int, settings: tuple[Setting, ...], kinds: tuple[Kill, ...]) -> None:
    """Kill runs again and again until so many kills have hit, let each go on, and compare its end."""
    hits, number = 0, 0
    while hits < kills:
        setting = settings[number % len(settings)]
        run, events = campaign.new_run(setting), []
        number += 1
        while hits < kills and len(events) < KILLS_OF_A_RUN and not run.finished():
            kill, moment = kinds[hits % len(kinds)], MOMENTS[campaign.random.randrange(len(MOMENTS))]
            if moment == "starting" and kill.rank is not None:  # the workers are not there yet
                moment = "training"
            started = run.start()
            if not wait_for(moment, run, started, campaign):
                _ended_before(campaign, run, started)
                continue
            hits += 1
            events.append(one_kill(campaign, run, started, kill, moment))
        campaign.finish(run, events)


def _ended_before(campaign: Campaign, run: Run, started: Started) -> None:
    event = Event("none: it ended before", run.setting.name)
    campaign.require(started.wait() == 0, event, f"failed by itself: {started.text()[-1500:]}")
    started.left_behind(10)


def one_kill(campaign: Campaign, run: Run, started: Started, kill: Kill, moment: Moment) -> Event:
    """Send the signal, and look at what is left."""
    single = run.setting.processes == 1
    target = "the process" if single else "torchrun" if kill.rank is None else "one worker of two"
    event = Event(f"{kill.name} to {target}", run.setting.name, killed=True)
    trains = run.trains()
    event.while_saving, before = run.is_saving(), run.last_step()
    started.send(kill.number, kill.rank)
    if single:
        statuses = {
            signal.SIGKILL: (KILLED,),
            # Until training begins and after it ends the signals do what they always do to Python.
            signal.SIGTERM: (INTERRUPTED, -15, 0),
            signal.SIGINT: (INTERRUPTED, -2, 0),
        }[signal.Signals(kill.number)]
        workers: tuple[int, ...] = ()
    else:
        statuses = (KILLED,) if (kill.number, kill.rank) == (signal.SIGKILL, None) else (0, 1, -2, -15)
        workers = (2, 3, INTERRUPTED, KILLED, -15, -2)
    campaign.after(
        event,
        run,
        started,
        before=before,
        statuses=statuses,
        worker_statuses=workers,
        traceback_allowed=kill.number == signal.SIGINT and not trains,
        # Workers that are still starting look for torchrun when they have loaded torch and the data.
        patience=PATIENCE_AFTERWARDS + (0 if trains else TIMEOUT_SECONDS),
    )
    if not run.has_checkpoint():
        event.outcome = RESTARTED
    elif run.finished():
        event.outcome = FINISHED
    return event


def kill_single_processes(campaign: Campaign) -> None:
    """Kill runs of one process."""
    kill_chains(campaign, campaign.kills * 3 // 5, (SINGLE, SINGLE_BACKGROUND), SINGLE_KILLS)


def kill_several_processes(campaign: Campaign) -> None:
    """Kill workers and torchrun."""
    kill_chains(campaign, campaign.kills - campaign.kills * 3 // 5, (FSDP2_BACKGROUND, DDP, FSDP2), SEVERAL_KILLS)
    restarted_by_torchrun(campaign)


def restarted_by_torchrun(campaign: Campaign) -> None:
    """Kill a worker of a torchrun that may restart, which needs nobody to start it again."""
    run = campaign.new_run(FSDP2)
    event = Event("SIGKILL to one worker, torchrun --max-restarts 1", run.setting.name, killed=True)
    started = run.start(torchrun=("--max_restarts=1",))
    if wait_until(run.has_checkpoint, started):
        event.while_saving, before = run.is_saving(), run.last_step()
        started.send(signal.SIGKILL, 1)
        campaign.after(event, run, started, before=before, statuses=(0,))
        campaign.finish(run, [event])
    else:
        campaign.require(False, event, f"made no checkpoint: {started.text()[-1500:]}")
