"""bAbI's questions (Weston et al. 2015, arXiv:1502.05698), read out of its archive without unpacking it.

    1 Mary moved to the bathroom.
    2 John went to the hallway.
    3 Where is Mary? <TAB>bathroom<TAB>1

A line is a fact or a question; a story begins where the numbers begin again at 1, and a question may be answered from
all facts of its story before it. Several words of an answer are separated by commas.
"""

from __future__ import annotations

import lzma
import re
import tarfile
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from heedful.files import file_sha256

NUM_TASKS = 20
_LINE = re.compile(r"(\d+) (.+)")


class BabiQuestion(NamedTuple):
    """One question with what is known when it is asked.

    Attributes:
        story: number of the story in its file.
        facts: the sentences before it, in order.
        question: with its question mark.
        answer: one or more words.
    """

    story: int
    facts: tuple[str, ...]
    question: str
    answer: str


class BabiArchive:
    """A tar archive of bAbI, compressed or not, with files `qa<N>_<name>_train.txt` and `..._test.txt`."""

    def __init__(self, path: str | Path, folder: str | None = None) -> None:
        """Remember where it is.

        Args:
            path: of the archive, such as the published `tasks_1-20_v1-2.tar.gz`.
            folder: in the archive, such as "en" or "en-10k"; may be None where only one has the file.

        Raises:
            ValueError: there is no such file.
        """
        self.path, self.folder = Path(path).expanduser(), folder
        if not self.path.is_file():
            raise ValueError(
                f"there is no bAbI archive {str(path)!r}: give the path of a tar file such as tasks_1-20_v1-2.tar.gz."
            )

    @property
    def sha256(self) -> str:
        """Hash of the archive, in hexadecimal."""
        return file_sha256(self.path)

    def questions(self, tasks: tuple[int, ...], part: Literal["train", "test"]) -> dict[int, list[BabiQuestion]]:
        """Return the questions of some tasks by number; the archive is read once.

        Raises:
            ValueError: the archive is damaged, lacks a task, has it more than once, or holds something else.
        """
        wanted = re.compile(rf"qa({'|'.join(map(str, tasks))})_.*_{part}\.txt")
        found: dict[int, tuple[str, bytes]] = {}
        try:
            with tarfile.open(self.path) as archive:
                for member in archive:
                    path = PurePosixPath(member.name)
                    match = wanted.fullmatch(path.name)
                    if match is None or not member.isfile() or self.folder not in (None, path.parent.name):
                        continue
                    task = int(match[1])
                    if task in found:
                        raise ValueError(
                            f"{self.path} holds task {task} more than once ({found[task][0]}, {member.name}): name one "
                            "of their folders."
                        )
                    content = archive.extractfile(member)
                    assert content is not None
                    found[task] = member.name, content.read()
        except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
            raise ValueError(f"{self.path} cannot be read as a tar archive: {error}.") from error
        missing = [task for task in tasks if task not in found]
        if missing:
            where = "" if self.folder is None else f" in a folder {self.folder!r}"
            raise ValueError(f"{self.path} has no file qa{missing[0]}_..._{part}.txt{where}: bAbI task {missing[0]}.")
        return {task: parse_questions(found[task][1], f"{self.path}: {found[task][0]}") for task in tasks}


def parse_questions(content: bytes, where: str) -> list[BabiQuestion]:
    """Return the questions of one file.

    Raises:
        ValueError: a line is neither fact nor question, or there is no question; the message names `where`.
    """
    questions: list[BabiQuestion] = []
    facts: list[str] = []
    story = -1
    for number, line in enumerate(_lines(content, where), start=1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"{where}, line {number}: expected a number and a sentence, got {line[:80]!r}.")
        if match[1] == "1":
            story, facts = story + 1, []
        sentence, *answer = match[2].split("\t")
        if not answer:
            facts.append(sentence.strip())
        elif story < 0 or not facts or not answer[0].strip():
            raise ValueError(f"{where}, line {number}: a question without facts or without an answer: {line[:80]!r}.")
        else:
            questions.append(BabiQuestion(story, tuple(facts), sentence.strip(), answer[0].strip()))
    if not questions:
        raise ValueError(f"{where} holds no question.")
    return questions


def _lines(content: bytes, where: str) -> list[str]:
    try:
        return content.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 text ({error.reason}).") from error
