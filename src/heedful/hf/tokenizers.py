"""heedful's tokenizers as transformers' `PreTrainedTokenizerFast`, with the same ids for every text.

| kind             | here                                                                                     |
|------------------|------------------------------------------------------------------------------------------|
| bytes            | byte-level BPE without merges whose vocabulary numbers the bytes 0 to 255                  |
| bpe, gpt2        | the backend itself; text that spells `<|endoftext|>` stays text                           |
| bpe-whitespace   | the backend itself, with a decoder that puts spaces and reads `<pad>` as end of text       |
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from heedful.data.tokenizers import END_OF_TEXT, BpeTokenizer, ByteTokenizer, Tokenizer

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerFast

_NEVER = "\U0010ffff\U0010fffe"  # two code points that are no characters: no token starts with them


def to_transformers(tokenizer: Tokenizer, *, max_length: int | None = None) -> PreTrainedTokenizerFast:
    """Return a tokenizer for transformers whose ids and texts equal those of `tokenizer`.

    It adds nothing to a text. End of text is its `eos_token`, and also its `pad_token`, on the left, so that batches of
    prompts can be continued.

    Args:
        tokenizer: any of the kinds of `heedful.data`.
        max_length: the model's longest context, `model_max_length` in transformers.

    Raises:
        ValueError: another kind of tokenizer.
    """
    from transformers import PreTrainedTokenizerFast

    if isinstance(tokenizer, ByteTokenizer):
        backend, split = _byte_backend(), True
    elif isinstance(tokenizer, BpeTokenizer):
        backend, split = _bpe_backend(tokenizer), tokenizer.lossless
    else:
        raise ValueError(
            f"only the tokenizers of heedful.data can be exported, got {type(tokenizer).__name__}; give a transformers "
            f"tokenizer as it is."
        )
    end = backend.id_to_token(tokenizer.end_of_text)
    options = {} if max_length is None else {"model_max_length": max_length}
    result = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=end,
        pad_token=end,
        padding_side="left",
        # Whether text that spells a special token is text, which tokenizer.json does not hold.
        split_special_tokens=split,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **options,
    )
    if (len(result), result.eos_token_id) != (tokenizer.vocab_size, tokenizer.end_of_text):
        raise ValueError(
            f"the exported tokenizer has {len(result)} ids and ends texts with {result.eos_token_id}, expected "
            f"{tokenizer.vocab_size} and {tokenizer.end_of_text}; the tokenizer's files may be damaged."
        )
    return result


def _byte_backend() -> tokenizers.Tokenizer:
    """Return a backend for which a token is a byte and an id its value."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    backend = Tokenizer(models.BPE(vocab={sign: byte for byte, sign in enumerate(_signs())}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END_OF_TEXT])
    return backend


def _signs() -> list[str]:
    """Return the printable character that byte-level BPE writes for each byte.

    Bytes whose Latin-1 character can be seen stand for themselves; the rest take the code points from 256 on in order.
    """
    seen = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [byte for byte in range(256) if byte not in seen]
    return [chr(byte) if byte in seen else chr(256 + hidden.index(byte)) for byte in range(256)]


def _bpe_backend(tokenizer: BpeTokenizer) -> tokenizers.Tokenizer:
    """Return a copy of the backend, with a decoder where ours reads the text in Python."""
    from tokenizers import Tokenizer, decoders

    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        backend = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    if not tokenizer.lossless:
        end = str(backend.id_to_token(tokenizer.end_of_text))
        # The second decoder puts a space before every token but the first.
        joined = decoders.WordPiece(prefix=_NEVER, cleanup=False)
        backend.decoder = decoders.Sequence([decoders.Replace(end, END_OF_TEXT), joined])
    return backend
