"""LoRA adapters of `peft` on the projections of heedful models."""

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from small_hf import KERNELS, examples_of, largest_difference, model_of
from transformers import Trainer, TrainingArguments

from heedful.hf import HeedfulForCausalLM
from heedful.nn import PRESETS

# peft 0.21 still asks transformers 5.24 for the old name of activation checkpointing
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
QKVO, KVO = ["q_proj", "k_proj", "v_proj", "o_proj"], ["k_proj", "v_proj", "o_proj"]
CASES = {
    # mechanism: projections that get an adapter, adapters in a layer
    "standard": ("standard", QKVO, 4),
    "multi-token": (KERNELS, QKVO, 4),
    "boosted": ("boosted", QKVO, 7),  # two rounds with q, k, v each, one o
    "nonlinear-query": ("nonlinear-query", KVO, 3),
    "boosted+nonlinear-query": ("boosted+nonlinear-query", KVO, 5),
    "differential-v2": ("differential-v2", QKVO, 4),
}
cases = pytest.mark.parametrize(("attention", "projections", "count"), CASES.values(), ids=CASES)
TOKENS = torch.stack([example["input_ids"] for example in examples_of(2, length=24)])


def adapted(attention, projections, seed=1):
    """A model with adapters which do not start at zero."""
    settings = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=projections)
    model = get_peft_model(model_of(attention, seed), settings)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    return model.eval()


@torch.no_grad()
def logits_of(model):
    return model.eval()(input_ids=TOKENS).logits


@cases
def test_only_the_adapters_of_the_chosen_projections_are_trained(attention, projections, count):
    model = adapted(attention, projections).train()
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trainable) == 2 * 2 * count  # two layers, two matrices
    for name, parameter in model.named_parameters():
        if name in trainable:
            assert "lora_" in name
            assert float(parameter.grad.abs().max()) > 0, name
        else:
            assert parameter.grad is None, name


def test_the_boosted_rounds_have_adapters_of_their_own():
    names = [name for name, _ in adapted("boosted", QKVO).named_parameters() if "lora_A" in name]
    for index in (0, 1):
        for projection in ("q_proj", "k_proj", "v_proj"):
            assert any(f"layers.0.attention.rounds.{index}." in name and projection in name for name in names)


@cases
def test_adapters_come_back_from_a_folder(attention, projections, count, tmp_path):
    model = adapted(attention, projections)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()
    again = PeftModel.from_pretrained(model_of(attention), tmp_path)
    assert torch.equal(logits_of(again), logits_of(model))


@cases
def test_a_merged_model_is_a_plain_one_that_computes_the_same(attention, projections, count, tmp_path):
    model = adapted(attention, projections)
    expected, without = logits_of(model), logits_of(model_of(attention))
    with model.disable_adapter():
        assert torch.equal(logits_of(model), without)
    merged = model.merge_and_unload()
    assert type(merged) is HeedfulForCausalLM
    assert largest_difference(logits_of(merged), expected) < 1e-4
    assert largest_difference(expected, without) > 1e-2
    merged.save_pretrained(tmp_path)
    assert torch.equal(logits_of(HeedfulForCausalLM.from_pretrained(tmp_path)), logits_of(merged))
    with torch.no_grad():
        assert largest_difference(merged.to_decoder()(TOKENS)[0], expected) < 1e-4


@cases
def test_generating_with_adapters_equals_generating_with_the_merged_model(attention, projections, count):
    model = adapted(attention, projections)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    with_adapters = model.generate(input_ids=TOKENS, **options)
    assert torch.equal(with_adapters, model.merge_and_unload().generate(TOKENS, **options))


@pytest.mark.parametrize("attention", [*PRESETS, "boosted+nonlinear-query+multi-token"])
def test_adapters_on_every_linear_map_learn_and_merge(attention):
    """Gates, lambdas and the feed-forward layers use their linear maps as modules, so that adapters take part."""
    model = adapted(attention, "all-linear").train()
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert float(parameter.grad.abs().max()) > 0, name
    expected = logits_of(model)
    assert largest_difference(logits_of(model.merge_and_unload()), expected) < 1e-4


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_layers_give_the_same_gradients_of_adapters(reentrant):
    gradients = []
    for recompute in (False, True):
        model = adapted("boosted", QKVO).train()
        if recompute:
            model.enable_input_require_grads()
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": reentrant})
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.requires_grad])
    assert gradients[0]
    assert all(torch.equal(first, second) for first, second in zip(*gradients, strict=True))


def test_a_folder_with_base_model_and_adapters_loads_at_once(tmp_path):
    base = model_of("boosted")
    base.save_pretrained(tmp_path / "base")
    loaded = HeedfulForCausalLM.from_pretrained(tmp_path / "base")
    model = get_peft_model(loaded, LoraConfig(task_type="CAUSAL_LM", target_modules=QKVO))
    model.save_pretrained(tmp_path / "adapters")
    again = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapters")
    assert torch.equal(logits_of(again), logits_of(base))


def test_trainer_trains_adapters_and_leaves_the_rest(tmp_path):
    model = adapted("boosted", QKVO)
    frozen = {name: tensor.clone() for name, tensor in model.named_parameters() if not tensor.requires_grad}
    settings = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=20,
        per_device_train_batch_size=4,
        learning_rate=2e-2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model=model, args=settings, train_dataset=examples_of(32))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.3
    for name, tensor in model.named_parameters():
        if name in frozen:
            assert torch.equal(tensor, frozen[name]), name
