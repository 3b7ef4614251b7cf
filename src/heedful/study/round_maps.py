"""What the attention maps of a trained model show, as plain numbers for `result.json`: pictures are drawn from these.

On one sentence of the test split: the maps of every round, and the next tokens that the model predicts with and without
the corrections of its further rounds. On all probed tokens: where each round looks when the first rounds alone are
wrong about the next token, and when they are right.
"""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from heedful.data import Tokenizer
from heedful.models.probes import evaluating
from heedful.models.round_probe import first_rounds_only, layer_maps, telling_layers

if TYPE_CHECKING:
    from heedful.models import DecoderLM

MIN_TOKENS, MAX_TOKENS, MAX_HEADS, TOP = 8, 18, 4, 5
PARTS = 8
MAP_ENTRIES = 2**18  # of each head at a time
LOOKS = ("distance", "entropy", "neglected")
SENTENCE_ENDS = (".", "!", "?")


@torch.no_grad()
def attention_findings(model: DecoderLM, tokens: Tensor, tokenizer: Tokenizer | None) -> dict[str, Any] | None:
    """Return what the maps of `telling_layers` show, JSON-able; None where the task has no text.

    Args:
        model: on any device.
        tokens: (B, T) of the test split, T >= 2.
        tokenizer: of the text.

    Returns:
        "layers"; "tokens", the texts of the sentence's tokens (`example_sentence`); "maps", per layer and round the
        lower triangle of the "mean" map over heads and, of the last layer, of its first `MAX_HEADS` "heads", to 3
        digits; "predictions" (`_predictions`), "example" (`_example`) and "where" (`where_rounds_look`), which are None
        for a model of one round.
    """
    if tokenizer is None:
        return None
    device = next(model.parameters()).device
    tokens = tokens.to(device)
    sentence = example_sentence(tokens, tokenizer)
    layers = telling_layers(model)
    maps = layer_maps(model, sentence, layers)
    rounds = max(len(block.attention.rounds) for block in model.block_list)
    predictions = _predictions(model, sentence, tokenizer) if rounds > 1 else None
    return {
        "layers": layers,
        "tokens": [tokenizer.decode([token]) for token in sentence[0].tolist()],
        "maps": [
            {
                "layer": layer,
                "rounds": [_drawn(map_[0], with_heads=layer == layers[-1]) for map_ in maps[layer]],
            }
            for layer in layers
        ],
        "predictions": predictions,
        "example": _example(predictions, maps, sentence, tokenizer) if predictions else None,
        "where": where_rounds_look(model, tokens, layers) if rounds > 1 else None,
    }


def example_sentence(tokens: Tensor, tokenizer: Tokenizer) -> Tensor:
    """Return a sentence (1, at most `MAX_TOKENS`) chosen by the text alone, the same for every arm.

    It is the first one of at least `MIN_TOKENS` tokens that begins with a capital letter after a full stop, question
    or exclamation mark and runs to the next one, cut at `MAX_TOKENS`; without any, the first probed tokens.
    """
    for row in tokens:
        texts = [tokenizer.decode([token]).strip() for token in row.tolist()]
        ended = False
        for start, text in enumerate(texts):
            if ended and text[:1].isupper():
                ends = [i for i, other in enumerate(texts) if i >= start and other.endswith(SENTENCE_ENDS)]
                stop = min(ends[0] + 1 if ends else len(texts), start + MAX_TOKENS)
                found = row[start:stop]
                if len(found) >= MIN_TOKENS and tokenizer.end_of_text not in found.tolist():
                    return found[None]
            if text:
                ended = text.endswith(SENTENCE_ENDS)
    return tokens[:1, :MAX_TOKENS]


def _drawn(maps: Tensor, *, with_heads: bool) -> dict[str, Any]:
    """Return the lower triangles of the mean over heads, and of the heads, of maps (H, T, T)."""
    drawn: dict[str, Any] = {"mean": _triangle(maps.mean(0))}
    if with_heads:
        drawn["heads"] = [_triangle(head) for head in maps[:MAX_HEADS]]
    return drawn


def _triangle(matrix: Tensor) -> list[list[float]]:
    return [[round(value, 3) for value in row[: i + 1]] for i, row in enumerate(matrix.tolist())]


