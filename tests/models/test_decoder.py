"""The decoder around the attention: blocks, initial weights, positions, precision, and the errors of its inputs."""

import math

import pytest
import torch
from tiny_models import VOCABULARY, config_of, jolted, logits_of, model_of, tokens_of

from heedful.models import DecoderLM
from heedful.nn import PRESETS, Rotary
from heedful.ops import AttentionMask
from tolerance import assert_close, largest_difference

F = torch.nn.functional


def written_out(model, tokens):
    """The decoder's equations from its own weights; attention itself is called, not repeated."""
    config = model.config
    h = model.token_embedding.weight[tokens]
    if config.position_embedding == "learned":
        h = h + model.position_embedding.weight[: tokens.shape[1]]

    def norm(module, x):
        if config.norm == "rms":
            return x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * module.weight
        centred = x - x.mean(-1, keepdim=True)
        bias = 0 if module.bias is None else module.bias
        return centred / (centred.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * module.weight + bias

    def linear(module, x):
        return x @ module.weight.T + (0 if module.bias is None else module.bias)

    def feed_forward(module, x):
        up = linear(module.up_proj, x)
        if config.activation == "swiglu":
            gate = linear(module.gate_proj, x)
            return linear(module.down_proj, gate * torch.sigmoid(gate) * up)
        return linear(module.down_proj, up * 0.5 * (1 + torch.erf(up / math.sqrt(2))))

    for block in model.blocks:
        if config.norm_position == "pre":
            h = h + block.attention(norm(block.attention_norm, h))[0]
            h = h + feed_forward(block.feed_forward, norm(block.feed_forward_norm, h))
        else:
            h = norm(block.attention_norm, h + block.attention(h)[0])
            h = norm(block.feed_forward_norm, h + feed_forward(block.feed_forward, h))
    h = norm(model.final_norm, h)
    return h @ (model.token_embedding if model.head is None else model.head).weight.T


@pytest.mark.parametrize("norm_position", ["pre", "post"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"bias": True, "norm_eps": 0.1},
        {"norm": "rms", "activation": "swiglu", "intermediate_size": 24},
        {"norm": "rms", "norm_eps": 0.1, "tie_embeddings": False, "position_embedding": "none"},
        {"activation": "swiglu", "bias": True, "tie_embeddings": False},
    ],
)
def test_the_decoder_is_its_equations(norm_position, fields):
    model, tokens = model_of(norm_position=norm_position, **fields), tokens_of()
    assert_close(logits_of(model, tokens), written_out(model, tokens).detach())


def test_bias_and_dropout_reach_the_parts_they_name():
    with_attention_bias = {n for n, _ in DecoderLM(config_of(attention_bias=True)).named_parameters() if "bias" in n}
    assert with_attention_bias
    assert all(".attention." in name for name in with_attention_bias)
    feed_forward_only = {n for n, _ in DecoderLM(config_of(bias=True, attention_bias=False)).named_parameters()}
    assert not any(".attention." in name and "bias" in name for name in feed_forward_only)
    assert "blocks.0.attention_norm.bias" in feed_forward_only
    config = config_of(dropout=0.25, attention_dropout=0.0)
    assert (config.dropout, config.layers[0].dropout) == (0.25, 0.0)
    assert config_of(dropout=0.25).layers[0].dropout == 0.25
    assert config_of(norm_eps=1e-3).layers[0].norm_eps == 1e-3


@pytest.mark.parametrize("field", ["dropout", "activation_dropout", "attention_output_dropout", "attention_dropout"])
def test_each_dropout_acts_in_training_only(field):
    model, tokens = model_of(**{field: 0.5}), tokens_of()
    plain = model_of()
    assert largest_difference(logits_of(model, tokens), logits_of(plain, tokens)) == 0.0
    model.train()
    assert largest_difference(logits_of(model, tokens), logits_of(model, tokens)) > 1e-3


@pytest.mark.parametrize("names", [*PRESETS, "boosted+nonlinear-query+multi-token"])
def test_a_seed_fixes_all_weights_and_drawing_anew_restores_every_kind_of_start(names):
    fields = {"bias": True, "qk_norm": True, "hidden_size": 32}
    torch.manual_seed(3)
    first = DecoderLM(config_of(names, **fields))
    torch.manual_seed(3)
    second = DecoderLM(config_of(names, **fields))
    torch.manual_seed(3)
    DecoderLM(config_of(names, **fields))
    third = DecoderLM(config_of(names, **fields))  # further on in the stream
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    assert not all(map(torch.equal, first.parameters(), third.parameters()))
    jolted(second).float()
    for model in (first, second):
        torch.manual_seed(4)
        model.initialise()
    for (name, fresh), (_, again) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(fresh, again), f"{name} keeps something of its former values"


