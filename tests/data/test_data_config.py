from __future__ import annotations

from pathlib import Path

import pytest

from heedful.data import CorpusSource, DataConfig
from heedful.schema import from_mapping, to_mapping

SOURCE, OTHER = CorpusSource(name="a", corpus="a.txt", weight=2), CorpusSource(name="b", corpus="b.txt")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "a b"}, "source name 'a b' must be made of letters"),
        ({"corpus": ""}, "source 'a' has no corpus"),
        ({"weight": 0.0}, "weight must be above 0 and finite, got 0.0"),
        ({"weight": float("nan")}, "weight must be above 0 and finite, got nan"),
        ({"weight": float("inf")}, "weight must be above 0 and finite, got inf"),
        ({"documents": "chapter"}, "source 'a': documents must be one of"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
    ],
)
def test_a_source_that_cannot_be_meant_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CorpusSource(**{"name": "a", "corpus": "a.txt", **fields})


def test_sources_survive_the_round_trip_through_plain_values() -> None:
    config = DataConfig(sources=(SOURCE, OTHER))
    assert from_mapping(DataConfig, to_mapping(config)) == config


def test_a_configuration_survives_the_round_trip_through_plain_values() -> None:
    config = DataConfig(corpus="folder", tokenizer="bytes", max_train_tokens=1000, separator=False)
    assert from_mapping(DataConfig, to_mapping(config)) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"documents": "chapter"}, "documents must be one of"),
        ({"tokenizer": "words"}, "tokenizer must be one of"),
        ({"corpus": ""}, "corpus is empty"),
        ({"valid_fraction": 0.0}, "valid_fraction must lie between 0 and 1"),
        ({"valid_fraction": 0.6, "test_fraction": 0.4}, "must leave documents to train on"),
        ({"max_train_tokens": 0}, "max_train_tokens must be at least 1"),
        ({"vocab_size": 256}, "need 257 entries"),
        ({"tokenizer": "bpe-whitespace", "vocab_size": 2}, "take 2 entries"),
        ({"tokenizer": "gpt2"}, "needs gpt2_folder"),
        ({"sources": (SOURCE, SOURCE)}, "source name 'a' is given more than once"),
        ({"sources": (SOURCE,), "corpus": "b.txt"}, "corpus 'b.txt' and sources exclude each other"),
        ({"sources": (SOURCE,), "max_train_tokens": 5}, "set max_tokens of each source"),
        ({"sources": (SOURCE, OTHER), "max_eval_tokens": 1}, "leaves some of the 2 sources no token"),
    ],
)
def test_what_cannot_be_meant_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**fields)


def test_fractions_do_not_count_where_a_corpus_is_named() -> None:
    config = DataConfig(valid_corpus="v.txt", test_corpus="t.txt", valid_fraction=0.7, test_fraction=0.7)
    assert config.split_fractions == (0.0, 0.0)


def test_the_cache_is_where_the_configuration_or_else_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEEDFUL_CACHE", "/somewhere")
    assert DataConfig(cache_folder="/elsewhere").resolved_cache_folder == Path("/elsewhere")
    assert DataConfig().resolved_cache_folder == Path("/somewhere")
    monkeypatch.delenv("HEEDFUL_CACHE")
    monkeypatch.setenv("HOME", "/home/reader")
    assert DataConfig().resolved_cache_folder == Path("/home/reader/.cache/heedful")
