"""The tokenizer of a data set: a fixed one, or one trained on a sample of what is trained on.

The sample of several sources takes from each the share of its weight; a source with less text than its share gives all
it has, and the others no more for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from heedful.data.config import DataConfig
from heedful.data.sources import Source
from heedful.data.splitting import SPLITS, sample_for_tokenizer
from heedful.data.tokenizers import (
    ByteTokenizer,
    Tokenizer,
    gpt2_files,
    load_gpt2,
    open_tokenizer,
    train_bpe,
    train_whitespace_bpe,
)
from heedful.files import atomic_folder, file_sha256

# Enough for stable merges up to some ten thousand entries, little enough to train on in seconds.
TOKENIZER_SAMPLE_BYTES = 16 << 20
# The paper's own sample for its whitespace BPE.
WHITESPACE_SAMPLE_LINES = 100_000


def tokenizer_facts(config: DataConfig) -> dict[str, Any]:
    """Return what the cache key must know beyond the kind of the tokenizer."""
    if config.tokenizer in ("bpe", "bpe-whitespace"):
        return {"trained": (config.vocab_size, TOKENIZER_SAMPLE_BYTES, WHITESPACE_SAMPLE_LINES, version("tokenizers"))}
    if config.gpt2_folder is not None and config.tokenizer == "gpt2":
        return {"gpt2": [file_sha256(path) for path in gpt2_files(config.gpt2_folder)]}
    return {}


def make_tokenizer(config: DataConfig, sources: list[Source], folder: Path, report: Callable[[str], None]) -> Tokenizer:
    """Return the tokenizer of a configuration; one that is trained is kept in `folder`, and taken from there."""
    if config.tokenizer == "bytes":
        return ByteTokenizer()
    if config.tokenizer == "gpt2":
        assert config.gpt2_folder is not None  # DataConfig saw to that
        return load_gpt2(config.gpt2_folder)
    if folder.exists():
        return open_tokenizer(folder)
    report(f"training the {config.tokenizer} tokenizer with {config.vocab_size} entries")
    trained_on = [source for source in sources if source.trained_on]
    if config.tokenizer == "bpe":
        tokenizer = train_bpe((text for source in trained_on for text in _sample(source)), config.vocab_size)
    else:
        lines = (line for source in trained_on for line in _first_lines(source))
        tokenizer = train_whitespace_bpe(lines, config.vocab_size)
    with atomic_folder(folder) as temporary:
        tokenizer.save(temporary)
    return tokenizer


def _sample(source: Source) -> Iterator[str]:
    chosen = sample_for_tokenizer(source.surveyed, source.splits, round(TOKENIZER_SAMPLE_BYTES * source.share))
    return (document for number, document in source.documents() if chosen[number])


def _first_lines(source: Source) -> Iterator[str]:
    """Yield the first lines of the train split that are not blank, as the paper's tokenizer was trained on."""
    count = round(WHITESPACE_SAMPLE_LINES * source.share)
    for number, document in source.documents():
        if source.splits[number] != SPLITS.index("train"):
            continue
        for line in document.split("\n"):
            if count == 0:
                return
            if line.strip():
                count -= 1
                yield line
