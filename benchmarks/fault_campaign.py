"""Training runs that are killed, starved, damaged and poisoned for real, and what becomes of them.

    python -m benchmarks.fault_campaign --kills 40 --seed 1

Every fault happens to processes of `heedful train`, one or two under torchrun, on a text of its own. Afterwards a run
must either go on and end exactly as one that was left alone (metrics.jsonl without times, result, every tensor of its
last and its best checkpoint, bit for bit), or have stopped with a sentence and an exit status; after every fault the
checkpoints that last.json and best.json name are opened and their hashes checked, and no process may be left. Moments
are drawn from the seed; a third of the kills waits for a checkpoint that is being written. What should not be is listed
under "violations", and the program then exits with 1. Written to results/fault-campaign-cpu.json.
"""

from __future__ import annotations

import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.fault_damage import damaged_files
from benchmarks.fault_events import Campaign
from benchmarks.fault_kills import kill_several_processes, kill_single_processes
from benchmarks.fault_surroundings import (
    changing_corpora,
    diverging_losses,
    folders_in_use,
    full_disks,
    read_only_folders,
)
from benchmarks.measuring import ROOT, describe, write_result

CLASSES: dict[str, Callable[[Campaign], None]] = {
    "kills of one process": kill_single_processes,
    "kills of several processes": kill_several_processes,
    "full disks": full_disks,
    "damaged files": damaged_files,
    "diverging losses": diverging_losses,
    "changing corpora": changing_corpora,
    "read-only folders": read_only_folders,
    "folders in use": folders_in_use,
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Do things to training runs."""

    kills: int = 40
    """Kills in all; three of five hit runs of one process."""

    seed: int = 1
    """Draws the moments."""

    only: tuple[str, ...] = ()
    """Fault classes to run, by the beginning of their names; all by default."""

    folder: Path | None = None
    """Where the runs are made; a temporary folder by default."""

    write: bool = True
    """Write the result file."""


def main() -> int:
    """Run the campaign and write what happened."""
    options = tyro.cli(Options, prog="python -m benchmarks.fault_campaign")
    # A shell starts what runs in its background with SIGINT ignored, and the processes here would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    head = describe("fault_campaign", "cpu")
    home = options.folder or Path(tempfile.mkdtemp(prefix="heedful-faults-"))
    home.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    campaign = Campaign(home, options.kills, random.Random(options.seed))
    campaign.prepare()
    for name, perform in CLASSES.items():
        if not options.only or any(name.startswith(beginning) for beginning in options.only):
            print(f"== {name}", flush=True)
            perform(campaign)
    result = {
        **head,
        "seed": options.seed,
        "steps": campaign.steps,
        "seconds": round(time.monotonic() - began),
        "kills": sum(event.killed for event in campaign.events),
        "kills_while_saving": sum(event.while_saving for event in campaign.events),
        "rows": campaign.rows(),
        "violations": campaign.violations,
    }
    if options.write:
        write_result(result, "fault-campaign-cpu", ROOT / "results")
    for violation in campaign.violations:
        print(f"violated: {violation}")
    if options.folder is None and not campaign.violations:
        shutil.rmtree(home)
    kills = f"{result['kills']} kills, {result['kills_while_saving']} of them while saving"
    print(f"{kills}; {len(campaign.violations)} violations")
    return 1 if campaign.violations else 0


if __name__ == "__main__":
    sys.exit(main())
