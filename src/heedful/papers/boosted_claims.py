"""The claims of the boosted paper (arXiv 2604.03190): what the layer is, what it can do, what it costs, what it brings.

The paper has three known versions, v1, v2a and v2b, which state some propositions differently; `source` says which.
Published perplexities are means of two seeds on WikiText-103, 15 epochs of 10 million tokens. Ours are of other text,
and of models that are smaller or trained less: only signs and relative sizes can be compared.
"""

from __future__ import annotations

from heedful.papers import boosted_assessments as assessments
from heedful.papers import boosted_layer_checks as layer
from heedful.papers import boosted_retrieval_checks as retrieval
from heedful.papers import span_checks
from heedful.papers.boosted_boosting_check import gradient_boosting
from heedful.papers.claim import Claim, Evidence
from heedful.papers.norm_check import post_norm_jacobian

ARXIV = "arXiv 2604.03190"
TASK = "64 dimensions, 16 patterns, noise 0.5, the paper's training (Adam 3e-3, cosine, batch 512, squared error)"

ALGEBRAIC = (
    Claim(
        name="boosted-erasure",
        paper="boosted",
        kind="algebraic",
        statement=(
            "One step of attention over stored patterns does not see the part of a query outside their span, and its "
            "fixed points are averages of the patterns."
        ),
        source=f"{ARXIV}, proposition 1",
        published="proof",
        method="That part taken away from 200 queries, in float64, with identity and with learned projections.",
        check=retrieval.erasure,
    ),
    Claim(
        name="boosted-gauge",
        paper="boosted",
        kind="algebraic",
        statement="A further round of the language-model layer attends to the prediction error x - F.",
        source=f"{ARXIV}, abstract and section on the model",
        published="no figure given",
        method="Layers with x - aF for other a, and the weights rescaled by 1 / a; two and three rounds, float64.",
        check=layer.gauge,
    ),
    Claim(
        name="boosted-one-round",
        paper="boosted",
        kind="algebraic",
        statement="With one round, or with gates shut, the layer is standard attention.",
        source=f"{ARXIV}, section on the model",
        published="no figure given",
        method="The same weights in a standard layer, in one of one round and in one of two with shut gates.",
        check=layer.one_round,
    ),
    Claim(
        name="boosted-parameters",
        paper="boosted",
        kind="algebraic",
        statement="The small language models have 7.42 M parameters, 8.73 M boosted and 8.79 M in the wider control.",
        source=f"{ARXIV}, main table",
        published="7,419,392; 8,734,208; 8,789,184",
        method="The models built without memory and counted.",
        check=layer.parameters,
    ),
    Claim(
        name="boosted-overhead",
        paper="boosted",
        kind="algebraic",
        statement="A second round adds 50 % to the arithmetic of attention.",
        source=f"{ARXIV} v1, section on costs",
        published="+50 % attention FLOPs, +20 % step time",
        method="Multiply-adds of projections, gate and attention map counted, width 256, context 256.",
        check=layer.overhead,
    ),
    Claim(
        name="boosted-fair-control",
        paper="boosted",
        kind="algebraic",
        statement="The wider standard model is the fair control for what boosting costs.",
        source=f"{ARXIV}, main table",
        published="width 288, +0.6 % parameters",
        method="Multiply-adds per token of the boosted, the wider and a deeper standard model counted.",
        check=layer.equal_compute,
    ),
    Claim(
        name="boosted-hidden-token",
        paper="boosted",
        kind="algebraic",
        statement=(
            "A token that the first map leaves out cannot reach the output of twicing, which uses the same map twice, "
            "but can through a second map with projections of its own."
        ),
        source=f"{ARXIV} v1, proposition 3",
        published="proof",
        method="Derivatives by the hidden token's value: twicing, A'(V - AV), and a boosted layer blind in round one.",
        check=layer.hidden_token,
    ),
    Claim(
        name="boosted-twicing-hull",
        paper="boosted",
        kind="algebraic",
        statement="The outputs of twicing stay in the convex hull of the values.",
        source=f"{ARXIV} v2a, proposition 3",
        published="proof",
        method="A permutation of three tokens in a cycle, and 200 random causal maps of 32 tokens.",
        check=span_checks.twicing_hull,
    ),
    Claim(
        name="boosted-row-space",
        paper="boosted",
        kind="algebraic",
        statement="Twicing stays in the row space of the first round's values, boosted attention leaves it.",
        source=f"{ARXIV} v2b, proposition 3",
        published="proof",
        method="One head of 16 dimensions, 32 tokens: the part of each output outside the span of the visible values.",
        check=span_checks.row_space,
    ),
    Claim(
        name="boosted-post-norm-jacobian",
        paper="boosted",
        kind="algebraic",
        statement=(
            "A norm before the sublayer leaves the gradient of its output alone; one after the sum takes two "
            "directions out of it, rank d - 2."
        ),
        source=f"{ARXIV}, proposition 4",
        published="rank d - 2",
        method="Jacobian of LayerNorm by autograd against the formula, width 32, with eps 0 and 1e-5.",
        check=post_norm_jacobian,
    ),
)

