"""The text of `eutectic trace`: the verdict, the candidates, the layers, declarations and licences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from eutectic.cli.output import format_bytes, format_share, print_fields, print_table, printable
from eutectic.cli.patterns import collapse
from eutectic.cli.sizes import plural
from eutectic.evaluation.coefficients import Fit
from eutectic.evaluation.lineage import Lineage
from eutectic.evaluation.trace import Part, Trace
from eutectic.evaluation.verdict import runs_of, verdict
from eutectic.weights.checkpoint import Checkpoint

__all__ = ["print_trace"]

MOST_ROWS = 40  # of the layers, unless every tensor is asked for
WORST = 5  # single tensors that rounding does not explain
MOST_NOTES = 6


def print_trace(
    checkpoint: Checkpoint,
    candidates: Mapping[str, Checkpoint],
    found: Trace,
    lineage: Lineage,
    *,
    every_tensor: bool = False,
    name: str | None = None,
) -> None:
    """Print what `trace` and `trace_lineage` found. `every_tensor` adds those of each tensor; `name` is the title."""
    path = click.style(printable(name or str(checkpoint.path or "planned checkpoint")), bold=True)
    click.echo(f"{path}  {plural(len(checkpoint), 'tensor')}, {format_bytes(checkpoint.nbytes)}")
    click.echo()
    print_fields(_summary(found, lineage))
    _print_candidates(found, lineage)
    _print_layers(found)
    _print_worst(found, every_tensor)
    _print_lineage(lineage)


def _summary(found: Trace, lineage: Lineage) -> list[tuple[str, str]]:
    fit = found.whole
    fields = [("verdict", verdict(found))]
    fields.append(("parents", ", ".join(found.parents) or "none of the candidates"))
    fields.append(
        (
            "residual",
            f"{_small(fit.residual)} of the change, {_times(fit)} what rounding explains, with one set of coefficients",
        )
    )
    named = _unknown(found, fit)
    fields += [("" if i else "unknown", sentence) for i, sentence in enumerate(named)]
    if lineage.undeclared:
        fields.append(("undeclared", ", ".join(lineage.undeclared)))
    counted = plural(len(found.tensors), "tensor")
    fields.append(("compared", f"{counted}, {found.elements:,} elements, condition {fit.condition:.3g}"))
    if found.nonfinite:
        fields.append(("", f"{plural(found.nonfinite, 'element')} with NaN or infinity left out"))
    if found.skipped:
        shown = [f"{name} ({reason})" for name, reason in list(found.skipped.items())[:MOST_NOTES]]
        more = len(found.skipped) - len(shown)
        fields.append(("skipped", "; ".join(shown) + (f"; and {more:,} more" if more else "")))
    return fields


def _unknown(found: Trace, whole: Fit) -> list[str]:
    """What cannot be identified: over the whole model, and where that is fine in single layers."""
    sentences = []
    for group in whole.together:
        names = [found.candidates[i] for i in group.members]
        known = "not even their sum" if group.total is None else f"only their sum, {group.total:.4f}"
        sentences.append(f"{' and '.join(names)} cannot be told apart here: {known} is known")
    if not whole.together:
        linked: dict[tuple[int, ...], list[str]] = {}
        for part in found.layers:
            for group in part.fit.together:
                linked.setdefault(group.members, []).append(part.label)
        for members, labels in linked.items():
            names = " and ".join(found.candidates[i] for i in members)
            where = ", ".join(pattern.text for pattern in collapse(labels)[:MOST_NOTES])
            sentences.append(f"{names} cannot be told apart in {where}")
    return sentences


def _print_candidates(found: Trace, lineage: Lineage) -> None:
    rows = []
    for i, name in enumerate(found.candidates):
        role = "base" if found.based and not i else "parent" if name in found.parents else "no part"
        rows.append(
            [name, _value(found.whole.coefficients[i]), _error(found.whole.errors[i]), role,
             format_share(found.shares[i]), lineage.licences[name] or "-"]
        )  # fmt: skip
    columns = ["candidate", ">coefficient", ">error", "role", ">equal", "licence"]
    print_table(columns, rows, title="One set of coefficients for the whole model")


def _print_layers(found: Trace) -> None:
    rows = [
        [_label(run), *(_value(c) for c in run[0].fit.coefficients), _times(run[0].fit) if len(run) == 1 else
         f"{max(part.fit.over_rounding for part in run):,.3g}x"]
        for run in runs_of(found.layers)
    ]  # fmt: skip
    columns = ["layer", *(f">{name}" for name in found.candidates), ">over rounding"]
    if len(rows) > 1:
        _print_rows("Layer by layer", columns, rows, MOST_ROWS)


def _print_worst(found: Trace, every: bool) -> None:
    columns = ["tensor", *(f">{name}" for name in found.candidates), ">over rounding"]
    listed: Sequence[Part] = found.tensors
    if not every:
        listed = sorted((p for p in listed if not p.explained), key=lambda part: -part.fit.over_rounding)
    rows = [[part.label, *(_value(c) for c in part.fit.coefficients), _times(part.fit)] for part in listed]
    if every:
        _print_rows("Tensor by tensor", columns, rows, len(rows))
    elif rows:
        _print_rows("Tensors that are not linear on their own, worst first", columns, rows, WORST)


def _print_lineage(lineage: Lineage) -> None:
    click.echo(f"\n{click.style('Declared parents and licences', bold=True)}")
    files: dict[str, list[str]] = {}
    for entry in lineage.declared:
        files.setdefault(entry.file, []).append(entry.name)
    fields = [("declared", f"{', '.join(names)} ({file})") for file, names in files.items()]
    fields = fields or [("declared", "nothing: no lock file, recipe or model card names a parent")]
    fields += [("", sentence) for sentence in lineage.unreadable]
    for label, names in (
        ("not declared", lineage.undeclared), ("declared, no part", lineage.without_part),
        ("not examined", lineage.not_examined),
    ):  # fmt: skip
        if names:
            fields.append((label, ", ".join(names)))
    fields.append(("licence", lineage.licences[""] or "none stated"))
    fields += [("" if i else "may conflict", sentence) for i, sentence in enumerate(lineage.conflicts)]
    print_fields(fields)


def _print_rows(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], most: int) -> None:
    print_table(columns, rows[:most], title=title)
    if len(rows) > most:
        click.echo(f"  ... and {len(rows) - most:,} more; --json has all")


def _label(run: Sequence[Part]) -> str:
    if len(run) == 1:
        return run[0].label
    return f"{run[0].label}..{run[-1].label.rpartition('.')[2]}"


# ---------------------------------------------------------------- cells


def _value(value: float | None) -> str:
    return "?" if value is None else f"{round(value, 4) + 0.0:.4f}"


def _error(error: float | None) -> str:
    return "-" if error is None else f"±{error:.1e}"


def _small(share: float) -> str:
    return f"{share:.3g}"


def _times(fit: Fit) -> str:
    return f"{fit.over_rounding:,.3g}x" if fit.spare else "-"
