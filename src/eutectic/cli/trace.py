"""`eutectic trace`: what a checkpoint was merged from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eutectic.cli.candidates import Listing, labelled, open_model
from eutectic.cli.output import emit_json, json_option, progress
from eutectic.weights.checkpoint import Checkpoint

if TYPE_CHECKING:
    from eutectic.evaluation.coefficients import Fit
    from eutectic.evaluation.lineage import Lineage
    from eutectic.evaluation.trace import Trace

__all__ = ["describe", "trace"]


@click.command(cls=Listing)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--among", "candidates", multiple=True, required=True, metavar="PATH...",
    help="The candidate parents: every path up to the next option.",
)  # fmt: skip
@click.option("--base", metavar="PATH", help="The model that the candidates were trained from.")
@click.option("--tensors", "every_tensor", is_flag=True, help="List the coefficients of every tensor.")
@json_option
def trace(checkpoint: Path, candidates: tuple[str, ...], base: str | None, every_tensor: bool, as_json: bool) -> None:
    """Find what CHECKPOINT was merged from: the weights of candidate parents, and whether that explains it.

    \b
      eutectic trace merged --base base --among a b c

    Each is a model folder, one weight file, a recipe (merged as it is read), or MODEL+ADAPTER. All are read once,
    together; memory stays small for any size of model. Least squares gives each candidate's coefficient with its
    standard error, over the whole model, by layer and by tensor. What is left is judged against what rounding to
    the checkpoint's type explains. Parents that the checkpoint's own files do not declare are named, and licences
    that may conflict.
    """
    from eutectic.cli.trace_report import print_trace
    from eutectic.evaluation.lineage import trace_lineage
    from eutectic.evaluation.trace import trace as find

    child = open_model(str(checkpoint))
    models, base_label = labelled(candidates, base)
    with progress("tracing", child.nbytes) as advance:
        found = find(child, models, base=base_label, report=advance)
    lineage = trace_lineage(child, models, found)
    if as_json:
        emit_json("trace", describe(child, models, found, lineage))
    else:
        print_trace(child, models, found, lineage, every_tensor=every_tensor, name=str(checkpoint))


def describe(
    checkpoint: Checkpoint, candidates: dict[str, Checkpoint], found: Trace, lineage: Lineage
) -> dict[str, Any]:
    """A trace as plain data (the body of the JSON of `trace`)."""
    from eutectic.evaluation.verdict import verdict

    def parts(listed: Any) -> list[dict[str, Any]]:
        return [
            {
                "name": part.label,
                "tensors": len(part.tensors),
                "explained": part.explained,
                **_fit_entry(found, part.fit),
            }
            for part in listed
        ]

    return {
        "checkpoint": None if checkpoint.path is None else str(checkpoint.path),
        "candidates": [
            {
                "name": name,
                "path": None if (path := candidates[name].path) is None else str(path),
                "base": found.based and i == 0,
                "licence": lineage.licences[name],
                "equal_share": found.shares[i],
            }
            for i, name in enumerate(found.candidates)
        ],
        "kind": found.kind,
        "verdict": verdict(found),
        "equal_to": found.equal_to,
        "slerp": found.slerp,
        "parents": found.parents,
        "elements": found.elements,
        "nonfinite": found.nonfinite,
        "whole": _fit_entry(found, found.whole),
        "layers": parts(found.layers),
        "tensors": parts(found.tensors),
        "skipped": [{"name": name, "reason": reason} for name, reason in found.skipped.items()],
        "lineage": {
            "declared": [{"name": entry.name, "file": entry.file} for entry in lineage.declared],
            "undeclared": lineage.undeclared,
            "without_part": lineage.without_part,
            "not_examined": lineage.not_examined,
            "unreadable": lineage.unreadable,
            "licence": lineage.licences[""],
            "conflicts": lineage.conflicts,
        },
    }


def _fit_entry(found: Trace, fit: Fit) -> dict[str, Any]:
    return {
        "coefficients": dict(zip(found.candidates, fit.coefficients, strict=True)),
        "errors": dict(zip(found.candidates, fit.errors, strict=True)),
        "not_identified": [
            {"candidates": [found.candidates[i] for i in group.members], "sum": group.total} for group in fit.together
        ],
        "sum_is_one": not fit.free,
        "condition": fit.condition,
        "residual": fit.residual,
        "over_rounding": fit.over_rounding,
    }
