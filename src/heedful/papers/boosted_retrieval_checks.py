"""Checks of the boosted paper's statements about retrieval: what one step erases, where repeated steps end, and what
further rounds and implicit differentiation do.

T(x) = softmax(beta x P^T) P is one step of retrieval from the stored patterns P (K, d).
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

import torch
from torch import Tensor

from heedful.nn import BoostedRetrieval
from heedful.nn.retrieval import RetrievalRound
from heedful.papers.claim import Finding
from heedful.papers.fixed_point import FixedPointRetrieval
from heedful.papers.hull import hull_distance
from heedful.papers.retrieval_task import RetrievalTask, accuracy, train

EXACT = RetrievalTask(dtype=torch.float64)
BETAS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


def step(points: Tensor, patterns: Tensor, beta: float) -> Tensor:
    """Return T(x) for points (B, d)."""
    return (beta * points @ patterns.T).softmax(-1) @ patterns


def iterate(points: Tensor, patterns: Tensor, beta: float, *, steps: int = 5000, tolerance: float = 1e-13) -> Tensor:
    """Return where repeated steps end; after the first one they are steps of the weights (B, K) alone."""
    weights, scores = (beta * points @ patterns.T).softmax(-1), beta * patterns @ patterns.T
    for _ in range(steps):
        before, weights = weights, (weights @ scores).softmax(-1)
        if float((weights - before).abs().max()) < tolerance:
            break
    return weights @ patterns


def distinct(points: Tensor, distance: float = 1e-3) -> Tensor:
    """Return one point of each group of points (B, d) that lie closer together than `distance`."""
    left, found = points, []
    while len(left):
        found.append(left[0])
        left = left[(left - left[0]).norm(dim=-1) > distance]
    return torch.stack(found)


def erasure() -> Finding:
    """Take the part of a query that no pattern sees away: T must not notice; and its fixed points are averages."""
    patterns, (queries, _) = EXACT.patterns(), EXACT.test_queries(200)
    projector = torch.linalg.pinv(patterns) @ patterns  # onto the span of the patterns
    seen = queries @ projector
    erased = float((queries - seen).norm(dim=-1).pow(2).mean() / queries.norm(dim=-1).pow(2).mean())
    change = float((step(queries, patterns, 8.0) - step(seen, patterns, 8.0)).abs().max())
    fixed = distinct(iterate(queries, patterns, 8.0))
    outside = max(hull_distance(point, patterns) for point in fixed)

    torch.manual_seed(0)
    learned = RetrievalRound(EXACT.width, EXACT.width, 2.0).double()
    keys = patterns @ learned.k_proj.weight.T @ learned.q_proj.weight
    unseen = queries - queries @ torch.linalg.pinv(keys) @ keys
    with torch.no_grad():
        learned_change = float((learned(queries + unseen, patterns)[0] - learned(queries, patterns)[0]).abs().max())
    tiny = 1e-12  # float64, sums of 64 terms of size one
    return Finding(
        verdict="holds" if max(change, learned_change, outside) < tiny else "does not hold",
        figure=f"T moves by {change:.0e}; distance of fixed points to the hull {outside:.0e}",
        reason=(
            f"One step does not see {100 * erased:.0f} % of a query's squared norm, with learned projections neither. "
            "Every single attention step erases it; what keeps it in a model is the skip connection, not boosting."
        ),
        numbers={
            "change of T": change,
            "change of T with learned projections": learned_change,
            "distance of fixed points to the hull": outside,
            "fixed points": float(len(fixed)),
            "share of the squared norm erased": erased,
        },
    )


def collapse() -> Finding:
    """Count where repeated steps end, and score them, from small to large beta."""
    patterns, (queries, source) = EXACT.patterns(), EXACT.test_queries()
    bayes = accuracy(step(queries, patterns, 1 / EXACT.noise**2), source, patterns)
    spread = float(torch.linalg.matrix_norm(patterns - patterns.mean(0), ord=2) ** 2)
    numbers = {"accuracy of one step at beta = 4 (Bayes)": bayes, "beta below which T contracts": 2 / spread}
    counts, scores = {}, {}
    for beta in BETAS:
        ends = iterate(queries, patterns, beta)
        counts[beta], scores[beta] = len(distinct(ends)), accuracy(ends, source, patterns)
        numbers[f"fixed points, beta {beta:g}"] = float(counts[beta])
        numbers[f"accuracy, beta {beta:g}"] = scores[beta]
    collapses = [beta for beta in BETAS if counts[beta] == 1]
    separates = [beta for beta in BETAS if counts[beta] == len(patterns)]
    both = bool(collapses and separates)
    last, first = (max(collapses), min(separates)) if both else (BETAS[0], BETAS[-1])
    return Finding(
        verdict="holds in part" if both else "holds" if collapses else "does not hold",
        figure=(
            f"beta {last:g}: {number(counts[last])}, {scores[last]:.1f} %; beta {first:g}: {number(counts[first])}, "
            f"{scores[first]:.1f} % (Bayes {bayes:.1f} %)"
        ),
        reason=(
            f"Queries merge where beta is small and lose everything; from beta {first:g} on every pattern has its own "
            "fixed point and repeated steps score like the best possible predictor. Contraction explains no loss of "
            "accuracy by itself."
        ),
        numbers=numbers,
    )


def number(count: int) -> str:
    """Write `one fixed point`, `16 fixed points`."""
    return "one fixed point" if count == 1 else f"{count} fixed points"


def two_rounds() -> Finding:
    """Train one and two rounds for 150, 500 and 1500 steps."""
    task = RetrievalTask()
    bayes = task.bayes_accuracy()
    numbers, means = {"Bayes": bayes}, {}
    for steps, seeds in ((150, (1, 2, 3)), (500, (1,)), (1500, (1,))):  # seeds differ most where training is short
        for rounds in (1, 2):
            means[rounds, steps] = fmean(_trained_accuracy(task, rounds, steps, seed) for seed in seeds)
            numbers[f"{rounds} rounds, {steps} steps"] = means[rounds, steps]
    gains = {steps: means[2, steps] - means[1, steps] for steps in (150, 500, 1500)}
    early, late = gains[150] > 1.0, gains[1500] > 1.0
    return Finding(
        verdict="holds" if early and late else "holds in part" if early else "does not hold",
        figure=", ".join(f"{steps} steps: {means[1, steps]:.1f} and {means[2, steps]:.1f} %" for steps in gains),
        reason=(
            "One round contains the best possible predictor, and trained for longer it reaches it "
            f"(Bayes {bayes:.1f} %): what a second round brings is speed in the first steps, not accuracy."
        ),
        numbers=numbers,
    )


def _trained_accuracy(task: RetrievalTask, rounds: int, steps: int, seed: int) -> float:
    torch.manual_seed(seed)
    model = BoostedRetrieval(task.width, rounds=rounds)
    train(model, task, lambda queries, patterns: model(queries, patterns).output, steps=steps, seed=seed)
    return _score(task, lambda queries, patterns: model(queries, patterns).output)[0]


@torch.no_grad()
def _score(task: RetrievalTask, answer: Callable[[Tensor, Tensor], Tensor]) -> tuple[float, float]:
    """Return accuracy in percent and mean squared distance from the source, on the test queries."""
    (queries, source), patterns = task.test_queries(), task.patterns()
    outputs = answer(queries, patterns)
    return accuracy(outputs, source, patterns), float((outputs - patterns[source]).square().sum(-1).mean())


def implicit_differentiation() -> Finding:
    """Train fixed points through 20 unrolled steps and by the implicit function theorem, from several starts.

    In float64: unrolled steps near a fixed point that is about to split amplify roundings of float32 to other results,
    and at beta = 8 those of float64 as well, where accuracies differ by points from machine to machine.
    """
    task = EXACT
    bayes, chance = task.bayes_accuracy(), 100 / task.count
    numbers, before, after = {"Bayes": bayes, "chance": chance}, {}, {}
    for beta in (2.0, 8.0, 20.0):
        for start in ("default", "identity"):
            cell = f"{start} start, beta {beta:g}"
            for way in ("unrolled", "implicit"):
                torch.manual_seed(1)
                model = FixedPointRetrieval(task.width, beta=beta, identity=start == "identity").double()
                if way == "unrolled":
                    before[start, beta], error = _score(task, model)
                    numbers |= {f"{cell}: untrained": before[start, beta], f"{cell}: untrained, squared error": error}
                model.implicit = way == "implicit"
                train(model, task, model, steps=150, seed=1)
                after[start, beta, way], error = _score(task, model)
                numbers |= {f"{cell}: {way}": after[start, beta, way], f"{cell}: {way}, squared error": error}
    reached = max(*before.values(), *after.values())
    default = max(value for (start, _, _), value in after.items() if start == "default")
    structural, helps = reached < bayes - 2, default > 2 * chance
    return Finding(
        verdict="does not hold" if helps else "holds" if structural else "holds in part",
        figure=(
            f"identity start, beta 20: {before['identity', 20.0]:.1f} % untrained, then "
            f"{after['identity', 20.0, 'unrolled']:.1f} % unrolled, {after['identity', 20.0, 'implicit']:.1f} % "
            f"implicit; default start: at most {default:.1f} %"
        ),
        reason=(
            "Neither way of differentiating helps: from the default start all is chance, and training makes a good "
            f"start worse. But untrained fixed points are as accurate as the best predictor ({reached:.1f} of "
            f"{bayes:.1f} %), so start, temperature and the squared error are at fault and not the structure."
        ),
        numbers=numbers,
    )
