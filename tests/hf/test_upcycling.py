"""Upcycling: nothing changes at step 0, every old weight is kept bit for bit, and every new one learns."""

import pytest
import torch
from tiny_checkpoints import FAMILIES, logits_of, original, tokens_of
from transformers import AutoModelForCausalLM

from heedful.hf.additions import ADDITIONS
from heedful.hf.importing import import_decoder
from heedful.hf.new_parameters import freeze_all_but_new, new_parameter_names, parameter_groups
from heedful.hf.upcycling import logits_at_random, upcycle
from heedful.models import DecoderLM, decoder_config
from heedful.nn import PRESETS, BlendedHeadOutput, MultiTokenRule, NonlinearQuery
from tolerance import assert_close

SMALL = {"query_kernel_size": 3, "key_kernel_size": 4}
ALL_TOGETHER = "boosted+multi-token+head-output+nonlinear-query"


def source(family, **fields):
    """A model into which every addition fits; dropouts would make the training of GPT-2 random."""
    fields = {"head_dim": 4, **fields} if family == "qwen3" else fields
    return original(family, **fields).double()


def options_of(add):
    return SMALL if "multi-token" in add else {}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("add", [*ADDITIONS, ALL_TOGETHER])
def test_the_function_and_the_old_weights_are_kept(family, add):
    model = source(family)
    decoder = import_decoder(model)
    upcycled = upcycle(model, add, **options_of(add))
    assert_close(logits_of(upcycled, tokens_of()), logits_of(decoder, tokens_of()))
    native = upcycled.to_decoder().state_dict()
    for name, tensor in decoder.state_dict().items():
        assert native[name].dtype == tensor.dtype, name
        assert torch.equal(native[name], tensor), name
    new = new_parameter_names(upcycled)
    assert new
    assert len(new) + len(list(decoder.parameters())) == len(list(upcycled.parameters()))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("add", [*ADDITIONS, ALL_TOGETHER])
def test_every_new_parameter_moves_within_two_steps(family, add):
    """Also those of a query without its f at first, in a round without its contribution at first."""
    upcycled = upcycle(source(family), add, layers=[1, 2], dropout=0.0, **options_of(add)).train()
    before = {name: p.detach().clone() for name, p in upcycled.named_parameters()}
    optimizer = torch.optim.SGD(parameter_groups(upcycled, learning_rate=0.01, new_learning_rate=0.01))
    for step in range(2):
        if step == 1:  # the training moves the coefficient
            for module in upcycled.modules():
                if hasattr(module, "set_coefficient"):
                    module.set_coefficient(0.1)
        optimizer.zero_grad()
        upcycled(input_ids=tokens_of(), labels=tokens_of()).loss.backward()
        optimizer.step()
    same = {name for name in new_parameter_names(upcycled) if torch.equal(before[name], upcycled.get_parameter(name))}
    if family == "gpt2":
        # Without rotation a bias of the keys shifts all scores of a query alike, and softmax is blind to it.
        same = {name for name in same if not name.endswith("k_proj.bias")}
    assert not same


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_types_folders_and_saving(dtype, tmp_path):
    """In the checkpoint's own type the first logits are the very same where nothing is computed in another order."""
    model = original("llama", tie_word_embeddings=True).to(dtype)
    model.save_pretrained(tmp_path / "plain")
    torch.manual_seed(5)
    upcycled = upcycle(tmp_path / "plain", "boosted+head-output+nonlinear-query")
    assert {p.dtype for p in upcycled.parameters()} == {dtype}
    assert torch.equal(logits_of(upcycled, tokens_of()), logits_of(import_decoder(model), tokens_of()))
    upcycled.save_pretrained(tmp_path / "upcycled")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "upcycled", dtype="auto")
    assert new_parameter_names(loaded) == new_parameter_names(upcycled)
    assert torch.equal(logits_of(loaded, tokens_of()), logits_of(upcycled, tokens_of()))
    torch.manual_seed(5)
    again = upcycle(model, "boosted+head-output+nonlinear-query")
    for name, tensor in upcycled.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_further_rounds_start_as_copies_of_the_first():
    decoder = upcycle(source("qwen2"), "boosted", rounds=3).to_decoder()
    for block in decoder.blocks:
        first, *further = block.attention.rounds
        assert len(further) == 2
        for attention_round in further:
            for name, tensor in first.state_dict().items():
                copied = attention_round.state_dict()[name]
                assert torch.equal(copied, tensor), name
                assert copied.data_ptr() != tensor.data_ptr()