def test_initial_weights_have_the_configured_spread():
    fields = {"hidden_size": 128, "num_heads": 4, "num_layers": 8, "tie_embeddings": False, "vocab_size": 200}
    torch.manual_seed(0)
    normal = DecoderLM(config_of(initializer_range=0.05, **fields))
    scaled = DecoderLM(config_of(initializer_range=0.05, scale_residual_init=True, **fields))
    cut = DecoderLM(config_of(initializer_range=None, **fields))
    for name, parameter in normal.named_parameters():
        if "norm" in name:
            assert bool((parameter == 1).all())
            continue
        other, bounded = scaled.get_parameter(name).detach(), cut.get_parameter(name).detach()
        ends_a_branch = name.endswith(("o_proj.weight", "down_proj.weight"))
        assert float(parameter.detach().std()) == pytest.approx(0.05, rel=0.05), name
        assert float(other.std()) == pytest.approx(0.05 / (4 if ends_a_branch else 1), rel=0.05), name
        # A normal cut at three deviations keeps 98.7 % of its spread.
        assert float(bounded.std()) == pytest.approx(0.987 * 128**-0.5, rel=0.05), name
        assert float(bounded.abs().max()) <= 3 * 128**-0.5 * (1 + 1e-6), name


@pytest.mark.parametrize("names", ["standard", "multi-token", "boosted+twicing"])
@pytest.mark.parametrize("rotary", [None, Rotary()])
def test_packed_documents_equal_separate_ones_in_the_whole_model(names, rotary):
    model = model_of(names, rotary=rotary, position_embedding="none" if rotary else "learned", max_positions=12)
    lengths = (5, 1, 4, 2)
    documents = [tokens_of(length, 1, seed=length) for length in lengths]
    mask = AttentionMask.from_cumulative_lengths(torch.tensor([0, *lengths]).cumsum(0))
    packed = logits_of(model, torch.cat(documents, dim=1), mask)
    for found, document in zip(packed.split(lengths, dim=1), documents, strict=True):
        assert_close(found, logits_of(model, document))
    assert largest_difference(logits_of(model, torch.cat(documents, dim=1)), packed) > 1e-3


def test_learned_positions_count_from_the_first_real_token_and_go_on_in_later_calls():
    model, tokens = model_of(), tokens_of(10)
    full = logits_of(model, tokens)
    state, pieces = model.empty_state(), []
    for piece in tokens.split([4, 1, 5], dim=1):
        logits, state = model(piece, None, state)
        pieces.append(logits.detach())
    assert_close(torch.cat(pieces, dim=1), full)
    assert state.length == 10
    real = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]).bool()
    assert_close(logits_of(model, tokens[:, :4], AttentionMask(key_padding=real))[0, 2:],
                 logits_of(model, tokens[:1, 2:4])[0])  # fmt: skip


def test_tied_heads_share_and_untied_heads_do_not():
    tied, untied = model_of(), model_of(tie_embeddings=False)
    assert tied.head is None
    assert "head.weight" in dict(untied.named_parameters())
    tokens = tokens_of()
    before = logits_of(untied, tokens)
    with torch.no_grad():
        untied.head.weight.mul_(2)
    assert_close(logits_of(untied, tokens), 2 * before)


@pytest.mark.parametrize("names", [*PRESETS, "boosted+nonlinear-query+multi-token"])
def test_a_bfloat16_model_runs_trains_and_generates(names):
    exact = model_of(names, rotary=Rotary())
    with torch.no_grad():
        for parameter in exact.parameters():
            parameter.copy_(parameter.bfloat16())
    rounded = model_of(names, rotary=Rotary()).bfloat16()
    tokens = tokens_of()
    logits = rounded(tokens)[0]
    assert logits.dtype == torch.bfloat16
    expected = logits_of(exact, tokens)
    error = (logits.detach().double() - expected).square().mean().sqrt()
    assert float(error) < 0.1 * float(expected.std()), "bfloat16 carries two to three digits through a few layers"
    F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in rounded.parameters())
    assert rounded.generate(tokens, 3).shape == (2, 15)


@pytest.mark.parametrize("names", [*PRESETS, "boosted+nonlinear-query+multi-token"])
def test_every_parameter_receives_a_gradient(names):
    model, tokens = model_of(names, bias=True, qk_norm=True), tokens_of()
    F.cross_entropy(model(tokens)[0].flatten(0, 1), tokens.flatten()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())] == []


@pytest.mark.parametrize(
    ("names", "kinds"),
    [
        ("standard", set()),
        ("boosted", set()),
        ("differential", set()),
        ("talking-heads", {"head_pre", "head_post"}),
        ("boosted+multi-token", {"kq_pre", "kq_post", "head_pre", "head_post"}),
    ],
)
def test_kernels_and_head_mixing_are_never_decayed(names, kinds):
    model = model_of(names)
    spared = model.parameters_without_decay()
    known = dict(model.named_parameters())
    assert spared <= known.keys()
    assert {name.rpartition(".")[2] for name in spared} == kinds
    expected = {name for name in known if name.rpartition(".")[2] in kinds}
    assert spared == expected, "in every layer and every round"