NUMERICAL = (
    Claim(
        name="boosted-collapse",
        paper="boosted",
        kind="numerical",
        statement="Where attention contracts, repeating it collapses queries onto one point, and accuracy is lost.",
        source=f"{ARXIV}, remark 1",
        published="iterated to a fixed point: chance in all six settings",
        method="64 dimensions, 16 patterns, identity projections: fixed points of 20,000 queries, beta from 1 to 32.",
        check=retrieval.collapse,
    ),
    Claim(
        name="boosted-gradient-boosting",
        paper="boosted",
        kind="numerical",
        statement="The rounds are gradient boosting of the squared loss |x - F|^2 / 2: the gate is the shrinkage.",
        source=f"{ARXIV}, proposition 2",
        published="proof",
        method=f"{TASK}: rounds fitted stage by stage to the residual against two rounds trained together.",
        check=gradient_boosting,
    ),
    Claim(
        name="boosted-two-rounds",
        paper="boosted",
        kind="numerical",
        statement="A second round raises retrieval accuracy, and most of the gain is reached with it.",
        source=f"{ARXIV}, table of rounds",
        published="150 steps: 46.0 % with one round, 55.5 with two (v2b); Bayes 58.4",
        method=f"{TASK}; 150, 500 and 1500 steps, 20,000 test queries; three seeds at 150 steps, else one.",
        check=retrieval.two_rounds,
    ),
    Claim(
        name="boosted-implicit-differentiation",
        paper="boosted",
        kind="numerical",
        statement="Fixed points of attention fail for structural reasons: better differentiation does not help.",
        source=f"{ARXIV} v2b, iteration experiments",
        published="chance (6.7 %), unrolled as well",
        method=f"{TASK}, 150 steps: 20 unrolled steps, and the implicit function theorem; two starts, beta 2, 8, 20.",
        check=retrieval.implicit_differentiation,
    ),
    Claim(
        name="boosted-hull-escape",
        paper="boosted",
        kind="numerical",
        statement="Outputs of trained boosted layers lie outside the hull of the first round's values.",
        source=f"{ARXIV} v2, hull distances",
        published="mean distance 0.88 / 5.19 / 4.25 / 3.41 by layer, all positive",
        method="120 points of random hulls (11 to 64 values, 64 dimensions) moved by 0.001 in random directions.",
        check=span_checks.hull_escape,
    ),
)

TRAINED = "Both arms on the same batches, each at its own best learning rate; paired differences by seed."

