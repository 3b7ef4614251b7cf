from __future__ import annotations

import itertools
import json
import math
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heedful.data import CorpusSource, DataConfig, MixedBatches, TokenDataset, TokenSplit, prepare
from heedful.data.mixing import LONGEST_WINDOW, rows_per_window
from heedful.data.sources import eval_allowances
from heedful.data.surveying import document_hash
from heedful.data.tokenizers import train_bpe
from heedful.schema import from_mapping, to_mapping
from heedful.study.recipe_file import recipe_from_mapping
from heedful.study.workloads import open_workload

CONTEXT = 4


def split_of(num_tokens: int, starts: list[int] | None = None, sha256: str = "a") -> TokenSplit:
    """A split whose tokens are their own positions."""
    tokens = np.arange(num_tokens, dtype=np.uint32)
    return TokenSplit(
        name="train", tokens=tokens, document_starts=np.array(starts or [0]), num_bytes=num_tokens, sha256=sha256
    )


def mixed(blocks: list[int], weights: list[float], batch_size: int = 8, seed: int = 0, **fields: Any) -> MixedBatches:
    """A mixture of sources "0", "1", ... with so many blocks each, their last tokens too few for another block."""
    ends = list(itertools.accumulate(count * CONTEXT + 1 + number % 3 for number, count in enumerate(blocks)))
    sources = {str(i): range(start, end) for i, (start, end) in enumerate(zip([0, *ends], ends, strict=False))}
    by_name = {str(i): weight for i, weight in enumerate(weights)}
    usual: dict[str, Any] = {"context_length": CONTEXT, "batch_size": batch_size, "seed": seed}
    return MixedBatches(split_of(ends[-1]), sources, by_name, **{**usual, **fields})


mixtures = st.integers(1, 4).flatmap(
    lambda count: st.tuples(
        st.lists(st.integers(1, 40), min_size=count, max_size=count),
        st.lists(st.integers(1, 9), min_size=count, max_size=count),
    )
)


@given(mixtures, st.integers(0, 1000), st.integers(0, 20))
def test_every_window_holds_exactly_the_weights_shares(mixture: tuple, seed: int, window: int) -> None:
    blocks, weights = mixture
    data = mixed(blocks, weights, seed=seed)
    length = sum(data.rows_per_window.values())
    counts = Counter(data.blocks(window * length + np.arange(length))[0].tolist())
    for number, weight in enumerate(weights):
        assert counts[number] * sum(weights) == weight * length


@given(mixtures, st.integers(0, 1000))
def test_each_source_visits_every_block_once_in_each_epoch_of_its_own(mixture: tuple, seed: int) -> None:
    blocks, weights = mixture
    data = mixed(blocks, weights, seed=seed)
    length = sum(data.rows_per_window.values())
    windows = 3 * max(
        math.ceil(count / rows) for count, rows in zip(blocks, data.rows_per_window.values(), strict=True)
    )
    of_source, read = data.blocks(np.arange(windows * length))
    for number, count in enumerate(blocks):
        visits = Counter(read[of_source == number].tolist())
        rows = windows * data.rows_per_window[str(number)]
        assert set(visits) == set(range(count))
        assert set(visits.values()) <= {rows // count, -(-rows // count)}, "no block is ahead of another by an epoch"


@given(mixtures, st.integers(0, 300), st.integers(1, 9), st.integers(1, 9))
def test_the_rows_of_all_processes_are_the_batch_and_none_is_read_twice(
    mixture: tuple, step: int, batch_size: int, world_size: int
) -> None:
    blocks, weights = mixture
    data = mixed([count + batch_size for count in blocks], weights, batch_size)
    borders = [rank * batch_size // world_size for rank in range(world_size + 1)]
    parts = [data.batch(step, range(start, stop)) for start, stop in itertools.pairwise(borders)]
    whole = data.batch(step)
    assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)
    assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
    assert torch.equal(whole.targets, whole.tokens + 1)
    fresh = mixed([count + batch_size for count in blocks], weights, batch_size)
    assert torch.equal(fresh.batch(step).tokens, whole.tokens), "nothing is remembered from other steps"


def test_rows_of_one_epoch_are_all_different_whatever_process_reads_them() -> None:
    data = mixed([600, 300], [2, 1], batch_size=16)
    rows = [
        row for step in range(40) for rank in range(4) for row in data.batch(step, range(4 * rank, 4 * rank + 4)).tokens
    ]
    assert len({int(row[0]) for row in rows}) == 640


def test_blocks_stay_inside_their_source_and_say_whose_documents_they_are() -> None:
    sources = {"a": range(23), "b": range(23, 50)}
    starts = [0, 9, 23, 30]
    data = MixedBatches(
        split_of(50, starts),
        sources,
        {"a": 1.0, "b": 3.0},
        context_length=5,
        batch_size=64,
        seed=0,
        mask_documents=True,
    )
    batch = data.batch(0)
    assert batch.document_ids is not None
    for tokens, targets, ids in zip(
        batch.tokens.tolist(), batch.targets.tolist(), batch.document_ids.tolist(), strict=True
    ):
        inside = next(found for found in sources.values() if tokens[0] in found)
        assert (tokens[0] - inside.start) % 5 == 0
        assert targets[-1] in inside
        assert ids == [max(i for i, start in enumerate(starts) if start <= token) for token in tokens]


def test_sources_and_windows_and_seeds_are_shuffled_apart() -> None:
    data, other = mixed([64, 64], [1, 1]), mixed([64, 64], [1, 1], seed=1)
    of_source, read = data.blocks(np.arange(256))
    orders = [tuple(read[:128][of_source[:128] == number].tolist()) for number in (0, 1)]
    assert orders[0] != orders[1]
    assert of_source[:64].tolist() != of_source[64:128].tolist()
    assert of_source.tolist() != other.blocks(np.arange(256))[0].tolist()


@pytest.mark.parametrize(
    ("weights", "rows"),
    [
        ([1.0], [64]),
        ([1.0, 1.0], [32, 32]),
        ([0.7, 0.2, 0.1], [49, 14, 7]),
        ([3, 1, 1], [39, 13, 13]),
        ([0.999, 0.001], [999, 1]),
    ],
)
def test_windows_are_the_shortest_that_meet_the_weights(weights: list[float], rows: list[int]) -> None:
    assert rows_per_window(weights) == rows


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=40))
def test_weights_that_no_window_meets_are_met_to_a_row(weights: list[float]) -> None:
    rows = rows_per_window(weights)
    assert min(rows) >= 1
    if sum(rows) == LONGEST_WINDOW:
        shares = [weight / sum(weights) * LONGEST_WINDOW for weight in weights]
        lifted = sum(share < 1 for share in shares)  # each of these has a row at the largest one's cost
        for share, own in zip(shares, rows, strict=True):
            assert abs(share - own) <= 1 + lifted + 1e-6


