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


def from_boosted(parameters: Parameters) -> dict[str, Tensor]:
    """Convert boosted, standard or twicing attention of the boosted paper (fused q|k|v rows, bias=True).

    Configuration: `attention_config("boosted" | "boosted-input-kv" | "standard" | "twicing", bias=True, ...)`; the number of
    rounds follows from the names `W_qkvs.m` (or `W_qkv` for one round).
    """
    state: dict[str, Tensor] = {}
    rounds = sum(name.startswith("W_qkvs.") and name.endswith(".weight") for name in parameters)
    fused = ["W_qkv"] if rounds == 0 else [f"W_qkvs.{m}" for m in range(rounds)]
    for m, name in enumerate(fused):
        for kind in ("weight", "bias"):
            if f"{name}.{kind}" in parameters:
                query, key, value = parameters[f"{name}.{kind}"].chunk(3, dim=0)
                state[f"rounds.{m}.query.q_proj.{kind}"] = query
                state[f"rounds.{m}.k_proj.{kind}"] = key
                state[f"rounds.{m}.v_proj.{kind}"] = value
    for m in range(1, rounds):
        for kind in ("weight", "bias"):
            if f"gates.{m - 1}.0.{kind}" in parameters:
                state[f"gates.{m - 1}.proj.{kind}"] = parameters[f"gates.{m - 1}.0.{kind}"]
    for kind in ("weight", "bias"):
        if f"W_out.{kind}" in parameters:
            state[f"o_proj.{kind}"] = parameters[f"W_out.{kind}"]
    return state


def from_boosted_retrieval(parameters: Parameters) -> dict[str, Tensor]:
    """Convert the boosted paper's synthetic module for `heedful.nn.BoostedRetrieval` with the same rounds and gate."""
    state: dict[str, Tensor] = {}
    for name, tensor in parameters.items():
        for theirs, ours in (("W_q", "q_proj"), ("W_k", "k_proj"), ("W_v", "v_proj")):
            name = name.replace(f".{theirs}.", f".{ours}.")
        name = name.replace("gates.", "gate_networks.").replace("gate_params.", "gate_logits.")
        state[name] = tensor
    return state


def from_nonlinear_query(
    parameters: Parameters, mode: Literal["original", "identity", "residual", "residual_gelu"]
) -> dict[str, Tensor]:
    """Convert attention of the nonlinear-query paper's code.

    Configurations: "original" is `LinearQuery()`, "identity" `IdentityQuery()`, "residual" `LinearQuery(anchor="identity",
    gain=0.5)`, "residual_gelu" `NonlinearQuery()`. Their code puts the factor 1/2 of all but the first into the
    scale; here it is
    the query's gain and the scale stays 1/sqrt(head_dim).
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
            state[f"{renamed[module]}.{kind}"] = tensor
    return state


def from_multi_token(
    parameters: Parameters, *, key_padding: Literal["both", "left", "right"] = "both"
) -> dict[str, Tensor]:
    """Convert attention of the multi-token paper's code, talking heads included.

    Configuration: `MultiTokenRule` with the parts that are present, kernel sizes as the official ones (see
    `key_padding`), mixing
    group sizes as the official matrices, `HeadOutput` if `subln` is present, rotary layout "interleaved".

    Official kernels are [H, 1, c_q, c_k] and official grouped head kernels are [group, in, out]; full mixing matrices
    are [out, in].

    Args:
        parameters: official names and tensors.
        key_padding: the code's `pad_key`. "left" and "right" kernels cover c_k keys up to or from the key; here they
            become the
            middle-aligned kernels of 2 c_k - 1 keys with zeros on the other side, so configure `key_kernel_size=2 *
            c_k - 1`.
    """
    if key_padding not in ("both", "left", "right"):
        raise ValueError(f"key_padding must be 'both', 'left' or 'right', got {key_padding!r}.")
    renamed = {
        "wq.weight": "rounds.0.query.q_proj.weight",
        "wk.weight": "rounds.0.k_proj.weight",
        "wv.weight": "rounds.0.v_proj.weight",
        "wo.weight": "o_proj.weight",
        "subln.weight": "head_output.norm.weight",
        "gate.weight": "head_output.gate.weight",
        "gate.bias": "head_output.gate.bias",
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
            state[renamed[name]] = tensor
    return state


def from_differential(parameters: Parameters) -> dict[str, Tensor]:
    """Convert differential attention, version 1, for `attention_config("differential", num_heads=2 * official
    heads, ...)`."""
    state: dict[str, Tensor] = {}
    for name, tensor in parameters.items():
        if name.startswith("lambda_"):
            state[f"rounds.0.rule.{name}"] = tensor
        elif name.startswith("subln."):
            state[f"head_output.norm.{name.partition('.')[2]}"] = tensor
        else:
            module, _, kind = name.partition(".")
            place = {"q_proj": "rounds.0.query.q_proj", "out_proj": "o_proj"}.get(module, f"rounds.0.{module}")
            state[f"{place}.{kind}"] = tensor
    return state
