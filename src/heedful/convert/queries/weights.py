"""A decoder's weights as the algebra sees them: matrices from input to output, biases always there, in float64.

`DecoderWeights.of(model)` takes the weights out, the other files change them, and `DecoderWeights.model` builds the
decoder that they describe. A bias that stays 0 and was not there before costs nothing: its flag is not set.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from heedful.convert.queries.architecture import why_reads_are_not_linear
from heedful.models import DecoderConfig, DecoderLM
from heedful.models.decoder import assemble_decoder
from heedful.nn import AttentionConfig, IdentityQuery, LinearQuery, PartialIdentityQuery


@dataclass
class Affine:
    """y = x W + b with W (in, out) and b (out,)."""

    weight: Tensor
    bias: Tensor

    def clone(self) -> Affine:
        """Return a copy that shares nothing."""
        return Affine(self.weight.clone(), self.bias.clone())


@dataclass
class NormWeights:
    """Gain and shift of a norm, (d,) each."""

    gain: Tensor
    shift: Tensor


@dataclass
class LayerWeights:
    """One block.

    Attributes:
        config: the attention's configuration; changed along with the weights.
        query: W_Q, or W_rest of a partial identity query; None where no linear map makes the query.
        key, value: None where several rounds have several of them.
        output: W_O.
        inner: W_up, and before it W_gate with SwiGLU.
        down: W_down.
        attention_norm, feed_forward_norm: None in a model without norms.
    """

    config: AttentionConfig
    query: Affine | None
    key: Affine | None
    value: Affine | None
    output: Affine
    inner: list[Affine]
    down: Affine
    attention_norm: NormWeights | None
    feed_forward_norm: NormWeights | None

    @property
    def stream_reads(self) -> list[Affine]:
        """The linear maps that read the attention's input."""
        return [part for part in (self.query, self.key, self.value) if part is not None]

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.config.sizes.head_dim

    @property
    def query_heads_per_group(self) -> int:
        """How many query heads share a key head."""
        return self.config.heads.query_heads // self.config.heads.key_heads

    def columns(self, head: int) -> slice:
        """The columns of a head in W_Q, W_K or W_V."""
        return slice(head * self.head_dim, (head + 1) * self.head_dim)


@dataclass
class DecoderWeights:
    """All weights of a decoder, in float64.

    Attributes:
        config: what `model` builds from, except for biases that turn out to be needed.
        tokens: E (V, d).
        positions: P (N, d), or None.
        layers: one entry per stored block.
        final_norm: None in a model without norms.
        head: D (d, V); None with a tied head.
        head_bias: (V,).
        others: everything that no change of basis touches, by name.
        drop_zero_biases: leave out projections' biases that have become 0 throughout.
    """

    config: DecoderConfig
    tokens: Tensor
    positions: Tensor | None
    layers: list[LayerWeights]
    final_norm: NormWeights | None
    head: Tensor | None
    head_bias: Tensor
    others: dict[str, Tensor] = field(default_factory=dict)
    drop_zero_biases: bool = False

    @classmethod
    def of(cls, model: DecoderLM) -> DecoderWeights:
        """Copy a model's weights out, in float64 on the CPU."""
        config = model.config
        state = {name: tensor.detach().to("cpu", torch.float64) for name, tensor in model.state_dict().items()}
        taken = _Taker(state)
        own = config.layers[: len(model.blocks)]
        layers = [_layer(taken, f"blocks.{index}.", config, layer) for index, layer in enumerate(own)]
        tokens = taken.tensor("token_embedding.weight")
        head = None if config.tie_embeddings else taken.tensor("head.weight").T.clone()
        return cls(
            config=config,
            tokens=tokens,
            positions=taken.tensor("position_embedding.weight") if model.position_embedding is not None else None,
            layers=layers,
            final_norm=taken.norm("final_norm", config),
            head=head,
            head_bias=taken.tensor("head_bias") if config.head_bias else tokens.new_zeros(config.vocab_size),
            others=taken.left,
        )

    def untie_head(self) -> None:
        """Give a tied model a head of its own: V d more entries, the same logits."""
        if self.head is None:
            self.head = self.tokens.T.clone()

    def final_config(self) -> DecoderConfig:
        """Return the configuration with the biases that these weights need."""
        config = self.config
        feed_forward = [bias for layer in self.layers for bias in (layer.down.bias, *(m.bias for m in layer.inner))]
        norms = [layer.attention_norm for layer in self.layers] + [layer.feed_forward_norm for layer in self.layers]
        shifts = [norm.shift for norm in (*norms, self.final_norm) if norm is not None and config.norm == "layer"]
        attention = tuple(self._attention_config(layer) for layer in self.layers)
        return replace(
            config,
            attention=attention if len(set(attention)) > 1 else attention[0],
            bias=config.bias or _any_nonzero(feed_forward + shifts),
            tie_embeddings=self.head is None,
            head_bias=config.head_bias or _any_nonzero([self.head_bias]),
        )

    def model(self) -> DecoderLM:
        """Return the decoder of these weights, in float64 and evaluation mode."""
        config = self.final_config()
        state = dict(self.others)
        state["token_embedding.weight"] = self.tokens
        if self.positions is not None:
            state["position_embedding.weight"] = self.positions
        if self.head is not None:
            state["head.weight"] = self.head.T
        state["head_bias"] = self.head_bias
        _put_norm(state, "final_norm", self.final_norm)
        for index, layer in enumerate(self.layers):
            _put_layer(state, f"blocks.{index}.", layer)
        with torch.device("meta"):
            names = list(DecoderLM(config).state_dict())
        # Maps carry a bias always; the model has only those that its configuration names.
        return assemble_decoder(config, {name: state[name].clone().contiguous() for name in names}).eval()

    def _attention_config(self, layer: LayerWeights) -> AttentionConfig:
        config = layer.config
        inputs = [part.bias for part in layer.stream_reads]
        output_bias = config.bias if config.output_bias is None else config.output_bias
        output_bias = output_bias or _any_nonzero([layer.output.bias])
        plain = isinstance(config.query, LinearQuery | IdentityQuery | PartialIdentityQuery) and layer.key is not None
        kept = config.bias and not (self.drop_zero_biases and plain)
        bias = kept or _any_nonzero(inputs)
        same = output_bias == bias
        given = config.output_bias if config.output_bias == output_bias else None
        return replace(config, bias=bias, output_bias=given if same else output_bias, layer_index=None)


