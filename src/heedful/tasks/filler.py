"""Running text between which a task hides what it asks for: windows of a token split, cut at the ends of sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from heedful.data.tokenizers import Tokenizer
    from heedful.tasks.draws import Draws

_STOPS = (".", "!", "?")
_CLOSING = " \"')]\N{RIGHT DOUBLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}"
# How far a window's end is moved back to the end of a sentence. Text without any for longer is cut where it is.
_LOOK_BACK = 512


class Filler:
    """The tokens of one split, and where sentences end in them.

    A sentence ends with a token that ends in ".", "!" or "?" (closing marks after it in the same token do not matter)
    if white space follows, with a line break, or with end-of-text. A tokenizer that drops white space cannot tell "3.5"
    from "3. 5", so there every such token ends one. Abbreviations ("Mr. Smith") count as ends too: what is put there
    stands between words in any case.
    """

    def __init__(self, tokens: np.ndarray, tokenizer: Tokenizer) -> None:
        """Look at each entry of the vocabulary once; the tokens, which may be memory-mapped, are read by the window.

        Args:
            tokens: integers (n,), such as the `tokens` of a `TokenSplit`.
            tokenizer: what made them.
        """
        self.tokens = tokens
        texts = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
        self._breaks = np.array([text.endswith("\n") for text in texts])
        self._breaks[tokenizer.end_of_text] = True
        self._stops = np.array([text.rstrip(_CLOSING).endswith(_STOPS) for text in texts])
        self._opens = np.array([not tokenizer.lossless or text[:1].isspace() for text in texts])
        self._opens[tokenizer.end_of_text] = True

    def require(self, length: int) -> None:
        """Refuse windows that are longer than the text.

        Raises:
            ValueError: with both numbers.
        """
        if length > len(self.tokens):
            raise ValueError(
                f"the text between has {len(self.tokens)} tokens, fewer than the {length} that one sample takes of it: "
                "use more text or shorter samples."
            )

    def window(self, draws: Draws, length: int) -> np.ndarray:
        """Return `length` tokens, int64 (length,), from a random place that ends with a sentence where there is one."""
        self.require(length)
        if length == 0:
            return np.empty(0, dtype=np.int64)
        end = length + draws.below(len(self.tokens) - length + 1)
        first = max(length, end - _LOOK_BACK)
        # One token before, to see what `first` follows, and one after, to see what follows the last.
        around = self.tokens[first - 1 : end + 1]
        places = first - 1 + self._ends(around)
        inside = places[(places >= first) & (places <= end)]
        if len(inside):
            end = int(inside[-1])
        return self.tokens[end - length : end].astype(np.int64)

    def sentence_starts(self, window: np.ndarray) -> np.ndarray:
        """Return the places of a window where a sentence begins, its beginning and its end included: increasing."""
        return np.unique(np.concatenate(([0], self._ends(window), [len(window)]))).astype(np.int64)

    def _ends(self, tokens: np.ndarray) -> np.ndarray:
        """Return the places i of a run of tokens such that a sentence ends with token i - 1 and token i follows it."""
        before, after = tokens[:-1], tokens[1:]
        return 1 + np.flatnonzero(self._breaks[before] | (self._stops[before] & self._opens[after]))
