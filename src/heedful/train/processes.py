"""The processes of one run: who they are, and what they tell each other outside of the gradients.

A run is one process, or those that torchrun started. Every process goes through the same steps; the first one also
writes the files and talks to people. What they exchange here is small and goes over the CPU (gloo), so that nothing
waits for a GPU.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from heedful.train.parent_watch import watched_parent

T = TypeVar("T")


class RemoteError(ValueError):
    """What another process of the run found wrong; that process says it, so this one need not repeat it."""


class LostProcessError(RuntimeError):
    """Another process of the run died, or did not answer in time; what is saved is untouched."""


class Processes:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: the number of this process, 0 to world_size - 1.
        world_size: how many there are.
        control: their CPU group, None in a run of one process without a group.
        timeout: how long one waits for another.
    """

    def __init__(
        self, control: dist.ProcessGroup | None = None, timeout: datetime.timedelta = dist.default_pg_timeout
    ) -> None:
        self.control, self.timeout = control, timeout
        self.rank = dist.get_rank(control) if control is not None else 0
        self.world_size = dist.get_world_size(control) if control is not None else 1

    @property
    def first(self) -> bool:
        """Whether this process writes the files and talks to people."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.world_size > 1

    def another_group(self) -> Processes:
        """Return the same processes with a CPU group of their own, for what goes on beside; all must call it."""
        if not self.several:
            return self
        return Processes(_new_group(self.timeout), self.timeout)

    def from_first(self, produce: Callable[[], T]) -> T:
        """Return what `produce()` returns in the first process, everywhere; it must be JSON-able.

        Raises:
            ValueError: `produce` raised one in the first process; in the others it is a `RemoteError`.
        """
        if not self.several:
            return produce()
        message: list[Any] = [None]
        error: Exception | None = None
        if self.first:
            try:
                message[0] = json.dumps({"value": produce()})
            except Exception as raised:  # told to the others first, so that they do not wait for ever
                error = raised
                message[0] = json.dumps({"error": f"{type(raised).__name__}: {raised}"})
        with losing_nobody():
            dist.broadcast_object_list(message, src=0, group=self.control)
        if error is not None:
            raise error
        received = json.loads(message[0])
        if "error" in received:
            raise RemoteError(f"the first process stopped: {received['error']}")
        return received["value"]

    def on_first(self, act: Callable[[], T]) -> T | None:
        """Do something in the first process only and return what came of it there, None in the others, which wait.

        Raises:
            ValueError: as `from_first`.
        """
        if not self.several:
            return act()
        found: list[T] = []

        def keep() -> None:
            found.append(act())

        self.from_first(keep)
        return found[0] if found else None

    def together(self, act: Callable[[], T]) -> list[T]:
        """Return what `act()` returns in each process (JSON-able), once it has succeeded in all of them.

        Raises:
            ValueError: it raised in this process (whatever it raised); `RemoteError` where it raised in another only.
        """
        if not self.several:
            return [act()]
        error: Exception | None = None
        message: dict[str, Any] = {}
        try:
            message["value"] = act()
        except Exception as raised:
            error = raised
            message = {"error": f"{type(raised).__name__}: {raised}"}
        messages: list[Any] = [None] * self.world_size
        with losing_nobody():
            dist.all_gather_object(messages, json.dumps(message), self.control)
        if error is not None:
            raise error
        received = [json.loads(text) for text in messages]
        for rank, other in enumerate(received):
            if "error" in other:
                raise RemoteError(f"process {rank} stopped: {other['error']}")
        return [other["value"] for other in received]

    def sum_later(self, values: Sequence[int]) -> Callable[[], list[int]]:
        """Begin to add up integers over all processes; calling the result waits for the sums."""
        if not self.several:
            return lambda: list(values)
        numbers = torch.tensor(values)
        with losing_nobody():
            work = dist.all_reduce(numbers, group=self.control, async_op=True)
        assert work is not None

        def wait() -> list[int]:
            with losing_nobody():
                work.wait()
            return numbers.tolist()

        return wait

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over all processes of a tensor on the CPU."""
        if self.several:
            values = values.clone()
            with losing_nobody():
                dist.all_reduce(values, group=self.control)
        return values

    def agree(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return the first process's numbers in every process, so that all decide alike."""
        return self.from_first(lambda: dict(values))

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.several:
            with losing_nobody():
                dist.barrier(group=self.control)


ALONE = Processes()
_joined: list[Processes] = []


def current_processes() -> Processes:
    """Return the processes of the run that is going on; outside of one, this process on its own."""
    return _joined[-1] if _joined else ALONE


def started_by_torchrun() -> bool:
    """Return whether torchrun (or anything that speaks as it does) started this process."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def environment_rank() -> int:
    """Return the number of this process as its starter gave it, 0 without one."""
    return int(os.environ["RANK"]) if started_by_torchrun() else 0


def environment_world_size() -> int:
    """Return how many processes its starter says there are, 1 without one."""
    return int(os.environ["WORLD_SIZE"]) if started_by_torchrun() else 1


def restarted_by_torchrun() -> bool:
    """Return whether torchrun started this process anew, after one that failed (--max-restarts)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def joined_processes(*, needs_group: bool, timeout_seconds: int, device: torch.device) -> Iterator[Processes]:
    """Join the processes of this run for as long as it goes on.

    Groups of several processes stay until the process ends: what torchrun keeps for them cannot be made twice, and
    taking them down can wait for processes that are gone.

    Args:
        needs_group: make a group of one where there is nobody to join (sharding needs some group).
        timeout_seconds: how long a process waits for another before it gives up with `LostProcessError`.
        device: where this process computes.
    """
    with watched_parent(), _joined_processes(needs_group, timeout_seconds, device) as processes:
        yield processes


@contextmanager
def _joined_processes(needs_group: bool, timeout_seconds: int, device: torch.device) -> Iterator[Processes]:
    several = environment_world_size() > 1
    if not several and not needs_group:
        yield ALONE
        return
    timeout = datetime.timedelta(seconds=timeout_seconds)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    alone_in_group = not several and not dist.is_initialized()
    if alone_in_group:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
    elif not dist.is_initialized():
        with losing_nobody():
            store, rank, world_size = _rendezvous(timeout)
            dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    with losing_nobody():
        processes = Processes(_new_group(timeout), timeout)
    _joined.append(processes)
    try:
        with losing_nobody():
            yield processes
        processes.barrier()
    finally:
        _joined.remove(processes)
        if alone_in_group:
            dist.destroy_process_group()


def _rendezvous(timeout: datetime.timedelta) -> tuple[dist.Store, int, int]:
    """Return where the processes find each other, the number of this one, and how many there are.

    torchrun keeps one store for all restarts of its workers (`--max-restarts`), in which addresses of those before
    would be taken for those of their successors. Over several machines the number of restarts is no common name, since
    each torchrun counts its own.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        _require_torchrun()
    store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
    if os.environ.get("LOCAL_WORLD_SIZE") == str(world_size):
        store = dist.PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    return store, rank, world_size


def _require_torchrun() -> None:
    """Ask for torchrun, which has been keeping the store since before this process began.

    Torch would ask again and again until the timeout is over, and then once more.

    Raises:
        LostProcessError: it is gone.
    """
    place = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    try:
        socket.create_connection(place).close()
    except ConnectionRefusedError:
        raise LostProcessError("torchrun is gone. Start the run again with --resume.") from None
    except OSError:  # of the network, which torch may get over
        return


def _new_group(timeout: datetime.timedelta) -> dist.ProcessGroup:
    """Return a CPU group of all processes, which is what every one of them gets from this."""
    return cast("dist.ProcessGroup", dist.new_group(backend="gloo", timeout=timeout))


@contextmanager
def losing_nobody() -> Iterator[None]:
    """Say what it means when a communication fails: somebody is gone.

    Torch has error classes for this but raises plain RuntimeErrors as well, so the text has to tell.
    """
    try:
        yield
    except (LostProcessError, ValueError):
        raise
    except RuntimeError as error:
        first_line = str(error).partition("\n")[0]
        communication = isinstance(error, dist.DistError) or any(sign in str(error) for sign in _SIGNS_OF_LOSS)
        if not communication:
            raise
        raise LostProcessError(
            f"another process of the run died or did not answer in time ({first_line}). Start the run again with "
            "--resume; it goes on from the last complete checkpoint."
        ) from error


# From gloo's and NCCL's own messages, which name where they come from.
_SIGNS_OF_LOSS = ("gloo/", "Gloo", "ProcessGroup", "NCCL")


def share_of(rows: int, parts: int, part: int) -> range:
    """Return the rows that belong to one of several parts: consecutive, and the sizes differ by one at most."""
    small, larger = divmod(rows, parts)
    start = part * small + min(part, larger)
    return range(start, start + small + (part < larger))
