"""Annealing: the coefficient follows its schedule, resumes by itself, and W_Q goes when it is done."""

import math

import pytest
import torch
from tiny_checkpoints import logits_of, original, tokens_of
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from heedful.hf.annealing import AnnealQuery, annealed_queries, finish_annealing
from heedful.hf.new_parameters import new_parameter_names
from heedful.hf.upcycling import upcycle


def annealed(**options):
    return upcycle(original("llama"), "annealed-nonlinear-query", layers=[0, 2], **options)


def coefficients(model):
    return [float(query.coefficient) for query in annealed_queries(model)]


def test_schedule():
    linear, cosine = AnnealQuery(steps=10, start=5), AnnealQuery(steps=10, start=5, shape="cosine")
    assert [linear.coefficient(step) for step in (0, 5, 6, 10, 15, 99)] == [0.0, 0.0, 0.1, 0.5, 1.0, 1.0]
    assert [cosine.coefficient(step) for step in (0, 5, 15, 99)] == [0.0, 0.0, 1.0, 1.0]
    assert cosine.coefficient(7) == pytest.approx((1 - math.cos(0.2 * math.pi)) / 2)


def test_wrong_schedules_are_refused():
    with pytest.raises(ValueError, match="steps must be at least 1 and start at least 0, got 0 and 0"):
        AnnealQuery(steps=0)
    with pytest.raises(ValueError, match="got 5 and -1"):
        AnnealQuery(steps=5, start=-1)
    with pytest.raises(ValueError, match="shape: expected one of 'linear', 'cosine', got 'step'"):
        AnnealQuery(steps=5, shape="step")
    with pytest.raises(ValueError, match="no annealed query; make one with upcycle"):
        AnnealQuery(steps=5).apply(upcycle(original("llama"), "boosted"), 0)


def trainer_of(model, folder, callback, steps):
    rows = [{"input_ids": row, "labels": row} for row in tokens_of(10, batch=8)]
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        save_steps=4,
        learning_rate=1e-3,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    return Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[callback])


def test_a_trainer_anneals_resumes_and_saves_the_coefficient(tmp_path):
    callback = AnnealQuery(steps=4, start=1)
    model = annealed()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer_of(model, tmp_path, callback, 4).train()
    assert coefficients(model) == [0.75, 0.75]
    assert all(not torch.equal(before[name], model.get_parameter(name)) for name in new_parameter_names(model))
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-4")
    assert coefficients(saved) == [0.75, 0.75]
    again = annealed()
    trainer_of(again, tmp_path, callback, 6).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert coefficients(again) == [1.0, 1.0]
    finished = finish_annealing(again)
    assert torch.equal(logits_of(finished, tokens_of()), logits_of(again.eval(), tokens_of()))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finishing_drops_the_linear_query_and_keeps_the_logits(family, dtype):
    fields = {"head_dim": 4} if family == "qwen3" else {}  # boosting needs heads as wide as the model
    model = upcycle(original(family, **fields).to(dtype), "annealed-nonlinear-query+boosted")
    AnnealQuery(steps=3).apply(model, 3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gates" in name:
                parameter.add_(0.2)
    finished = finish_annealing(model)
    assert torch.equal(logits_of(finished, tokens_of()), logits_of(model, tokens_of()))
    assert finished.dtype == dtype
    assert not any("q_proj" in name or "coefficient" in name for name in finished.state_dict())
    assert finished.config.eos_token_id == model.config.eos_token_id
    renamed = {name.replace(".query.target.", ".query.") for name in new_parameter_names(model)}
    assert set(new_parameter_names(finished)) == {name for name in renamed if "q_proj" not in name}


def test_other_layers_keep_their_query():
    model = annealed()
    AnnealQuery(steps=1).apply(model, 1)
    finished = finish_annealing(model)
    kinds = [layer.query.kind for layer in finished.config.decoder_config().layers]
    assert kinds == ["nonlinear", "linear", "nonlinear", "linear"]
    assert torch.equal(logits_of(finished, tokens_of()), logits_of(model, tokens_of()))


def test_finishing_too_early_is_refused():
    model = annealed()
    AnnealQuery(steps=4).apply(model, 3)
    with pytest.raises(ValueError, match=r"not finished: coefficients lie between 0.75 and 0.75, expected 1"):
        finish_annealing(model)
    annealed_queries(model)[0].set_coefficient(1.0)
    with pytest.raises(ValueError, match=r"not finished: coefficients lie between 0.75 and 1, expected 1"):
        finish_annealing(model)
    AnnealQuery(steps=4).apply(model, 4)
    finished = finish_annealing(model)
    with pytest.raises(ValueError, match="no annealed query"):
        finish_annealing(finished)
