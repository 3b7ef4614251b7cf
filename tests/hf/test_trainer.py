"""transformers.Trainer trains heedful models as it trains its own: losses, accumulation, resuming, packing."""

import inspect

import pytest
import torch
from small_hf import KERNELS, MECHANISMS, config_of, examples_of, largest_difference, model_of, next_token_losses
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments

from heedful.hf import HeedfulForCausalLM

mechanisms = pytest.mark.parametrize("attention", list(MECHANISMS.values()), ids=list(MECHANISMS))
RECOMPUTE = (
    "activation_checkpointing"
    if "activation_checkpointing" in inspect.signature(TrainingArguments).parameters
    else "gradient_checkpointing"
)
"""What this version of transformers calls recomputation in the backward pass."""


def trainer_of(model, folder, examples, collate=None, **settings):
    defaults = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 3e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": 3,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    arguments = TrainingArguments(output_dir=str(folder), **{**defaults, **settings})
    extra = {} if collate is None else {"data_collator": collate}
    return Trainer(model=model, args=arguments, train_dataset=examples, eval_dataset=examples[:4], **extra)


def losses_of(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def assert_same_weights(first, second, tolerance=0.0):
    second = second.state_dict()
    for name, tensor in first.state_dict().items():
        assert largest_difference(tensor, second[name]) <= tolerance, name


@mechanisms
def test_the_loss_falls_on_real_text(attention, tmp_path):
    torch.manual_seed(1)
    model = HeedfulForCausalLM(config_of(attention))
    trainer = trainer_of(model, tmp_path, examples_of(64), max_steps=40, learning_rate=1e-2)
    trainer.train()
    losses = losses_of(trainer)
    assert losses[0] == pytest.approx(5.55, abs=0.1)  # ln 256
    assert losses[-1] < 3.5


@mechanisms
def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(attention, tmp_path):
    examples = examples_of(32)
    fields = {"attention_dropout": 0.1, "hidden_dropout": 0.1}
    whole = trainer_of(model_of(attention, **fields), tmp_path / "whole", examples, save_strategy="steps", save_steps=2)
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    assert (checkpoint / "model.safetensors").is_file()
    assert_same_weights(HeedfulForCausalLM.from_pretrained(tmp_path / "whole" / "checkpoint-4"), whole.model)
    resumed = trainer_of(model_of(attention, seed=9, **fields), tmp_path / "resumed", examples)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert losses_of(resumed) == losses_of(whole)
    assert_same_weights(resumed.model, whole.model)


class Padded:
    """Rows of unequal length, padded on the right; a row's padding does not count."""

    def __call__(self, examples):
        longest = max(len(example["input_ids"]) for example in examples)
        batch = {"input_ids": [], "attention_mask": [], "labels": []}
        for example in examples:
            missing = longest - len(example["input_ids"])
            batch["input_ids"].append(torch.nn.functional.pad(example["input_ids"], (0, missing)))
            batch["attention_mask"].append((torch.arange(longest) < longest - missing).long())
            batch["labels"].append(torch.nn.functional.pad(example["labels"], (0, missing), value=-100))
        return {name: torch.stack(rows) for name, rows in batch.items()}


def unequal_examples():
    return [
        {name: row[: 8 + 3 * (index % 7)] for name, row in example.items()}
        for index, example in enumerate(examples_of(16))
    ]


@mechanisms
def test_accumulated_gradients_are_those_of_the_larger_batch(attention, tmp_path):
    settings = {"max_steps": 2, "optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0}
    trainers = []
    for rows, times in ((8, 1), (2, 4)):
        trainer = trainer_of(
            model_of(attention),
            tmp_path,
            unequal_examples(),
            Padded(),
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=times,
            **settings,
        )
        trainer.train()
        trainers.append(trainer)
    at_once, in_parts = trainers
    assert losses_of(in_parts) == pytest.approx(losses_of(at_once), rel=1e-5)
    assert_same_weights(in_parts.model, at_once.model, tolerance=1e-5)


@mechanisms
def test_recomputed_layers_give_the_same_training(attention, tmp_path):
    trainers, calls = [], []
    for recompute in (False, True):
        model = model_of(attention, attention_dropout=0.1, hidden_dropout=0.1)
        count = [0]
        model.model.layers[1].feed_forward.register_forward_pre_hook(
            lambda *_, count=count: count.__setitem__(0, count[0] + 1)
        )
        trainer = trainer_of(model, tmp_path, examples_of(16), max_steps=2, **{RECOMPUTE: recompute})
        trainer.train()
        trainers.append(trainer)
        calls.append(count[0])
    assert calls == [2, 4]
    assert losses_of(trainers[0]) == losses_of(trainers[1])
    assert_same_weights(trainers[0].model, trainers[1].model)


@mechanisms
def test_recomputed_layers_give_the_same_gradients(attention):
    tokens = torch.stack([example["input_ids"] for example in examples_of(3)])
    gradients = []
    for recompute in (False, True):
        model = model_of(attention).train()
        if recompute:
            getattr(model, f"{RECOMPUTE}_enable")()
        model(tokens, labels=tokens).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        assert torch.equal(gradient, gradients[1][name]), name


def test_evaluation_is_the_mean_over_tokens_and_predictions_are_the_logits(tmp_path):
    model, examples = model_of(KERNELS), examples_of(4)
    trainer = trainer_of(model, tmp_path, examples, per_device_eval_batch_size=2)
    tokens = torch.stack([example["input_ids"] for example in examples])
    with torch.no_grad():
        logits = model(tokens).logits
    expected = float(next_token_losses(logits, tokens).mean())
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    predictions = trainer.predict(examples).predictions
    assert largest_difference(torch.from_numpy(predictions), logits) < 1e-5


def test_training_in_bfloat16_by_autocast_learns(tmp_path):
    trainer = trainer_of(model_of(KERNELS), tmp_path, examples_of(32), max_steps=12, learning_rate=1e-2, bf16=True)
    trainer.train()
    losses = losses_of(trainer)
    assert losses[-1] < losses[0] - 0.5
    assert next(trainer.model.parameters()).dtype == torch.float32


PACKED = {
    **MECHANISMS,
    "learned-positions": "standard",
    "twicing": "twicing",
    "differential": "differential",
    "window": "boosted",
}


@pytest.mark.parametrize("kind", PACKED)
def test_packed_rows_equal_separate_documents(kind):
    fields = {"position_embedding": "learned"} if kind == "learned-positions" else {}
    fields |= {"sliding_window": 5} if kind == "window" else {}
    model = model_of(PACKED[kind], **fields)
    lengths = (7, 19, 1, 12)
    pieces = [piece["input_ids"][:length] for piece, length in zip(examples_of(4), lengths, strict=True)]
    batch = DataCollatorWithFlattening()([{"input_ids": piece.tolist()} for piece in pieces])
    assert batch["input_ids"].shape == (1, sum(lengths))
    with torch.no_grad():
        packed = model(**batch)
        apart = [model(piece[None]).logits[0] for piece in pieces]
    assert largest_difference(packed.logits[0], torch.cat(apart)) < 1e-5
    losses = [next_token_losses(a[None], p[None]).flatten() for a, p in zip(apart, pieces, strict=True)]
    assert float(packed.loss) == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)


@pytest.mark.parametrize("form", ["return_seq_idx", "return_flash_attn_kwargs"])
def test_boundaries_in_other_forms_beside_the_positions_change_nothing(form):
    model = model_of(KERNELS)
    pieces = [{"input_ids": piece["input_ids"][:9].tolist()} for piece in examples_of(3)]
    with torch.no_grad():
        expected = model(**DataCollatorWithFlattening()(pieces))
        outputs = model(**DataCollatorWithFlattening(**{form: True})(pieces))
    assert torch.equal(outputs.logits, expected.logits)
    assert torch.equal(outputs.loss, expected.loss)


@pytest.mark.parametrize("form", ["return_seq_idx", "return_flash_attn_kwargs"])
def test_boundaries_that_would_be_ignored_are_refused(form):
    pieces = [{"input_ids": piece["input_ids"][:9].tolist()} for piece in examples_of(3)]
    batch = DataCollatorWithFlattening(return_position_ids=False, **{form: True})(pieces)
    with pytest.raises(ValueError, match="position_ids"):
        model_of("standard")(**batch)


def test_rows_of_a_batch_may_be_packed_differently():
    model = model_of(KERNELS)
    rows = torch.stack([piece["input_ids"][:12] for piece in examples_of(2)])
    positions = torch.tensor([[*range(5), *range(7)], [*range(12)]])
    with torch.no_grad():
        logits = model(rows, position_ids=positions).logits
        assert largest_difference(logits[0, 5:], model(rows[:1, 5:]).logits[0]) < 1e-5
        assert largest_difference(logits[1], model(rows[1:]).logits[0]) < 1e-5


def test_documents_may_be_packed_to_more_positions_than_one_document_may_have():
    model = model_of("standard", max_position_embeddings=32)
    pieces = [example["input_ids"] for example in examples_of(3)]
    batch = DataCollatorWithFlattening()([{"input_ids": piece.tolist()} for piece in pieces])
    with torch.no_grad():
        packed = model(**batch).logits[0]
        apart = torch.cat([model(piece[None]).logits[0] for piece in pieces])
    assert largest_difference(packed, apart) < 1e-5


def test_trainer_takes_packed_rows(tmp_path):
    examples = [{"input_ids": example["input_ids"].tolist()} for example in unequal_examples()]
    settings = {"max_steps": 2, "optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0}
    packed = trainer_of(
        model_of(KERNELS, max_position_embeddings=128), tmp_path, examples, DataCollatorWithFlattening(), **settings
    )
    padded = trainer_of(
        model_of(KERNELS, max_position_embeddings=128), tmp_path, unequal_examples(), Padded(), **settings
    )
    for trainer in (packed, padded):
        trainer.train()
    assert losses_of(packed) == pytest.approx(losses_of(padded), rel=1e-5)
    assert_same_weights(packed.model, padded.model, tolerance=1e-5)
