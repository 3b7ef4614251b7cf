"""Time and memory of multi-token attention as multiples of SDPA: every part, every implementation, and decoding.

    python -m benchmarks.multi_token --device cpu

All implementations of a case take turns in every round; figures are medians of the rounds' ratios. The result is
written to results/benchmarks/multi-token-DEVICE.json, with -dWIDTH after a head_dim that is not the device's usual one.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
import tyro

from benchmarks.decoding import decode_rows
from benchmarks.measuring import Timing, describe, in_turns, require_device, storage_type, write_result
from benchmarks.multi_token_forms import (
    CASES,
    GROWTH_LENGTHS,
    GROWTH_TARGET,
    LIGER,
    OWN,
    SAVING_LENGTH,
    SAVING_TARGET,
    WIDE,
    Inputs,
    Step,
    build,
    draw_inputs,
    draw_parts,
    implementations,
    target,
)
from heedful.train.memory import peak_tensor_bytes

Kind = Literal["forward", "training", "memory", "decode"]
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure multi-token attention against SDPA, against the materialised form, and Liger-Kernel's operator."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Where to run; float32 on the CPU, bfloat16 on CUDA."""

    kinds: tuple[Kind, ...] = ("forward", "training", "memory", "decode")
    """What to measure; training is forward and backward."""

    cases: tuple[str, ...] = ()
    """Which parts, see benchmarks/multi_token_forms.py; all by default, on the CPU without "post convolution"."""

    lengths: tuple[int, ...] = ()
    """Sequence lengths; 512 to 8192 on the CPU, 2048 to 32768 on CUDA by default."""

    contexts: tuple[int, ...] = ()
    """Contexts of decoding; 1024 and 4096, on CUDA also 16384 by default."""

    batch: int | None = None
    """Rows of a batch; 1 on the CPU, on CUDA 4 up to N = 8192 and 1 above by default."""

    heads: int | None = None
    """Number of heads; 8 on the CPU, 16 on CUDA by default."""

    head_dim: int | None = None
    """Width of a head; 64 on the CPU, 96 on CUDA by default."""

    rounds: int = 7
    """How often each figure is measured."""

    long_rounds: int = 3
    """The same at N = 4096, on the CPU; above it one round after the one that warms up."""

    long_cases: tuple[str, ...] = ("pre convolution", "all four")
    """The cases measured above N = 4096 on the CPU."""

    materialised_up_to: int | None = None
    """Longest sequence of whole maps; 2048 on the CPU, 8192 on CUDA by default."""

    materialised_rounds: int = 1
    """How often whole maps are measured on the CPU."""

    def for_device(self) -> Options:
        """Return the options with the device's usual values where none were given."""
        cuda = self.device == "cuda"
        return replace(
            self,
            cases=self.cases or (CASES if cuda else CASES[:-1]),
            lengths=self.lengths or ((2048, 4096, 8192, 16384, 32768) if cuda else (512, 1024, 2048, 4096, 8192)),
            contexts=self.contexts or ((1024, 4096, 16384) if cuda else (1024, 4096)),
            heads=self.heads or self.usual_shape[0],
            head_dim=self.head_dim or self.usual_shape[1],
            materialised_up_to=self.materialised_up_to or (8192 if cuda else 2048),
        )

    @property
    def usual_shape(self) -> tuple[int, int]:
        """Heads and width of a head that the aims are for."""
        return (16, 96) if self.device == "cuda" else (8, 64)

    @property
    def shape(self) -> tuple[int, int]:
        """Heads and width of a head."""
        return self.heads or self.usual_shape[0], self.head_dim or self.usual_shape[1]

    def batch_at(self, length: int) -> int:
        """Return the rows of a batch at a length."""
        return self.batch or (4 if self.device == "cuda" and length <= 8192 else 1)

    def rounds_at(self, length: int) -> int:
        """Return the rounds at a length."""
        if self.device == "cuda" or length < 4096:
            return self.rounds
        return min(self.rounds, self.long_rounds if length == 4096 else 1)

    def cases_at(self, length: int) -> tuple[str, ...]:
        """Return the cases at a length."""
        long = self.device == "cpu" and length > 4096
        return tuple(case for case in self.cases if not long or case in self.long_cases)


def operation_rows(options: Options) -> Iterator[Row]:
    """Yield the rows of forward, training and memory: every length, case and implementation."""
    for length in options.lengths:
        for case in options.cases_at(length):
            yield from case_rows(case, length, options)


