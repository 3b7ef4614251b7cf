"""The models in transformers compute what the native decoder computes, and give what transformers' users ask for."""

import json
import os

import pytest
import torch
from test_configuration import DECODERS, SIZES
from tiny_hf import MECHANISMS, config_of, tokens_of
from tiny_hf import model_of as single_precision_model_of
from transformers import LlamaConfig, LlamaForCausalLM

from heedful.hf import HeedfulForCausalLM, HeedfulForSequenceClassification, HeedfulModel
from heedful.models import DecoderLM, decoder_config
from heedful.nn import PRESETS
from heedful.nn.attention_maps import recorded_maps
from heedful.ops import AttentionMask
from tolerance import assert_close


def model_of(*arguments, **fields):
    """In float64, from which the tolerance is derived."""
    return single_precision_model_of(*arguments, **fields).double()


NAMES = ("auto", "eager", "reference", "sdpa", "blockwise")


@pytest.mark.parametrize("fields", [*DECODERS.values(), *MECHANISMS], ids=[*DECODERS, *MECHANISMS])
@torch.no_grad()
def test_native_and_transformers_forms_are_the_same_bit_for_bit(fields):
    torch.manual_seed(0)
    name, rest = (fields, {}) if isinstance(fields, str) else ("standard", fields)
    native = DecoderLM(decoder_config(name, **{**SIZES, **rest})).eval()
    model = HeedfulForCausalLM.from_decoder(native)
    back, tokens = model.to_decoder(), tokens_of() % 30
    assert back.config == native.config
    assert native.state_dict().keys() == back.state_dict().keys()
    assert all(map(torch.equal, native.state_dict().values(), back.state_dict().values()))
    assert torch.equal(model(tokens).logits, native(tokens)[0])
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in native.parameters())
    with torch.no_grad():
        next(back.parameters()).add_(1)  # a copy: nothing is shared
    assert torch.equal(model(tokens).logits, native(tokens)[0])


def test_the_type_and_the_mode_are_kept():
    native = DecoderLM(decoder_config("boosted", **SIZES)).to(torch.bfloat16).train()
    model = HeedfulForCausalLM.from_decoder(native, eos_token_id=3)
    assert (model.dtype, model.training, model.config.eos_token_id) == (torch.bfloat16, True, 3)
    assert model.to_decoder().token_embedding.weight.dtype == torch.bfloat16


def test_a_seed_fixes_the_weights_and_every_part_starts_as_its_mechanism_says():
    torch.manual_seed(0)
    first = HeedfulForCausalLM(config_of("boosted+multi-token"))
    torch.manual_seed(0)
    second = HeedfulForCausalLM(config_of("boosted+multi-token"))
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    rule = first.model.layers[2].attention.rounds[1].rule
    assert torch.equal(rule.head_pre[0], torch.eye(4))
    assert rule.kq_pre[:, -1, 5].eq(1).all()
    assert first.model.layers[0].attention.gates[0].proj.bias.eq(0).all()
    assert 0.2 < first.lm_head.weight.std() < 0.4


@torch.no_grad()
def test_the_loss_is_the_mean_cross_entropy_of_the_next_token():
    model, tokens = single_precision_model_of(), tokens_of()  # transformers computes the loss in float32
    labels = tokens.clone()
    labels[0, :4] = -100
    output = model(tokens, labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected)
    counted = model(tokens, labels=labels, num_items_in_batch=torch.tensor(4))
    torch.testing.assert_close(counted.loss, expected * (labels[:, 1:] >= 0).sum() / 4)
    as_tuple = model(tokens, labels=labels, return_dict=False)
    torch.testing.assert_close(as_tuple[0], expected)


@torch.no_grad()
def test_logits_can_be_computed_where_they_are_needed_only():
    model, tokens = model_of(), tokens_of()
    whole = model(tokens).logits
    torch.testing.assert_close(model(tokens, logits_to_keep=3).logits, whole[:, -3:])
    torch.testing.assert_close(model(tokens, logits_to_keep=torch.tensor([0, 5])).logits, whole[:, [0, 5]])


