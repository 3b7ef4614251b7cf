"""The command line, `heedful COMMAND`: see `DESCRIPTION` for which there are.

Each command is one file: a dataclass whose fields are its arguments and whose `run` does the work. Wrong input of any
kind ends with one sentence on standard error and exit status 2, an interruption with 130.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import torch
import tyro

from heedful.cli.bench import Bench
from heedful.cli.claims import Claims
from heedful.cli.compare import Compare
from heedful.cli.convert import Convert
from heedful.cli.estimate import Estimate
from heedful.cli.evaluate import Evaluate
from heedful.cli.export import Export
from heedful.cli.generate import Generate
from heedful.cli.info import Info
from heedful.cli.overrides import split_overrides
from heedful.cli.prepare import Prepare
from heedful.cli.range_test import RangeTest
from heedful.cli.report import Report
from heedful.cli.runs import Runs
from heedful.cli.train import Train
from heedful.train.processes import LostProcessError, RemoteError, environment_rank, environment_world_size

_EXTRAS = {"transformers": "hf", "datasets": "hf", "lm_eval": "eval"}
"""Optional packages, and the extra that brings each."""

Command = (
    Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Prepare, tyro.conf.subcommand("prepare")]
    | Annotated[Estimate, tyro.conf.subcommand("estimate")]
    | Annotated[RangeTest, tyro.conf.subcommand("range-test")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[Runs, tyro.conf.subcommand("runs")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Generate, tyro.conf.subcommand("generate")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Claims, tyro.conf.subcommand("claims")]
    | Annotated[Info, tyro.conf.subcommand("info")]
)

DESCRIPTION = """Attention that does more than one softmax average: train it, compare it fairly, look into it.

`heedful compare RECIPE` compares several mechanisms and `heedful train RECIPE` trains one arm of a recipe, in one
process or under torchrun. Before that, `heedful prepare` makes token shards of its text, `heedful estimate` says what
it will take, `heedful range-test` looks for a learning rate and `heedful bench step` times a step. `heedful runs` lists
runs and where they stand, and `heedful report` writes a page about one; `heedful evaluate` and `heedful generate` take
the folder of a run; `heedful export` writes it for Hugging Face, `heedful convert` removes query projections from
trained models or adds mechanisms to them; `heedful claims` says which of the papers' claims hold, and finds it again;
`heedful info` lists presets, backends and costs.

Any value of a recipe can be changed by its dotted name: `--train.steps 50 --data.corpus my-texts/`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0 done, 2 wrong input or a failure that a sentence explains, 3 another process of the run was lost, 130 interrupted.
    One of several processes ends at once: taking a process group down can wait for others that are gone.
    """
    if environment_world_size() == 1:
        return _run(arguments)
    status = 1
    try:
        status = _run(arguments)
    except SystemExit as leaving:  # of a wrong option
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        plain, overrides = split_overrides(sys.argv[1:] if arguments is None else arguments)
        command: Any = tyro.cli(
            Command,  # type: ignore[arg-type]  # a union of subcommands
            prog="heedful",
            description=DESCRIPTION,
            args=plain,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        )
        command.run(overrides)
        sys.stdout.flush()
    except RemoteError:
        return 2  # the process that found it says so
    except ValueError as error:
        _complain(str(error))
        return 2
    except LostProcessError as error:
        _complain(str(error))
        return 3
    except KeyboardInterrupt:
        if environment_rank() == 0:
            _complain("interrupted; what is finished is saved, and the same command goes on from there.")
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        _complain(f"this needs {error.name}, which is not installed: pip install 'heedful[{_EXTRAS[error.name]}]'.")
        return 2
    except (MemoryError, RuntimeError) as error:
        known = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if isinstance(error, RuntimeError) and not known:
            raise
        _complain("there is not enough memory for this model on this machine.")
        return 2
    except OSError as error:  # a folder that cannot be written, a file that cannot be read, a full disk
        _complain(f"{error.strerror or error}: {error.filename or 'no file named'}.")
        return 2
    return 0


def _complain(message: str) -> None:
    """Say what went wrong, and of several processes which one it was."""
    rank = environment_rank()
    print(f"heedful: {f'process {rank}: ' if rank else ''}{message}", file=sys.stderr)
