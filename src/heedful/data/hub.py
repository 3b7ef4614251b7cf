"""Hugging Face datasets as corpora, for those who have `datasets` installed.

`datasets` only fetches and lists the rows here; the tokens are read from our own shards, so that training resumes
exactly.
"""

from __future__ import annotations

import hashlib
import importlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heedful.data.config import DocumentRule
from heedful.data.documents import documents_in
from heedful.files import file_sha256

_ROWS_AT_A_TIME = 1000


@dataclass(frozen=True, kw_only=True)
class HubCorpus:
    """The `text` column of one split of a dataset."""

    name: str
    description: str
    rule: DocumentRule
    dataset: Any

    def fingerprint(self, hash_of: Callable[[Path], str] = file_sha256) -> str:
        """Return a hash over the fingerprint that `datasets` keeps of the rows."""
        return hashlib.sha256(f"{self.rule}\0{self.dataset._fingerprint}".encode()).hexdigest()

    def state(self) -> str:
        """Return the fingerprint: `datasets` never writes to rows that are open."""
        return self.fingerprint()

    def documents(self) -> Iterator[str]:
        """Yield each row as a document, or the documents of all rows read as the lines of one file."""
        if self.rule == "file":
            yield from (text for text in self._rows() if text.strip())
        else:
            # Data sets of lines keep the line end in the row or drop it; a file has it.
            ended = (text if text.endswith("\n") else text + "\n" for text in self._rows())
            yield from documents_in((line for text in ended for line in io.StringIO(text, newline="\n")), self.rule)

    def _rows(self) -> Iterator[str]:
        for batch in self.dataset.iter(batch_size=_ROWS_AT_A_TIME):
            yield from batch["text"]


def open_hub_corpus(name: str, rule: DocumentRule = "auto") -> HubCorpus:
    """Return the dataset `hf:NAME`, `hf:OWNER/NAME` or `hf:OWNER/NAME/CONFIG`, `#SPLIT` at the end being optional.

    Rules `"auto"` and `"file"` make every row a document; the others read the rows as the lines of one file.

    Raises:
        ValueError: `datasets` is missing, the name cannot be read or fetched, or there is no `text` column.
    """
    path, _, split = name.removeprefix("hf:").partition("#")
    parts = path.split("/")
    if not all(parts) or len(parts) > 3:
        raise ValueError(
            f"corpus {name!r}: expected hf:NAME, hf:OWNER/NAME or hf:OWNER/NAME/CONFIG, then perhaps #SPLIT."
        )
    try:
        datasets = importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        raise ValueError(f"corpus {name!r} needs the datasets library: pip install 'heedful[hf]'.") from error
    try:
        dataset = datasets.load_dataset("/".join(parts[:2]), *parts[2:], split=split or "train")
    except (
        Exception
    ) as error:  # network, permission, unknown name, unknown split: datasets has no common class for these
        raise ValueError(f"corpus {name!r} could not be loaded by datasets: {error}") from error
    if "text" not in dataset.column_names:
        raise ValueError(f"corpus {name!r} has no column 'text', only {', '.join(dataset.column_names)}.")
    return HubCorpus(
        name=name,
        description=f"{dataset.num_rows} rows of the dataset {path}, split {split or 'train'}",
        rule="file" if rule == "auto" else rule,
        dataset=dataset,
    )