@torch.no_grad()
def test_hidden_states_are_the_inputs_of_the_layers_and_the_normed_end():
    model, tokens = model_of("boosted"), tokens_of()
    output = model(tokens, output_hidden_states=True)
    assert len(output.hidden_states) == 4
    assert torch.equal(output.hidden_states[0], model.model.embed_tokens(tokens))
    assert torch.equal(model.lm_head(output.hidden_states[-1]), output.logits)
    assert torch.equal(model(inputs_embeds=output.hidden_states[0]).logits, output.logits)
    assert model(tokens).hidden_states is None


@pytest.mark.parametrize("name", MECHANISMS)
@torch.no_grad()
def test_maps_read_the_values(name):
    """Map times values is what the score rule gave: for the first round, checked on its own inputs."""
    model, tokens = model_of(name, attn_implementation="eager"), tokens_of()
    seen = {}
    rule = model.model.layers[2].attention.rounds[0].rule

    def keep(module, inputs, options, output):
        seen.setdefault("value", inputs[2])
        seen.setdefault("output", output[0])

    handle = rule.register_forward_hook(keep, with_kwargs=True)
    output = model(tokens, output_attentions=True)
    handle.remove()
    plain = model(tokens)
    assert torch.equal(output.logits, plain.logits)
    assert plain.attentions is None
    assert len(output.attentions) == 3
    heads = seen["output"].shape[1]
    rounds = model.model.layers[2].attention.config.rounds
    assert output.attentions[2].shape == (2, rounds * heads, 11, 11)
    assert output.attentions[2].triu(1).abs().max() == 0
    value = seen["value"].repeat_interleave(heads // seen["value"].shape[1], dim=1)
    assert_close(output.attentions[2][:, :heads] @ value, seen["output"])


@torch.no_grad()
def test_maps_while_decoding_and_where_there_are_none():
    tokens = tokens_of()
    model = model_of("multi-token", attn_implementation="eager")
    found = model.generate(
        tokens, max_new_tokens=3, output_attentions=True, return_dict_in_generate=True, pad_token_id=0
    )
    assert found.attentions[2][0].shape == (2, 4, 1, 13)
    twicing = model_of("twicing", attn_implementation="eager")
    with pytest.raises(ValueError, match="need the whole text in one call"):
        twicing.generate(tokens, max_new_tokens=3, output_attentions=True, return_dict_in_generate=True, pad_token_id=0)
    with pytest.raises(ValueError, match=r"maps exist on the reference backend only.*now it is 'auto'"):
        model_of()(tokens, output_attentions=True)
    with pytest.raises(ValueError, match="maps of shared layers cannot be told apart"):
        model_of(share_layers=True, attn_implementation="eager")(tokens, output_attentions=True)


@torch.no_grad()
def test_recorded_maps_of_native_layers():
    torch.manual_seed(0)
    native = DecoderLM(decoder_config("boosted", **SIZES))
    attentions = [block.attention for block in native.block_list]
    with recorded_maps(attentions) as maps:
        native(tokens_of() % 30)
    assert [len(rounds) for rounds in maps] == [2, 2, 2]
    torch.testing.assert_close(maps[0][0].sum(-1), torch.ones(2, 4, 11))
    native(tokens_of() % 30)
    assert len(maps[0]) == 2  # nothing is recorded outside


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("name", PRESETS)
@torch.no_grad()
def test_no_backend_lets_a_token_see_later_ones(name, backend):
    """By perturbation, exactly; or the backend is refused with a reason when the model is made."""
    sees_maps = name.startswith(("multi-token", "talking-heads"))
    if (backend == "blockwise" and not sees_maps) or (backend == "sdpa" and sees_maps):
        with pytest.raises(ValueError, match=r"SDPA does not give|has no blockwise backend; it has"):
            model_of(name, attn_implementation=backend)
        return
    model = model_of(name, attn_implementation=backend)
    tokens = tokens_of()
    changed = tokens.clone()
    changed[:, 6] = (changed[:, 6] + 7) % 50
    before, after = model(tokens).logits, model(changed).logits
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.equal(before[:, 6:], after[:, 6:])
    assert_close(before, model_of(name, attn_implementation="eager")(tokens).logits)
    assert model.model.layers[0].attention.config.backend == {"eager": "reference"}.get(backend, backend)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter runs kernels on the CPU")
def test_triton_is_obeyed_or_refused_too():
    """Chosen before the model is moved, refused where it cannot run."""
    model = model_of("multi-token", attn_implementation="triton", hidden_size=128)
    with pytest.raises(ValueError, match="it needs a CUDA device; this call is on cpu"):
        model(tokens_of())


@torch.no_grad()
def test_the_backend_can_be_changed_and_a_refused_one_changes_nothing():
    model = model_of("multi-token")
    model.set_attn_implementation("blockwise")
    assert model.model.layers[1].attention.rounds[0].config.backend == "blockwise"
    with pytest.raises(ValueError, match="SDPA does not give"):
        model.set_attn_implementation("sdpa")
    assert model.model.layers[1].attention.rounds[0].config.backend == "blockwise"
    assert model.config._attn_implementation == "blockwise"
    for wrong in ("flash_attention_2", "flex_attention", "blokwise"):
        with pytest.raises(ValueError, match=r"must be one of auto, eager"):
            model.set_attn_implementation(wrong)
    with pytest.raises(ValueError, match="must be one of auto, eager"):
        model_of(attn_implementation="flash_attention_2")


def test_our_names_do_not_leak_into_other_models():
    """A registered name without a mask would silently lose causality elsewhere; so none is registered."""
    with pytest.raises(ValueError, match="blockwise"):
        LlamaForCausalLM(
            LlamaConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, attn_implementation="blockwise")
        )


