"""Parameters of the papers' own modules, renamed and reshaped for `heedful.nn.Attention`.

Each function takes a mapping from the official parameter names to tensors and returns a state dict for the layer whose
configuration its docstring names. Official linear weights are [out, in], as ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Parameters = Mapping[str, Tensor]


def _renamed(name: str, renamed: Mapping[str, str]) -> str:
    """Return our name of an official parameter, `module.kind` with the module looked up."""
    module, _, kind = name.rpartition(".")
    if module not in renamed or kind not in ("weight", "bias"):
        raise ValueError(
            f"unknown parameter {name!r}; expected weights and biases of {', '.join(renamed)}: give the parameters of "
            f"one attention layer, without its prefix in the model."
        )
    return f"{renamed[module]}.{kind}"


def from_boosted(parameters: Parameters) -> dict[str, Tensor]:
    """Convert boosted, standard or twicing attention of the boosted paper (fused q|k|v rows, bias=True).

    Configuration: one of the presets "boosted", "boosted-input-kv", "standard" and "twicing" with bias=True; the number
    of rounds follows from the names `W_qkvs.m` (or `W_qkv` for one round).
    """
    state: dict[str, Tensor] = {}
    rounds = max(1, sum(name.startswith("W_qkvs.") and name.endswith(".weight") for name in parameters))
    fused = {"W_qkv": "rounds.0", **{f"W_qkvs.{m}": f"rounds.{m}" for m in range(rounds)}}
    renamed = {"W_out": "o_proj", **{f"gates.{m}.0": f"gates.{m}.proj" for m in range(rounds - 1)}}
    for name, tensor in parameters.items():
        module, _, kind = name.rpartition(".")
        if module in fused:
            parts = ("query.q_proj", "k_proj", "v_proj")
            for part, rows in zip(parts, tensor.chunk(3, dim=0), strict=True):
                state[f"{fused[module]}.{part}.{kind}"] = rows
        else:
            state[_renamed(name, renamed)] = tensor
    return state


def from_boosted_retrieval(parameters: Parameters) -> dict[str, Tensor]:
    """Convert the boosted paper's synthetic module for `heedful.nn.BoostedRetrieval` with the same rounds and gate."""
    state: dict[str, Tensor] = {}
    replaced = {
        ".W_q.": ".q_proj.",
        ".W_k.": ".k_proj.",
        ".W_v.": ".v_proj.",
        "gates.": "gate_networks.",
        "gate_params.": "gate_logits.",
    }
    for name, tensor in parameters.items():
        theirs = next((part for part in replaced if part in name), None)
        if theirs is None and not name.endswith(".log_beta"):
            raise ValueError(f"unknown parameter {name!r}; expected log_beta and names with {', '.join(replaced)}.")
        state[name if theirs is None else name.replace(theirs, replaced[theirs])] = tensor
    return state


def from_nonlinear_query(
    parameters: Parameters, mode: Literal["original", "identity", "residual", "residual_gelu"]
) -> dict[str, Tensor]:
    """Convert attention of the nonlinear-query paper's code.

    Query configurations: "original" is `LinearQuery()`, "identity" `IdentityQuery()`, "residual_gelu"
    `NonlinearQuery()`, and "residual" `LinearQuery(anchor="identity", gain=0.5)`. Their code puts the factor 1/2 of all
    but the first into the scale; here it is the query's gain and the scale stays 1/sqrt(head_dim).
    """
    if mode not in ("original", "identity", "residual", "residual_gelu"):
        raise ValueError(f"mode must be 'original', 'identity', 'residual' or 'residual_gelu', got {mode!r}.")
    has_query = mode in ("original", "residual")
    parts = ["rounds.0.query.q_proj", "rounds.0.k_proj", "rounds.0.v_proj"][0 if has_query else 1 :]
    renamed = {
        "c_proj": "o_proj",
        "residual_rmsnorm_input": "rounds.0.query.input_norm",
        "residual_in": "rounds.0.query.down_proj",
        "residual_out": "rounds.0.query.up_proj",
        "residual_layernorm_output": "rounds.0.query.output_norm",
    }
    state: dict[str, Tensor] = {}
    for name, tensor in parameters.items():
        module, _, kind = name.rpartition(".")
        if module == "c_attn":
            chunks = tensor.chunk(len(parts), dim=0)
            state.update({f"{part}.{kind}": chunk for part, chunk in zip(parts, chunks, strict=True)})
        else:
            state[_renamed(name, renamed)] = tensor
    return state


def from_multi_token(
    parameters: Parameters, *, key_padding: Literal["both", "left", "right"] = "both"
) -> dict[str, Tensor]:
    """Convert attention of the multi-token paper's code, talking heads included.

    Configuration: `MultiTokenRule` with the parts that are present, kernel sizes as the official ones (see
    `key_padding`), mixing group sizes as the official matrices, `HeadOutput` if `subln` is present, rotary layout
    "interleaved".

    Official kernels are [H, 1, c_q, c_k] and official grouped head kernels are [group, in, out]; full mixing matrices
    are [out, in].

    Args:
        parameters: official names and tensors.
        key_padding: the code's `pad_key`. "left" and "right" kernels cover c_k keys up to or from the key; here they
            become the middle-aligned kernels of 2 c_k - 1 keys with zeros on the other side, so configure
            `key_kernel_size=2 * c_k - 1`.
    """
    if key_padding not in ("both", "left", "right"):
        raise ValueError(f"key_padding must be 'both', 'left' or 'right', got {key_padding!r}.")
    renamed = {
        "wq": "rounds.0.query.q_proj",
        "wk": "rounds.0.k_proj",
        "wv": "rounds.0.v_proj",
        "wo": "o_proj",
        "subln": "head_output.norm",
        "gate": "head_output.gate",
    }
    state: dict[str, Tensor] = {}
    for name, tensor in parameters.items():
        if name in ("mta_kernel", "mta_kernel_after_sm"):
            kernel, extra = tensor[:, 0], tensor.shape[-1] - 1
            sides = {"both": (0, 0), "left": (0, extra), "right": (extra, 0)}[key_padding]
            part = "kq_pre" if name == "mta_kernel" else "kq_post"
            state[f"rounds.0.rule.{part}"] = torch.nn.functional.pad(kernel, sides)
        elif name == "head_kernel":
            state["rounds.0.rule.head_post"] = tensor.transpose(1, 2)
        elif name in ("wpsm.weight", "wposm.weight"):
            state[f"rounds.0.rule.{'head_pre' if name == 'wpsm.weight' else 'head_post'}"] = tensor[None]
        else:
            state[_renamed(name, renamed)] = tensor
    return state


def from_differential(parameters: Parameters) -> dict[str, Tensor]:
    """Convert differential attention, version 1, for the preset "differential" with twice the official heads."""
    renamed = {
        "q_proj": "rounds.0.query.q_proj",
        "k_proj": "rounds.0.k_proj",
        "v_proj": "rounds.0.v_proj",
        "out_proj": "o_proj",
        "subln": "head_output.norm",
    }
    lambdas = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")
    return {
        f"rounds.0.rule.{name}" if name in lambdas else _renamed(name, renamed): tensor
        for name, tensor in parameters.items()
    }
