"""What training with multi-token attention costs, from the benchmark that times whole models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from heedful.papers.claim import Evidence, Finding, Result, Verdict

MODEL_STEP = "benchmarks/model-step-cpu.json"
BENCHMARK = "python -m benchmarks.model_step"


@dataclass(frozen=True, kw_only=True)
class BenchmarkEvidence(Evidence):
    """Evidence from the file of a benchmark, of which `recipe` is the command."""

    def file_of(self, result: Result) -> str | None:
        """Return the name of the benchmark's file for what the command wrote, None for anything else."""
        return self.results[0] if str(result.get("command", "")).startswith(self.recipe) else None

    def check(self, name: str, result: Result) -> None:
        """Refuse a file that another command wrote, or in which a needed model was not timed.

        Raises:
            ValueError: with the command or the arms that differ.
        """
        if self.file_of(result) is None:
            raise ValueError(
                f"{name} was written by {result.get('command')!r}, expected {self.recipe!r}: give the file that it "
                "writes."
            )
        timed = {row["arm"] for row in result["rows"]}
        if absent := [arm for arm in self.arms if arm not in timed]:
            raise ValueError(f"{name} has no row of {', '.join(absent)}; it has {', '.join(sorted(timed))}.")


def training_cost(results: Mapping[str, Result]) -> Finding:
    """Compare a training step with whole maps and one block by block with that of standard attention."""
    result = results[MODEL_STEP]
    context = max(row["context"] for row in result["rows"] if row["arm"] == "multi-token, materialised")
    rows = {row["arm"]: row for row in result["rows"] if row["context"] == context}
    slower, memory = (
        {arm: row["seconds"] / rows["standard"]["seconds"] for arm, row in rows.items()},
        {arm: row["peak_bytes"] / rows["standard"]["peak_bytes"] for arm, row in rows.items()},
    )
    whole, blocks = "multi-token, materialised", "multi-token"
    slow = slower[whole] >= 2
    verdict: Verdict = "holds" if slow else "does not hold"
    if slow and slower[blocks] < slower[whole] / 2:
        verdict = "holds in part"
    return Finding(
        verdict=verdict,
        figure=f"{slower[whole]:.1f} times as long and {memory[whole]:.1f} times the memory with whole maps, "
        f"{slower[blocks]:.1f} and {memory[blocks]:.1f} block by block",
        reason=f"A training step of a small model at {context:,} tokens on {result['machine']}: whole attention maps "
        "in memory cost about what was published for a large one on GPUs; the same model computed block by block "
        "does not, so the cost is that of the implementation.",
        numbers={
            "time, whole maps": slower[whole],
            "memory, whole maps": memory[whole],
            "time, block by block": slower[blocks],
            "memory, block by block": memory[blocks],
            "time, talking heads": slower["talking-heads"],
        },
    )
