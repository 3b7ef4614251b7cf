"""The parts of a decoder around attention: feed-forward layers and the residual block."""

from __future__ import annotations

from torch import Tensor, nn

from heedful.models.config import DecoderConfig
from heedful.nn.attention import Attention
from heedful.nn.config import AttentionConfig
from heedful.nn.norms import RMSNorm
from heedful.nn.state import AttentionState
from heedful.ops.masks import AttentionMask


class GeluFeedForward(nn.Module):
    """dropout(W_down dropout(gelu(W_up x))), exact GELU or GPT-2's tanh approximation, two dropouts."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.feed_forward_size, bias=config.bias)
        self.down_proj = nn.Linear(config.feed_forward_size, config.hidden_size, bias=config.bias)
        self.dropout, self.activation_dropout = build_dropouts(config)
        self.approximate = "tanh" if config.activation == "gelu-tanh" else "none"

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, hidden_size) -> the same shape."""
        active = nn.functional.gelu(self.up_proj(x), approximate=self.approximate)
        return self.dropout(self.down_proj(self.activation_dropout(active)))


class SwigluFeedForward(nn.Module):
    """dropout(W_down dropout(silu(W_gate x) * W_up x))."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.feed_forward_size, bias=config.bias)
        self.up_proj = nn.Linear(config.hidden_size, config.feed_forward_size, bias=config.bias)
        self.down_proj = nn.Linear(config.feed_forward_size, config.hidden_size, bias=config.bias)
        self.dropout, self.activation_dropout = build_dropouts(config)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, hidden_size) -> the same shape."""
        active = nn.functional.silu(self.gate_proj(x)) * self.up_proj(x)
        return self.dropout(self.down_proj(self.activation_dropout(active)))


def build_dropouts(config: DecoderConfig) -> tuple[nn.Dropout, nn.Dropout]:
    """Return the dropouts after a feed-forward layer and after its activation."""
    inner = config.dropout if config.activation_dropout is None else config.activation_dropout
    return nn.Dropout(config.dropout), nn.Dropout(inner)


def build_norm(config: DecoderConfig) -> nn.Module:
    """Return one of the decoder's norms."""
    if config.norm == "none":
        return nn.Identity()
    if config.norm == "rms":
        return RMSNorm(config.hidden_size, eps=config.norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.bias)


class Block(nn.Module):
    """One residual block; `h +` falls away where the configuration has no skip.

    pre:  h <- h + attention(norm(h)),  h <- h + feed_forward(norm(h))
    post: h <- norm(h + attention(h)),  h <- norm(h + feed_forward(h))
    """

    def __init__(self, config: DecoderConfig, attention: AttentionConfig) -> None:
        super().__init__()
        self.pre_norm = config.norm_position == "pre"
        self.attention_skip, self.feed_forward_skip = config.attention_skip, config.feed_forward_skip
        self.attention_norm = build_norm(config)
        self.attention = Attention(attention)
        self.attention_dropout = nn.Dropout(config.attention_output_dropout)
        self.feed_forward_norm = build_norm(config)
        self.feed_forward = (SwigluFeedForward if config.activation == "swiglu" else GeluFeedForward)(config)

    def forward(
        self, hidden: Tensor, mask: AttentionMask | None, state: AttentionState | None
    ) -> tuple[Tensor, AttentionState | None]:
        """(B, T, hidden_size) -> the same shape, and the attention's next state."""
        attended, state = self.attention(self.attention_norm(hidden) if self.pre_norm else hidden, mask, state)
        attended = self.attention_dropout(attended)
        hidden = hidden + attended if self.attention_skip else attended
        if not self.pre_norm:
            hidden = self.attention_norm(hidden)
        forwarded = self.feed_forward(self.feed_forward_norm(hidden) if self.pre_norm else hidden)
        hidden = hidden + forwarded if self.feed_forward_skip else forwarded
        return (hidden if self.pre_norm else self.feed_forward_norm(hidden)), state
