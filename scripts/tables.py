"""Write the generated tables into README and docs: support, benchmarks, results.

A generated part stands between `<!-- begin NAME -->` and `<!-- end NAME -->`. `--check` writes nothing and fails
where a file
is stale.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from heedful.files import write_text_atomically
from heedful.support import support_table

ROOT = Path(__file__).parent.parent


def generated_parts() -> dict[Path, dict[str, Callable[[], str]]]:
    """Return the files with generated parts, and what belongs into each."""
    return {
        ROOT / "README.md": {"support": lambda: support_table(details=False), "demo": demo_table},
        ROOT / "docs/support.md": {"support": lambda: support_table(details=True)},
        ROOT / "docs/benchmarks.md": {"layers": benchmark_tables},
    }


def benchmark_tables() -> str:
    """Return one table per result of `benchmarks/layers.py`."""
    parts = []
    for file in sorted((ROOT / "results/benchmarks").glob("layers-*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        parts.append(
            f"**{result['machine']}**, {result['dtype']}, batch {result['batch']}, {result['heads']} heads of "
            f"{result['head_dim']}, commit {result['commit'][:10]} (`results/benchmarks/{file.name}`; "
            f"`{result['command']}`). "
            "Medians, as multiples of standard attention (SDPA) in the same run.\n"
        )
        lengths = sorted({row["length"] for row in result["rows"]})
        head = " | ".join(f"N={n} forward | N={n} forward + backward | N={n} peak memory" for n in lengths)
        parts.append(f"| mechanism | backend | {head} |\n|---|---|{'--:|' * 3 * len(lengths)}")
        for mechanism in dict.fromkeys(row["mechanism"] for row in result["rows"]):
            rows = {row["length"]: row for row in result["rows"] if row["mechanism"] == mechanism}
            cells = [
                f"{rows[n]['forward_ratio']:.2f} | {rows[n]['training_ratio']:.2f} | {rows[n]['memory_ratio']:.2f}"
                if n in rows
                else "not run | not run | not run"
                for n in lengths
            ]
            parts.append(f"| {mechanism} | {next(iter(rows.values()))['backend']} | {' | '.join(cells)} |")
        parts.append("")
    return "\n".join(parts) + "\n"


def demo_table() -> str:
    """Return the table of the committed demo result."""
    from heedful.study.table import markdown_table

    result = json.loads((ROOT / "results/demo.json").read_text(encoding="utf-8"))
    return markdown_table(result) + "\n"


def render(text: str, name: str, content: str) -> str:
    """Return `text` with the part called `name` replaced."""
    pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"no part <!-- begin {name} --> ... <!-- end {name} --> to fill.")
    return pattern.sub(lambda match: match[1] + content + match[2], text)


def stale_files() -> dict[Path, str]:
    """Return the files whose generated parts differ from what they should be, with their new text."""
    stale = {}
    for path, parts in generated_parts().items():
        old = new = path.read_text(encoding="utf-8")
        for name, content in parts.items():
            new = render(new, name, content())
        if new != old:
            stale[path] = new
    return stale


def main() -> int:
    """Write or check."""
    stale = stale_files()
    for path, text in stale.items():
        if "--check" in sys.argv[1:]:
            print(f"{path.relative_to(ROOT)} is stale; run make tables")
        else:
            write_text_atomically(path, text)
            print(f"wrote {path.relative_to(ROOT)}")
    return 1 if stale and "--check" in sys.argv[1:] else 0


if __name__ == "__main__":
    sys.exit(main())
