"""The script of test_trainer_ddp.py: train tiny models with Trainer, in as many processes as torchrun started.

Arguments: a folder for the results, the rows of a batch in each process.
"""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from small_hf import MECHANISMS, examples_of, model_of
from transformers import Trainer, TrainingArguments


def unequal_rows():
    """Rows with unequal numbers of tokens that count, so that a mean of the processes' means would be wrong."""
    rows = examples_of(16)
    for index, row in enumerate(rows):
        row["labels"][: 3 * (index % 8)] = -100
    return rows


def train(folder, mechanism, rows):
    """Train three steps, and write the losses and the weights in one of the processes."""
    settings = TrainingArguments(
        output_dir=str(folder),
        max_steps=3,
        per_device_train_batch_size=rows,
        optim="sgd",
        learning_rate=0.5,
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        seed=3,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model=model_of(MECHANISMS[mechanism]), args=settings, train_dataset=unequal_rows())
    trainer.train()
    if trainer.is_world_process_zero():
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        facts = {"processes": settings.world_size, "losses": losses}
        (folder / f"{mechanism}.json").write_text(json.dumps(facts), encoding="utf-8")
        weights = {name: tensor.contiguous() for name, tensor in trainer.model.state_dict().items()}
        save_file(weights, folder / f"{mechanism}.safetensors")
    return trainer


def main():
    torch.set_num_threads(1)
    trainers = [train(Path(sys.argv[1]), mechanism, int(sys.argv[2])) for mechanism in MECHANISMS]
    torch.distributed.barrier()
    # Freeing a process group sometimes waits for ever for one of its threads, which waits for Python: leave at once.
    sys.stdout.flush()
    os._exit(0 if trainers else 1)


if __name__ == "__main__":
    main()
