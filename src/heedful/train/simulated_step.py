"""How much memory parts of a training step need, found by going through their operations without carrying them out.

torch's fake tensors have shapes, types and lifetimes but no contents, so the operations of a model, its backward pass
included, run in moments and allocate nothing, whatever the size of the model. `LiveBytes` adds up the storages that are
alive after each operation. What an operation allocates inside itself and frees again is not seen, except for the tiles
of multi-token attention, whose walk is gone through as well.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from heedful.ops.multi_token.allocation import keep_freed_memory
from heedful.ops.multi_token.blockwise import _Call as WalkCall
from heedful.ops.multi_token.torch_mixer import TorchMixer
from heedful.ops.multi_token.walk import CUDA_TILE_NUMBERS, block_sizes
from heedful.ops.shapes import compute_dtype

BACKWARD_WALK = "heedful::multi_token_blockwise_backward"  # the forward walk needs less, at a time when less is alive


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that operations inside the context have made and that are still alive.

    Args:
        known: tensors from before, whose memory is not counted when an operation returns them or a view of them.
        gpu: count the tiles of multi-token attention as they are cut on a GPU and not as on a CPU.

    Attributes:
        live: bytes alive now.
        peak: the most that were alive at one time since the context began or `restart` was called.
        walk_bytes: the most that one multi-token operation needed inside itself.
    """

    def __init__(self, known: Iterable[Tensor] = (), *, gpu: bool = False) -> None:
        super().__init__()
        self.live = self.peak = self.walk_bytes = 0
        self._gpu = gpu
        self._alive: dict[int, object] = {_address(tensor): tensor for tensor in known}

    def restart(self) -> None:
        """Forget the peak."""
        self.peak = self.live

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        result = function(*arguments, **(options or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        if str(getattr(function, "_name", "")).split(".")[0] == BACKWARD_WALK:
            inside = _walk_bytes(*arguments, gpu=self._gpu)
            self.walk_bytes = max(self.walk_bytes, inside)
            self.peak = max(self.peak, self.live + inside)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage, address = tensor.untyped_storage(), _address(tensor)
        if address in self._alive:
            return
        size = storage.nbytes()

        def dropped(reference: object) -> None:
            self.live -= size
            self._alive.pop(address, None)

        self._alive[address] = weakref.ref(storage, dropped)
        self.live += size
        self.peak = max(self.peak, self.live)


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes that a part of a model needs besides its weights and its input.

    Attributes:
        output: its output.
        kept: alive between its forward and its backward pass, the output included.
        forward: the peak of the forward pass.
        backward: the peak of the backward pass: what is kept, the gradients of output and input, what operations make
            on the way and, where there were none before, the gradients of the weights.
        copies: what bfloat16 autocast keeps until the whole forward pass ends, copies of weights; `kept` contains it.
        walk: the largest need of one multi-token operation inside itself, which the two peaks contain.
    """

    output: int
    kept: int
    copies: int
    forward: int
    backward: int
    walk: int


def footprint(
    compute: Callable[[Tensor], Tensor],
    source: Tensor,
    parameters: Iterable[Tensor],
    *,
    accumulating: bool,
    bfloat16: bool,
    gpu: bool,
) -> Footprint:
    """Go through `compute(source)` and its backward pass and return what they need.

    Everything must be fake or real tensors on the CPU; with real ones it is really computed.

    Args:
        compute: a part of a model; its result must depend on `source` or on the parameters.
        source: its input, needing a gradient where the part before it does.
        parameters: the weights it uses.
        accumulating: the weights have gradients from an earlier micro-batch already.
        bfloat16: the forward pass runs under bfloat16 autocast.
        gpu: see `LiveBytes`.
    """
    known = [source]
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter) if accumulating else None
        known += [parameter] if parameter.grad is None else [parameter, parameter.grad]
    keep_freed_memory()  # once per process; not with a fake tensor
    copies = _autocast_copies(compute, source, known) if bfloat16 else 0
    with LiveBytes(known, gpu=gpu) as memory:
        attention = _DropoutInsideAttention() if gpu else nullcontext()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16), attention:
            output = compute(source)
        size, kept, forward = output.untyped_storage().nbytes(), memory.live, memory.peak
        end = _FreshGradient.apply(output)
        assert isinstance(end, Tensor)
        del output  # what follows keeps it only if it was saved
        memory.restart()
        end.backward()
        backward = memory.peak
    for parameter in parameters:
        parameter.grad = None
    source.grad = None
    return Footprint(output=size, kept=kept, copies=copies, forward=forward, backward=backward, walk=memory.walk_bytes)


def _autocast_copies(compute: Callable[[Tensor], Tensor], source: Tensor, known: Iterable[Tensor]) -> int:
    with LiveBytes(known) as memory, torch.autocast("cpu", torch.bfloat16):
        compute(source)  # the result is dropped, and with it all that was saved for the backward pass
        return memory.live


class _FreshGradient(torch.autograd.Function):
    """Stands for what follows: saves nothing and gives a gradient of its own, which is freed once it has been used."""

    @staticmethod
    def forward(ctx: Any, output: Tensor) -> Tensor:  # type: ignore[override]
        ctx.shape, ctx.dtype = output.shape, output.dtype
        return output.new_zeros(())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient.new_empty(ctx.shape, dtype=ctx.dtype)


class _DropoutInsideAttention(TorchFunctionMode):
    """Lets SDPA drop weights without a map, as its CUDA kernels do; on a CPU it goes back to whole maps then."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        options = options or {}
        if function is torch.nn.functional.scaled_dot_product_attention:
            options = {**options, "dropout_p": 0.0}
        return function(*arguments, **options)


def _walk_bytes(gradient: Tensor, needed: list[bool], *arguments: Any, gpu: bool) -> int:
    """Return the most that a multi-token backward pass has alive inside itself, its results not counted."""
    call = WalkCall(*arguments)._replace(mixer="torch")
    if not gpu:
        return _peak_of_walk(call, gradient, needed)
    # On a GPU the tiles are larger, so that several sequences share one. A walk through one sequence in blocks of as
    # many rows tells what a sequence needs; through two, whether the second one adds to the tiles or comes after them.
    batch, heads, queries, width = call.query.shape
    keys = call.key.shape[2]
    rows, together = block_sizes(batch, heads, queries - call.context, keys, CUDA_TILE_NUMBERS)
    shapes = (heads, queries, width, keys, *call.key.shape[1::2], call.value.shape[-1], call.query.dtype, rows)
    parts = tuple(None if part is None else part.shape for part in call.parts)

    def walked(sequences: int, last: int) -> int:
        few = {name: _part(getattr(call, name), sequences) for name in ("key", "value")}
        few["query"] = _part(call.query, sequences, call.context + last)
        cut = call._replace(**few, key_padding=None, document_ids=None, block=rows)
        return _peak_of_walk(cut, _part(gradient, sequences, last), needed)

    def inside(sequences: int) -> int:
        key = (sequences, *shapes, *parts, *needed, *call[_TENSORS:])
        if key not in _KNOWN_WALKS:
            blocks = (queries - call.context) / rows
            if blocks <= 4:
                _KNOWN_WALKS[key] = walked(sequences, queries - call.context)
            else:  # the last blocks have the widest tiles, and every further one adds the same
                two, three = (walked(sequences, number * rows) for number in (2, 3))
                _KNOWN_WALKS[key] = math.ceil(two + (blocks - 2) * (three - two))
        return _KNOWN_WALKS[key]

    outside = inside(2) - inside(1) if batch > together else 0
    return together * inside(1) + (batch - together) * outside


_KNOWN_WALKS: dict[tuple[Any, ...], int] = {}  # one takes seconds
_TENSORS = 10  # the first arguments of the operation


def _peak_of_walk(call: WalkCall, gradient: Tensor, needed: Iterable[bool]) -> int:
    parts = call.parts.to(compute_dtype(call.query.dtype))
    tensors = [tensor for tensor in (gradient, *call.inputs, *parts) if tensor is not None]

    def mixer(number: int) -> TorchMixer:
        return TorchMixer(parts, exact_mask=call.exact_mask, dropout_p=call.dropout_p, seed=0, needed=tuple(needed))

    with LiveBytes(tensors) as memory, torch.autocast("cpu", enabled=False), torch.no_grad():
        *inputs, sums = call.walk().backward(gradient, *call.inputs, mixer)
        peak = memory.peak
    return peak - sum(result.untyped_storage().nbytes() for result in (*inputs, *sums) if result is not None)


def _part(tensor: Tensor, sequences: int, length: int | None = None) -> Tensor:
    _, heads, whole, width = tensor.shape
    return tensor.new_empty(sequences, heads, whole if length is None else length, width)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
