"""One table of the studies of docs/results/index.md beside each other: what each arm gains, and whether they agree."""

from __future__ import annotations

from collections.abc import Mapping

from heedful.study.statistics import PairedDifference
from heedful.study.wording import NONE, number_of
from scripts.result_words import nats, outcome, table

SAME = "same: "
Gains = Mapping[str, PairedDifference]
"""Differences of losses to the baseline, by arm."""


def studies_table(baseline: str, studies: Mapping[str, Gains]) -> str:
    """Return the table of several studies, and how often they agree.

    Args:
        baseline: the arm subtracted.
        studies: the gains by what a study is called, the largest first.
    """
    arms = list(dict.fromkeys(arm for gains in studies.values() for arm in gains))
    rows, signs, verdicts = [], [], []
    for arm in arms:
        found = [gains.get(arm) for gains in studies.values()]
        signs.append(sign_words(found))
        verdicts.append(verdict_words(found))
        rows.append([arm, *(NONE if item is None else nats(item) for item in found), signs[-1], verdicts[-1]])
    compared = sum(words != NONE for words in signs)
    return "\n".join(
        [
            f"Differences of test loss to {baseline} in nats per token (in brackets per cent of perplexity) with 95 % "
            "intervals, of each mechanism and each sum. The verdict is that of the interval, not corrected for the "
            f"number of rows. Of {number_of(compared, 'row')} the studies have the same sign in {signs.count('same')} "
            f"and the same verdict in {sum(words.startswith(SAME) for words in verdicts)}.",
            "",
            table(["arm", *studies, "sign", "verdict"], rows),
        ]
    )


def sign_words(found: list[PairedDifference | None]) -> str:
    """Say whether the mean differences lie on the same side of zero."""
    means = [item.mean for item in found if item is not None and item.mean is not None]
    if len(means) < len(found):
        return NONE
    return "same" if len({mean > 0 for mean in means}) == 1 else "opposite"


def verdict_words(found: list[PairedDifference | None]) -> str:
    """Say whether the intervals say the same, and what each says."""
    outcomes = [NONE if item is None else outcome(item) for item in found]
    if len(set(outcomes)) == 1:
        return f"{SAME}{outcomes[0]}"
    return f"differs: {', then '.join(outcomes)}"
