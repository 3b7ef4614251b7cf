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

from torch import Tensor, nn

from heedful.files import write_json_atomically
from heedful.schema import to_mapping
from heedful.train.checkpoint import Checkpoints
from heedful.train.checkpoint_state import process_seed
from heedful.train.device import computing_on, forked_random_state
from heedful.train.interruption import StopRequest
from heedful.train.loop import Evaluate, TrainingLoop
from heedful.train.metrics import MetricsWriter
from heedful.train.parallel import resolve_strategy
from heedful.train.progress import Reporter, SilentReporter, choose_reporter
from heedful.train.run_folder import claim_folder, describe_run, record_start, require_same_everywhere
from heedful.train.run_state import locked_folder
from heedful.train.state import TrainingState, TrainResult
from heedful.train.trackers import open_trackers
from heedful.train.training_step import TrainingStep, joined_for, require_fitting

if TYPE_CHECKING:
    import torch

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
    with joined_for(config) as (device, processes):
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
    reporter = choose_reporter(report) if processes.first else SilentReporter()
    trackers = processes.on_first(lambda: open_trackers(config.trackers, reporter.message))
    require_fitting(model, data, config, processes)
    description = describe_run(model, data, config)
    require_same_everywhere(processes, description)
    strategy = resolve_strategy(config.parallel, processes.world_size)
    with ExitStack() as stack:
        processes.on_first(lambda: stack.enter_context(locked_folder(folder)))
        processes.on_first(lambda: claim_folder(folder, description, resume=resume))
        stack.enter_context(computing_on(device))
        stack.enter_context(forked_random_state(process_seed(config.seed, processes.rank), device))
        step = TrainingStep(model, data, config, device, processes)
        checkpoints = Checkpoints(
            folder / "checkpoints",
            step,
            description,
            keep_last=None if config.keep == "all" else config.keep_last,
            asynchronous=config.asynchronous_checkpoints,
            export=export,
        )
        stack.callback(checkpoints.close)
        loaded = checkpoints.load(checkpoint)
        state = loaded or TrainingState()

        def begin_files() -> MetricsWriter:
            if state.step < config.steps:
                world_size = processes.world_size
                record_start(folder, description, device, state.step, processes=world_size, strategy=strategy)
            if on_start is not None:
                on_start()
            writer = MetricsWriter(folder, state.step, state.evaluated_step, trackers=trackers, run=description)
            return stack.enter_context(writer)

        loop = TrainingLoop(
            step,
            state,
            checkpoints,
            evaluate=evaluate,
            writer=processes.on_first(begin_files),
            reporter=reporter,
            stop=stack.enter_context(StopRequest()),
            saved=loaded is not None,
        )
        result = loop.run()
        if processes.first:
            write_json_atomically(folder / "result.json", to_mapping(result))
    return result


def _save(model: Any, folder: Path, weights: dict[str, Tensor]) -> None:
    model.save(folder, weights)
