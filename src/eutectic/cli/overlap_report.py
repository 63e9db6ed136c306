"""The text of `eutectic diff --base`: how two changes to one base agree, by pattern of names or by tensor."""

from __future__ import annotations

from collections.abc import Sequence

import click

from eutectic.cli.output import format_share, print_fields, print_table
from eutectic.cli.patterns import Pattern, collapse
from eutectic.cli.sizes import plural
from eutectic.evaluation.deltas import DeltaSums
from eutectic.evaluation.overlap import Overlap, Overlaps

__all__ = ["print_overlaps"]

MOST_ROWS = 30


def print_overlaps(found: Overlaps, rank: int, *, every_tensor: bool = False) -> None:
    """Print cosine, sign conflicts and overlaps; those of a pattern are means over its tensors."""
    total = found.total
    click.secho("\nChanges from the base", bold=True)
    fields = [
        ("norms", f"A {total.norms[0]:.4g}, B {total.norms[1]:.4g}"),
        ("cosine", _number(total.cosine()[0][1], 6)),
        ("signs", f"{_share(total.sign_conflict()[0][1])} of the elements that changed in both moved apart"),
    ]
    if found.skipped:
        fields.append(("left out", plural(len(found.skipped), "tensor")))
    if total.nonfinite:
        fields.append(("not finite", plural(total.nonfinite, "element")))
    print_fields(fields)
    tensors = {tensor.name: tensor for tensor in found.tensors}
    patterns = [Pattern(name, (name,), 1) for name in tensors] if every_tensor else collapse(
        tensors, lambda name: (tensors[name].reason, tensors[name].left_chance, tensors[name].right_chance)
    )  # fmt: skip
    rows = [_row(pattern, [tensors[name] for name in pattern.names]) for pattern in patterns]
    shown = rows if every_tensor else rows[:MOST_ROWS]
    columns = ["tensors", ">count", ">cosine", ">signs", ">left", ">by chance", ">right", ">by chance", "no directions"]
    print_table(columns, shown, title=f"By tensor, with the overlap of the {rank} strongest directions")
    if len(rows) > len(shown):
        click.echo(f"  ... and {len(rows) - len(shown):,} more; --json has all")


def _row(pattern: Pattern, tensors: Sequence[Overlap]) -> list[str]:
    sums = sum((tensor.sums for tensor in tensors), DeltaSums.empty(2))
    sides = [
        _number(_mean([getattr(tensor, side) for tensor in tensors]), 3)
        for side in ("left", "left_chance", "right", "right_chance")
    ]
    cells = [_number(sums.cosine()[0][1], 4), _share(sums.sign_conflict()[0][1]), *sides, tensors[0].reason]
    return [pattern.text, pattern.count, *cells]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    return "-" if value is None else format_share(value)