class _Taker:
    """Takes entries out of a state dict; what is left at the end belongs to no map."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.left = state

    def tensor(self, name: str) -> Tensor:
        return self.left.pop(name).clone()

    def affine(self, name: str) -> Affine:
        weight = self.left.pop(f"{name}.weight").T.clone()
        bias = self.left.pop(f"{name}.bias", None)
        return Affine(weight, weight.new_zeros(weight.shape[1]) if bias is None else bias.clone())

    def norm(self, name: str, config: DecoderConfig) -> NormWeights | None:
        if config.norm == "none":
            return None
        gain = self.tensor(f"{name}.weight")
        shift = self.left.pop(f"{name}.bias", None)
        return NormWeights(gain, torch.zeros_like(gain) if shift is None else shift.clone())


def _layer(taken: _Taker, prefix: str, config: DecoderConfig, layer: AttentionConfig) -> LayerWeights:
    first = f"{prefix}attention.rounds.0."
    query = key = value = None
    if layer.rounds == 1:
        key, value = taken.affine(f"{first}k_proj"), taken.affine(f"{first}v_proj")
    if why_reads_are_not_linear(layer) is None and isinstance(layer.query, LinearQuery):
        query = taken.affine(f"{first}query.q_proj")
        if layer.query.anchor == "identity":  # x + x W_Q = x (A + W_Q)
            query.weight = query.weight + _anchor_matrix(*query.weight.shape)
            layer = replace(layer, query=LinearQuery(gain=layer.query.gain))
    names = ("gate_proj", "up_proj") if config.activation == "swiglu" else ("up_proj",)
    return LayerWeights(
        config=layer,
        query=query,
        key=key,
        value=value,
        output=taken.affine(f"{prefix}attention.o_proj"),
        inner=[taken.affine(f"{prefix}feed_forward.{name}") for name in names],
        down=taken.affine(f"{prefix}feed_forward.down_proj"),
        attention_norm=taken.norm(f"{prefix}attention_norm", config),
        feed_forward_norm=taken.norm(f"{prefix}feed_forward_norm", config),
    )


def _put_layer(state: dict[str, Tensor], prefix: str, layer: LayerWeights) -> None:
    first = f"{prefix}attention.rounds.0."
    name = "rest_proj" if isinstance(layer.config.query, PartialIdentityQuery) else "q_proj"
    maps = {f"{first}query.{name}": layer.query, f"{first}k_proj": layer.key, f"{first}v_proj": layer.value}
    maps[f"{prefix}attention.o_proj"] = layer.output
    inner = ("gate_proj", "up_proj")[-len(layer.inner) :]
    maps |= {f"{prefix}feed_forward.{name}": part for name, part in zip(inner, layer.inner, strict=True)}
    maps[f"{prefix}feed_forward.down_proj"] = layer.down
    for name, part in maps.items():
        if part is not None:
            state[f"{name}.weight"], state[f"{name}.bias"] = part.weight.T, part.bias
    _put_norm(state, f"{prefix}attention_norm", layer.attention_norm)
    _put_norm(state, f"{prefix}feed_forward_norm", layer.feed_forward_norm)


def _put_norm(state: dict[str, Tensor], name: str, norm: NormWeights | None) -> None:
    if norm is not None:
        state[f"{name}.weight"], state[f"{name}.bias"] = norm.gain, norm.shift


def _anchor_matrix(hidden_size: int, width: int) -> Tensor:
    """A with x A = x cut or tiled to `width`, as `heedful.nn.queries.fit_anchor` does it."""
    rows, columns = torch.arange(width) % hidden_size, torch.arange(width)
    matrix = torch.zeros(hidden_size, width, dtype=torch.float64)
    matrix[rows, columns] = 1.0
    return matrix


def _any_nonzero(tensors: list[Tensor]) -> bool:
    return any(bool(tensor.any()) for tensor in tensors)
