"""`eutectic diff`: what differs between two checkpoints. Exits 0 when nothing does and 1 when something does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

import eutectic
from eutectic.cli.output import emit_json, json_option, progress
from eutectic.weights.checkpoint import Checkpoint

if TYPE_CHECKING:
    from eutectic.evaluation.compare import Comparison
    from eutectic.evaluation.distance import Distance

__all__ = ["describe", "diff"]


@click.command()
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option("--values/--headers-only", default=True, help="Compare values too (the default), or headers alone.")
@click.option("--tensors", "every_tensor", is_flag=True, help="List every tensor that differs, not the worst few.")
@json_option
@click.pass_context
def diff(ctx: click.Context, a: str, b: str, values: bool, every_tensor: bool, as_json: bool) -> None:
    """Compare checkpoints A and B: names, shapes, types, config.json and values.

    Each is a model folder, one weight file, or a recipe, which is merged as it is compared. Exits 0 when they
    are identical (bit by bit, and config.json where both have one), 1 when they differ. Values are streamed;
    memory stays small for any size of model.

    \b
    For tensors that differ:
      differ      share of the elements that differ
      max |A-B|   largest difference of two elements
      rel. L2     ||A - B|| / ||A||
      cosine      of the angle between A and B
      signs       share of the elements whose signs disagree
    """
    from eutectic.cli.diff_report import print_comparison
    from eutectic.evaluation.compare import compare

    left, right = eutectic.open(a), eutectic.open(b)
    total = sum(left[name].nbytes for name in left if name in right) if values else 0
    with progress("comparing", total) as advance:
        found = compare(left, right, values=values, report=advance)
    if as_json:
        emit_json("diff", describe(left, right, found))
    else:
        print_comparison(left, right, found, every_tensor=every_tensor)
    ctx.exit(0 if found.identical else 1)


def describe(a: Checkpoint, b: Checkpoint, found: Comparison) -> dict[str, Any]:
    """A comparison as plain data (the body of the JSON of `diff`)."""
    from eutectic.evaluation.compare import ABSENT

    def side(c: Checkpoint) -> dict[str, Any]:
        return {"path": None if c.path is None else str(c.path), "tensors": len(c), "bytes": c.nbytes}

    values = {
        "equal": found.equal,
        "different": len(found.changed),
        "incomparable": found.incomparable,
        "overall": _distance_entry(found.overall) if found.changed else None,
        "tensors": [{"name": p.name, **_distance_entry(p.distance)} for p in found.changed],
    }
    return {
        "a": side(a),
        "b": side(b),
        "identical": found.identical,
        "only_in_a": found.only_a,
        "only_in_b": found.only_b,
        "mismatched": [
            {
                "name": pair.name,
                "a": {"shape": list(pair.a.shape), "dtype": str(pair.a.dtype)},
                "b": {"shape": list(pair.b.shape), "dtype": str(pair.b.dtype)},
            }
            for pair in found.mismatched
        ],
        "config": [
            {"key": c.key, **{side: v for side, v in (("a", c.a), ("b", c.b)) if v is not ABSENT}} for c in found.config
        ],
        "values": values if found.values else None,
    }


def _distance_entry(distance: Distance) -> dict[str, Any]:
    return {
        "elements": distance.elements,
        "different": distance.different,
        "nonfinite": distance.nonfinite,
        "max_abs": distance.max_abs,
        "relative_l2": distance.relative_l2,
        "cosine": distance.cosine,
        "different_share": distance.different_share,
        "opposite_sign_share": distance.opposite_share,
    }
