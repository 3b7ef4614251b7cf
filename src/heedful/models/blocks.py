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
    """dropout(W_down dropout(gelu(W_up x))), exact GELU."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.feed_forward_size, bias=config.bias)
        self.down_proj = nn.Linear(config.feed_forward_size, config.hidden_size, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, hidden_size) -> the same shape."""
        return self.dropout(self.down_proj(self.dropout(nn.functional.gelu(self.up_proj(x)))))


class SwigluFeedForward(nn.Module):
    """dropout(W_down dropout(silu(W_gate x) * W_up x))."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.feed_forward_size, bias=config.bias)
        self.up_proj = nn.Linear(config.hidden_size, config.feed_forward_size, bias=config.bias)
        self.down_proj = nn.Linear(config.feed_forward_size, config.hidden_size, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, hidden_size) -> the same shape."""
        return self.dropout(self.down_proj(self.dropout(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))))


def build_norm(config: DecoderConfig) -> nn.Module:
    """Return one of the decoder's norms."""
    if config.norm == "rms":
        return RMSNorm(config.hidden_size, eps=config.norm_eps)
    return nn.LayerNorm(config.hidden_size, eps=config.norm_eps, bias=config.bias)


class Block(nn.Module):
    """One residual block.

    pre:  h <- h + attention(norm(h)),  h <- h + feed_forward(norm(h))
    post: h <- norm(h + attention(h)),  h <- norm(h + feed_forward(h))
    """

    def __init__(self, config: DecoderConfig, attention: AttentionConfig) -> None:
        super().__init__()
        self.pre_norm = config.norm_position == "pre"
        self.attention_norm = build_norm(config)
        self.attention = Attention(attention)
        self.attention_dropout = nn.Dropout(config.attention_output_dropout)
        self.feed_forward_norm = build_norm(config)
        feed_forward = {"gelu": GeluFeedForward, "swiglu": SwigluFeedForward}[config.activation]
        self.feed_forward = feed_forward(config)

    def forward(
        self, hidden: Tensor, mask: AttentionMask | None, state: AttentionState | None
    ) -> tuple[Tensor, AttentionState | None]:
        """(B, T, hidden_size) -> the same shape, and the attention's next state."""
        if self.pre_norm:
            attended, state = self.attention(self.attention_norm(hidden), mask, state)
            hidden = hidden + self.attention_dropout(attended)
            return hidden + self.feed_forward(self.feed_forward_norm(hidden)), state
        attended, state = self.attention(hidden, mask, state)
        hidden = self.attention_norm(hidden + self.attention_dropout(attended))
        return self.feed_forward_norm(hidden + self.feed_forward(hidden)), state