def test_wrong_inputs_are_named():
    model, tokens = model_of(), tokens_of(49)
    with pytest.raises(ValueError, match=r"max_positions = 48, got 49; shorten the text"):
        model(tokens)
    _, state = model(tokens[:, :48], None, model.empty_state())
    with pytest.raises(ValueError, match=r"max_positions = 48, got 49"):
        model(tokens[:, :1], None, state)
    with pytest.raises(ValueError, match=r"tokens must have shape \(batch, sequence\), got \(7,\)"):
        model(tokens[0, :7])
    for padding, message in (
        (torch.ones(2, 6).bool(), "6 positions but there are 7 keys"),
        (torch.ones(3, 7).bool(), "3 rows but the batch has 2"),
    ):
        with pytest.raises(ValueError, match=message):
            model(tokens[:, :7], AttentionMask(key_padding=padding))
    with pytest.raises(ValueError, match="2 rows but the batch has 1"):
        model(tokens[:1, :7], AttentionMask(key_padding=torch.ones(2, 7).bool()))


def test_rotary_models_are_limited_to_their_positions_too():
    model = model_of(rotary=Rotary(), position_embedding="none", max_positions=5)
    with pytest.raises(ValueError, match="max_positions = 5, got 6"):
        model(tokens_of(6))


def test_layers_with_other_heads_and_mechanisms_share_one_stream():
    from dataclasses import replace

    config = config_of({1: "differential"}, default="twicing", num_layers=3)
    layers = (config.layers[0], replace(config.layers[1], num_heads=2), replace(config.layers[2], num_kv_heads=1))
    model = jolted(DecoderLM(replace(config, attention=layers)))
    assert [layer.rule.kind for layer in model.config.layers] == ["twicing", "differential", "twicing"]
    assert [block.attention.config.layer_index for block in model.block_list] == [0, 1, 2]
    assert logits_of(model, tokens_of()).shape == (2, 12, VOCABULARY)


def test_a_row_of_documents_may_be_longer_than_each_of_them():
    model, tokens = model_of(), tokens_of(70)
    documents = (torch.arange(70)[None] >= 40).long()
    packed = logits_of(model, tokens, AttentionMask(document_ids=documents))
    assert_close(packed[:, :40], logits_of(model, tokens[:, :40]))
    with pytest.raises(ValueError, match=r"max_positions = 48, got 60; shorten"):
        logits_of(model, tokens, AttentionMask(document_ids=(torch.arange(70)[None] >= 60).long()))
    with pytest.raises(ValueError, match=r"max_positions = 48, got 70; shorten"):
        logits_of(model, tokens)


@pytest.mark.parametrize("fields", [{}, {"norm_position": "post"}, {"activation": "gelu-tanh", "norm": "rms"}])
@pytest.mark.parametrize(("attention_skip", "feed_forward_skip"), [(True, False), (False, True), (False, False)])
def test_sublayers_without_skips(attention_skip, feed_forward_skip, fields):
    """One layer, written out."""
    skips = {"attention_skip": attention_skip, "feed_forward_skip": feed_forward_skip}
    model, tokens = model_of(num_layers=1, position_embedding="none", **skips, **fields), tokens_of()
    block, h = model.blocks[0], model.token_embedding.weight[tokens]
    pre = model.config.norm_position == "pre"
    attended = block.attention(block.attention_norm(h) if pre else h)[0]
    h = attended + (h if attention_skip else 0)
    h = h if pre else block.attention_norm(h)
    up = block.feed_forward.up_proj(block.feed_forward_norm(h) if pre else h)
    approximate = "tanh" if model.config.activation == "gelu-tanh" else "none"
    down = block.feed_forward.down_proj(F.gelu(up, approximate=approximate))
    h = down + (h if feed_forward_skip else 0)
    h = h if pre else block.feed_forward_norm(h)
    assert_close(logits_of(model, tokens), (model.final_norm(h) @ model.token_embedding.weight.T).detach())


def test_a_model_without_norms_with_a_biased_head():
    model, tokens = model_of(norm="none", head_bias=True, tie_embeddings=False), tokens_of()
    assert not any("norm" in name for name, _ in model.named_parameters())
    with torch.no_grad():
        before = logits_of(model, tokens)
        model.head_bias += 1.5
    assert_close(logits_of(model, tokens), before + 1.5)
    assert DecoderLM(config_of(head_bias=True)).head_bias.eq(0).all()


def test_shared_layers_are_one_block_applied_again():
    shared = model_of("boosted", share_layers=True, num_layers=3)
    assert len(shared.blocks) == 1
    apart = model_of("boosted", num_layers=3)
    weights = {name: shared.state_dict()[name.replace("blocks.1", "blocks.0").replace("blocks.2", "blocks.0")]
               for name in apart.state_dict()}  # fmt: skip
    apart.load_state_dict(weights)
    tokens = tokens_of()
    assert_close(logits_of(shared, tokens), logits_of(apart, tokens))
    assert torch.equal(shared.generate(tokens, 5), apart.generate(tokens, 5))
    with pytest.raises(ValueError, match="share_layers applies one block everywhere"):
        config_of({1: "boosted"}, share_layers=True)
