"""The claims of the multi-token paper (arXiv 2504.00927)."""

from __future__ import annotations

from heedful.papers.claim import Claim, Evidence
from heedful.papers.language_models import study_evidence
from heedful.papers.multi_token_assessments import (
    FIND_THE_BLOCK,
    LONG_BABI,
    NEEDLES,
    TOY_ARMS,
    better_at_long_context,
    convolution_solves_the_toy_task,
    lower_perplexity,
    mixing_gives_most,
    nothing_else_solves_the_toy_task,
)
from heedful.papers.multi_token_cost_checks import multi_token_arithmetic, multi_token_parameters
from heedful.papers.multi_token_cost_evidence import BENCHMARK, MODEL_STEP, BenchmarkEvidence, training_cost
from heedful.papers.multi_token_map_checks import identity_start, rank_of_the_map
from heedful.papers.multi_token_mask_checks import causality, mask_forms
from heedful.papers.multi_token_toy_checks import baseline_scored_with_dropout

TOY_COMMAND = "python -m scripts.find_the_block"  # six comparisons from recipes/find-the-block.toml

CLAIMS: tuple[Claim, ...] = (
    Claim(
        name="multi-token-masks",
        paper="multi-token",
        kind="algebraic",
        statement="Hiding scores before the convolution (equation 5) may stand for hiding by the output row, as the "
        "definition asks (equation 4).",
        source="arXiv 2504.00927, equations 4 and 5",
        published="no figure given",
        method="Random maps convolved under both masks, nine kernel sizes: on which diagonals they differ.",
        check=mask_forms,
    ),
    Claim(
        name="multi-token-causality",
        paper="multi-token",
        kind="algebraic",
        statement="No form of the key-query convolution lets information of later tokens through.",
        source="arXiv 2504.00927, equations 4 to 6",
        published="exact",
        method="Every token of a text drawn anew in turn; earlier outputs compared bit by bit.",
        check=causality,
    ),
    Claim(
        name="multi-token-start",
        paper="multi-token",
        kind="algebraic",
        statement="Initialised as the identity, multi-token attention starts as standard attention, so trained "
        "models can take it in.",
        source="arXiv 2504.00927, initialisation and retrofitting",
        published="identity is the best start (zero +0.02, constant 0.3 +0.08 perplexity)",
        method="Untrained parts put into a random standard model of four layers, without and with norm and gate; "
        "logits compared.",
        check=identity_start,
    ),
    Claim(
        name="multi-token-parameters",
        paper="multi-token",
        kind="algebraic",
        statement="Multi-token attention adds 29,592 parameters to a model of 876,553,728.",
        source="arXiv 2504.00927, version 2, table of parameters",
        published="876,583,320",
        method="Four published sizes in both versions and the toy models, counted by heedful and by formulas.",
        check=multi_token_parameters,
    ),
    Claim(
        name="multi-token-rank",
        paper="multi-token",
        kind="algebraic",
        statement="Mixing c_h heads raises the rank of the scores, or of what a map reads, from d to c_h d.",
        source="arXiv 2504.00927, version 2, rank view of head mixing",
        published="rank c_h d",
        method="Ranks of random maps before and after, in float64; the convolution as a product of wider queries "
        "and keys besides.",
        check=rank_of_the_map,
    ),
    Claim(
        name="multi-token-arithmetic",
        paper="multi-token",
        kind="algebraic",
        statement="Multi-token attention adds little arithmetic: what makes it slow is an implementation that is not "
        "optimised.",
        source="arXiv 2504.00927, limitations",
        published="no figure given",
        method="Multiply-adds of the 880M model at 2,048 tokens, counted over visible pairs.",
        check=multi_token_arithmetic,
    ),
    Claim(
        name="multi-token-cost",
        paper="multi-token",
        kind="empirical",
        statement="Training takes 9.5 times as long and 4.2 times the memory, without optimisation.",
        source="arXiv 2504.00927, version 2, table 9",
        published="5.7 against 54.3 thousand tokens a second, 73.8 against 17.5 GB",
        method="A training step of a small model on a CPU, with whole attention maps and block by block.",
        evidence=BenchmarkEvidence(
            recipe=BENCHMARK,
            results=(MODEL_STEP,),
            assess=training_cost,
            arms=("standard", "talking-heads", "multi-token", "multi-token, materialised"),
        ),
    ),
    Claim(
        name="multi-token-toy",
        paper="multi-token",
        kind="empirical",
        statement="The key-query convolution finds the block, whichever part of it is asked for; standard attention "
        "does not.",
        source="arXiv 2504.00927, version 2, table 1",
        published="error 0.0 to 0.1 %; standard 1.3 to 78.2 %",
        method="Find the block in 37 characters instead of 319, blocks of 5 and 8 letters, all, first or last; a "
        "small model with the published form of the mechanism, scored with dropout off.",
        evidence=Evidence(
            recipe=TOY_COMMAND,
            results=FIND_THE_BLOCK,
            assess=convolution_solves_the_toy_task,
            arms=TOY_ARMS,
            partial=True,
        ),
    ),
    Claim(
        name="multi-token-toy-alone",
        paper="multi-token",
        kind="empirical",
        statement="Attention that weighs one token at a time cannot find the block: it takes the convolution.",
        source="arXiv 2504.00927, motivation and table 1",
        published="standard attention alone was tried",
        method="The same tasks with talking heads, boosted, nonlinear-query, twicing and differential attention "
        "besides: how many runs solve them.",
        evidence=Evidence(
            recipe=TOY_COMMAND,
            results=FIND_THE_BLOCK,
            assess=nothing_else_solves_the_toy_task,
            arms=TOY_ARMS,
            partial=True,
        ),
    ),
    Claim(
        name="multi-token-toy-baseline",
        paper="multi-token",
        kind="numerical",
        statement="Standard attention errs in 51.6 % of the answers (five letters, all of them).",
        source="arXiv 2504.00927, version 2, table 1; official code, which scores this model with dropout on",
        published="51.6 % with a standard deviation of 43.1 over three seeds",
        method="A lookup that makes no mistakes, scored like that on test samples of the task.",
        check=baseline_scored_with_dropout,
    ),
    Claim(
        name="multi-token-perplexity",
        paper="multi-token",
        kind="empirical",
        statement="Multi-token attention has a lower perplexity than standard, differential and talking-heads "
        "attention.",
        source="arXiv 2504.00927, version 2, table 2",
        published="10.91 against 11.25, 11.15 and 11.04 (880M parameters)",
        method="Perplexity on real text, each arm with the best of the same learning rates, differences by seed.",
        evidence=study_evidence(lower_perplexity, "standard", "differential", "talking-heads", "multi-token"),
    ),
    Claim(
        name="multi-token-ablation",
        paper="multi-token",
        kind="empirical",
        statement="On language head mixing gives most of the gain and the convolution alone almost nothing.",
        source="arXiv 2504.00927, version 2, tables 2 and 5, as read here",
        published="perplexity 11.25 standard, 11.23 convolution, 11.04 mixing, 10.91 all parts",
        method="Whether talking heads, the mixing alone, have more than half of the gain of all parts, seed by seed.",
        evidence=study_evidence(mixing_gives_most, "standard", "talking-heads", "multi-token-v1", "multi-token"),
    ),
    Claim(
        name="multi-token-needles",
        paper="multi-token",
        kind="empirical",
        statement="Multi-token attention finds needles in long text more often than the other mechanisms.",
        source="arXiv 2504.00927, version 2, section on long context",
        published="best everywhere (a figure without numbers)",
        method="Models trained to find one of several facts in real text; error over counts, lengths and depths, by "
        "seed.",
        evidence=Evidence(
            recipe="recipes/needles-small.toml",
            results=(NEEDLES,),
            names=("needles-small", "needles"),
            assess=better_at_long_context,
            arms=("standard", "multi-token"),
        ),
    ),
    Claim(
        name="multi-token-long-babi",
        paper="multi-token",
        kind="empirical",
        statement="Multi-token attention answers bAbI questions more often when text lies between their sentences.",
        source="arXiv 2504.00927, version 2, section on long context",
        published="best, mainly at 4,000 tokens of text (a figure without numbers)",
        method="Models trained on bAbI's stories spread through real text; error over tasks and amounts of text, by "
        "seed.",
        evidence=Evidence(
            recipe="recipes/long-babi-small.toml",
            results=(LONG_BABI,),
            assess=better_at_long_context,
            arms=("standard", "multi-token"),
        ),
    ),
)
