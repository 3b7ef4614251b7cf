"""Text to token ids and back: bytes, BPE trained on the spot, the boosted paper's whitespace BPE, GPT-2's BPE.

The end-of-text token never comes out of `encode`, whatever the text holds; only the shard builder writes it. It is the
last entry of the vocabulary, except in `bpe-whitespace`, whose vocabulary is the paper's: there `<pad>`, which nothing
else uses, stands for it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from heedful.files import write_json_atomically, write_text_atomically
from heedful.schema import did_you_mean

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = "<|endoftext|>"
_KIND_FILE = "heedful_tokenizer.json"  # which of the classes below, with the hash of what it was saved as
_BACKEND_FILE = "tokenizer.json"  # in the form of the tokenizers library, which others can open
_WHITESPACE_SPECIALS = ("<pad>", "<unk>")
_END_OF_TEXT_BY_KIND = {"bpe": END_OF_TEXT, "gpt2": END_OF_TEXT, "bpe-whitespace": "<pad>"}
_CUT = re.compile(r"(?<=\S)[ \t\r\n]")


class Tokenizer(Protocol):
    """What turns text into token ids and back."""

    @property
    def kind(self) -> str:
        """Name as in `DataConfig.tokenizer`."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of ids, the end-of-text token included."""
        ...

    @property
    def end_of_text(self) -> int:
        """Id of the token that follows every document."""
        ...

    @property
    def lossless(self) -> bool:
        """Whether `decode(encode(text)) == text` for every text."""
        ...

    @property
    def sha256(self) -> str:
        """Hash of everything that determines the ids, in hexadecimal."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without end-of-text."""
        ...

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, on all cores where the kind allows."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of some ids; end-of-text reads `<|endoftext|>`, broken UTF-8 becomes U+FFFD."""
        ...

    def prefix_bytes(self, text: str, num_tokens: int) -> int:
        """Return how many UTF-8 bytes of `text` its first `num_tokens` ids stand for."""
        ...

    def save(self, folder: str | Path) -> None:
        """Write the files that `open_tokenizer` reads into an existing or new folder."""
        ...


class ByteTokenizer:
    """The 256 bytes of UTF-8 and end-of-text."""

    kind = "bytes"
    vocab_size = 257
    end_of_text = 256
    lossless = True
    sha256 = hashlib.sha256(b"bytes").hexdigest()

    def encode(self, text: str) -> list[int]:
        """Return the bytes of the text."""
        return list(text.encode("utf-8"))

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the bytes of each text."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of some bytes."""
        end = END_OF_TEXT.encode()
        return b"".join(end if i == self.end_of_text else bytes((i,)) for i in ids).decode("utf-8", errors="replace")

    def prefix_bytes(self, text: str, num_tokens: int) -> int:
        """Return `num_tokens`: a token is a byte."""
        return num_tokens

    def save(self, folder: str | Path) -> None:
        """Write the kind: there is nothing else to know."""
        write_json_atomically(Path(folder) / _KIND_FILE, {"kind": self.kind, "sha256": self.sha256})


class BpeTokenizer:
    """Byte pair encoding by the `tokenizers` library, of any of the kinds `bpe`, `bpe-whitespace` and `gpt2`."""

    def __init__(self, backend: tokenizers.Tokenizer, kind: str) -> None:
        """Wrap a trained or loaded `tokenizers.Tokenizer` whose vocabulary holds the kind's end-of-text token."""
        self.kind = kind
        self.lossless = kind != "bpe-whitespace"
        self._backend = backend
        # Text that spells the end-of-text token is text. The paper's tokenizer does match its specials in the text.
        self._backend.encode_special_tokens = self.lossless
        self.vocab_size: int = backend.get_vocab_size()
        end_of_text = backend.token_to_id(_END_OF_TEXT_BY_KIND[kind])
        if end_of_text is None:
            raise ValueError(f"the {kind} tokenizer has no token {_END_OF_TEXT_BY_KIND[kind]!r} in its vocabulary.")
        self.end_of_text: int = end_of_text
        self.sha256 = _bpe_sha256(kind, backend.to_str())

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, cut where that cannot change them so that memory stays in proportion."""
        return [i for ids in self.encode_many(list(pieces(text))) for i in ids]

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, computed on all cores."""
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of some ids; `bpe-whitespace` puts a space between any two."""
        text = self._backend.decode(list(ids), skip_special_tokens=False)
        return text if self.lossless else text.replace(_END_OF_TEXT_BY_KIND[self.kind], END_OF_TEXT)

    def prefix_bytes(self, text: str, num_tokens: int) -> int:
        """Return the bytes up to the end of the character that the last of the ids belongs to."""
        if num_tokens == 0:
            return 0
        end = self._backend.encode(text).offsets[num_tokens - 1][1]
        return len(text[:end].encode("utf-8"))

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json`, which the `tokenizers` library opens as well, and what kind it is."""
        write_text_atomically(Path(folder) / _BACKEND_FILE, self._backend.to_str())
        write_json_atomically(Path(folder) / _KIND_FILE, {"kind": self.kind, "sha256": self.sha256})


