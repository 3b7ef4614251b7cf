"""The claims of twicing attention (arXiv 2503.00687), which the boosted paper takes as its baseline."""

from __future__ import annotations

from heedful.papers import twicing_checks
from heedful.papers.boosted_assessments import pair
from heedful.papers.claim import Claim

CLAIMS: tuple[Claim, ...] = (
    Claim(
        name="twicing-kernel",
        paper="boosted",
        kind="numerical",
        statement="Twicing is regression with the kernel 2K - K*K, which reduces the bias of K.",
        source="arXiv 2503.00687, kernel regression",
        published="proof",
        method="A sine on 720 points of a circle, smoothed by attention of two bandwidths; also 2A - A^2 written out.",
        check=twicing_checks.kernel,
    ),
    Claim(
        name="twicing-decay",
        paper="boosted",
        kind="numerical",
        statement=(
            "Repeated smoothing keeps 1/(n + 1) of an average eigenvector with A, and about sqrt(pi)/(2 sqrt n) with "
            "2A - A^2."
        ),
        source="arXiv 2503.00687, decay of representations",
        published="1/(n + 1); sqrt(pi)/(2 sqrt n)",
        method="Both filters integrated over [0, 1] for n up to 1000; eight random causal maps beside it.",
        check=twicing_checks.decay,
    ),
    Claim(
        name="twicing-overhead",
        paper="boosted",
        kind="algebraic",
        statement="Twicing adds 7 % to the arithmetic.",
        source="arXiv 2604.03190 v1, section on costs",
        published="+7 %",
        method="Multiply-adds counted, width 256, four layers, context 256.",
        check=twicing_checks.overhead,
    ),
    Claim(
        name="twicing-beats-standard",
        paper="boosted",
        kind="empirical",
        statement="Twicing has a lower test perplexity than standard attention, without more parameters.",
        source="arXiv 2604.03190, main table",
        published="69.6 against 72.2 (-3.5 %); OpenWebText 110.7 against 114.9",
        method="Both arms on the same batches, each at its own best learning rate; paired differences by seed.",
        evidence=pair("twicing", "standard"),
    ),
)
