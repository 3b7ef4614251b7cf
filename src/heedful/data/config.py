"""What text a run reads, how it is cut into documents and splits, and what turns it into tokens."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

DocumentRule = Literal["auto", "file", "wikitext", "paragraph", "line"]
TokenizerKind = Literal["bytes", "bpe", "bpe-whitespace", "gpt2"]
PYTHON_STDLIB = "python-stdlib"


# Names stand in manifests, reports and dotted options.
_SOURCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True, kw_only=True)
class CorpusSource:
    """One of several corpora that are trained on together, `[[data.sources]]` in a recipe.

    Attributes:
        name: how manifests call it.
        corpus: as `DataConfig.corpus`.
        weight: its share of the training tokens is this over the sum of all weights, whatever the sizes: a source that
            runs out begins its next epoch.
        documents: as `DataConfig.documents`, for this source.
        max_tokens: keep only the first so many tokens of its train split, None for all.

    Raises:
        ValueError: a value out of range.
    """

    name: str
    corpus: str
    weight: float = 1.0
    documents: DocumentRule = "auto"
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        """Refuse what no later step could make sense of."""
        if not _SOURCE_NAME.fullmatch(self.name):
            raise ValueError(f"source name {self.name!r} must be made of letters, digits and - _ only.")
        if not self.corpus:
            raise ValueError(
                f"source {self.name!r} has no corpus: give 'python-stdlib', a file, a folder or 'hf:NAME'."
            )
        if not (0 < self.weight < math.inf):
            raise ValueError(f"source {self.name!r}: weight must be above 0 and finite, got {self.weight}.")
        if self.documents not in get_args(DocumentRule):
            raise ValueError(
                f"source {self.name!r}: documents must be one of {', '.join(get_args(DocumentRule))}, "
                f"got {self.documents!r}."
            )
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"source {self.name!r}: max_tokens must be at least 1, got {self.max_tokens}.")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A corpus, its splits and its tokenizer: together they determine every token of a run.

    Attributes:
        corpus: `"python-stdlib"` (the standard library of the running interpreter: real text on every machine), the
            path of a text file or of a folder of them (`.xz` and `.gz` included), or, with `datasets` installed,
            `"hf:NAME"`, `"hf:OWNER/NAME"` or `"hf:OWNER/NAME/CONFIG"`, each with `"#SPLIT"` at the end for another
            split than `train`. Left alone where `sources` are given.
        sources: several corpora instead of one, mixed in training by their weights, see `heedful.data.mixing`. Held-out
            documents are then taken from each of them.
        valid_corpus: used whole as the validation split; None takes `valid_fraction` of the documents of `corpus`.
        test_corpus: used whole as the test split; None takes `test_fraction` of the documents of `corpus`.
        documents: where documents begin, see `heedful.data.documents`. `"auto"` is `"wikitext"` where the first file
            opens with a ` = Title = ` line, else `"file"` for a folder and for the standard library, `"paragraph"` for
            a single file, and one document a row for `hf:`.
        valid_fraction: share of the distinct documents of `corpus`, at least one; see `heedful.data.splitting`.
        test_fraction: the same for the test split.
        max_train_tokens: keep only the first so many tokens of the train split, None for all. Sources have their own.
        max_eval_tokens: the same for the validation and the test split each; of several sources, each has its weight's
            share of it.
        tokenizer: `"bytes"` (256 bytes and end-of-text), `"bpe"` (byte-level, trained on a sample of the train split),
            `"bpe-whitespace"` (the gradient-boosted paper's: drops all white space, so it is lossy), or `"gpt2"`.
        vocab_size: entries of a trained tokenizer, special tokens included; bytes always have 257 and GPT-2 50,257.
        gpt2_folder: folder with `encoder.json` and `vocab.bpe`, for `tokenizer="gpt2"`.
        separator: put the end-of-text token after every document.
        cache_folder: where token shards are kept; None is `$HEEDFUL_CACHE`, or `~/.cache/heedful` without it.

    Raises:
        ValueError: a value out of range, or one that another field makes meaningless.
    """

    corpus: str = PYTHON_STDLIB
    sources: tuple[CorpusSource, ...] = ()
    valid_corpus: str | None = None
    test_corpus: str | None = None
    documents: DocumentRule = "auto"
    valid_fraction: float = 0.05
    test_fraction: float = 0.05
    max_train_tokens: int | None = None
    max_eval_tokens: int | None = None
    tokenizer: TokenizerKind = "bpe"
    vocab_size: int = 4096
    gpt2_folder: str | None = None
    separator: bool = True
    cache_folder: str | None = None

    def __post_init__(self) -> None:
        """Refuse what no later step could make sense of."""
        for name, choices in (("documents", get_args(DocumentRule)), ("tokenizer", get_args(TokenizerKind))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")
        for name in ("corpus", "valid_corpus", "test_corpus"):
            if getattr(self, name) == "":
                raise ValueError(f"{name} is empty: give 'python-stdlib', a file, a folder or 'hf:NAME'.")
        for name in ("max_train_tokens", "max_eval_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        self._check_sources()
        self._check_fractions()
        self._check_tokenizer()

    def _check_sources(self) -> None:
        if not self.sources:
            return
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"source name {name!r} is given more than once.")
        if self.corpus != PYTHON_STDLIB:
            raise ValueError(
                f"corpus {self.corpus!r} and sources exclude each other: make the corpus one of the sources."
            )
        if self.max_train_tokens is not None:
            raise ValueError("max_train_tokens does not go with sources: set max_tokens of each source.")
        if self.max_eval_tokens is not None and self.max_eval_tokens < len(self.sources):
            raise ValueError(
                f"max_eval_tokens={self.max_eval_tokens} leaves some of the {len(self.sources)} sources no token."
            )

    def _check_fractions(self) -> None:
        for name, fraction in (("valid_fraction", self.valid_fraction), ("test_fraction", self.test_fraction)):
            if not 0 < fraction < 1:
                raise ValueError(f"{name} must lie between 0 and 1, both excluded, got {fraction}.")
        if sum(self.split_fractions) >= 1:
            raise ValueError(
                f"valid_fraction + test_fraction must leave documents to train on, got "
                f"{self.valid_fraction} + {self.test_fraction}."
            )

    def _check_tokenizer(self) -> None:
        if self.tokenizer == "bpe" and self.vocab_size < 257:
            raise ValueError(
                f"vocab_size={self.vocab_size} is too small for byte-level BPE: 256 bytes and the end-of-text token "
                "need 257 entries."
            )
        if self.tokenizer == "bpe-whitespace" and self.vocab_size < 3:
            raise ValueError(f"vocab_size={self.vocab_size} is too small: '<pad>' and '<unk>' alone take 2 entries.")
        if self.tokenizer == "gpt2" and self.gpt2_folder is None:
            raise ValueError("tokenizer='gpt2' needs gpt2_folder, a folder with encoder.json and vocab.bpe.")

    @property
    def split_fractions(self) -> tuple[float, float]:
        """Shares of `corpus` that go to validation and test: 0 where a corpus of its own is named."""
        valid = self.valid_fraction if self.valid_corpus is None else 0.0
        test = self.test_fraction if self.test_corpus is None else 0.0
        return valid, test

    @property
    def resolved_cache_folder(self) -> Path:
        """The cache folder after the environment and the home folder have been asked."""
        return Path(self.cache_folder or os.environ.get("HEEDFUL_CACHE") or "~/.cache/heedful").expanduser()
