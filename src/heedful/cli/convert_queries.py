"""`heedful convert queries`: which W_Q of a trained model can go, and a copy of the model without them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from heedful.convert.queries.reductions import Reduction

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from heedful.cli.convert_sources import Source
    from heedful.convert.queries import ConfigAudit, QueryAudit, QueryConversionReport
    from heedful.convert.queries.report import ReductionAudit
    from heedful.models import DecoderLM

REPORT_FILE = "query_conversion.json"
SCORED_TOKENS = 4096  # of the text; more would take long in float64 and change the figures little


@dataclass(frozen=True)
class ConvertQueries:
    """Remove W_Q from a trained model where that is exact, or, without DESTINATION, say where it is and why not
    elsewhere.
    """

    source: Annotated[Path, tyro.conf.Positional]
    """A folder written by DecoderLM.save, a run of `heedful train`, or a Hugging Face model."""

    destination: Annotated[Path | None, tyro.conf.Positional] = None
    """Where to write the converted model; left out, nothing is converted."""

    approximate: Literal["identity"] | None = None
    """Overwrite W_Q with the identity although that changes the logits; needs --tokens-from to say by how much."""

    tokens_from: Path | None = None
    """A text file; the converted model is compared with the original on it as well."""

    reductions: tuple[Reduction, ...] = ()
    """Small exact reductions to apply besides."""

    eliminate: bool = True
    """Remove W_Q where that is exact; --no-eliminate applies the reductions alone."""

    layer: int | None = None
    """The only layer to treat."""

    max_condition: float | None = None
    """The largest condition number allowed; left out, the limit of the storage type."""

    untie_head: bool = False
    """Give a tied model an output head of its own where the elimination needs one."""

    dtype: Literal["float32", "bfloat16", "float64"] | None = None
    """How to store the result; left out, as the source, and never below float32."""

    json: Path | None = None
    """Write the audit or the report to this file as well."""

    force: bool = False
    """Replace a model that exists at DESTINATION, and a report."""

    def run(self, overrides: dict[str, Any]) -> None:
        """Audit, and convert if there is a destination."""
        from rich.console import Console

        from heedful.cli.convert_sources import open_source
        from heedful.cli.overrides import refuse_overrides
        from heedful.files import check_model_destination

        refuse_overrides(overrides, "convert queries")
        if self.destination is not None:
            check_model_destination(self.destination, force=self.force, source=self.source)
        if self.json is not None:
            self._check_report(self.json)
        console = Console(highlight=False)
        source = open_source(self.source)
        if self.destination is None:
            self._audit(source, console)
        else:
            self._convert(source, self.destination, console)

    def _check_report(self, file: Path) -> None:
        """Refuse a report that would overwrite something, before any work is done."""
        for folder in (self.source, self.destination):
            if folder is not None and file.resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"{file} lies inside {folder}; write the report somewhere else.")
        if file.is_dir():
            raise ValueError(f"{file} is a folder; give the name of a file for the report.")
        if file.exists() and not self.force:
            raise ValueError(f"{file} exists; choose another name, or replace it with --force.")

    def _audit(self, source: Source, console: Console) -> None:
        from heedful.convert.queries import audit, audit_config_json

        if source.model is None:
            assert source.hugging_face is not None
            found: QueryAudit | ConfigAudit = audit_config_json(source.hugging_face)
            _print_config_audit(found, source.refusal, console)
        else:
            found = audit(source.model)
            _print_audit(found, console)
        self._write_json(found, {} if source.model is not None else {"not_read": source.refusal})

    def _convert(self, source: Source, destination: Path, console: Console) -> None:
        import torch

        from heedful.cli.convert_sources import copy_companions
        from heedful.convert.queries import audit_config_json, convert_queries
        from heedful.files import atomic_folder, write_json_atomically
        from heedful.schema import to_mapping

        if source.model is None:
            assert source.hugging_face is not None
            reasons = "; ".join(audit_config_json(source.hugging_face).reasons)
            raise ValueError(f"{source.folder} cannot be converted: {source.refusal.rstrip('.')}. {reasons}.")
        model, report = convert_queries(
            source.model,
            reductions=self.reductions,
            eliminate_queries=self.eliminate,
            layer=self.layer,
            max_condition=self.max_condition,
            untie_head=self.untie_head,
            approximate=self.approximate,
            tokens=None if self.tokens_from is None else _tokens(source, source.model, self.tokens_from),
            dtype=None if self.dtype is None else getattr(torch, self.dtype),
        )
        with atomic_folder(destination) as folder:
            model.save(folder)
            write_json_atomically(folder / REPORT_FILE, {**to_mapping(report), "net_saved": report.net_saved})
            copy_companions(source.tokenizer_folder, folder)
        _print_report(report, destination, console)
        self._write_json(report)

    def _write_json(
        self, found: QueryAudit | ConfigAudit | QueryConversionReport, more: dict[str, Any] | None = None
    ) -> None:
        from heedful.files import write_json_atomically
        from heedful.schema import to_mapping

        if self.json is not None:
            saved = {} if not hasattr(found, "net_saved") else {"net_saved": found.net_saved}  # type: ignore[union-attr]
            write_json_atomically(self.json, {**to_mapping(found), **saved, **(more or {})})


def _tokens(source: Source, model: DecoderLM, file: Path) -> Tensor:
    """Return rows of tokens of a text."""
    import torch

    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error}.") from error
    ids = source.encoder()(text)[:SCORED_TOKENS]
    length = min(model.config.max_positions, 256, len(ids))
    if length < 2:
        raise ValueError(f"{file} gives {len(ids)} tokens; at least two are needed.")
    rows = len(ids) // length
    return torch.tensor(ids[: rows * length]).view(rows, length)


def _print_audit(found: QueryAudit, console: Console) -> None:
    from rich.table import Table

    console.print(", ".join(f"{name}: {value}" for name, value in found.traits.items()))
    console.print(f"[bold]{found.summary}[/bold]")
    table = Table(title="\nW_Q by layer", title_justify="left")
    for column in ("layers", "verdict", "condition", "reason"):
        table.add_column(column)
    for first, last, layer in _runs(found):
        number = "" if layer.condition_number is None else f"{layer.condition_number:.3g}"
        table.add_row(str(first) if first == last else f"{first}-{last}", layer.verdict, number, layer.reason)
    console.print(table)
    _print_reductions(found.reductions, "Small exact reductions (--reductions NAME ...)", console)
    for warning in found.warnings:
        console.print(f"[yellow]note[/yellow]: {warning}")


def _runs(found: QueryAudit) -> list[tuple[int, int, Any]]:
    """Join neighbours that say the same."""
    runs: list[tuple[int, int, Any]] = []
    for layer in found.layers:
        if runs:
            first, _, other = runs[-1]
            same = (other.verdict, other.reason, other.condition_number)
            if same == (layer.verdict, layer.reason, layer.condition_number):
                runs[-1] = (first, layer.layer, other)
                continue
        runs.append((layer.layer, layer.layer, layer))
    return runs


def _print_config_audit(found: ConfigAudit, refusal: str, console: Console) -> None:
    console.print(f"[bold]{found.model_type}[/bold]: {found.verdict}", soft_wrap=True)
    for reason in found.reasons:
        console.print(f"- {reason}", soft_wrap=True, markup=False)
    if found.still_exact:
        console.print("The algebra still allows:")
        for line in found.still_exact:
            console.print(f"- {line}", soft_wrap=True, markup=False)
    console.print(f"The weights were not read: {refusal}", soft_wrap=True, markup=False)


def _print_reductions(reductions: tuple[ReductionAudit, ...], title: str, console: Console) -> None:
    from rich.table import Table

    table = Table(title=f"\n{title}", title_justify="left")
    table.add_column("name", no_wrap=True)
    table.add_column("layers", justify="right")
    table.add_column("entries", justify="right")
    table.add_column("what")
    for one in reductions:
        table.add_row(one.name, str(len(one.layers)), f"{one.entries:,}", one.reason)
    console.print(table)


def _print_report(report: QueryConversionReport, destination: Path, console: Console) -> None:
    removed = ", ".join(map(str, report.removed)) or "none"
    console.print(f"W_Q removed in layers: {removed}", soft_wrap=True)
    for layer, reason in report.kept.items():
        console.print(f"kept in layer {layer}: {reason}", soft_wrap=True, markup=False)
    console.print(f"parameters: {report.parameters_before:,} -> {report.parameters_after:,}")
    if report.reductions:
        _print_reductions(report.reductions, "Reductions", console)
    if report.verification is not None:
        checked, stored = report.verification, report.verification.stored
        given = "" if checked.given_tokens is None else f", on the text {checked.given_tokens:.2g}"
        console.print(f"relative logit error in float64: random tokens {checked.random_tokens:.2g}{given}")
        console.print(f"stored as {stored.dtype}: {stored.converted:.2g} (the original: {stored.original:.2g})")
    if report.approximation is not None:
        measured = report.approximation
        console.print(
            f"NOT lossless: logits differ by {measured.logit_error:.2g} of their largest; mean loss "
            f"{measured.loss_before:.4f} -> {measured.loss_after:.4f} on {measured.tokens:,} tokens"
        )
    for warning in report.warnings:
        console.print(f"[yellow]note[/yellow]: {warning}", soft_wrap=True)
    console.print(f"written to {destination}", soft_wrap=True)