def test_the_fingerprint_tells_apart_whatever_changes_the_batches() -> None:
    usual = mixed([9, 9], [1, 2]).fingerprint
    others = [
        mixed([9, 10], [1, 2]),
        mixed([9, 9], [1, 3]),
        mixed([9, 9], [1, 2], batch_size=4),
        mixed([9, 9], [1, 2], seed=1),
        mixed([9, 9], [1, 2], mask_documents=True),
        mixed([9, 9], [1, 2], context_length=2),
    ]
    assert len({usual, *(data.fingerprint for data in others)}) == len(others) + 1
    assert mixed([9, 9], [2, 4]).fingerprint == usual, "the same shares are the same batches"
    assert mixed([9, 9], [1, 2]).tokens_per_batch == 8 * CONTEXT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context_length": 40}, "source '0' has 37 tokens, fewer than the 41 that one block"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"seed": -1}, "seed must be from 0"),
        ({"weights": [1]}, r"weights are needed for \['0', '1'\], the sources of the data, got \['0'\]"),
    ],
)
def test_impossible_mixtures_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixed([9, 9], **{"weights": [1, 2], **change})


# From here on: mixtures from text.

ONE = [f"One says {i}.\n" for i in range(300)]
TWO = [f"zwei {i} und {i * i}\n" for i in range(150)]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "one.txt").write_text("".join(ONE), encoding="utf-8")
    (tmp_path / "two.txt").write_text("".join(TWO + ONE[:20]), encoding="utf-8")
    return tmp_path


def config_for(folder: Path, weights: tuple[float, float] = (1.0, 3.0), **fields: Any) -> DataConfig:
    sources = tuple(
        CorpusSource(name=name, corpus=str(folder / f"{name}.txt"), weight=weight, documents="line")
        for name, weight in zip(("one", "two"), weights, strict=True)
    )
    usual = {"sources": sources, "tokenizer": "bytes", "cache_folder": str(folder / "cache")}
    return DataConfig(**{**usual, **fields})


def documents_of(dataset: TokenDataset, split: TokenSplit) -> list[str]:
    ends = [*split.document_starts[1:], split.num_tokens]
    texts = [split.tokens[a:b].tolist() for a, b in zip(split.document_starts, ends, strict=True)]
    return [dataset.tokenizer.decode(text).removesuffix("<|endoftext|>") for text in texts]


