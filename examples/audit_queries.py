"""Ask of four architectures whether their query matrices can be removed exactly, and remove them where they can.

    python examples/audit_queries.py

The weights are random: what can be removed follows from the architecture, and how well from the weights.
"""

import torch
import tyro
from rich.console import Console
from rich.table import Table
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from heedful import DecoderLM, decoder_config
from heedful.convert.queries import audit, convert_queries
from heedful.hf import import_decoder


def models(hidden_size: int, num_layers: int, num_heads: int, vocab_size: int) -> dict[str, DecoderLM]:
    """Return the four models by name."""
    llama = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads // 2,
    )
    gpt2 = GPT2Config(
        vocab_size=vocab_size,
        n_embd=hidden_size,
        n_layer=num_layers,
        n_head=num_heads,
        bos_token_id=None,
        eos_token_id=None,
    )
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "max_positions": 256,
        "norm": "none",
        "tie_embeddings": False,
        "initializer_range": None,
    }
    return {
        "Llama": import_decoder(LlamaForCausalLM(llama)),
        "GPT-2": import_decoder(GPT2LMHeadModel(gpt2)),
        "no norms, no skips": DecoderLM(decoder_config(attention_skip=False, feed_forward_skip=False, **sizes)),
        "no norms, with skips": DecoderLM(decoder_config(**sizes)),
    }


def main(hidden_size: int = 64, num_layers: int = 4, num_heads: int = 4, vocab_size: int = 512, seed: int = 0) -> None:
    """Print the audits as a table, then convert the model without norms and skips.

    Args:
        hidden_size: width of the models.
        num_layers: layers of the models.
        num_heads: heads of a layer, an even number.
        vocab_size: tokens.
        seed: of the random weights.
    """
    torch.manual_seed(seed)
    decoders = models(hidden_size, num_layers, num_heads, vocab_size)
    table = Table("architecture", "W_Q removed", "net parameters", "why", show_lines=True)
    for name, decoder in decoders.items():
        verdict = audit(decoder)
        removed = f"{len(verdict.removable)} of {len(verdict.layers)}"
        reasons = {layer.verdict: f"{layer.verdict}: {layer.reason}" for layer in verdict.layers}  # one of each kind
        table.add_row(name, removed, f"{-verdict.net_saved:,}", "\n".join([*reasons.values(), *verdict.warnings]))
    Console(width=120).print(table)

    original = decoders["no norms, no skips"]
    converted, report = convert_queries(original)
    print(
        f"converted: {report.parameters_before:,} -> {report.parameters_after:,} parameters, lossless {report.lossless}"
    )
    tokens = torch.randint(vocab_size, (2, 64))
    with torch.no_grad():
        before, after = original(tokens)[0], converted(tokens)[0]
    print(f"largest logit difference in float32: {float((after - before).abs().max()):.2g}", end=" ")
    print(f"(largest logit {float(before.abs().max()):.2g})")
    print(f"relative error in float64, as the conversion verified it: {report.verification.random_tokens:.2g}")


if __name__ == "__main__":
    tyro.cli(main)
