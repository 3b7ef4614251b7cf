"""LAMBADA and BLiMP for `heedful evaluate`."""

from __future__ import annotations

from dataclasses import dataclass

from heedful.cli.evaluate_task import TaskInput, TaskReport
from heedful.schema import from_mapping, to_mapping
from heedful.tasks.blimp import draw_pairs, evaluate_blimp, pairs_sha256, read_blimp
from heedful.tasks.lambada import evaluate_lambada, read_lambada
from heedful.tasks.task_files import content_sha256, draw


@dataclass(frozen=True, kw_only=True)
class LambadaOptions:
    """LAMBADA has no settings."""


@dataclass(frozen=True, kw_only=True)
class BlimpOptions:
    """`start` stands before each sentence; empty is end of text."""

    start: str = ""


def lambada(given: TaskInput) -> TaskReport:
    """Score the last words of passages."""
    from_mapping(LambadaOptions, given.options, "--task")
    texts = read_lambada(given.data)
    drawn = draw(texts, given.limit, given.seed, "lambada")
    found = evaluate_lambada(given.model, given.tokenizer, drawn, max_context=given.max_context)
    lines = [
        f"LAMBADA, {found.examples:,} of {len(texts):,} passages, contexts of at most {found.max_context} tokens",
        f"accuracy    {100 * found.accuracy:.2f} %{_interval(found.accuracy_interval, 100, '.2f')}; chance "
        f"{100 * found.chance_accuracy:.2g} %",
        f"perplexity  {found.perplexity:.4g} per word{_interval(found.perplexity_interval, 1, '.4g')}; chance "
        f"{found.chance_perplexity:.2g}",
    ]
    if found.cut:
        lines.append(f"The beginning of {found.cut:,} passages was not read: they are longer than the context.")
    if found.incomplete_targets:
        lines.append(f"The tokenizer lost characters of {found.incomplete_targets:,} last words.")
    return TaskReport(values={"data_sha256": content_sha256(texts), **to_mapping(found)}, lines=lines)


def blimp(given: TaskInput) -> TaskReport:
    """Score pairs of sentences."""
    options = from_mapping(BlimpOptions, given.options, "--task")
    pairs = read_blimp(given.data)
    drawn = draw_pairs(pairs, given.limit, given.seed)
    found = evaluate_blimp(given.model, given.tokenizer, drawn, start=options.start, max_context=given.max_context)
    lines = [
        f"BLiMP, {found.pairs:,} of {len(pairs):,} pairs in {len(found.phenomena)} phenomena; chance "
        f"{100 * found.chance:.0f} %",
        f"{'mean over phenomena':<28} {100 * found.accuracy:.2f} %{_interval(found.interval, 100, '.2f')}",
    ]
    if found.interval_over_phenomena is not None:
        lines[-1] += f"; over other phenomena{_interval(found.interval_over_phenomena, 100, '.2f')}"
    lines += [
        f"{term.term:<28} {100 * term.accuracy:.2f} %{_interval(term.interval, 100, '.2f')}" for term in found.terms
    ]
    if not found.start and given.separator is False:
        lines.append('The model never saw end of text, which stands before each sentence; see --task.start ".".')
    if found.cut:
        lines.append(f"{found.cut:,} pairs hold a sentence longer than the context, which was scored in pieces.")
    if found.indistinguishable:
        lines.append(f"{found.indistinguishable:,} pairs are equal to this tokenizer and count as wrong.")
    return TaskReport(values={"data_sha256": pairs_sha256(pairs), **to_mapping(found)}, lines=lines)


def _interval(interval: tuple[float, float] | None, factor: float, form: str) -> str:
    if interval is None:
        return ""
    return f" (95 %: {format(factor * interval[0], form)} to {format(factor * interval[1], form)})"