@torch.no_grad()
def test_padding_positions_and_packed_documents():
    model, tokens = model_of("boosted+multi-token"), tokens_of(7, batch=1)
    alone = model(tokens).logits
    padded = torch.nn.functional.pad(tokens, (3, 2))
    mask = torch.nn.functional.pad(torch.ones_like(tokens), (3, 2))
    assert_close(model(padded, attention_mask=mask).logits[:, 3:-2], alone)
    other = tokens_of(5, batch=1, seed=3)
    positions = torch.cat([torch.arange(7), torch.arange(5)])[None]
    packed = model(torch.cat([tokens, other], 1), position_ids=positions).logits
    assert_close(packed[:, :7], alone)
    assert_close(packed[:, 7:], model(other).logits)
    moved = model(tokens, position_ids=torch.arange(7)[None] + 20).logits  # rotary positions are relative
    assert_close(moved, alone)
    one_round = model_of("standard")  # jumps stretch distances and separate nothing: half of them is what was
    stretched = one_round(tokens, position_ids=2 * torch.arange(7)[None]).logits
    slower = model_of("standard", rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 0.5})
    assert_close(stretched, slower(tokens).logits)


@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_packed_documents_stay_apart_when_compiled_and_when_padded(padded):
    model, first, second = model_of("multi-token"), tokens_of(5, batch=1), tokens_of(6, batch=1, seed=1)
    row, mask = torch.cat([first, second], 1), torch.ones(1, 11, dtype=torch.long)
    positions = torch.cat([torch.arange(5), torch.arange(6)])[None]
    if padded:
        row, mask, positions = (torch.nn.functional.pad(t, (2, 0)) for t in (row, mask, positions))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for run in (model, compiled):
        logits = run(row, position_ids=positions, attention_mask=mask if padded else None, use_cache=False).logits
        assert_close(logits[:, -6:], model(second).logits)
        assert_close(logits[:, -11:-6], model(first).logits)
    torch.compiler.reset()


@torch.no_grad()
def test_positions_that_the_model_does_not_have_are_refused():
    tokens = tokens_of(4, batch=1)
    for kind in ("rotary", "learned"):
        model = model_of(position_embedding=kind)
        with pytest.raises(ValueError, match="max_position_embeddings = 64, got 104; shorten"):
            model(tokens, position_ids=torch.arange(100, 104)[None])
        with pytest.raises(ValueError, match="positions must be at least 0, got -1"):
            model(tokens, position_ids=torch.arange(-1, 3)[None])


def test_end_of_text_learns_where_padding_has_its_id():
    model = model_of(pad_token_id=3).train()
    tokens = torch.full((1, 5), 3)
    model(tokens, labels=tokens).loss.backward()
    assert model.model.embed_tokens.weight.grad[3].abs().max() > 0


