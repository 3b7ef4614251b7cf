"""Text in, batches out: corpora, splits by document, tokenizers, memory-mapped token shards, deterministic batches."""

from __future__ import annotations

from heedful.data.batches import IGNORED, Batch, LanguageModelBatches, TrainingData
from heedful.data.building import prepare
from heedful.data.config import CorpusSource, DataConfig
from heedful.data.mixing import MixedBatches
from heedful.data.shards import TokenDataset, TokenSplit, open_dataset
from heedful.data.tokenizers import Tokenizer, open_tokenizer

__all__ = [
    "IGNORED",
    "Batch",
    "CorpusSource",
    "DataConfig",
    "LanguageModelBatches",
    "MixedBatches",
    "TokenDataset",
    "TokenSplit",
    "Tokenizer",
    "TrainingData",
    "open_dataset",
    "open_tokenizer",
    "prepare",
]
