"""A tokenizer of transformers as `heedful.tasks` asks for it: ids of a text with nothing added."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextIds:
    """Encodes without special tokens; what stands between documents is its BOS where it has one, else its EOS."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Wrap a tokenizer.

        Raises:
            ValueError: it has neither BOS nor EOS.
        """
        end = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        if not isinstance(end, int):
            raise ValueError("the tokenizer has neither a beginning nor an end of text; set its eos_token.")
        self.end_of_text: int = end
        self._tokenizer = tokenizer

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""
        if not texts:
            return []
        return self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]  # type: ignore[return-value]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of some ids."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


def open_text_ids(folder: str | Path) -> TextIds:
    """Return the tokenizer saved beside an exported model.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    from transformers import AutoTokenizer

    from heedful.hf.importing import READING_ERRORS

    if not (Path(folder) / "tokenizer_config.json").is_file():
        raise ValueError(f"{folder} holds no tokenizer (tokenizer_config.json); export the model with its tokenizer.")
    try:
        return TextIds(AutoTokenizer.from_pretrained(folder, local_files_only=True))
    except READING_ERRORS as error:
        raise ValueError(f"the tokenizer in {folder} cannot be read: {error}.") from error
