"""Give a trained Llama new attention without changing what it computes, then fine-tune it with transformers.Trainer.

    python examples/upcycle_llama.py --text my-text.txt
    python examples/upcycle_llama.py --text my-text.txt --model a-llama-checkpoint --add boosted+multi-token

Without --model a small Llama is made and trained on the text first. The plain model is fine-tuned for the same steps on
the same rows; both are scored on text that neither has seen. One run with one seed says little about which mechanism
is better: `heedful compare` is for that.
"""

import json as json_module
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
import tyro
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from heedful.data import DataConfig, prepare
from heedful.data.corpora import open_corpus
from heedful.hf import new_parameter_names, parameter_groups, to_transformers, upcycle
from heedful.train.environment import describe_environment


def rows_of(tokens: np.ndarray, length: int, most: int) -> torch.Tensor:
    """Return consecutive pieces of `length` tokens, at most so many."""
    count = min(len(tokens) // length, most)
    return torch.from_numpy(np.asarray(tokens[: count * length], dtype=np.int64)).reshape(count, length)


def tokenized(text: str, tokenizer, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of a corpus for a given tokenizer: every twentieth document is held out."""
    kept: tuple[list[int], list[int]] = ([], [])
    for number, document in enumerate(open_corpus(text).documents()):
        if len(kept[0]) >= most:
            break
        kept[number % 20 == 19].extend(tokenizer(document)["input_ids"])
    return np.array(kept[0]), np.array(kept[1])


def train(model, rows: torch.Tensor, steps: int, batch_size: int, seed: int, groups: list[dict]) -> None:
    """Train with AdamW and a cosine schedule; the order of the rows depends on the seed alone."""
    arguments = TrainingArguments(
        output_dir=tempfile.gettempdir(),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 20),
        save_strategy="no",
        logging_strategy="no",
        seed=seed,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    examples = [{"input_ids": row, "labels": row} for row in rows]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    trainer = Trainer(model=model, args=arguments, train_dataset=examples, optimizers=(optimizer, None))
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def plain_groups(model, learning_rate: float) -> list[dict]:
    """Return groups for a model without new parameters: matrices decay, vectors do not."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    return [
        {"params": matrices, "lr": learning_rate, "weight_decay": 0.1},
        {"params": vectors, "lr": learning_rate, "weight_decay": 0.0},
    ]


@torch.no_grad()
def losses(model, rows: torch.Tensor) -> torch.Tensor:
    """Return the mean next-token loss of every row in nats."""
    found = []
    for batch in rows.split(16):
        logits = model.eval()(batch).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
        found.append(loss.reshape(len(batch), -1).mean(1))
    return torch.cat(found)


def main(
    text: str = "python-stdlib",
    model: Path | None = None,
    add: str = "multi-token",
    steps: int = 100,
    pretrain_steps: int = 300,
    hidden_size: int = 128,
    num_layers: int = 4,
    vocab_size: int = 2048,
    context_length: int = 128,
    batch_size: int = 16,
    held_out_rows: int = 128,
    learning_rate: float = 5e-4,
    new_learning_rate: float = 3e-3,
    seed: int = 1,
    save: Path | None = None,
    json: Path | None = None,
) -> None:
    """Upcycle, check step 0, fine-tune, compare with the plain model.

    Args:
        text: a text file or a folder of them; "python-stdlib" is on every machine.
        model: folder of a Llama checkpoint with its tokenizer; None makes and trains a small one.
        add: what is added, names of `heedful.hf.additions`.
        steps: fine-tuning steps of each model.
        pretrain_steps: steps that train the small Llama first.
        hidden_size: width of the small Llama, a multiple of 32.
        num_layers: layers of the small Llama; the convolutions of "multi-token" are in layers 2, 6, 10, ...
        vocab_size: entries of the small Llama's tokenizer, which is trained on the text.
        context_length: tokens of a row.
        batch_size: rows of a step.
        held_out_rows: rows to score, from documents that are not trained on.
        learning_rate: peak learning rate of the old parameters.
        new_learning_rate: peak learning rate of the new parameters.
        seed: of the initial weights and of the order of the rows.
        save: write both fine-tuned models with their tokenizer into this folder.
        json: write all figures into this file.
    """
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in locals().items()}
    torch.manual_seed(seed)
    wanted = (pretrain_steps + steps) * batch_size
    if model is None:
        sizes = {"max_train_tokens": wanted * context_length, "max_eval_tokens": held_out_rows * context_length}
        data = prepare(DataConfig(corpus=text, vocab_size=vocab_size, **sizes), report=print)
        tokenizer = to_transformers(data.tokenizer, max_length=2 * context_length)
        train_tokens, held_out_tokens = data.train.tokens, data.valid.tokens
        plain = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=data.vocab_size,
                hidden_size=hidden_size,
                intermediate_size=3 * hidden_size,
                num_hidden_layers=num_layers,
                num_attention_heads=hidden_size // 32,
                max_position_embeddings=2 * context_length,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=data.tokenizer.end_of_text,
            )
        )
    else:
        tokenizer = AutoTokenizer.from_pretrained(model)
        train_tokens, held_out_tokens = tokenized(text, tokenizer, wanted * context_length)
        plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        pretrain_steps = 0
    rows = rows_of(train_tokens, context_length, wanted)
    # Both trainings see all of the text: the last documents alone would pull the models to themselves.
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    held_out = rows_of(held_out_tokens, context_length, held_out_rows)
    first, second = rows[: pretrain_steps * batch_size], rows[pretrain_steps * batch_size :]
    second = second if len(second) else rows  # a short text is read again
    if pretrain_steps:
        train(plain, first, pretrain_steps, batch_size, seed, plain_groups(plain, 2e-3))

    before = losses(plain, held_out)
    new = upcycle(plain, add)
    with torch.no_grad():
        difference = float((new(held_out[:8]).logits - plain.eval()(held_out[:8]).logits).abs().max())
        largest = float(plain(held_out[:8]).logits.abs().max())
    upcycled_before = losses(new, held_out)
    names = new_parameter_names(new)
    added = sum(parameter.numel() for name, parameter in new.named_parameters() if name in names)
    total = sum(parameter.numel() for parameter in new.parameters())
    print(f"{add}: {added:,} new of {total:,} parameters in {len(names)} tensors")
    print(f"largest logit difference at step 0: {difference:.2g} (largest logit {largest:.3g})")

    groups = parameter_groups(new, learning_rate=learning_rate, new_learning_rate=new_learning_rate)
    train(new, second, steps, batch_size, seed, groups)
    train(plain, second, steps, batch_size, seed, plain_groups(plain, learning_rate))
    plain_after, upcycled_after = losses(plain, held_out), losses(new, held_out)
    gain = plain_after - upcycled_after
    error = float(gain.std() / len(gain) ** 0.5)

    print(f"held-out loss in nats per token, {len(held_out)} rows of {context_length} tokens:")
    print(f"  {'':10} {'before':>8} {'after':>8}")
    print(f"  {'plain':10} {float(before.mean()):8.4f} {float(plain_after.mean()):8.4f}")
    print(f"  {'upcycled':10} {float(upcycled_before.mean()):8.4f} {float(upcycled_after.mean()):8.4f}")
    print(f"upcycled better by {float(gain.mean()):.4f} +- {error:.4f} (standard error over rows; one seed)")
    if save is not None:
        for name, fine_tuned in (("plain", plain), ("upcycled", new)):
            fine_tuned.save_pretrained(save / name)
            tokenizer.save_pretrained(save / name)
    if json is not None:
        figures = {
            "settings": settings,
            "environment": {**describe_environment(), "transformers": transformers.__version__},
            "parameters": {"all": total, "new": added, "new tensors": len(names)},
            "largest logit difference at step 0": difference,
            "largest logit": largest,
            "held-out rows": len(held_out),
            "plain": {"before": float(before.mean()), "after": float(plain_after.mean())},
            "upcycled": {"before": float(upcycled_before.mean()), "after": float(upcycled_after.mean())},
            "upcycled better by": float(gain.mean()),
            "standard error over rows": error,
        }
        json.write_text(json_module.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main)
