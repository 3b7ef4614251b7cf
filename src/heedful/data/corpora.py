"""Corpora as streams of documents: the Python standard library, files and folders of text, Hugging Face datasets.

A corpus can be read any number of times and gives the same documents in the same order each time; nothing is held in
memory beyond one document. Its fingerprint changes whenever its content does, and is much cheaper than reading it.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import lzma
import os
import platform
import sysconfig
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from heedful.data.config import PYTHON_STDLIB, DocumentRule
from heedful.data.documents import documents_in, looks_like_wikitext
from heedful.data.stamps import file_stamp
from heedful.files import file_sha256
from heedful.schema import did_you_mean

COMPRESSED = (".xz", ".gz")
_PROSE = (".txt", ".text", ".md", ".rst", ".tex", ".html", ".xml", ".raw", ".tokens")
_CODE = (".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".rs", ".go", ".java", ".js", ".ts", ".rb", ".sh")
TEXT_EXTENSIONS = (*_PROSE, *_CODE)
# Tests, demonstrations, code tables, generated files and packages on their way out say little about how Python is
# written, and near copies in different splits would flatter every model.
_NOT_LIBRARY = (
    "site-packages",
    "dist-packages",
    "lib-dynload",
    "__pycache__",
    "__phello__",
    "test",
    "tests",
    "idle_test",
)
_NOT_TYPICAL = ("idlelib", "lib2to3", "distutils", "turtledemo", "pydoc_data", "encodings")
_STDLIB_FOLDERS_LEFT_OUT = (*_NOT_LIBRARY, *_NOT_TYPICAL)
_STDLIB_PREFIXES_LEFT_OUT = ("config-", "_sysconfigdata")


class Corpus(Protocol):
    """A named stream of documents."""

    @property
    def name(self) -> str:
        """The name the corpus was asked for by."""
        ...

    @property
    def description(self) -> str:
        """What it is, for a manifest and a report: kind, number of files, version."""
        ...

    @property
    def rule(self) -> DocumentRule:
        """The document rule, never `"auto"`."""
        ...

    def fingerprint(self, hash_of: Callable[[Path], str] = file_sha256) -> str:
        """Return a hash in hexadecimal that changes with the content; `hash_of` gives the SHA-256 of a file."""
        ...

    def state(self) -> str:
        """Return what changes whenever somebody writes to the corpus: a cheap look, not a hash of the content."""
        ...

    def documents(self) -> Iterator[str]:
        """Yield the documents, the same ones in the same order each time."""
        ...


def open_corpus(name: str, rule: DocumentRule = "auto") -> Corpus:
    """Return the corpus called `name`, as described at `DataConfig.corpus`, without reading it.

    Raises:
        ValueError: no such corpus, a file that is not text, a folder without text, or `hf:` without `datasets`.
    """
    if name == PYTHON_STDLIB:
        return _python_stdlib(rule)
    if name.startswith("hf:"):
        from heedful.data.hub import open_hub_corpus

        return open_hub_corpus(name, rule)
    path = Path(name).expanduser()
    if path.is_file():
        return _single_file(name, path, rule)
    if path.is_dir():
        return _folder(name, path, rule)
    hint = did_you_mean(name, [PYTHON_STDLIB]) if len(path.parts) == 1 else ""
    raise ValueError(
        f"corpus {name!r} is not a file or folder here ({Path.cwd()}), nor {PYTHON_STDLIB!r} or 'hf:NAME'.{hint}"
    )


@dataclass(frozen=True, kw_only=True)
class FileCorpus:
    """Text files in a fixed order, cut into documents by one rule."""

    name: str
    description: str
    rule: DocumentRule
    root: Path
    files: tuple[Path, ...]

    def fingerprint(self, hash_of: Callable[[Path], str] = file_sha256) -> str:
        """Return a hash over the relative path and the stored bytes of every file."""
        digest = hashlib.sha256(self.rule.encode())
        for file in self.files:
            digest.update(f"{file.relative_to(self.root).as_posix()}\0{hash_of(file)}\n".encode())
        return digest.hexdigest()

    def state(self) -> str:
        """Return a hash over size, times and inode of every file."""
        stamps = (f"{file}\0{file_stamp(file) if file.exists() else None}" for file in self.files)
        return hashlib.sha256("\n".join(stamps).encode()).hexdigest()

    def documents(self) -> Iterator[str]:
        """Yield the documents file by file.

        Raises:
            ValueError: a file is not UTF-8 text, or its compression is damaged.
        """
        for file in self.files:
            with _text_lines(file) as lines:
                yield from documents_in(lines, self.rule)


@contextmanager
def _text_lines(path: Path) -> Iterator[Iterator[str]]:
    """Open a text file, compressed or not, as lines with their ends untouched; name the file in every error."""
    opener = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    try:
        with opener(path, "rt", encoding="utf-8", newline="\n") as file:
            yield _refuse_binary(file, path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason}): convert it or take it out.") from error
    except (lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} is damaged or not really {path.suffix[1:]}: {error}.") from error


def _refuse_binary(lines: Iterable[str], path: Path) -> Iterator[str]:
    for line in lines:
        if "\0" in line:
            raise ValueError(f"{path} is a binary file (it holds zero bytes), expected UTF-8 text.")
        yield line


def _python_stdlib(rule: DocumentRule) -> FileCorpus:
    root = Path(sysconfig.get_path("stdlib"))
    files = tuple(path for path in _sorted_files(root, _in_stdlib_corpus) if path.suffix == ".py")
    if not files:
        raise ValueError(f"the standard library at {root} has no .py files to read: give a file or folder as corpus.")
    description = f"{len(files)} files of the standard library of Python {platform.python_version()}"
    return FileCorpus(
        name=PYTHON_STDLIB,
        description=description,
        rule="file" if rule == "auto" else rule,
        root=root,
        files=files,
    )


def _in_stdlib_corpus(name: str) -> bool:
    return name not in _STDLIB_FOLDERS_LEFT_OUT and not name.startswith(_STDLIB_PREFIXES_LEFT_OUT)


def _single_file(name: str, path: Path, rule: DocumentRule) -> FileCorpus:
    if not _is_text(path):
        known = " ".join(TEXT_EXTENSIONS)
        raise ValueError(
            f"corpus file {path} has no extension of a text file ({known}; each also with .xz or .gz): rename it if it "
            "is UTF-8 text."
        )
    if rule == "auto":
        rule = "wikitext" if _opens_like_wikitext(path) else "paragraph"
    return FileCorpus(name=name, description=f"file {path.name}", rule=rule, root=path.parent, files=(path,))


def _folder(name: str, path: Path, rule: DocumentRule) -> FileCorpus:
    everything = _sorted_files(path, lambda name: not name.startswith("."))
    files = tuple(file for file in everything if _is_text(file))
    if not files:
        found = sorted({file.suffix or file.name for file in everything})
        held = f"only {', '.join(found[:8])}" if found else "no files at all"
        raise ValueError(f"corpus folder {path} holds no text file (such as .txt, .md or .py), {held}.")
    if rule == "auto":
        rule = "wikitext" if _opens_like_wikitext(files[0]) else "file"
    left_out = len(everything) - len(files)
    description = f"{len(files)} text files of {path.name}" + (f", {left_out} others left out" if left_out else "")
    return FileCorpus(name=name, description=description, rule=rule, root=path, files=files)


def _is_text(path: Path) -> bool:
    suffixes = path.suffixes[:-1] if path.suffix in COMPRESSED else path.suffixes
    return bool(suffixes) and suffixes[-1].lower() in TEXT_EXTENSIONS


def _opens_like_wikitext(path: Path) -> bool:
    with _text_lines(path) as lines:
        return looks_like_wikitext(itertools.islice(lines, 100))


def _sorted_files(root: Path, belongs: Callable[[str], bool]) -> list[Path]:
    """Return the files below `root` whose own name and folders' names belong, in the order of their paths' parts."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = filter(belongs, folders)
        found += [Path(folder, name) for name in names if belongs(name)]
    return sorted(filter(Path.is_file, found), key=lambda path: path.relative_to(root).parts)