def open_tokenizer(folder: str | Path) -> Tokenizer:
    """Return the tokenizer saved in a folder.

    Raises:
        ValueError: the files are missing, of an unknown kind, or not what was saved.
    """
    import tokenizers

    kind_path, backend_path = Path(folder) / _KIND_FILE, Path(folder) / _BACKEND_FILE
    try:
        saved = json.loads(kind_path.read_text(encoding="utf-8"))
        kind, sha256 = saved["kind"], saved["sha256"]
        if kind == ByteTokenizer.kind:
            return ByteTokenizer()
        text = backend_path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ValueError(f"{folder} holds no saved tokenizer: {Path(error.filename).name} is missing.") from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{kind_path} is damaged: {error!r}. Save the tokenizer again.") from error
    if kind not in _END_OF_TEXT_BY_KIND:
        raise ValueError(
            f"{kind_path}: unknown tokenizer kind {kind!r}.{did_you_mean(str(kind), _END_OF_TEXT_BY_KIND)}"
        )
    if _bpe_sha256(kind, text) != sha256:
        raise ValueError(f"{backend_path} is not the tokenizer that was saved (its hash differs). Save it again.")
    return BpeTokenizer(tokenizers.Tokenizer.from_str(text), kind)


def train_bpe(texts: Iterable[str], vocab_size: int) -> BpeTokenizer:
    """Train byte-level BPE (GPT-2's form): 256 bytes, `vocab_size - 257` merges, end-of-text.

    Raises:
        ValueError: the texts do not yield that many merges.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator((piece for text in texts for piece in pieces(text)), trainer)
    backend.add_special_tokens([END_OF_TEXT])
    _check_trained_size(backend.get_vocab_size(), vocab_size)
    return BpeTokenizer(backend, "bpe")


def train_whitespace_bpe(texts: Iterable[str], vocab_size: int) -> BpeTokenizer:
    """Train the gradient-boosted paper's BPE (arXiv:2604.03190): white space separates words and is then dropped.

    Merges run over characters, not bytes; a character that the texts do not hold vanishes when it is encoded.

    Raises:
        ValueError: the texts do not yield that many merges, or hold more characters than the vocabulary has room for.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=list(_WHITESPACE_SPECIALS), show_progress=False)
    backend.train_from_iterator((piece for text in texts for piece in pieces(text)), trainer)
    _check_trained_size(backend.get_vocab_size(), vocab_size)
    return BpeTokenizer(backend, "bpe-whitespace")


def load_gpt2(folder: str | Path) -> BpeTokenizer:
    """Return GPT-2's BPE built from its two published files, `encoder.json` and `vocab.bpe`.

    Raises:
        ValueError: a file is missing or is not what its name says.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    encoder, merges = gpt2_files(folder)
    try:
        model = models.BPE.from_file(str(encoder), str(merges))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{encoder} and {merges.name} are not the two files of GPT-2's BPE: {error}.") from error
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if backend.token_to_id(END_OF_TEXT) is None:
        raise ValueError(f"{encoder} has no entry {END_OF_TEXT!r}: expected the vocabulary of GPT-2.")
    backend.add_special_tokens([END_OF_TEXT])
    return BpeTokenizer(backend, "gpt2")


def gpt2_files(folder: str | Path) -> tuple[Path, Path]:
    """Return the paths of `encoder.json` and `vocab.bpe` in a folder, `ValueError` where one is missing."""
    paths = Path(folder).expanduser() / "encoder.json", Path(folder).expanduser() / "vocab.bpe"
    for path in paths:
        if not path.is_file():
            raise ValueError(
                f"gpt2_folder {folder} has no file {path.name}: GPT-2's BPE needs encoder.json and vocab.bpe."
            )
    return paths


def pieces(text: str, size: int = 16384) -> Iterator[str]:
    """Cut a text into pieces of about `size` characters whose ids, joined, are the ids of the text.

    A cut lies before white space that follows something else. No token of any kind here reaches across such a place:
    every pre-tokenizer ends a match there, and none looks back over it. Text without white space stays whole.
    """
    start = 0
    while len(text) - start > size:
        match = _CUT.search(text, start + size)
        if match is None:
            break
        yield text[start : match.start()]
        start = match.start()
    yield text[start:]


def _check_trained_size(trained: int, vocab_size: int) -> None:
    if trained < vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size} is too large for this corpus, whose training sample yields only {trained} "
            f"entries: set vocab_size to {trained} or less, or use more text."
        )
    if trained > vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size} is too small: the characters of the training sample and the special tokens alone "
            f"take {trained} entries."
        )


def _bpe_sha256(kind: str, backend: str) -> str:
    return hashlib.sha256(f"{kind}\n{backend}".encode()).hexdigest()
