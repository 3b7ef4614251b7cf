"""The claims of the nonlinear-query paper (arXiv 2603.13381) and of the one before it (arXiv 2510.23912)."""

from __future__ import annotations

from heedful.papers.claim import Claim, Evidence
from heedful.papers.language_models import study_evidence
from heedful.papers.nonlinear_query_assessments import (
    TOLERANCE,
    identity_is_as_good,
    nonlinear_is_better,
    nonlinear_is_better_than_a_larger_model,
    nonlinear_tolerates_larger_rates,
    nonlinearity_is_what_pays,
)
from heedful.papers.query_cost_checks import nonlinear_query_cost
from heedful.papers.query_elimination_checks import removal_where_exact, removal_with_both_skips, removal_with_norms
from heedful.papers.query_invariance_checks import query_invariance
from heedful.papers.query_start_checks import anchor_at_the_start, half_placement

CLAIMS: tuple[Claim, ...] = (
    Claim(
        name="nonlinear-query-invariance",
        paper="nonlinear-query",
        kind="algebraic",
        statement="Attention does not change when X becomes X T and W_Q, W_K, W_V become T^-1 W_Q, T^-1 W_K, T^-1 W_V, "
        "whatever the mask; with T = W_Q (or W_K, or W_V) that projection is the identity.",
        source="arXiv 2510.23912 and 2603.13381, invariance lemma",
        published="exact",
        method="Eight layers with random weights in float64: outputs in a random basis, and with an identity query "
        "in the basis of their own W_Q.",
        check=query_invariance,
    ),
    Claim(
        name="nonlinear-query-removal",
        paper="nonlinear-query",
        kind="algebraic",
        statement="In a network without norms W_Q can be removed exactly from every layer if a skip is missing or all "
        "layers share their weights, and from one layer if both skips are there.",
        source="arXiv 2510.23912, theorems",
        published="exact",
        method="Nine random networks of four layers: W_Q removed, logits on random tokens compared; shared keys, "
        "rotary positions, SwiGLU, query-key norm, biases and a tied head among them.",
        check=removal_where_exact,
    ),
    Claim(
        name="nonlinear-query-removal-both-skips",
        paper="nonlinear-query",
        kind="algebraic",
        statement="With skips around attention and feed-forward layer one W_Q can be removed, and in general no more.",
        source="arXiv 2510.23912, theorem for one layer; that no more can be removed is derived here",
        published="one layer",
        method="A random network of four layers: how far the other W_Q are from the chosen one, up to changes "
        "inside heads; a network in which they are not; and a basis for each layer without matrices in the skips.",
        check=removal_with_both_skips,
    ),
    Claim(
        name="nonlinear-query-removal-norms",
        paper="nonlinear-query",
        kind="numerical",
        statement="The proofs need a network without norms: in a trained model with a norm before each sublayer and "
        "both skips, as in GPT-2 and Llama, W_Q cannot be removed, only trained without.",
        source="arXiv 2510.23912, simplifying assumptions",
        published="no figure given",
        method="Ten random networks in the layouts of GPT-2 and Llama: W_Q overwritten with the identity, and one "
        "rotation of the stream, which is what the norms let through.",
        check=removal_with_norms,
    ),
    Claim(
        name="nonlinear-query-cost",
        paper="nonlinear-query",
        kind="algebraic",
        statement="The nonlinear query has as many parameters as W_Q, up to the gains of two norms, and as many "
        "multiply-adds; W_Q is a twelfth of a GPT-3 small without embeddings.",
        source="arXiv 2603.13381 and 2510.23912, tables of sizes",
        published="85M parameters on both sides; over 8 % fewer without W_Q",
        method="Eleven models counted by heedful and by formulas of their own.",
        check=nonlinear_query_cost,
    ),
    Claim(
        name="nonlinear-query-half",
        paper="nonlinear-query",
        kind="numerical",
        statement="The half of (X + f(X)) / 2 may stand in the query, as in the text, or in the attention scale, as "
        "in the code.",
        source="arXiv 2603.13381, method and official code",
        published="the same model",
        method="The same weights with both placements, without and with a norm on queries and keys.",
        check=half_placement,
    ),
    Claim(
        name="nonlinear-query-anchor",
        paper="nonlinear-query",
        kind="numerical",
        statement="The identity term anchors the query: training starts from the identity query, which is known to "
        "be good.",
        source="arXiv 2603.13381, abstract and method",
        published="no figure given",
        method="The query map of width 768 with the published initial values on 512 normalised inputs: sizes and "
        "angles of its terms.",
        check=anchor_at_the_start,
    ),
    Claim(
        name="nonlinear-query-identity",
        paper="nonlinear-query",
        kind="empirical",
        statement="A model trained without W_Q is as good as one with it.",
        source="arXiv 2510.23912, experiments",
        published="117M matches 124M (no table of losses)",
        method="Perplexity of the identity query and of the linear query on real text, each with the best of the same "
        "learning rates; as good is less than 1 % worse.",
        evidence=study_evidence(identity_is_as_good, "standard", "identity-query"),
    ),
    Claim(
        name="nonlinear-query-gain",
        paper="nonlinear-query",
        kind="empirical",
        statement="The nonlinear query has a lower loss than the linear one at the same size.",
        source="arXiv 2603.13381, table of results",
        published="loss 1.40 % lower (version 1), 2.40 % lower (perplexity 6.81 %) later; one learning rate for the "
        "linear query, about thirty settings for the nonlinear one",
        method="Perplexity on real text, each arm with the best of the same learning rates, differences by seed.",
        evidence=study_evidence(nonlinear_is_better, "standard", "nonlinear-query"),
    ),
    Claim(
        name="nonlinear-query-nonlinearity",
        paper="nonlinear-query",
        kind="empirical",
        statement="Parameters in the query pay only if they are not linear: it is the activation that improves the "
        "model.",
        source="arXiv 2603.13381, motivation",
        published="no figure given (the control was not run)",
        method="The nonlinear query against the same one without its activation: equal size, wiring and norms.",
        evidence=study_evidence(
            nonlinearity_is_what_pays,
            "standard",
            "nonlinear-query",
            "nonlinear-query-linear-control",
        ),
    ),
    Claim(
        name="nonlinear-query-larger-model",
        paper="nonlinear-query",
        kind="empirical",
        statement="The nonlinear query beats a linear model with 12.5 % more parameters without embeddings.",
        source="arXiv 2603.13381, abstract",
        published="loss 2.915 against 2.927 (version 1)",
        method="The nonlinear query against a wider standard model. That control has the boosted arm's size, so only a "
        "victory over a larger, or a defeat by a smaller model decides.",
        evidence=study_evidence(
            nonlinear_is_better_than_a_larger_model,
            "standard",
            "standard-wide",
            "nonlinear-query",
        ),
    ),
    Claim(
        name="nonlinear-query-stability",
        paper="nonlinear-query",
        kind="empirical",
        statement="The nonlinear query trains stably at larger learning rates than the linear one.",
        source="arXiv 2603.13381, remarks on stability",
        published="a linear run diverged at weight decay 0.05; a nonlinear one at 5 times the learning rate did not "
        "(one run each)",
        method="Final validation loss against peak rate on one grid: linear, linear with query-key norm, nonlinear, "
        "and the nonlinear one without its activation.",
        evidence=Evidence(
            recipe="recipes/learning-rate-tolerance-small.toml",
            results=(TOLERANCE,),
            names=("learning-rate-tolerance-small", "learning-rate-tolerance"),
            assess=nonlinear_tolerates_larger_rates,
            arms=("linear", "linear-qk-norm", "nonlinear-query", "nonlinear-query-linear-control"),
        ),
    ),
)
