"""Muon for matrices of which every process holds a part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate


class ShardedMuon(torch.optim.Muon):
    """`torch.optim.Muon` for DTensors, with the steps that it takes for whole matrices.

    Orthogonalising needs the whole matrix, and torch's class, given parts, fails where it adds the result (torch 2.13).
    So each process keeps its part of weights and momentum, gathers the direction of one matrix at a time, lets torch
    orthogonalise it and takes its part back. Every process does the same arithmetic on the same whole matrix: it costs
    one all-gather per matrix and step, memory for one whole matrix, and computing that is repeated rather than divided.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; all processes must take it together."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_of(parameter, parameter.grad, group)
        return loss

    def _step_of(self, parameter: DTensor, gradient: DTensor, group: dict[str, Any]) -> None:
        state, momentum = self.state[parameter], group["momentum"]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer = state["momentum_buffer"]
        buffer.lerp_(gradient, 1 - momentum)
        direction = gradient.lerp(buffer, momentum) if group["nesterov"] else buffer
        assert isinstance(direction, DTensor)
        change = part_of(_orthogonal_step(direction.full_tensor(), group), parameter)
        parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(change)


def _orthogonal_step(direction: Tensor, group: dict[str, Any]) -> Tensor:
    """Return what torch's Muon adds to a matrix whose momentum is `direction`: its step from zero."""
    matrix = nn.Parameter(torch.zeros_like(direction))
    matrix.grad = direction
    settings = {name: group[name] for name in ("lr", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn")}
    torch.optim.Muon([matrix], momentum=0.0, nesterov=False, weight_decay=0.0, **settings).step()
    return matrix.detach()


def part_of(whole: Tensor, like: DTensor) -> DTensor:
    """Return `whole`, which every process holds, spread as `like`; nothing is sent."""
    mesh = like.device_mesh
    copies = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return copies.redistribute(mesh, like.placements)
