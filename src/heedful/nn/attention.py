"""`Attention`: the one layer in which all mechanisms meet.

    z_0 = x,   z_m = x - a F_{m-1}
    q = Q_m(z_m),   k, v = K_m, V_m (z_m or x),   rotated
    c_m = score_rule(q, k, v)
    F_0 = c_0,   F_m = F_{m-1} + gate_m([F_{m-1}; c_m]) * c_m
    y = W_O head_output(F_{M-1})

The layer does not know which query map, score rule or gate it holds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from heedful.nn.config import AttentionConfig
from heedful.nn.norms import RMSNorm
from heedful.nn.rotary import RotaryEmbedding
from heedful.nn.state import AttentionState, RoundState
from heedful.ops.masks import NO_MASK, AttentionMask

if TYPE_CHECKING:
    from jaxtyping import Float


class AttentionRound(nn.Module):
    """One round: project queries, keys and values, rotate them, apply the score rule.

    Submodules: query (the query map; its linear part is `q_proj`), k_proj, v_proj, q_norm and k_norm if configured,
    rule.
    """

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        sizes, heads = config.sizes, config.heads
        # Not read from `config` in `forward`: its heads depend on `layer_index`, and code that is compiled from what
        # reads that would be valid for this one layer.
        self.config, self.layout = config, heads
        self.query = config.query.build(config.hidden_size, config.query_width, sizes.head_dim, bias=config.bias)
        self.k_proj = nn.Linear(config.hidden_size, heads.key_heads * sizes.head_dim, bias=config.bias)
        self.v_proj = nn.Linear(config.hidden_size, heads.value_heads * heads.value_dim, bias=config.bias)
        self.q_norm = RMSNorm(sizes.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(sizes.head_dim, eps=config.norm_eps) if config.qk_norm else None
        self.rotary = None if config.rotary is None else RotaryEmbedding(config.rotary, sizes.head_dim)
        self.rule = config.rule.build(sizes)

    def forward(
        self,
        source: Float[Tensor, "b n hidden"],
        kv_source: Float[Tensor, "b n hidden"],
        positions: Tensor,
        mask: AttentionMask,
        state: RoundState,
        spare: int,
    ) -> tuple[Float[Tensor, "b n heads_width"], RoundState]:
        """Return the concatenated heads of the round, and its memory."""
        config, heads = self.config, self.layout
        key = self.k_proj(kv_source).unflatten(-1, (heads.key_heads, -1)).transpose(1, 2)
        value = self.v_proj(kv_source).unflatten(-1, (heads.value_heads, -1)).transpose(1, 2)
        # Under autocast a projection rounds and an identity query does not.
        query = self.query(source).to(key.dtype).unflatten(-1, (heads.query_heads, -1)).transpose(1, 2)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        if self.rotary is not None:
            query, key = self.rotary(query, key, positions)
        keys, values = state.append(key, value)
        output, memory = self.rule(
            query,
            keys,
            values,
            source=source,
            memory=state.memory,
            spare=spare,
            mask=mask,
            is_causal=config.is_causal,
            scale=config.scale,
            dropout_p=config.dropout if self.training else 0.0,
            backend=config.backend,
        )
        return output.transpose(1, 2).flatten(2), RoundState(key=keys, value=values, memory=memory)


class Attention(nn.Module):
    """An attention layer of any mechanism or sum of mechanisms.

    Submodules: rounds[m] (`AttentionRound`), gates[m - 1] of the further rounds, head_output if configured, o_proj.

    Examples:
        >>> import torch
        >>> from heedful.nn import Attention, attention_config
        >>> layer = Attention(attention_config("boosted+multi-token", hidden_size=32, num_heads=4))
        >>> y, _ = layer(torch.randn(2, 10, 32))
        >>> y.shape
        torch.Size([2, 10, 32])
    """

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        boosting, heads, width = config.boosting, config.heads, config.heads_width
        self.config, self.layout = config, heads  # see AttentionRound
        self.rounds = nn.ModuleList(AttentionRound(config) for _ in range(config.rounds))
        gates = (
            []
            if boosting is None
            else [boosting.build_gate(width, heads.output_heads) for _ in range(1, config.rounds)]
        )
        self.gates = nn.ModuleList(gates)
        self.head_output = (
            None
            if config.head_output is None
            else config.head_output.build(heads.value_dim, config.layer_index, config.norm_eps)
        )
        output_bias = config.bias if config.output_bias is None else config.output_bias
        self.o_proj = nn.Linear(width, config.hidden_size, bias=output_bias)

    def use_backend(self, backend: str) -> None:
        """Run on another backend from now on.

        Raises:
            ValueError: a backend that cannot run this layer, with the reason; nothing is changed then.
        """
        config = replace(self.config, backend=backend)
        for module in (self, *self.rounds):
            module.config = config  # type: ignore[assignment]  # both kinds of module have it

    def empty_state(self, *, rollback: int = 0) -> AttentionState:
        """Return the state before the first token, to be passed to the first call when decoding.

        Args:
            rollback: by how many tokens the states that follow can go back (`AttentionState.rollback`), as when drafted
                tokens are rejected. Convolutions over queries then keep as many more queries.
        """
        return AttentionState.empty(self.config.rounds, spare=rollback)

    def forward(
        self,
        x: Float[Tensor, "b n hidden"],
        mask: AttentionMask | None = None,
        state: AttentionState | None = None,
    ) -> tuple[Float[Tensor, "b n hidden"], AttentionState | None]:
        """Attend.

        Args:
            x: (B, N, hidden_size), usually normalised: the N new tokens.
            mask: padding, packed documents, a further window; it covers all positions, remembered ones included.
            state: what earlier calls returned (`empty_state()` at first); None when nothing shall be remembered.

        Returns:
            y (B, N, hidden_size), and the next state (None when `state` was None). With a state, calls on pieces of a
            text give what one call on all of it gives.

        Raises:
            ValueError: a wrong width, a mask for another length, or a state for a layer that is not causal.
        """
        config = self.config
        if x.dim() != 3 or x.shape[-1] != config.hidden_size:
            raise ValueError(
                f"x must have shape (batch, sequence, hidden_size = {config.hidden_size}), got {tuple(x.shape)}."
            )
        if state is not None and not config.is_causal:
            raise ValueError("a layer that is not causal cannot be decoded step by step: earlier outputs would change.")
        mask = (NO_MASK if mask is None else mask).with_window(config.window)
        past = AttentionState.empty(config.rounds) if state is None else state
        positions = self._positions(x, mask, past.length)
        boosting = config.boosting
        estimate, states = None, []
        for index, attention_round in enumerate(self.rounds):
            if estimate is None or boosting is None:
                source = kv_source = x
            else:
                source = x - boosting.residual_coefficient * estimate
                kv_source = source if boosting.kv_source == "residual" else x
            heads, round_state = attention_round(source, kv_source, positions, mask, past.rounds[index], past.spare)
            states.append(round_state)
            estimate = heads if estimate is None else estimate + self.gates[index - 1](estimate, heads) * heads
        assert estimate is not None
        if self.head_output is not None:
            estimate = self.head_output(estimate.unflatten(-1, (self.layout.output_heads, -1))).flatten(-2)
        return self.o_proj(estimate), None if state is None else past.after(tuple(states), x.shape[1])

    @staticmethod
    def _positions(x: Tensor, mask: AttentionMask, past: int) -> Tensor:
        length = x.shape[1]
        mask.check(length, past + length, is_causal=True)
        mask.check_batch(x.shape[0])
        positions = mask.positions()
        if positions is None:
            return torch.arange(past, past + length, device=x.device)[None]
        return positions[:, past:]
