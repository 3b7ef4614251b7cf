"""Writing one split of a data set, document after document or part after part, up to a limit."""

from __future__ import annotations

import hashlib
from array import array
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from heedful.data.parts import STARTS_DTYPE, TokenizedDocuments, token_dtype
from heedful.data.shards import SplitRecord
from heedful.data.tokenizers import Tokenizer

_BUFFERED_TOKENS = 1 << 20


class SplitWriter:
    """Appends documents to the shard of one split, up to `max_tokens`; to be used as a context manager."""

    def __init__(
        self, folder: Path, name: str, tokenizer: Tokenizer, *, separator: bool, max_tokens: int | None
    ) -> None:
        """Create the two files of split `name` in `folder`."""
        self.name = name
        self._tokenizer = tokenizer
        self._separator = separator
        self._limit = max_tokens
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._tokens, self._starts = array("I"), array("q")
        self._tokens_file = open(folder / f"{name}.tokens", "wb")  # noqa: SIM115, closed by __exit__
        self._starts_file = open(folder / f"{name}.starts", "wb")  # noqa: SIM115
        self._tokens_digest, self._starts_digest = hashlib.sha256(), hashlib.sha256()
        self._num_tokens = self._num_documents = self._num_bytes = 0
        self._inside_document = False

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files, whatever happened."""
        self._tokens_file.close()
        self._starts_file.close()

    @property
    def num_tokens(self) -> int:
        """Tokens so far."""
        return self._num_tokens

    @property
    def full(self) -> bool:
        """Whether no further token will be kept."""
        return self._limit is not None and self._num_tokens >= self._limit

    def allow(self, max_tokens: int | None) -> None:
        """Let `max_tokens` more come from now on, None: any number; each of several sources has its own allowance."""
        self._limit = None if max_tokens is None else self._num_tokens + max_tokens

    def has_room_for(self, part: TokenizedDocuments) -> bool:
        """Whether all tokens of a part would be kept."""
        return self._limit is None or self._num_tokens + len(part.tokens) <= self._limit

    def extend(self, part: TokenizedDocuments) -> None:
        """Append documents that were tokenized elsewhere, and for which there is room."""
        self._flush()
        self._write(part.tokens.astype(self._dtype, copy=False), part.starts + self._num_tokens)
        self._num_tokens += len(part.tokens)
        self._num_documents += len(part.starts)
        self._num_bytes += part.num_bytes

    def add(self, text: str, ids: list[int], *, ends_document: bool) -> None:
        """Append a piece of a document with its ids; a document of which no id is left is not counted."""
        if self.full:
            return
        if self._limit is not None and self._num_tokens + len(ids) > self._limit:
            ids = ids[: self._limit - self._num_tokens]
            self._num_bytes += self._tokenizer.prefix_bytes(text, len(ids))
        else:
            self._num_bytes += len(text.encode("utf-8"))
        if ids and not self._inside_document:
            self._starts.append(self._num_tokens)
            self._num_documents += 1
            self._inside_document = True
        self._append(ids)
        if ends_document:
            if self._separator and self._inside_document and not self.full:
                self._append([self._tokenizer.end_of_text])
            self._inside_document = False

    def finish(self) -> SplitRecord:
        """Write what is buffered and return the split's record."""
        self._flush()
        return SplitRecord(
            documents=self._num_documents,
            tokens=self._num_tokens,
            bytes=self._num_bytes,
            tokens_sha256=self._tokens_digest.hexdigest(),
            starts_sha256=self._starts_digest.hexdigest(),
        )

    def _append(self, ids: list[int]) -> None:
        self._tokens.extend(ids)
        self._num_tokens += len(ids)
        if len(self._tokens) >= _BUFFERED_TOKENS:
            self._flush()

    def _flush(self) -> None:
        tokens = np.array(self._tokens, dtype=np.uint32)
        if len(tokens) and tokens.max() >= self._tokenizer.vocab_size:
            raise ValueError(
                f"the {self._tokenizer.kind} tokenizer gave id {tokens.max()}, beyond its vocabulary of "
                f"{self._tokenizer.vocab_size}: {self._dtype.name} shards cannot be written."
            )
        self._write(tokens.astype(self._dtype), np.array(self._starts, dtype=STARTS_DTYPE))
        del self._tokens[:], self._starts[:]

    def _write(self, tokens: np.ndarray, starts: np.ndarray) -> None:
        for file, digest, numbers in (
            (self._tokens_file, self._tokens_digest, tokens),
            (self._starts_file, self._starts_digest, starts.astype(STARTS_DTYPE, copy=False)),
        ):
            data = numbers.tobytes()
            file.write(data)
            digest.update(data)
