"""Parts: some megabytes of text, tokenized, in one file that says itself whether it is whole.

A corpus is cut into parts by the lengths of its documents alone, and a part is tokenized without regard to any other,
so it does not matter which process does it, when, or whether another one did it before it was killed. This module needs
neither torch nor the corpus, so that worker processes stay small.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from heedful.data.tokenizers import Tokenizer, pieces
from heedful.files import write_bytes_atomically

# Enough that starting a part costs nothing, little enough that a few of them for each worker fit into memory.
PART_BYTES = 4 << 20
PART_FORMAT = 1
_CHARACTERS_AT_A_TIME = 1 << 20
_DIGEST_BYTES = hashlib.sha256().digest_size
STARTS_DTYPE = np.dtype("<i8")


@dataclass(frozen=True, kw_only=True)
class TokenizedDocuments:
    """The documents of one part that belong to one split.

    Attributes:
        tokens: uint16 or uint32 (tokens,), separators included.
        starts: int64 (documents,), where in `tokens` each document that has any begins.
        num_bytes: UTF-8 bytes of their text.
    """

    tokens: np.ndarray
    starts: np.ndarray
    num_bytes: int


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the smallest of uint16 and uint32 that holds every id of a vocabulary, little-endian."""
    if vocab_size > 2**32:
        raise ValueError(f"vocab_size={vocab_size} does not fit the uint32 of a token shard (at most {2**32}).")
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def tokenize_documents(texts: Sequence[str], tokenizer: Tokenizer, *, separator: bool) -> TokenizedDocuments:
    """Return the tokens of some documents, with `separator` an end-of-text token after each that has any.

    Raises:
        ValueError: the tokenizer gives an id beyond its own vocabulary.
    """
    runs: list[np.ndarray] = []
    starts: list[int] = []
    num_tokens = num_bytes = 0
    waiting: list[tuple[int, str]] = []
    waiting_characters = 0
    end = np.array([tokenizer.end_of_text], dtype=np.uint32)
    opened = -1  # the document that `runs` ends with a piece of

    def write_waiting() -> None:
        nonlocal num_tokens, opened
        encoded = tokenizer.encode_many([text for _, text in waiting])
        for (document, _), ids in zip(waiting, encoded, strict=True):
            if not ids:
                continue
            if document != opened:
                if separator and opened >= 0:
                    runs.append(end)
                    num_tokens += 1
                starts.append(num_tokens)
                opened = document
            runs.append(np.array(ids, dtype=np.uint32))
            num_tokens += len(ids)
        waiting.clear()

    for document, text in enumerate(texts):
        num_bytes += len(text.encode("utf-8"))
        waiting += [(document, piece) for piece in pieces(text)]
        waiting_characters += len(text)
        if waiting_characters >= _CHARACTERS_AT_A_TIME:
            write_waiting()
            waiting_characters = 0
    write_waiting()
    if separator and opened >= 0:
        runs.append(end)
    tokens = np.concatenate(runs) if runs else np.empty(0, dtype=np.uint32)
    if len(tokens) and tokens.max() >= tokenizer.vocab_size:
        raise ValueError(
            f"the {tokenizer.kind} tokenizer gave id {tokens.max()}, beyond its vocabulary of {tokenizer.vocab_size}: "
            f"{token_dtype(tokenizer.vocab_size).name} shards cannot be written."
        )
    return TokenizedDocuments(
        tokens=tokens.astype(token_dtype(tokenizer.vocab_size)),
        starts=np.array(starts, dtype=STARTS_DTYPE),
        num_bytes=num_bytes,
    )


def write_part(path: Path, texts: Mapping[str, Sequence[str]], tokenizer: Tokenizer, *, separator: bool) -> None:
    """Tokenize a part's documents, by split, into one file: a SHA-256, then safetensors."""
    from safetensors.numpy import save

    arrays = {}
    for split, documents in texts.items():
        tokenized = tokenize_documents(documents, tokenizer, separator=separator)
        arrays[f"{split}.tokens"], arrays[f"{split}.starts"] = tokenized.tokens, tokenized.starts
        arrays[f"{split}.bytes"] = np.array([tokenized.num_bytes], dtype=np.int64)
    data = save(arrays)
    write_bytes_atomically(path, _digest(data, tokenizer.sha256) + data)


def read_part(path: Path, tokenizer_sha256: str) -> dict[str, TokenizedDocuments] | None:
    """Return a part by split, or None where there is no file, or it is damaged or of another tokenizer."""
    from safetensors.numpy import load

    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, data = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if _digest(data, tokenizer_sha256) != digest:
        return None
    arrays = load(data)
    return {
        split: TokenizedDocuments(
            tokens=arrays[f"{split}.tokens"],
            starts=arrays[f"{split}.starts"],
            num_bytes=int(arrays[f"{split}.bytes"][0]),
        )
        for split in (name.removesuffix(".bytes") for name in arrays if name.endswith(".bytes"))
    }


def _digest(data: bytes, tokenizer_sha256: str) -> bytes:
    return hashlib.sha256(f"{PART_FORMAT} {tokenizer_sha256} ".encode() + data).digest()
