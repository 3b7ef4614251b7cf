"""Maps, predictions and where rounds look, against the layer's equations and a model that has one round only."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from heedful.data.tokenizers import ByteTokenizer
from heedful.models import DecoderLM, decoder_config
from heedful.models.round_probe import first_rounds_only, layer_maps, telling_layers
from heedful.nn import PRESETS, Boosting
from heedful.study import round_maps
from heedful.study.round_maps import (
    MAX_TOKENS,
    attention_findings,
    example_sentence,
    round_looks,
    where_rounds_look,
)
from tolerance import assert_close

TEXT = "aunt saw it. The dog hears a bone! And so on, said my aunt; the cat finds her hat"
# Their maps are sums of several softmaxes with free factors. Twicing's 2A - A^2 does sum to one.
NO_AVERAGES = {"talking-heads", "multi-token-v1", "multi-token", "differential", "differential-v2"}


SIZES: dict[str, Any] = {"vocab_size": 257, "num_layers": 3, "max_positions": 48, "hidden_size": 16, "num_heads": 4}


def model_of(names: str = "boosted", **fields: Any) -> Any:
    torch.manual_seed(0)
    model = DecoderLM(decoder_config(names, **{**SIZES, **fields}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.double().eval()


def tokens_of(text: str = TEXT, length: int = 40) -> torch.Tensor:
    ids = ByteTokenizer().encode(text)
    return torch.tensor(ids[: len(ids) // length * length]).view(-1, length)


@torch.no_grad()
def by_hand(model: Any, tokens: torch.Tensor, layer: int) -> list[torch.Tensor]:
    """The maps of a layer of two rounds by the equations of the paper; other layers as the model computes them."""
    inputs = []
    attention = model.block_list[layer].attention
    handle = attention.register_forward_pre_hook(lambda module, inputs_: inputs.append(inputs_[0]))
    model(tokens)
    handle.remove()
    x, maps, estimate = inputs[0], [], None
    batch, length, width = x.shape
    later = torch.ones(length, length).triu(1).bool()
    for one in attention.rounds:
        z = x if estimate is None else x - estimate
        q, k, v = (
            (z @ part.weight.T + (0 if part.bias is None else part.bias)).view(batch, length, 4, 4).transpose(1, 2)
            for part in (one.query.q_proj, one.k_proj, one.v_proj)
        )
        scores = (q @ k.transpose(-1, -2) / 2).masked_fill(later, -math.inf)
        maps.append(scores.exp() / scores.exp().sum(-1, keepdim=True))
        heads = (maps[-1] @ v).transpose(1, 2).reshape(batch, length, width)
        if estimate is None:
            estimate = heads
        else:
            gate = attention.gates[0].proj
            both = torch.cat([estimate, heads], -1)
            estimate = estimate + heads / (1 + (-(both @ gate.weight.T + gate.bias)).exp())
    return maps


def test_maps_are_those_of_the_equations() -> None:
    model, tokens = model_of(), tokens_of()
    for layer, maps in layer_maps(model, tokens, [0, 2]).items():
        for found, expected in zip(maps, by_hand(model, tokens, layer), strict=True):
            assert_close(found, expected)


@pytest.mark.parametrize("name", PRESETS)
def test_maps_are_causal_and_rows_of_averages_sum_to_one(name: str) -> None:
    for layer, maps in layer_maps(model_of(name), tokens_of(), [0, 2]).items():
        for map_ in maps:
            assert float(map_.triu(1).abs().max()) == 0.0
            if name not in NO_AVERAGES:
                assert_close(map_.sum(-1), torch.ones_like(map_[..., 0]), f"layer {layer}")


@torch.no_grad()
def test_first_rounds_only_is_the_model_of_one_round_with_the_same_weights() -> None:
    model, tokens = model_of(boosting=Boosting(rounds=3)), tokens_of()
    plain = DecoderLM(decoder_config("standard", **SIZES)).double().eval()
    names = set(plain.state_dict())
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if name in names})
    whole = model(tokens)[0]
    with first_rounds_only(model):
        found = model(tokens)[0]
    assert_close(found, plain(tokens)[0])
    assert float((found - whole).abs().max()) > 1e-3
    assert torch.equal(model(tokens)[0], whole), "nothing stays behind"


@torch.no_grad()
def test_first_rounds_only_is_the_limit_of_gates_that_close() -> None:
    model, tokens = model_of(boosting=Boosting(gate="scalar")), tokens_of()
    with first_rounds_only(model):
        found = model(tokens)[0]
    for block in model.block_list:
        block.attention.gates[0].logit.fill_(-math.inf)
    assert_close(model(tokens)[0], found)


def test_maps_of_shared_layers_are_told_apart() -> None:
    model, tokens = model_of(share_layers=True), tokens_of()
    found = layer_maps(model, tokens, [0, 2])
    inputs = []
    attention = model.block_list[0].attention
    handle = attention.register_forward_pre_hook(lambda module, inputs_: inputs.append(inputs_[0]))
    with torch.no_grad():
        model(tokens)
    handle.remove()
    for layer in (0, 2):
        q, k = (part(inputs[layer]).view(*tokens.shape, 4, 4).transpose(1, 2)
                for part in (attention.rounds[0].query.q_proj, attention.rounds[0].k_proj))  # fmt: skip
        scores = (q @ k.transpose(-1, -2) / 2).masked_fill(torch.ones(40, 40).triu(1).bool(), -math.inf)
        assert_close(found[layer][0], scores.softmax(-1).detach())


def test_telling_layers_are_the_ends_of_those_with_the_whole_mechanism() -> None:
    assert telling_layers(model_of("standard")) == [0, 2]
    assert telling_layers(model_of("multi-token")) == [2]
    assert telling_layers(model_of("boosted", num_layers=1)) == [0]


def test_looks_of_known_maps() -> None:
    """An even look back, a look at oneself, and a second round that looks only where the first does not."""
    length = 6
    even = torch.ones(length, length).tril().double()
    even = even / even.sum(-1, keepdim=True)
    own = torch.eye(length).double()
    first = torch.diag(torch.ones(length - 1), -1).double()
    first[0, 0] = 1.0  # everyone looks at the one before
    looks = round_looks([first[None, None], even[None, None], -3 * own[None, None]], 2)
    places = torch.arange(2, 5).double()
    assert_close(looks[0]["distance"][0], torch.ones(3).double())
    assert_close(looks[0]["entropy"][0], torch.zeros(3).double())
    assert_close(looks[0]["neglected"][0], torch.zeros(3).double())
    assert_close(looks[1]["distance"][0], places / 2)
    assert_close(looks[1]["entropy"][0], (places + 1).log())
    assert_close(looks[1]["neglected"][0], places / (places + 1))
    assert_close(looks[2]["distance"][0], torch.zeros(3).double())  # weights count by their size
    assert_close(looks[2]["neglected"][0], torch.ones(3).double())


@torch.no_grad()
def test_where_rounds_look_is_what_a_loop_over_positions_finds() -> None:
    model, tokens = model_of(), tokens_of()
    found = where_rounds_look(model, tokens, [2])
    maps = by_hand(model, tokens, 2)
    with first_rounds_only(model):
        guesses = model(tokens)[0].argmax(-1)
    sums: dict[tuple[int, str, bool], list[float]] = {}
    for row in range(len(tokens)):
        for i in range(20, 39):
            wrong = bool(guesses[row, i] != tokens[row, i + 1])
            for number, map_ in enumerate(maps):
                w = [map_[row, head, i, : i + 1].tolist() for head in range(4)]
                first = [maps[0][row, head, i, : i + 1].tolist() for head in range(4)]
                values = {
                    "distance": sum(x * (i - j) for head in w for j, x in enumerate(head)) / 4,
                    "entropy": -sum(x * math.log(x) for head in w for x in head) / 4,
                    "neglected": sum(
                        x
                        for head, other in zip(w, first, strict=True)
                        for x, y in zip(head, other, strict=True)
                        if y < 1 / (i + 1)
                    )
                    / 4,
                }
                for name, value in values.items():
                    sums.setdefault((number, name, wrong), []).append(value)
    assert found["from"] == 20
    assert found["positions"] == 19 * len(tokens)
    assert found["wrong"] == len(sums[0, "distance", True])
    for number in (0, 1):
        for name in ("distance", "entropy", "neglected"):
            entry = found["layers"][0]["rounds"][number][name]
            for kind, wrong in (("wrong", True), ("right", False)):
                values = sums.get((number, name, wrong), [])
                expected = sum(values) / len(values) if values else None
                assert entry[kind] == (None if expected is None else pytest.approx(expected, abs=5.1e-5))  # 4 digits


def test_positions_where_the_first_round_is_right_are_counted_apart() -> None:
    """A model whose head always says the same byte is right exactly where that byte comes next."""
    model = model_of(tie_embeddings=False, head_bias=True)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head_bias.zero_()[ord("n")] = 1.0
    tokens = tokens_of()
    found = where_rounds_look(model, tokens, [0])
    right = sum(int((row[21:] == ord("n")).sum()) for row in tokens)
    assert right > 0
    assert found["wrong"] == found["wrong_with_all"] == found["positions"] - right
    looks = round_looks(layer_maps(model, tokens[:1], [0])[0], 20)
    chosen = tokens[0, 21:] == ord("n")
    for number in (0, 1):
        entry = found["layers"][0]["rounds"][number]["distance"]["by_part"][0]
        for kind, positions in (("right", chosen), ("wrong", ~chosen)):
            expected = float(looks[number]["distance"][0, positions].mean()) if positions.any() else None
            assert entry[kind] == (None if expected is None else pytest.approx(expected, abs=5.1e-5))


def test_the_sentence_is_chosen_by_the_text() -> None:
    tokenizer = ByteTokenizer()
    assert (
        tokenizer.decode(example_sentence(tokens_of(), tokenizer)[0].tolist()) == "The dog hears a bone!"[:MAX_TOKENS]
    )
    without = tokens_of("a text that never ends and has no sentence in it at all")
    assert example_sentence(without, tokenizer).tolist() == without[:1, :MAX_TOKENS].tolist()
    short = tokens_of("so. No. And this is the first long one. Then more follows, of no use")
    assert (
        tokenizer.decode(example_sentence(short, tokenizer)[0].tolist())
        == "And this is the first long one."[:MAX_TOKENS]
    )
    ended = torch.tensor([[*tokenizer.encode("a. Bcd"), 256, *tokenizer.encode("e fg hi jk. Lo and behold, more")]])
    assert tokenizer.decode(example_sentence(ended, tokenizer)[0].tolist()) == "Lo and behold, more"[:MAX_TOKENS]


@pytest.mark.parametrize("name", [*PRESETS, "boosted+nonlinear-query+multi-token"])
def test_findings_are_small_plain_and_those_of_a_direct_computation(name: str) -> None:
    model, tokens, tokenizer = model_of(name), tokens_of(), ByteTokenizer()
    found = attention_findings(model, tokens, tokenizer)
    assert found is not None
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    sentence = example_sentence(tokens, tokenizer)
    assert "".join(found["tokens"]) == tokenizer.decode(sentence[0].tolist())
    assert found["layers"] == [item["layer"] for item in found["maps"]]
    maps = layer_maps(model, sentence, found["layers"])
    for item in found["maps"]:
        for drawn, map_ in zip(item["rounds"], maps[item["layer"]], strict=True):
            assert [len(row) for row in drawn["mean"]] == list(range(1, len(found["tokens"]) + 1))
            for i, row in enumerate(drawn["mean"]):
                assert row == pytest.approx(map_[0, :, i, : i + 1].mean(0).tolist(), abs=5.1e-4)  # 3 digits
            assert ("heads" in drawn) == (item["layer"] == found["layers"][-1])
    boosted = name.startswith("boosted")
    for key in ("predictions", "where", "example"):
        assert (found[key] is not None) == boosted, key
    if boosted:
        wrong = [place for place, one in enumerate(found["predictions"]) if place >= 4 and one["first"]["wrong"]]
        gains = [one["all"]["log_probability"] - one["first"]["log_probability"] for one in found["predictions"]]
        place = found["example"]["position"]
        assert place in wrong
        assert found["example"]["text"] == "".join(found["tokens"][: place + 1])
        assert gains[place] == max(gains[other] for other in wrong)
        with torch.no_grad():
            chances = model(sentence)[0].log_softmax(-1)
        assert found["predictions"][place]["all"]["log_probability"] == pytest.approx(
            float(chances[0, place, sentence[0, place + 1]]), abs=5.1e-4
        )
        top = found["example"]["looks"][-1]["rounds"][1][0]
        weights = maps[found["layers"][-1]][1][0, :, place, : place + 1].mean(0)
        assert float(weights[top["position"]].abs()) == float(weights.abs().max())


@torch.no_grad()
def test_rows_are_looked_at_in_pieces_and_summed_up_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = model_of(), torch.cat([tokens_of(), tokens_of(TEXT[7:])]).repeat(3, 1)[:11]
    whole = where_rounds_look(model, tokens, [0, 2])
    monkeypatch.setattr(round_maps, "MAP_ENTRIES", 2 * 40**2)
    assert where_rounds_look(model, tokens, [0, 2]) == whole
    parts = whole["layers"][1]["rounds"][1]["entropy"]["by_part"]
    assert len(parts) == 8
    first = where_rounds_look(model, tokens[:2], [0, 2])["layers"][1]["rounds"][1]["entropy"]
    assert parts[0] == {kind: first[kind] for kind in ("wrong", "right")}


def test_a_task_without_text_has_no_findings() -> None:
    assert attention_findings(model_of(), tokens_of(), None) is None


def test_a_model_that_is_always_right_has_no_example() -> None:
    model = model_of(tie_embeddings=False, head_bias=True)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head_bias.zero_()[ord("a")] = 1.0
    found = attention_findings(model, tokens_of("a" * 40), ByteTokenizer())
    assert found is not None
    assert found["example"] is None
    assert found["where"]["wrong"] == 0
    assert found["where"]["layers"][0]["rounds"][1]["entropy"]["wrong"] is None