def test_layers_are_chosen():
    model = source("llama")
    decoder = upcycle(model, "multi-token").to_decoder()
    assert [block.attention.rounds[0].rule.kq_pre is not None for block in decoder.blocks] == [
        False,
        False,
        True,
        False,
    ]
    assert all(block.attention.rounds[0].rule.head_pre is not None for block in decoder.blocks)
    upcycled = upcycle(model, "multi-token+head-output", layers=(0, 3), **SMALL)
    layers = upcycled.config.decoder_config().layers
    for index in (0, 3):
        rule = layers[index].rule
        assert isinstance(rule, MultiTokenRule)
        assert (rule.query_kernel_size, rule.key_kernel_size, rule.convolves(index)) == (3, 4, True)
        assert layers[index].head_output == BlendedHeadOutput()
    plain = import_decoder(model).config.layers
    assert layers[1:3] == plain[1:3]
    assert {name.split(".")[2] for name in new_parameter_names(upcycled)} == {"0", "3"}


def test_options_reach_their_sections():
    layer = upcycle(
        source("llama"),
        "multi-token+boosted+head-output+nonlinear-query",
        post_convolution=False, pre_mixing=None, post_mixing=2, convolution_every=2, convolution_offset=1,
        rounds=2, kv_source="input", gate_bias=False, gate="elementwise", norm=False,
        bottleneck=5, activation="silu",
    ).config.decoder_config().layers[1]  # fmt: skip
    assert layer.rule == MultiTokenRule(
        post_convolution=False, pre_mixing=None, post_mixing=2, convolution_every=2, convolution_offset=1
    )
    assert (layer.boosting.kv_source, layer.boosting.gate_bias, layer.boosting.gate) == (
        "input",
        False,
        "scaled-vector",
    )
    assert layer.head_output == BlendedHeadOutput(norm=False, gate="elementwise")
    assert (layer.query.bottleneck, layer.query.activation, layer.query.anchor) == (5, "silu", "linear")
    annealed = upcycle(original("qwen3"), "annealed-nonlinear-query", anchor_fit="tile", gain=1.0)
    assert annealed.config.decoder_config().layers[0].query.target == NonlinearQuery(anchor_fit="tile", gain=1.0)
    assert_close(logits_of(annealed, tokens_of()), logits_of(import_decoder(original("qwen3")), tokens_of()))


def test_an_upcycled_model_can_get_more():
    first = upcycle(source("llama"), "multi-token", **SMALL)
    with torch.no_grad():
        for name in new_parameter_names(first):
            first.get_parameter(name).add_(0.1)
    second = upcycle(first, "boosted")
    assert_close(logits_of(second, tokens_of()), logits_of(first, tokens_of()))
    assert set(new_parameter_names(first)) < set(new_parameter_names(second))
    with pytest.raises(ValueError, match="layer 0 is not plain: its rule is MultiTokenRule"):
        upcycle(first, "talking-heads")


def test_comparing_at_random_tokens_leaves_the_model_as_it_was():
    model = upcycle(original("gpt2").to(torch.bfloat16), "annealed-nonlinear-query").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits = logits_at_random(model, tokens=99)
    assert logits.dtype == torch.float32
    assert logits.shape == (2, 40, 29)  # no more than the model has positions
    assert model.training
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, before[name]), name


def test_tokens_and_generation_settings_are_kept():
    model = original("llama", pad_token_id=0)
    model.generation_config.temperature, model.generation_config.do_sample = 0.7, True
    upcycled = upcycle(model, "head-output")
    config = upcycled.config
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)
    assert upcycled.generation_config.temperature == 0.7
    assert upcycled.generation_config is not model.generation_config
    greedy = {"do_sample": False, "temperature": 1.0, "max_new_tokens": 8}
    prompt = torch.tensor([[5, 6, 7]])
    assert torch.equal(upcycled.generate(prompt, **greedy), model.generate(prompt, **greedy))


def test_parameter_groups():
    upcycled = upcycle(original("gpt2"), "multi-token+nonlinear-query")
    new = {id(upcycled.get_parameter(name)) for name in new_parameter_names(upcycled)}
    groups = parameter_groups(upcycled, learning_rate=1e-4, new_learning_rate=1e-3, weight_decay=0.2)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1e-3, 0.0), (1e-4, 0.2), (1e-4, 0.0)]
    members = [{id(parameter) for parameter in group["params"]} for group in groups]
    assert members[0] == new
    assert set.union(*members) == {id(parameter) for parameter in upcycled.parameters()}
    assert sum(map(len, members)) == len(list(upcycled.parameters()))
    assert all(parameter.dim() == 2 for parameter in groups[1]["params"])
    only = parameter_groups(upcycled, learning_rate=1e-4, new_learning_rate=1e-3, freeze_rest=True)
    assert [{id(parameter) for parameter in group["params"]} for group in only] == [new]
    assert {id(p) for p in upcycled.parameters() if p.requires_grad} == new


def test_freezing_leaves_the_old_weights_alone():
    upcycled = upcycle(source("llama"), "head-output").train()
    freeze_all_but_new(upcycled)
    upcycled(input_ids=tokens_of(), labels=tokens_of()).loss.backward()
    assert {name for name, p in upcycled.named_parameters() if p.grad is not None} == set(new_parameter_names(upcycled))


