"""`train`: everything around the training loop: what is refused, who takes part, what is set up and taken down.

The model knows nothing of the loop, the batch of a step is a pure function of the step, the loss is normalised by the
scored tokens of the whole batch, the state is one small object. Interrupted at any step and resumed, a run on the CPU
gives the same weights and the same metrics, bit for bit, as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from heedful.files import write_json_atomically
from heedful.schema import to_mapping
from heedful.train.averaging import WeightAverage
from heedful.train.checkpoint import Checkpoints
from heedful.train.checkpoint_state import process_seed
from heedful.train.device import computing_on, forked_random_state, require_precision, resolve_device
from heedful.train.fitting import require_trainable
from heedful.train.interruption import StopRequest
from heedful.train.loop import Evaluate, TrainingLoop
from heedful.train.loss import TrainingLoss
from heedful.train.metrics import MetricsWriter
from heedful.train.optimisation import Optimization
from heedful.train.parallel import SHARDED, build_mesh, gradient_module, parallelize, resolve_strategy
from heedful.train.processes import environment_world_size, joined_processes, share_of
from heedful.train.progress import Reporter, SilentReporter, choose_reporter
from heedful.train.run_folder import claim_folder, describe_run, record_start
from heedful.train.run_state import locked_folder
from heedful.train.state import TrainingState, TrainResult
from heedful.train.trackers import open_trackers

if TYPE_CHECKING:
    from heedful.data.batches import TrainingData
    from heedful.train.config import TrainConfig
    from heedful.train.processes import Processes


def train(
    model: nn.Module,
    data: TrainingData,
    config: TrainConfig,
    folder: str | Path,
    *,
    evaluate: Evaluate | None = None,
    resume: bool = False,
    checkpoint: str | None = None,
    report: Reporter | Callable[[str], object] | None = None,
    on_start: Callable[[], object] | None = None,
    export: Callable[[Path, dict[str, Tensor]], object] | None = None,
) -> TrainResult:
    """Train `model` on `data` and leave everything about the run in `folder`.

    Started by torchrun, every process calls this with the same arguments; `config.parallel` says how they share the
    work. The weights at the beginning are those of the first process, the others may hold the model on the meta device.
    Files are written by the first process, except for the checkpoints, of which each writes its part: all must see the
    same `folder`.

    The model is moved to the device of the run and holds its final weights afterwards (with a sharded strategy, each
    process its part of them); `load_best` reads the best ones. The global random state is as before afterwards: dropout
    is seeded by `config.seed`. SIGINT and SIGTERM end the run after the current step with a checkpoint (a second SIGINT
    ends it at once, without).

    Args:
        model: called as `logits, _ = model(tokens, mask=...)`, with `save(folder, weights)`; float32 weights. With
            `hidden_states` and `head_parameters`, as `DecoderLM` has, the logits never exist all at once; its `blocks`
            are what is sharded, compiled and recomputed one by one.
        data: gives the batch of each step.
        config: how to train.
        folder: the run folder, see `heedful.train.run_folder`.
        evaluate: returns metrics of the model, "val/loss" among them; called in evaluation mode, in every process. The
            random state it finds is the one the training goes on with, so it should not draw from it without need.
        resume: go on from the last checkpoint in `folder`. With none there the run starts from its beginning, so that
            one command can be repeated until it is done; a finished run returns its result at once.
        checkpoint: with `resume`, go on from the checkpoint of that name, such as "step-00000500", instead.
        report: a `Reporter`, a function that takes lines, or None for a bar on a terminal and lines elsewhere.
        on_start: called in the first process once nothing can be refused any more, to write further files into
            `folder`.
        export: writes the weights (whole, on the CPU) into the folder of a checkpoint; None is `model.save`.

    Raises:
        ValueError: the folder holds a run and `resume` is off, or it holds another or a damaged one; device or
            precision are not available; model, data and configuration do not fit together. Nothing was written.
        CheckpointError: a checkpoint could not be written.
        DivergenceError: a loss or a gradient norm was not finite.
        LostProcessError: another process died or did not answer in time.
    """
    folder = Path(folder)
    if checkpoint is not None and not resume:
        raise ValueError("checkpoint names where a resumed run goes on from; pass resume=True (--resume) with it.")
    device = resolve_device(config.device)
    require_precision(config.precision, device)
    strategy = resolve_strategy(config.parallel, environment_world_size())
    needs_group = strategy in SHARDED
    timeout = config.parallel.timeout_seconds
    with joined_processes(needs_group=needs_group, timeout_seconds=timeout, device=device) as processes:
        return _train(
            model,
            data,
            config,
            folder,
            evaluate=evaluate,
            resume=resume,
            checkpoint=checkpoint,
            report=report,
            on_start=on_start,
            export=export or partial(_save, model),
            device=device,
            processes=processes,
        )


def _train(
    model: nn.Module,
    data: TrainingData,
    config: TrainConfig,
    folder: Path,
    *,
    evaluate: Evaluate | None,
    resume: bool,
    checkpoint: str | None,
    report: Reporter | Callable[[str], object] | None,
    on_start: Callable[[], object] | None,
    export: Callable[[Path, dict[str, Tensor]], object],
    device: torch.device,
    processes: Processes,
) -> TrainResult:
    first = processes.first
    reporter = choose_reporter(report) if first else SilentReporter()
    trackers = open_trackers(config.trackers, reporter.message) if first else None
    strategy = resolve_strategy(config.parallel, processes.world_size)
    require_enough_rows(config, processes.world_size)
    processes.together(lambda: require_trainable(model, data, config))
    description = describe_run(model, data, config)
    with ExitStack() as stack:
        processes.from_first(lambda: stack.enter_context(locked_folder(folder)))
        processes.from_first(lambda: claim_folder(folder, description, resume=resume))
        stack.enter_context(computing_on(device))
        stack.enter_context(forked_random_state(process_seed(config.seed, processes.rank), device))
        mesh = build_mesh(config.parallel, processes.world_size, device.type)
        parallelize(model, mesh, config.parallel, device=device, compile_blocks=config.compile)
        loss = gradient_module(TrainingLoss(model, config.loss), mesh)
        optimization = Optimization(model, config.optimizer)
        optimization.prepare_state()
        average = WeightAverage(model, config.optimizer.ema_decay) if config.optimizer.ema_decay > 0 else None
        checkpoints = Checkpoints(
            folder / "checkpoints",
            model,
            optimization,
            average,
            description,
            processes=processes,
            mesh=mesh,
            device=device,
            seed=config.seed,
            keep_last=None if config.keep == "all" else config.keep_last,
            asynchronous=config.asynchronous_checkpoints,
            export=export,
        )
        stack.callback(checkpoints.close)
        loaded = checkpoints.load(checkpoint)
        state = loaded or TrainingState()
        writers: list[MetricsWriter] = []

        def begin_files() -> None:
            if state.step < config.steps:
                record_start(
                    folder, description, device, state.step, processes=processes.world_size, strategy=strategy
                )
            if on_start is not None:
                on_start()
            writer = MetricsWriter(folder, state.step, state.evaluated_step, trackers=trackers, run=description)
            writers.append(stack.enter_context(writer))

        processes.from_first(begin_files)
        loop = TrainingLoop(
            model,
            loss,
            optimization,
            average,
            data,
            config,
            state,
            checkpoints,
            device=device,
            processes=processes,
            rows=share_of(config.batch_size, processes.world_size, processes.rank),
            evaluate=evaluate,
            writer=writers[0] if writers else None,
            reporter=reporter,
            stop=stack.enter_context(StopRequest()),
            saved=loaded is not None,
        )
        result = loop.run()
        if first:
            write_json_atomically(folder / "result.json", to_mapping(result))
    return result


def _save(model: Any, folder: Path, weights: dict[str, Tensor]) -> None:
    model.save(folder, weights)


def require_enough_rows(config: TrainConfig, world_size: int) -> None:
    """Refuse a batch of which some process would get fewer rows than micro-batches.

    Raises:
        ValueError: with the largest number of micro-batches that would do.
    """
    smallest = config.batch_size // world_size
    if smallest < config.accumulation:
        remedy = f"use accumulation {smallest} or fewer" if smallest else "use fewer processes"
        raise ValueError(
            f"batch_size {config.batch_size} over {world_size} processes leaves {smallest} rows for some, fewer than "
            f"accumulation = {config.accumulation}: {remedy}, or a larger batch."
        )
