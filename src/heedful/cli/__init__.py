"""The command line: `heedful train | compare | evaluate | generate | export | convert | info`.

Each command is one file: a dataclass whose fields are its arguments and whose `run` does the work. Wrong input of any
kind ends with one sentence on standard error and exit status 2, an interruption with 130.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from heedful.cli.compare import Compare
from heedful.cli.convert import Convert
from heedful.cli.evaluate import Evaluate
from heedful.cli.export import Export
from heedful.cli.generate import Generate
from heedful.cli.info import Info
from heedful.cli.overrides import split_overrides
from heedful.cli.train import Train

_EXTRAS = {"transformers": "hf", "datasets": "hf", "lm_eval": "eval"}
"""Optional packages, and the extra that brings each."""

Command = (
    Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Generate, tyro.conf.subcommand("generate")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Info, tyro.conf.subcommand("info")]
)

DESCRIPTION = """Attention that does more than one softmax average: train it, compare it fairly, look into it.

`heedful compare RECIPE` compares several mechanisms and `heedful train RECIPE` trains one arm of a recipe; `heedful
evaluate` and `heedful generate` take the folder of a run; `heedful export` writes it
for Hugging Face, `heedful convert` removes query projections from trained models or adds mechanisms to them; `heedful
info` lists presets, backends and costs.

Any value of a recipe can be changed by its dotted name: `--train.steps 50 --data.corpus my-texts/`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 done, 2 wrong input, 130 interrupted."""
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
    except ValueError as error:
        print(f"heedful: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "heedful: interrupted; what is finished is saved, and the same command goes on from there.", file=sys.stderr
        )
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        print(
            f"heedful: this needs {error.name}, which is not installed: pip install 'heedful[{_EXTRAS[error.name]}]'.",
            file=sys.stderr,
        )
        return 2
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
            raise
        print("heedful: there is not enough memory for this model on this machine.", file=sys.stderr)
        return 2
    except OSError as error:  # a folder that cannot be written, a file that cannot be read, a full disk
        print(f"heedful: {error.strerror or error}: {error.filename or 'no file named'}.", file=sys.stderr)
        return 2
    return 0
