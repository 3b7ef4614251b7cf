"""`heedful report`: the page of one run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro


@dataclass(frozen=True)
class Report:
    """Write a page about a run: state, curves, checkpoints, where it was computed, how to go on with it.

    One HTML file that loads nothing. It works while the run goes on, and for one run inside a comparison's folder;
    `heedful compare` writes a comparison's own report.
    """

    run_folder: Annotated[Path, tyro.conf.Positional]
    """Folder of a run of `heedful train`, or of one run inside a comparison's folder."""

    output: Path | None = None
    """Where the page goes; report.html in the run's folder by default."""

    def run(self, overrides: dict[str, Any]) -> None:
        """Write the page and say where it is."""
        from heedful.cli.overrides import refuse_overrides
        from heedful.study.run_page import write_run_page
        from heedful.train.run_state import find_runs

        refuse_overrides(overrides, "report")
        if not self.run_folder.is_dir():
            raise ValueError(f"there is no folder {str(self.run_folder)!r}; `heedful runs` lists those there are.")
        others = [] if (self.run_folder / "config.json").exists() else find_runs(self.run_folder)
        if others and others != [self.run_folder]:
            raise ValueError(f"{self.run_folder} is no run but holds some, such as {others[0]}; give one of them.")
        if self.output is not None and self.output.is_dir():
            raise ValueError(f"{self.output} is a folder; give the file that the page shall be written to.")
        print(write_run_page(self.run_folder, self.output))