def test_models_without_new_parameters_are_told_apart():
    from heedful.hf.modeling import HeedfulForCausalLM

    fields = {"vocab_size": 29, "num_layers": 2, "max_positions": 40, "hidden_size": 16, "num_heads": 4}
    plain = HeedfulForCausalLM.from_decoder(DecoderLM(decoder_config(**fields)))
    assert new_parameter_names(plain) == []
    with pytest.raises(ValueError, match="no new parameters: its attention is plain in every layer"):
        freeze_all_but_new(plain)
    with pytest.raises(ValueError, match="expected a heedful model such as `upcycle` returns, got a LlamaForCausalLM"):
        new_parameter_names(original("llama"))


def test_shared_layers_are_upcycled_together():
    from heedful.hf.modeling import HeedfulForCausalLM

    fields = {"vocab_size": 29, "num_layers": 3, "max_positions": 40, "hidden_size": 16, "num_heads": 4}
    model = HeedfulForCausalLM.from_decoder(DecoderLM(decoder_config(share_layers=True, **fields)).double())
    upcycled = upcycle(model, "boosted+head-output")
    assert_close(logits_of(upcycled, tokens_of()), logits_of(model, tokens_of()))
    assert {name.split(".")[2] for name in new_parameter_names(upcycled)} == {"0"}
    with pytest.raises(ValueError, match="applies one block everywhere, so layers cannot be chosen"):
        upcycle(model, "boosted", layers=[0])


REFUSED = {
    "unknown": ("multi-tokn", {}, "nothing called 'multi-tokn'.* Did you mean 'multi-token'"),
    "twicing": ("boosted+twicing", {}, "'twicing' cannot be added to trained weights"),
    "differential": ("differential", {}, "'differential' cannot be added to trained weights"),
    "identity query": ("identity-query", {}, "'annealed-nonlinear-query' gets there gradually"),
    "a preset": ("multi-token-v1", {}, "preset for new models; for trained weights add 'multi-token'"),
    "nothing": ("standard", {}, "it adds nothing"),
    "twice": ("boosted+boosted", {}, "'boosted' stands twice"),
    "two rules": ("talking-heads+multi-token", {}, "both choose the rule of a layer; keep one"),
    "two queries": ("nonlinear-query+annealed-nonlinear-query", {}, "both choose the query of a layer; keep one"),
    "unknown option": ("multi-token", {"key_kernel": 3}, "no option 'key_kernel'. Did you mean 'key_kernel_size'"),
    "an option of another": ("multi-token", {"rounds": 3}, "has no option 'rounds'. It belongs to 'boosted'"),
    "no options": ("talking-heads", {"strange": 3}, "'talking-heads' has no option 'strange'"),
    "a wrong type": ("boosted", {"rounds": 2.5}, r"boosted.rounds: expected int, got 2.5"),
    "a wrong value": ("boosted", {"rounds": 0}, "rounds must be at least 1"),
    "one round": ("boosted", {"rounds": 1}, "rounds must be at least 2, the first being the trained one"),
    "neither norm nor gate": ("head-output", {"norm": False, "gate": "none"}, "nothing is added; keep one of them"),
    "a wrong choice": ("head-output", {"gate": "vector"}, "head-output.gate: expected one of"),
    "no norm to start from": ("nonlinear-query", {"output_norm": "none"}, "output_norm must be 'layer' or 'rms'"),
    "groups": ("multi-token", {"pre_mixing": 3}, "groups of 3 needs a number of heads divisible by it"),
    "no such layer": ("boosted", {"layers": [4]}, "different numbers from 0 to 3, got"),
    "a negative layer": ("boosted", {"layers": [-1]}, "different numbers from 0 to 3, got"),
    "a layer twice": ("boosted", {"layers": [1, 1]}, "different numbers from 0 to 3, got"),
    "no layers": ("boosted", {"layers": []}, "different numbers from 0 to 3, got"),
}


@pytest.mark.parametrize(("add", "fields", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_added_is_refused(add, fields, reason):
    with pytest.raises(ValueError, match=reason):
        upcycle(original("llama"), add, **fields)


def test_every_preset_can_be_added_or_is_refused_with_a_reason():
    for name in PRESETS:
        if name not in ADDITIONS:
            with pytest.raises(ValueError, match=r"cannot be added to trained weights|preset for new models"):
                upcycle(original("llama"), name)


def test_heads_wider_than_the_model_are_refused_where_they_do_not_fit():
    wide = original("qwen3")
    with pytest.raises(
        ValueError, match=r"does not fit this model: boosting.*num_heads \* head_dim must be hidden_size"
    ):
        upcycle(wide, "boosted")
    with pytest.raises(ValueError, match=r"does not fit this model: the identity needs.*anchor_fit='tile'"):
        upcycle(wide, "annealed-nonlinear-query")