def _predictions(model: DecoderLM, sentence: Tensor, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Return, for each token of the sentence but the last, what comes "next", what the model predicts with its "first"
    rounds only and with "all", whether each is "wrong", and the natural logarithm of what it gives the next token.
    """
    logits = {"all": _logits(model, sentence)}
    with first_rounds_only(model):
        logits["first"] = _logits(model, sentence)
    targets = sentence[0, 1:]
    found: list[dict[str, Any]] = [{"next": tokenizer.decode([token])} for token in targets.tolist()]
    for name in ("first", "all"):
        chances = logits[name][0, :-1].float().log_softmax(-1)
        guesses = chances.argmax(-1)
        right = chances.gather(-1, targets[:, None])[:, 0]
        for place, one in enumerate(found):
            one[name] = {
                "token": tokenizer.decode([int(guesses[place])]),
                "wrong": bool(guesses[place] != targets[place]),
                "log_probability": round(float(right[place]), 3),
            }
    return found


def _logits(model: DecoderLM, tokens: Tensor) -> Tensor:
    with evaluating(model):
        return model(tokens)[0]


def _example(
    predictions: list[dict[str, Any]], maps: dict[int, list[Tensor]], sentence: Tensor, tokenizer: Tokenizer
) -> dict[str, Any] | None:
    """Return the position whose next token gains most in probability by the corrections, among those that see `TOP`
    tokens and where the first rounds alone are wrong (None without any), the text up to it, and the `TOP` most attended
    positions of each layer and round there.
    """
    wrong = [place for place, one in enumerate(predictions) if place + 1 >= TOP and one["first"]["wrong"]]
    if not wrong:
        return None

    def gain(place: int) -> float:
        one = predictions[place]
        return one["all"]["log_probability"] - one["first"]["log_probability"]

    place = max(wrong, key=gain)
    looks = []
    for layer, rounds in maps.items():
        tops = []
        for map_ in rounds:
            weights = map_[0, :, place, : place + 1].mean(0)
            order = weights.abs().argsort(descending=True)[:TOP].tolist()
            tops.append([{"position": at, "weight": round(float(weights[at]), 3)} for at in order])
        looks.append({"layer": layer, "rounds": tops})
    text = tokenizer.decode(sentence[0, : place + 1].tolist())
    return {"position": place, "text": text, "looks": looks}


@torch.no_grad()
def where_rounds_look(model: DecoderLM, tokens: Tensor, layers: list[int]) -> dict[str, Any]:
    """Compare where each round looks at the positions where the first rounds alone predict the next token wrongly, and
    where they predict it rightly.

    With w the weights of a head for the positions 0..i it sees, |w| / sum |w| (which is w itself for a softmax), every
    position of the second half of each row, so that much text is seen, gives three numbers, means over heads:

        distance   sum_j w_j (i - j), in tokens
        entropy    - sum_j w_j log w_j, in nats
        neglected  sum of w_j over the j to which the first round gives less than 1 / (i + 1), an even look

    Args:
        model: in evaluation mode; its maps are those of the whole model, only the predictions are without corrections.
        tokens: (B, T).
        layers: to look at.

    Returns:
        "from": the first position that counts; "positions", "wrong", and "wrong_with_all", of the whole model, as
        numbers of positions; "layers": per layer and round each of the three with its mean over all positions that are
        "wrong" or "right", and the same "by_part", of at most `PARTS` parts of the rows (None where a part has none).
    """
    start = tokens.shape[1] // 2
    wrong, wrong_with_all = [], 0
    looks: dict[int, list[list[dict[str, Tensor]]]] = {layer: [] for layer in layers}
    for rows in tokens.split(max(1, MAP_ENTRIES // tokens.shape[1] ** 2)):
        targets = rows[:, start + 1 :]
        with first_rounds_only(model):
            wrong += _logits(model, rows)[:, start:-1].argmax(-1) != targets
        wrong_with_all += int((_logits(model, rows)[:, start:-1].argmax(-1) != targets).sum())
        for layer, maps in layer_maps(model, rows, layers).items():
            looks[layer].append(round_looks(maps, start))
    return {
        "from": start,
        "positions": sum(len(row) for row in wrong),
        "wrong": sum(int(row.sum()) for row in wrong),
        "wrong_with_all": wrong_with_all,
        "layers": [
            {
                "layer": layer,
                "rounds": [
                    {
                        name: _compared(torch.cat([piece[index][name] for piece in pieces]), torch.stack(wrong))
                        for name in LOOKS
                    }
                    for index in range(len(pieces[0]))
                ],
            }
            for layer, pieces in looks.items()
        ],
    }


def round_looks(maps: list[Tensor], start: int) -> list[dict[str, Tensor]]:
    """Return, per round of maps (B, H, T, T), the numbers of `where_rounds_look` for the positions start..T-2, each
    (B, T - 1 - start).
    """
    found, neglected = [], None
    places = torch.arange(maps[0].shape[-1], device=maps[0].device)
    for map_ in maps:
        weights = map_.abs()
        weights = weights / weights.sum(-1, keepdim=True)
        if neglected is None:
            neglected = weights < 1 / (places + 1)[:, None]
        looks = {
            "distance": (weights * (places[:, None] - places)).sum(-1),
            "entropy": -torch.special.xlogy(weights, weights).sum(-1),
            "neglected": (weights * neglected).sum(-1),
        }
        found.append({name: values.mean(1)[:, start:-1] for name, values in looks.items()})
    return found


def _compared(values: Tensor, wrong: Tensor) -> dict[str, Any]:
    """Return the means of `values` (B, positions) where `wrong` and where not, of all rows and by part."""
    kinds = {"wrong": wrong, "right": ~wrong}
    compared: dict[str, Any] = {kind: _mean(values[chosen]) for kind, chosen in kinds.items()}
    rows = torch.arange(len(values)).tensor_split(min(PARTS, len(values)))
    compared["by_part"] = [{kind: _mean(values[part][chosen[part]]) for kind, chosen in kinds.items()} for part in rows]
    return compared


def _mean(values: Tensor) -> float | None:
    return round(fmean(values.tolist()), 4) if len(values) else None
