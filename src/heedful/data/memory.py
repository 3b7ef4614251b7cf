"""A corpus tokenized straight into memory: for scoring one text with the tokenizer of a trained run."""

from __future__ import annotations

import hashlib

import numpy as np

from heedful.data.corpora import Corpus
from heedful.data.shards import TokenSplit
from heedful.data.tokenizers import Tokenizer


def split_in_memory(corpus: Corpus, tokenizer: Tokenizer, *, separator: bool = True) -> TokenSplit:
    """Return all documents of `corpus` as one split, with `separator` an end-of-text token after each.

    Memory: 4 bytes per token of the result, and one document at a time.

    Raises:
        ValueError: the corpus holds no text.
    """
    parts: list[np.ndarray] = []
    starts: list[int] = []
    num_tokens = num_bytes = 0
    for document in corpus.documents():
        ids = tokenizer.encode(document)
        if not ids:
            continue
        starts.append(num_tokens)
        parts.append(np.array([*ids, tokenizer.end_of_text] if separator else ids, dtype=np.uint32))
        num_tokens += len(parts[-1])
        num_bytes += len(document.encode("utf-8"))
    if not parts:
        raise ValueError(f"{corpus.name} holds no text.")
    tokens = np.concatenate(parts)
    return TokenSplit(
        name=corpus.name,
        tokens=tokens,
        document_starts=np.array(starts, dtype=np.int64),
        num_bytes=num_bytes,
        sha256=hashlib.sha256(tokens.tobytes()).hexdigest(),
    )
