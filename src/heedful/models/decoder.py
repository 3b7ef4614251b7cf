"""`DecoderLM`: a plain decoder-only language model for every mechanism.

* pre- or post-norm, LayerNorm, RMSNorm or none, with or without skips, GELU or SwiGLU, learned or rotary positions,
  tied or untied head;
* one attention configuration for all layers or one per layer;
* exact decoding with a state, in single tokens or in pieces;
* weights in safetensors, configuration in JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from heedful.files import write_json_atomically
from heedful.models.blocks import Block, build_norm
from heedful.models.config import DecoderConfig
from heedful.models.generation import generate
from heedful.models.initialisation import draw_initial_values
from heedful.models.weight_files import require_memory
from heedful.nn.state import AttentionState
from heedful.ops.masks import AttentionMask
from heedful.schema import from_mapping, to_mapping

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass(frozen=True, kw_only=True, eq=False)
class DecoderState:
    """What a decoder remembers between calls: one `AttentionState` per layer."""

    layers: tuple[AttentionState, ...]

    @property
    def length(self) -> int:
        """The number of positions seen so far."""
        return self.layers[0].length

    def rollback(self, tokens: int) -> DecoderState:
        """Return the state as it was `tokens` tokens earlier; ValueError beyond what it was made for."""
        return DecoderState(layers=tuple(layer.rollback(tokens) for layer in self.layers))


class DecoderLM(nn.Module):
    """A decoder-only language model.

    Submodules: token_embedding, position_embedding (learned positions only), blocks[l] (one block if layers are
    shared), final_norm, head (untied only); parameter head_bias if configured.

    Args:
        config: the model; weights are drawn from torch's global generator by the rules of `DecoderConfig`.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        learned = config.position_embedding == "learned"
        self.position_embedding = nn.Embedding(config.max_positions, config.hidden_size) if learned else None
        self.dropout = nn.Dropout(config.dropout)
        own = config.layers[:1] if config.share_layers else config.layers
        self.blocks = nn.ModuleList(Block(config, layer) for layer in own)
        self.final_norm = build_norm(config)
        self.head = None if config.tie_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.head_bias = nn.Parameter(torch.empty(config.vocab_size)) if config.head_bias else None
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw all weights anew, as `heedful.models.initialisation` says."""
        draw_initial_values(self, self.config)
        if self.head_bias is not None:
            self.head_bias.zero_()

    @property
    def block_list(self) -> list[Block]:
        """The block of each layer; the same one everywhere if layers are shared."""
        blocks = cast("list[Block]", list(self.blocks))
        return blocks * self.config.num_layers if self.config.share_layers else blocks

    def empty_state(self, *, rollback: int = 0) -> DecoderState:
        """Return the state before the first token, to be passed to the first call when decoding.

        Args:
            rollback: by how many tokens the states that follow can go back (`DecoderState.rollback`).
        """
        return DecoderState(layers=tuple(block.attention.empty_state(rollback=rollback) for block in self.block_list))

    def forward(
        self, tokens: Int[Tensor, "b t"], mask: AttentionMask | None = None, state: DecoderState | None = None
    ) -> tuple[Float[Tensor, "b t vocab"], DecoderState | None]:
        """Return the logits of the next token after each position.

        Args:
            tokens: (B, T) int64, the new tokens.
            mask: padding or packed documents, for all positions, remembered ones included. Learned positions count from
                each document's first real token.
            state: what earlier calls returned (`empty_state()` at first), or None.

        Returns:
            logits (B, T, vocab_size), and the next state (None when `state` was None).

        Raises:
            ValueError: more positions than max_positions, or a mask for another length or batch.
        """
        hidden, state = self._final_hidden(tokens, mask, state)
        weight, bias = self.head_parameters()
        return nn.functional.linear(hidden, weight, bias), state

    def hidden_states(
        self, tokens: Int[Tensor, "b t"], mask: AttentionMask | None = None
    ) -> Float[Tensor, "b t hidden"]:
        """Return the hidden states after the final norm, (B, T, hidden_size); arguments and errors as of `forward`.

        With `head_parameters` they give the logits of some positions at a time, where all would be too many.
        """
        return self._final_hidden(tokens, mask, None)[0]

    def head_parameters(self) -> tuple[Tensor, Tensor | None]:
        """Return the head's weight (vocab_size, hidden_size) and bias (vocab_size,) or None: logits = h W^T + b."""
        return (self.token_embedding if self.head is None else self.head).weight, self.head_bias

    def _final_hidden(
        self, tokens: Tensor, mask: AttentionMask | None, state: DecoderState | None
    ) -> tuple[Tensor, DecoderState | None]:
        if tokens.dim() != 2:
            raise ValueError(f"tokens must have shape (batch, sequence), got {tuple(tokens.shape)}.")
        past = 0 if state is None else state.length
        if mask is not None:
            mask.check(tokens.shape[1], past + tokens.shape[1], is_causal=True)
            mask.check_batch(tokens.shape[0])
        check_positions(mask, past + tokens.shape[1], self.config.max_positions, "max_positions")
        hidden = self.token_embedding(tokens)
        if self.position_embedding is not None:
            positions = None if mask is None else mask.positions()
            if positions is None:
                positions = torch.arange(past, past + tokens.shape[1], device=tokens.device)
            else:
                positions = positions[:, past:]
            hidden = hidden + self.position_embedding(positions)
        hidden = self.dropout(hidden)
        states: list[Any] = []
        for index, block in enumerate(self.block_list):
            hidden, layer_state = block(hidden, mask, None if state is None else state.layers[index])
            states.append(layer_state)
        hidden = self.final_norm(hidden)
        return hidden, None if state is None else DecoderState(layers=tuple(states))

    def generate(self, tokens: Int[Tensor, "b t"], max_new_tokens: int, **options: Any) -> Int[Tensor, "b longer"]:
        """Continue each row; see `heedful.models.generation.generate`."""
        return generate(self, tokens, max_new_tokens, **options)

    def parameters_without_decay(self) -> set[str]:
        """Return the names of the parameters that weight decay leaves alone besides vectors: kernels and head
        mixing.
        """
        names = set()
        for prefix, module in self.named_modules():
            if prefix and hasattr(module, "parameters_without_decay"):
                names.update(f"{prefix}.{name}" for name in module.parameters_without_decay())
        return names

    def identity_values(self) -> dict[str, Tensor]:
        """Return, by name, what those parameters are where they change nothing; new tensors, also of sharded ones."""
        values = {}
        for prefix, module in self.named_modules():
            if prefix and hasattr(module, "identity_values"):
                values.update({f"{prefix}.{name}": value for name, value in module.identity_values().items()})
        return values

    def save(self, folder: str | Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write `config.json` and `model.safetensors` into `folder`, each atomically.

        Args:
            folder: where; it is made if it does not exist.
            weights: what to write instead of the model's own state dict, such as averaged or gathered weights.
        """
        from safetensors.torch import save

        from heedful.files import write_bytes_atomically

        weights = self.state_dict() if weights is None else weights
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        write_bytes_atomically(Path(folder) / "model.safetensors", save(weights))
        write_json_atomically(Path(folder) / "config.json", to_mapping(self.config))


def check_positions(mask: AttentionMask | None, used: int, room: int, name: str) -> None:
    """Refuse more positions than a model has; a row of packed documents may be longer than each of them.

    Raises:
        ValueError: with both numbers and the field `name` that says how many there are.
    """
    given = mask is not None and mask.position_ids is not None and not torch.compiler.is_compiling()
    if mask is not None and (given or (used > room and mask.document_ids is not None)):
        positions = mask.positions()
        assert positions is not None
        used = int(positions.max()) + 1
        if int(positions.min()) < 0:
            raise ValueError(f"positions must be at least 0, got {int(positions.min())}.")
    if used > room:
        raise ValueError(
            f"the model has {name} = {room}, got {used}; shorten the text or build the model with more positions."
        )


def assemble_decoder(config: DecoderConfig, weights: Mapping[str, Tensor], place: str = "the weights") -> DecoderLM:
    """Return the decoder that holds these very tensors; no initial values are drawn, no types changed.

    Args:
        config: the model.
        weights: its state dict.
        place: what to call the weights in errors.

    Raises:
        ValueError: a tensor is missing, left over, of another shape or no floating-point one, or nowhere (on the meta
            device).
    """
    with torch.device("meta"):
        model = DecoderLM(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(t.shape) if t.is_floating_point() else t.dtype for name, t in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"{place} does not fit its configuration: {name} should have shape {expected.get(name)}, found "
                f"{found.get(name)}."
            )
        if weights[name].is_meta:
            raise ValueError(f"{place}: {name} is not in memory; load the model without offloading first.")
    model.load_state_dict(dict(weights), assign=True)
    return model.requires_grad_(True)  # assign=True keeps the tensors' own flag


def load_decoder(folder: str | Path, device: str | torch.device = "cpu") -> DecoderLM:
    """Read a decoder that `DecoderLM.save` wrote.

    Raises:
        ValueError: missing, damaged or foreign files, with what was expected.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder} holds no {name}; expected a folder written by DecoderLM.save or a training run's checkpoint."
            )
    try:
        mapping = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'} is not valid JSON: {error}.") from error
    config = from_mapping(DecoderConfig, mapping, str(folder / "config.json"))
    require_memory(folder)
    try:
        weights = load_file(folder / "model.safetensors", device=str(device))
    except SafetensorError as error:
        raise ValueError(f"{folder / 'model.safetensors'} is damaged or no safetensors file: {error}.") from error
    return assemble_decoder(config, weights, str(folder / "model.safetensors")).to(device)
