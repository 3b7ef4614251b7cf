"""Damaged checkpoints of the fault campaign: every file, in every way, read by one process and by two."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from benchmarks.fault_events import CONTINUED, REFUSED, Campaign, Event
from benchmarks.fault_runs import FSDP2, SINGLE, Run, Started, wait_until


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def truncate(path: Path) -> None:
    """Leave the first half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    """Leave an empty file."""
    path.write_bytes(b"")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "bit flipped": flip,
    "truncated": truncate,
    "emptied": empty,
    "removed": Path.unlink,
}


def damaged_files(campaign: Campaign) -> None:
    """Damage a copy of a stopped run in every way; each must be refused by name, or change nothing."""
    for setting in (SINGLE, FSDP2):
        run = campaign.new_run(setting)
        event = Event("none", setting.name)
        started = run.start("--train.keep_last", "2")
        # Some checkpoints on, so that there is a best one and another that could be used.
        wait_until(lambda run=run: run.last_step() > 14, started)
        started.send(signal.SIGTERM)
        started.wait()
        campaign.require(run.has_checkpoint(), event, f"no checkpoint to damage: {started.text()[-800:]}")
        _every_file(campaign, run)
        _another_checkpoint(campaign, run)


def _files(run: Run) -> list[Path]:
    """Return pointers and the files of the last checkpoint, relative to the run's folder."""
    last = run.checkpoints / json.loads((run.checkpoints / "last.json").read_text())["folder"]
    files = [run.checkpoints / "last.json", run.checkpoints / "best.json", *last.rglob("*")]
    return sorted(path.relative_to(run.folder) for path in files if path.is_file())


def _kind(file: Path) -> str:
    return re.sub(r"step-[\d.]+/", "", re.sub(r"shard-.*", "shard", str(file).removeprefix("checkpoints/")))


def _every_file(campaign: Campaign, run: Run) -> None:
    copies: list[tuple[str, Path, Run]] = []
    for file in _files(run):
        for name, damage in DAMAGES.items():
            copy = campaign.new_run(run.setting)
            shutil.copytree(run.folder, copy.folder)
            damage(copy.folder / file)
            copies.append((name, file, copy))
    jobs = campaign.home / f"damaged-{campaign.count}.json"
    # Two steps more are enough where a damage is no reason to stop.
    jobs.write_text(json.dumps([copy.arguments("--train.keep_last", "2") for _, _, copy in copies]))
    before = [copy.contents() for _, _, copy in copies]
    command = ["-m", "benchmarks.fault_worker", "many", str(jobs)]
    if run.setting.processes > 1:
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={run.setting.processes}", *command]
    started = Started(command, jobs.with_suffix(".txt"))
    status = started.wait(900)
    overall = Event("damaged files", run.setting.name)
    campaign.require(status == 0, overall, f"the worker failed: {started.text()[-1500:]}")
    campaign.require(started.left_behind(10) == 0, overall, "processes were left")
    found = [json.loads(jobs.with_suffix(f".{rank}.json").read_text()) for rank in range(run.setting.processes)]
    for index, (name, file, copy) in enumerate(copies):
        results = [of_rank[index] for of_rank in found]
        event = Event(f"damaged: {_kind(file)}", run.setting.name, status=results[0]["status"])
        campaign.events.append(event)
        said = "".join(result["said"] for result in results)
        if {result["status"] for result in results} == {0}:  # not needed, or made good
            differences = copy.differences(campaign.references[run.setting.reference])
            campaign.require(not differences, event, f"{name}: accepted, and ended differently: {differences[:4]}")
            event.outcome = f"{CONTINUED}, as if it were there" if not differences else ""
            continue
        campaign.require({result["status"] for result in results} == {2}, event, f"exit statuses in {results}")
        campaign.require((str(file.name) in said and "is damaged" in said) or "is missing" in said, event, said)
        campaign.require(copy.contents() == before[index], event, "the folder was changed")
        event.outcome = REFUSED
    print(f"damaged files, {run.setting.name}: {len(copies)}", flush=True)
    for _, _, copy in copies:
        shutil.rmtree(copy.folder)


def _another_checkpoint(campaign: Campaign, run: Run) -> None:
    """With the last checkpoint damaged, go on from the one that the message names."""
    last = run.checkpoints / json.loads((run.checkpoints / "last.json").read_text())["folder"]
    flip(last / "model.safetensors")
    event = Event("last checkpoint damaged, another one named with --checkpoint", run.setting.name)
    started = run.start("--train.keep_last", "2")
    campaign.refused(event, run, started, saying="--checkpoint NAME", workers=run.setting.processes > 1, damaged=True)
    names = re.findall(r"there are ([^\n]*?)\.\n", started.text())[-1].split(", ")
    best = json.loads((run.checkpoints / "best.json").read_text())["folder"]
    campaign.require(bool(names), event, "no other checkpoint is named")
    name = next(name for name in names if name != best)
    event.outcome = ""
    campaign.finish(run, [event], options=("--checkpoint", name, "--train.keep_last", "2"))
    event.outcome = event.outcome and f"{REFUSED}, then {CONTINUED} from the other"