def test_every_document_of_every_source_is_there_once_and_held_out_ones_are_in_no_train_split(texts: Path) -> None:
    dataset = prepare(config_for(texts))
    found = {split.name: documents_of(dataset, split) for split in (dataset.train, dataset.valid, dataset.test)}
    assert Counter(itertools.chain(*found.values())) == Counter([*ONE, *TWO, *ONE[:20]])
    for one, other in itertools.combinations(found.values(), 2):
        assert not set(one) & set(other), "equal documents of two sources share a split"
    for split in ("valid", "test"):
        assert set(found[split]) & set(ONE)
        assert set(found[split]) & set(TWO)
    for name, tokens in dataset.sources.items():
        text = dataset.tokenizer.decode(dataset.train.tokens[tokens.start : tokens.stop].tolist())
        documents = text.split("<|endoftext|>")[:-1]
        assert set(documents) <= set(ONE) if name == "one" else set(documents) <= {*TWO, *ONE[:20]}
    assert list(dataset.sources.values())[-1].stop == dataset.train.num_tokens
    assert prepare(config_for(texts), lambda line: pytest.fail(line)).sources == dataset.sources


def test_the_tokenizer_is_trained_on_each_source_by_its_weight(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heedful.data.tokenizer_choice.TOKENIZER_SAMPLE_BYTES", 2000)
    dataset = prepare(config_for(texts))
    sample = []
    for tokens, budget in zip(dataset.sources.values(), (500, 1500), strict=True):
        text = dataset.tokenizer.decode(dataset.train.tokens[tokens.start : tokens.stop].tolist())
        documents = text.split("<|endoftext|>")[:-1]
        by_hash = sorted(documents, key=document_hash)
        before = [0, *itertools.accumulate(len(text) for text in by_hash)]
        chosen = {text for text, start in zip(by_hash, before, strict=False) if start < budget}
        sample += [text for text in documents if text in chosen]
    trained = prepare(config_for(texts, tokenizer="bpe", vocab_size=270)).tokenizer
    assert trained.sha256 == train_bpe(sample, 270).sha256


def test_a_source_and_held_out_splits_end_at_their_limits(texts: Path) -> None:
    whole = prepare(config_for(texts))
    first, second = config_for(texts).sources
    limited = (first, CorpusSource(**{**to_mapping(second), "max_tokens": 100}))
    cut = prepare(config_for(texts, sources=limited, max_eval_tokens=41))
    assert [len(tokens) for tokens in cut.sources.values()] == [len(whole.sources["one"]), 100]
    assert cut.valid.num_tokens == cut.test.num_tokens == 41
    mine, theirs = eval_allowances(41, [0.25, 0.75])
    text = cut.tokenizer.decode(cut.valid.tokens.tolist())
    assert len(text.replace("<|endoftext|>", "~")) == 41
    assert (mine, theirs) == (11, 30)
    assert cut.tokenizer.decode(cut.valid.tokens[:11].tolist()).startswith("One says ")


def test_other_weights_need_no_other_shards_unless_they_decide_about_tokens(texts: Path) -> None:
    assert prepare(config_for(texts, (1, 1))).folder == prepare(config_for(texts, (1, 5))).folder
    for fields in ({"max_eval_tokens": 50}, {"tokenizer": "bpe", "vocab_size": 270}):
        assert (
            prepare(config_for(texts, (1, 1), **fields)).folder != prepare(config_for(texts, (1, 5), **fields)).folder
        )


def test_named_held_out_corpora_are_used_whole(texts: Path) -> None:
    (texts / "held.txt").write_text("held out\n\nwhole\n", encoding="utf-8")
    dataset = prepare(config_for(texts, valid_corpus=str(texts / "held.txt"), test_corpus=str(texts / "held.txt")))
    assert documents_of(dataset, dataset.valid) == documents_of(dataset, dataset.test) == ["held out\n\n", "whole\n"]
    assert dataset.train.num_documents == len(ONE) + len(TWO) + 20


def test_sources_that_do_not_add_up_are_noticed(texts: Path) -> None:
    folder = prepare(config_for(texts)).folder
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sources"][0]["tokens"] += 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"the sources in manifest\.json do not add up to its train split"):
        prepare(config_for(texts))


RECIPE = """
name = "mixture"
seeds = [1]
baseline = "standard"
learning_rates = [1e-3]
[data]
tokenizer = "bytes"
[[data.sources]]
name = "one"
corpus = "one.txt"
documents = "line"
[[data.sources]]
name = "two"
corpus = "two.txt"
documents = "line"
weight = 3
[train]
steps = 20
batch_size = 4
evaluate_every = 10
context_length = 64
schedule = { warmup_steps = 1 }
[[arms]]
name = "standard"
"""


def test_a_recipe_names_its_sources(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(texts)
    monkeypatch.setenv("HEEDFUL_CACHE", str(texts / "cache"))
    recipe = recipe_from_mapping(tomllib.loads(RECIPE))
    assert [source.weight for source in recipe.data.sources] == [1.0, 3.0]
    assert from_mapping(DataConfig, to_mapping(recipe.data)) == recipe.data
    workload = open_workload(recipe, lambda line: None)
    data = workload.training_data(1)
    assert isinstance(data, MixedBatches)
    assert data.rows_per_window == {"one": 16, "two": 48}
    assert ["mixture", "25 % from one, 75 % from two"] in workload.describe()["facts"]
    assert workload.describe()["corpus"] == "one.txt, two.txt"
