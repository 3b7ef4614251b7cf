"""`heedful convert`: change a trained model: remove query projections, or add mechanisms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from heedful.cli.convert_queries import ConvertQueries
from heedful.cli.convert_upcycle import ConvertUpcycle


@dataclass(frozen=True)
class Convert:
    """Change a trained model: `queries` removes W_Q where that is exact, `upcycle` adds mechanisms."""

    change: (
        Annotated[ConvertQueries, tyro.conf.subcommand("queries")]
        | Annotated[ConvertUpcycle, tyro.conf.subcommand("upcycle")]
    )

    def run(self, overrides: dict[str, Any]) -> None:
        """Run the chosen change."""
        self.change.run(overrides)
