"""The faults of the campaign that come from around a run: disks, folders, corpora, and losses that are not numbers."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from benchmarks.fault_events import CONTINUED, REFUSED, Campaign, Event
from benchmarks.fault_runs import (
    EVALUATE_EVERY,
    FSDP2_BACKGROUND,
    SINGLE,
    SINGLE_BACKGROUND,
    Run,
    Setting,
    Started,
    fill,
    small_disk,
    wait_until,
    write_text,
)

DISK_KILOBYTES = 6_000
# A checkpoint of the campaign's model is about 440 kB of state and 140 kB of model.
ROOM = {"the state": 200, "model.safetensors": 490}
METRICS = "metrics.jsonl"


def pause(campaign: Campaign, seconds: float = 1.5) -> None:
    """Let a random time pass."""
    time.sleep(campaign.random.uniform(0.0, seconds))


def begun(campaign: Campaign, run: Run, event: Event, *options: str, prefix: tuple[str, ...] = ()) -> Started:
    """Start a run and wait until it has a checkpoint."""
    started = run.start(*options, prefix=prefix)
    reached = wait_until(run.has_checkpoint, started)
    campaign.require(reached, event, f"made no checkpoint: {started.text()[-1500:]}")
    return started


def full_disks(campaign: Campaign) -> None:
    """Fill the disk of a run that is going on, so much that this or that file does not fit any more."""
    if os.geteuid() != 0:
        print("full disks: a small disk can be mounted by root only, left out", flush=True)
        return
    for setting in (SINGLE, SINGLE_BACKGROUND, FSDP2_BACKGROUND):
        for what, room in ROOM.items():
            _full_disk(campaign, setting, what, room)
    _full_disk(campaign, SINGLE, METRICS, 0)
    _full_from_the_beginning(campaign)


def _full_disk(campaign: Campaign, setting: Setting, what: str, room: int) -> None:
    with small_disk(campaign.home / "disks" / str(len(campaign.events)), DISK_KILOBYTES) as disk:
        run = campaign.new_run(setting, disk / "run")
        event = Event(f"disk full at {what}", run.setting.name)
        started = begun(campaign, run, event)
        if what == METRICS:
            started = _only_metrics(run, started)
        else:
            pause(campaign, 0.5)
        ballast = fill(disk, room)
        saying = f"No space left on device.*{METRICS}" if what == METRICS else "could not be written.*No space left"
        campaign.refused(event, run, started, saying=saying, workers=run.setting.processes > 1)
        ballast.unlink()
        event.outcome = ""
        campaign.finish(run, [event])
        event.outcome = event.outcome and f"{REFUSED}, then {CONTINUED}"


def _only_metrics(run: Run, started: Started) -> Started:
    """Bring a run to where nothing but metrics will be written for some steps, and let it write many."""
    while True:
        started.send(signal.SIGTERM)
        started.wait()
        step = run.last_step()
        if step % EVALUATE_EVERY < EVALUATE_EVERY // 2:
            break
        started = run.start()
        wait_until(lambda: run.last_step() > step, started)  # noqa: B023  # it is over before the next round
    started = run.start("--train.checkpoint_every", "1000", "--train.probe_every", "1")
    wait_until(lambda: run.trains() and run.metrics()[-1]["step"] > step, started)
    return started


def _full_from_the_beginning(campaign: Campaign) -> None:
    with small_disk(campaign.home / "disks" / "full", DISK_KILOBYTES) as disk:
        ballast = fill(disk, 0)
        run = campaign.new_run(SINGLE, disk / "run")
        event = Event("disk full before the start", run.setting.name)
        campaign.refused(event, run, run.start(), saying="No space left on device")
        ballast.unlink()
        campaign.finish(run, [event])
        event.outcome = event.outcome and f"{REFUSED}, then began again identically"


def diverging_losses(campaign: Campaign) -> None:
    """Poison the loss of one step, once or whenever it is computed, in one process or in the second of two."""
    for setting, rank in ((SINGLE, 0), (FSDP2_BACKGROUND, 1)):
        for always in (False, True):
            _poisoned(campaign, setting, rank, always=always)


def _poisoned(campaign: Campaign, setting: Setting, rank: int, *, always: bool) -> None:
    run = campaign.new_run(setting)
    workers = run.setting.processes > 1
    step = campaign.random.randrange(10, 40)
    marker = "-" if always else str(campaign.home / f"poisoned-{campaign.count}")
    module = ("benchmarks.fault_worker", "nan", str(step), str(rank), marker)
    event = Event(f"NaN loss, {'every time' if always else 'once'}", run.setting.name)
    saying = rf"diverged at step {step + 1}: "
    campaign.refused(event, run, run.start(module=module), saying=saying, workers=workers)
    campaign.require(run.last_step() <= step, event, f"a checkpoint was made of step {run.last_step()}")
    if always:
        campaign.refused(event, run, run.start(module=module), saying=saying, workers=workers)
        event.outcome = f"{REFUSED}, at the same step again"
        campaign.events.pop()  # one fault, met twice
        campaign.finish(run, [Event(event.fault, event.setting)])
    else:
        event.outcome = ""
        campaign.finish(run, [event])
        event.outcome = event.outcome and f"{REFUSED}, then {CONTINUED}"


def changing_corpora(campaign: Campaign) -> None:
    """Change the text between two runs, while one trains, and while it is being prepared."""
    text = campaign.home / "text.txt"
    original = text.read_bytes()

    run = campaign.new_run(SINGLE)
    event = Event("corpus changed between two runs", run.setting.name)
    started = begun(campaign, run, event)
    started.send(signal.SIGKILL)
    started.wait()
    text.write_bytes(original + b"one more line\n")
    campaign.refused(event, run, run.start(), saying="belongs to another run: data.fingerprint is ")
    text.write_bytes(original)
    campaign.finish(run, [event])
    event.outcome = f"{REFUSED}, then {CONTINUED} with the old text"

    run = campaign.new_run(SINGLE)
    event = Event("corpus changed while a run trains", run.setting.name)
    started = begun(campaign, run, event)
    text.write_bytes(original + b"one more line\n")
    campaign.after(event, run, started, before=run.last_step(), statuses=(0,))
    text.write_bytes(original)
    campaign.finish(run, [event])
    event.outcome = event.outcome and "ended identically, on the text it began with"

    _shards_changed(campaign)
    _changed_in_preparation(campaign)


def _shards_changed(campaign: Campaign) -> None:
    run = campaign.new_run(SINGLE)
    event = Event("byte of a token shard changed between two runs", run.setting.name)
    started = begun(campaign, run, event)
    started.send(signal.SIGKILL)
    started.wait()
    key = json.loads((run.folder / "data.json").read_text())["manifest"]["key"]
    (folder,) = (campaign.home / "cache" / "shards").glob(f"text*-{key[:16]}")
    shard = max(folder.iterdir(), key=lambda path: path.stat().st_size)
    original = shard.read_bytes()
    shard.write_bytes(original[:100] + bytes([original[100] ^ 1]) + original[101:])
    campaign.refused(event, run, run.start(), saying="is not what was written")
    shard.write_bytes(original)
    campaign.finish(run, [event])
    event.outcome = f"{REFUSED}, then {CONTINUED} with the shard put back"


def _changed_in_preparation(campaign: Campaign) -> None:
    """Change, then kill, the preparation of a text that takes some seconds."""
    text, cache = campaign.home / "large.txt", campaign.home / "large-cache"
    write_text(text, 600_000)
    data = ("--data.corpus", str(text), "--data.cache_folder", str(cache), "--dry-run")

    def preparing(run: Run) -> Started:
        started = run.start(*data, resume=False)
        wait_until(lambda: "reading" in started.text(), started)
        pause(campaign, 1.0)
        return started

    run = campaign.new_run(SINGLE)
    event = Event("corpus changed while it is prepared", run.setting.name)
    started = preparing(run)
    with text.open("a") as file:
        file.write("one more line\n")
    campaign.refused(event, run, started, saying="changed")
    complete = list((cache / "shards").glob("[!.]*"))
    campaign.require(not complete, event, f"left {complete}")

    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        run = campaign.new_run(SINGLE)
        event = Event(f"{signal.Signals(number).name} while a corpus is prepared", run.setting.name, killed=True)
        started = preparing(run)
        started.send(number)
        statuses = {signal.SIGKILL: (-9,), signal.SIGTERM: (-15,), signal.SIGINT: (130, -2)}[number]
        campaign.after(event, run, started, before=0, statuses=statuses)
        complete = list((cache / "shards").glob("[!.]*"))
        campaign.require(not complete, event, f"left {complete}")
        event.outcome = "went on identically"
    again = run.start(*data, resume=False)
    campaign.require(again.wait(600) == 0, event, f"could not be prepared afterwards: {again.text()[-1500:]}")
    campaign.require(again.left_behind(10) == 0, event, "processes were left")
    elsewhere = run.start(*data[:3], str(cache) + "-undisturbed", "--dry-run", resume=False)
    campaign.require(elsewhere.wait(600) == 0, event, f"could not be prepared: {elsewhere.text()[-1500:]}")
    mine, other = (_shards(Path(f"{cache}{end}")) for end in ("", "-undisturbed"))
    campaign.require(bool(mine) and mine == other, event, "the shards differ from those of an undisturbed preparation")


def _shards(cache: Path) -> dict[str, bytes]:
    folder = next((cache / "shards").glob("[!.]*"))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_only_folders(campaign: Campaign) -> None:
    """Take away the right to write, before the start and while a run goes on."""
    # Root may write anywhere unless it gives that up.
    mine = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
    folder = campaign.home / "read-only"
    folder.mkdir()
    folder.chmod(0o555)
    run = campaign.new_run(SINGLE, folder / "run")
    event = Event("folder that may not be written, from the start", run.setting.name)
    campaign.refused(event, run, run.start(prefix=mine), saying="Permission denied: .*read-only")
    folder.chmod(0o755)
    campaign.finish(run, [event])
    event.outcome = f"{REFUSED}, then began again identically"

    for setting in (SINGLE, SINGLE_BACKGROUND):
        run = campaign.new_run(setting)
        event = Event("folder that may not be written any more", run.setting.name)
        started = begun(campaign, run, event, prefix=mine)
        run.checkpoints.chmod(0o555)
        campaign.refused(event, run, started, saying="could not be written to .*Permission denied")
        run.checkpoints.chmod(0o755)
        event.outcome = ""
        campaign.finish(run, [event])
        event.outcome = event.outcome and f"{REFUSED}, then {CONTINUED}"


def folders_in_use(campaign: Campaign) -> None:
    """Start a second run in the folder of one that is going on; the first must not notice."""
    for setting in (SINGLE, FSDP2_BACKGROUND):
        run = campaign.new_run(setting)
        event = Event("a second run in the same folder", run.setting.name)
        first = begun(campaign, run, event, "--train.parallel.timeout_seconds", "600")
        for pid in first.running():  # so that it is still there when the other comes
            os.kill(pid, signal.SIGSTOP)
        second = run.start()
        several = setting.processes > 1
        campaign.refused(event, run, second, saying="another process is training in", workers=several)
        for pid in first.running():
            os.kill(pid, signal.SIGCONT)
        campaign.require(first.wait() == 0, event, f"the first run did not end well: {first.text()[-1500:]}")
        event.outcome = ""
        campaign.finish(run, [event])
        event.outcome = event.outcome and "the second stopped with a sentence, the first ended identically"
