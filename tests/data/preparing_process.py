"""Prepares a corpus as a process of its own that can be killed: corpus, cache and then options as JSON.

Neither torch nor the packages' own `__init__` is imported, so that many of these can be started and killed in a test.
It prints "ready", the process ids of its workers, the stages, and at the end "done" with the folder.
"""

from __future__ import annotations

import json
import resource
import sys
import types
from pathlib import Path

SOURCE = Path(__file__).parent.parent.parent / "src/heedful"
for name, path in (("heedful", SOURCE), ("heedful.data", SOURCE / "data")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [str(path)]

from heedful.data import building, tokenizing, workers  # noqa: E402
from heedful.data.config import DataConfig  # noqa: E402

assert "torch" not in sys.modules


def say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    corpus, cache, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    tokenizing.PART_BYTES = options.get("part_bytes", 2000)
    if "largest_file" in options:
        resource.setrlimit(resource.RLIMIT_FSIZE, (options["largest_file"], options["largest_file"]))
    start = workers._start

    def start_and_tell():
        process = start()
        say(f"worker {process.pid}")
        return process

    workers._start = start_and_tell
    config = DataConfig(corpus=corpus, cache_folder=cache, **options.get("config", {"tokenizer": "bytes"}))
    say("ready")
    try:
        building.prepare(config, say, workers=options.get("workers", 2))
    except ValueError as error:
        sys.exit(f"refused: {error}")
    say("done")


main()