def test_types_of_single_weights_are_kept_both_ways():
    model = model_of("boosted").to(torch.bfloat16)
    model.model.norm.float()
    native = model.to_decoder()
    assert native.final_norm.weight.dtype == torch.float32
    assert native.token_embedding.weight.dtype == torch.bfloat16
    assert HeedfulForCausalLM.from_decoder(native).model.norm.weight.dtype == torch.float32


def test_a_head_that_is_tied_in_the_configuration_only_is_refused(tmp_path):
    model = model_of(tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**written, "tie_word_embeddings": True}))
    with pytest.raises(ValueError, match="ties the head to the embedding"):
        HeedfulForCausalLM.from_pretrained(tmp_path)
    model.config.tie_word_embeddings = True
    with pytest.raises(ValueError, match="the head is tied to the embedding, but they hold different weights"):
        model.to_decoder()


@torch.no_grad()
def test_given_positions_reach_learned_embeddings():
    model, tokens = model_of(position_embedding="learned"), tokens_of(4, batch=1)
    moved = model(tokens, position_ids=torch.arange(4)[None] + 9).logits
    assert not torch.allclose(moved, model(tokens).logits)
    table = model.model.embed_positions.weight
    embeddings = model.model.embed_tokens(tokens) + table[9:13] - table[:4]
    assert_close(model(inputs_embeds=embeddings).logits, moved)


@torch.no_grad()
def test_wrong_inputs_are_refused():
    model, tokens = model_of(), tokens_of()
    cases = [
        ({}, "give either input_ids or inputs_embeds"),
        ({"input_ids": tokens, "inputs_embeds": torch.zeros(2, 11, 32)}, "give either input_ids or inputs_embeds"),
        (
            {"input_ids": tokens, "attention_mask": torch.ones(2, 1, 11, 11)},
            r"attention_mask must have shape \(batch = 2",
        ),
        ({"input_ids": tokens, "attention_mask": torch.ones(3, 11)}, r"attention_mask must have shape \(batch = 2"),
        ({"input_ids": tokens, "attention_mask": torch.ones(2, 9)}, "must cover 0 remembered and 11 new tokens, got 9"),
        ({"input_ids": tokens, "position_ids": torch.zeros(2, 5)}, r"position_ids must have shape \(batch, 11\)"),
    ]
    for inputs, message in cases:
        with pytest.raises(ValueError, match=message):
            model(**inputs)


def test_classification_scores_the_last_real_token():
    model = HeedfulForSequenceClassification(config_of("multi-token", num_labels=3, pad_token_id=0)).eval()
    tokens = tokens_of()
    tokens[1, 7:] = 0
    mask = (tokens != 0).long()
    with torch.no_grad():
        output = model(tokens, attention_mask=mask, labels=torch.tensor([0, 2]))
        alone = model(tokens[1:, :7]).logits
    assert output.logits.shape == (2, 3)
    assert_close(output.logits[1:], alone)
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, torch.tensor([0, 2])))


def test_gradient_checkpointing_recomputes_and_changes_nothing():
    tokens, gradients = tokens_of(), []
    for checkpointing in (False, True):
        model = model_of("boosted+multi-token").train()
        if checkpointing:
            newer = "activation_checkpointing_enable"
            getattr(model, newer if hasattr(model, newer) else "gradient_checkpointing_enable")()
        calls = []
        model.model.layers[0].attention.o_proj.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        model(tokens, labels=tokens).loss.backward()
        assert len(calls) == (2 if checkpointing else 1)
        gradients.append([p.grad for p in model.parameters()])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


def test_the_model_without_a_head_and_masks_that_move():
    model = HeedfulModel(config_of())
    assert model(tokens_of()).last_hidden_state.shape == (2, 11, 32)
    mask = AttentionMask(
        key_padding=torch.ones(1, 3, dtype=torch.bool), position_ids=torch.zeros(1, 3, dtype=torch.long)
    )
    moved = mask.to("meta")
    assert moved.key_padding.is_meta
    assert moved.position_ids.is_meta