EMPIRICAL = (
    Claim(
        name="boosted-beats-standard",
        paper="boosted",
        kind="empirical",
        statement="Boosted attention has a lower test perplexity than the same model with standard attention.",
        source=f"{ARXIV}, main table",
        published="67.9 against 72.2 (-5.9 %); OpenWebText 108.5 against 114.9",
        method=TRAINED,
        evidence=assessments.pair("boosted", "standard"),
    ),
    Claim(
        name="boosted-beats-wider",
        paper="boosted",
        kind="empirical",
        statement="It has a lower test perplexity than a wider standard model with as many parameters.",
        source=f"{ARXIV}, main table",
        published="67.9 against 69.0 (-1.7 %), two seeds; OpenWebText 108.5 against 110.2, not significant",
        method=TRAINED,
        evidence=assessments.pair("boosted", "standard-wide"),
    ),
    Claim(
        name="boosted-beats-deeper",
        paper="boosted",
        kind="empirical",
        statement="It has a lower test perplexity than a deeper standard model with as many multiply-adds.",
        source="our control: what the gain would have to survive; in no version of the paper",
        published="no figure given",
        method=TRAINED,
        evidence=assessments.pair("boosted", "standard-deep"),
    ),
    Claim(
        name="boosted-beats-twicing",
        paper="boosted",
        kind="empirical",
        statement="A second round with projections of its own does better than twicing, which reuses the first map.",
        source=f"{ARXIV}, main table",
        published="67.9 against 69.6 (-2.5 %); OpenWebText 108.5 against 110.7, not significant",
        method=TRAINED,
        evidence=assessments.pair("boosted", "twicing"),
    ),
    Claim(
        name="boosted-residual-keys",
        paper="boosted",
        kind="empirical",
        statement="Keys and values of the second round are better made from the residual than from the layer's input.",
        source=f"{ARXIV} v2, ablation",
        published="67.9 against 69.3, seeds not stated",
        method=TRAINED,
        evidence=assessments.pair("boosted", "boosted-input-kv"),
    ),
    Claim(
        name="boosted-residual-matters",
        paper="boosted",
        kind="empirical",
        statement="It is the residual that helps, not a second look: with a = 0 the second round sees the input only.",
        source=f"{ARXIV}, abstract; the control is ours and in no version of the paper",
        published="no figure given",
        method=TRAINED,
        evidence=assessments.language_models(
            assessments.residual_matters, "boosted", "boosted-no-residual", "standard"
        ),
    ),
    Claim(
        name="boosted-third-round",
        paper="boosted",
        kind="empirical",
        statement="Most of the gain comes with the second round, in language models too.",
        source=f"{ARXIV}, table of rounds; language models were run with two rounds only",
        published="no figure given for language models",
        method="The gain of a third round against that of the second, seed by seed.",
        evidence=assessments.language_models(assessments.third_round, "standard", "boosted", "boosted-three-rounds"),
    ),
    Claim(
        name="boosted-convergence",
        paper="boosted",
        kind="empirical",
        statement="The boosted model passes the wider model's last validation loss well before the end of training.",
        source=f"{ARXIV} v2b, convergence",
        published="after 12 of 15 epochs",
        method="Validation curves, means over seeds; in steps, and in multiply-adds.",
        evidence=assessments.language_models(assessments.convergence, "boosted", "standard-wide"),
    ),
    Claim(
        name="boosted-gates",
        paper="boosted",
        kind="empirical",
        statement="Trained gates stay below the half at which they start, in every layer.",
        source=f"{ARXIV}, analysis of gates",
        published="v2: 0.33 / 0.49 / 0.39 / 0.36 by layer",
        method="Mean gate by layer on text of the test split.",
        evidence=assessments.language_models(assessments.gates, "boosted"),
    ),
    Claim(
        name="boosted-entropies",
        paper="boosted",
        kind="empirical",
        statement="The second round attends more sharply than the first.",
        source=f"{ARXIV}, analysis of entropies",
        published="3.34 and 2.55 nat on average (v2b)",
        method="Entropy of the maps of both rounds on text of the test split.",
        evidence=assessments.language_models(assessments.entropies, "boosted"),
    ),
    Claim(
        name="boosted-post-norm",
        paper="boosted",
        kind="empirical",
        statement="With the norm after the sum, the boosted model is worse than the standard one.",
        source=f"{ARXIV}, ablation",
        published="84.6 against 77.2 (+9.6 %), one seed",
        method="Arms with a norm after the sum, which recipes/papers/boosted-small.toml trains; its two seeds are the "
        'paper\'s, and an interval takes a third: --recipe.seeds "[42, 123, 7]".',
        evidence=Evidence(
            recipe="recipes/papers/boosted-small.toml",
            results=("boosted-small.json",),
            arms=("standard-post-norm", "boosted-post-norm"),
            settings={"arms.boosted-post-norm.config.norm_position": "post"},
            assess=assessments.post_norm,
        ),
    ),
)

CLAIMS: tuple[Claim, ...] = (*ALGEBRAIC, *NUMERICAL, *EMPIRICAL)