def case_rows(case: str, length: int, options: Options) -> Iterator[Row]:
    """Yield the rows of one case at one length."""
    torch.manual_seed(0)
    device, dtype = options.device, storage_type(options.device)
    heads, head_dim = options.shape
    inputs = draw_inputs(options.batch_at(length), heads, length, head_dim, device, dtype)
    parts = draw_parts(case, heads, device, dtype)
    steps: dict[str, Step] = {}
    refusals: dict[str, str] = {}
    for name in implementations(case, device):
        step = attempt(name, length, inputs, parts, options)
        if isinstance(step, str):
            refusals[name] = step
        else:
            steps[name] = step
    fewer = {"materialised": options.materialised_rounds} if device == "cpu" else {}
    usual = options.shape == options.usual_shape and options.batch_at(length) == (4 if device == "cuda" else 1)
    for kind in options.kinds:
        if kind == "decode":
            continue
        aim = {name: target(device, kind, case, name, length, usual) for name in steps}
        common = {"kind": kind, "case": case, "length": length}
        if kind == "memory":
            peaks = {name: peak_bytes(step.training, inputs) for name, step in steps.items() if name != WIDE}
            for name in peaks:
                yield show({**common, "implementation": name, **memory_figures(name, peaks, length)})
        else:
            calls = {name: getattr(step, kind) for name, step in steps.items()}
            rounds = options.rounds_at(length)
            timings = in_turns(calls, baseline="sdpa", device=device, rounds=rounds, fewer=fewer)
            for name, timing in timings.items():
                yield show({**common, "implementation": name, **time_figures(timing), "target": aim[name]})
        for name, reason in refusals.items():
            yield show({**common, "implementation": name, "not_run": reason})


def attempt(name: str, length: int, inputs: Inputs, parts: dict[str, Any], options: Options) -> Step | str:
    """Return an implementation that has run once, or the reason why it cannot."""
    limit = options.materialised_up_to or 0
    if name in ("materialised", LIGER) and length > limit:
        return f"its N x N maps are built up to N = {limit} only"
    try:
        step = build(name, inputs, parts)
        if options.device == "cuda":  # compiles kernels, and finds out whether memory suffices
            step.training()
            torch.cuda.synchronize()
        return step
    except ImportError as error:
        return f"not installed: {error.name}"
    except torch.OutOfMemoryError:
        release(options.device)
        return "out of memory"
    except Exception as error:
        if name != LIGER:  # a failure of ours must end the run; a foreign one is a result
            raise
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def release(device: str) -> None:
    """Give memory of dead tensors back."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def peak_bytes(step: Callable[[], object], inputs: Inputs) -> int:
    """Return the peak of what a call allocates itself, its results included and its inputs not."""
    return peak_tensor_bytes(step, resident=[inputs.query]) - inputs.query.untyped_storage().nbytes()


def time_figures(timing: Timing) -> Row:
    """Return the figures of a timed row."""
    return {"seconds": timing.seconds, "ratio": timing.ratio}


def memory_figures(name: str, peaks: dict[str, int], length: int) -> Row:
    """Return the figures of a row about memory."""
    whole = peaks.get("materialised")
    saving = None if whole is None or name == "materialised" else peaks[name] / whole
    aimed = saving is not None and name in OWN and length == SAVING_LENGTH
    return {
        "bytes": peaks[name],
        "ratio": peaks[name] / peaks["sdpa"],
        "of_materialised": saving,
        "of_materialised_target": SAVING_TARGET if aimed else None,
    }


def add_growth(rows: list[Row]) -> None:
    """Add to each row about memory its multiple of the memory at half the length; 2 is linear, 4 is square."""
    found = {(r["case"], r["implementation"], r["length"]): r for r in rows if r["kind"] == "memory" and "bytes" in r}
    for (case, name, length), row in found.items():
        half = found.get((case, name, length // 2))
        if half is not None:
            row["growth"] = row["bytes"] / half["bytes"]
            aimed = name in OWN and (length // 2, length) == GROWTH_LENGTHS
            row["growth_target"] = GROWTH_TARGET if aimed else None


def show(row: Row) -> Row:
    """Print a row and return it."""
    figure = f"not run: {row['not_run']}" if "not_run" in row else f"x{row['ratio']:.2f}"
    if row.get("target"):
        figure += f" (target x{row['target']:g})"
    print(f"N={row['length']} {row['kind']}, {row['case']}, {row['implementation']}: {figure}", flush=True)
    return row


def measure(options: Options) -> dict[str, Any]:
    """Return the whole result."""
    options = options.for_device()
    heads, head_dim = options.shape
    rows = list(operation_rows(options)) if set(options.kinds) - {"decode"} else []
    add_growth(rows)
    release(options.device)
    if "decode" in options.kinds:
        rows += [
            show(row)
            for row in decode_rows(
                options.contexts, batch=1, heads=heads, head_dim=head_dim, device=options.device, rounds=options.rounds
            )
        ]
    return {
        **describe("multi_token", options.device),
        "batch": {str(length): options.batch_at(length) for length in options.lengths},
        "heads": heads,
        "head_dim": head_dim,
        "options": asdict(options),
        "rows": rows,
    }


def main() -> None:
    """Measure and write."""
    options = tyro.cli(Options, prog="python -m benchmarks.multi_token")
    require_device(options.device)
    width = options.shape[1]
    suffix = "" if width == options.usual_shape[1] else f"-d{width}"
    write_result(measure(options), f"multi-token-{options.device}{suffix}")


if __name__ == "__main__":
    main()
