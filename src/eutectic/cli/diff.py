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
    from eutectic.evaluation.overlap import Overlaps

__all__ = ["describe", "diff"]


@click.command()
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option("--values/--headers-only", default=True, help="Compare values too (the default), or headers alone.")
@click.option("--layers", "by_layer", is_flag=True, help="Show the distance of every layer, with a bar.")
@click.option("--base", metavar="PATH", help="What A and B were trained from: compare how they differ from it.")
@click.option(
    "--rank", type=click.IntRange(min=0), default=8, show_default=True,
    help="With --base: singular directions compared; 0 leaves them out.",
)  # fmt: skip
@click.option("--tensors", "every_tensor", is_flag=True, help="List every tensor that differs, not the worst few.")
@json_option
@click.pass_context
def diff(
    ctx: click.Context,
    a: str,
    b: str,
    values: bool,
    by_layer: bool,
    base: str | None,
    rank: int,
    every_tensor: bool,
    as_json: bool,
) -> None:
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

    With --base the changes A - BASE and B - BASE are compared, too: their cosine, the share of opposed signs, and
    for each matrix how far their strongest directions span the same subspace (1: the same; beside it, by chance).
    """
    from eutectic.cli.diff_report import print_comparison, print_layers
    from eutectic.evaluation.compare import compare, layer_distances

    if not values and (by_layer or base):
        raise click.UsageError("--layers and --base need values; leave out --headers-only")
    left, right = eutectic.open(a), eutectic.open(b)
    total = sum(left[name].nbytes for name in left if name in right) if values else 0
    with progress("comparing", total) as advance:
        found = compare(left, right, values=values, report=advance)
    overlaps = None if base is None else _overlaps(base, left, right, rank)
    if as_json:
        emit_json("diff", describe(left, right, found) | {"deltas": overlaps and _overlap_entry(overlaps, rank)})
    else:
        print_comparison(left, right, found, every_tensor=every_tensor)
        if by_layer:
            print_layers(layer_distances(left, right, found))
        if overlaps is not None:
            from eutectic.cli.overlap_report import print_overlaps

            print_overlaps(overlaps, rank, every_tensor=every_tensor)
    ctx.exit(0 if found.identical else 1)


def _overlaps(base: str, left: Checkpoint, right: Checkpoint, rank: int) -> Overlaps:
    from eutectic.evaluation.overlap import compare_deltas

    opened = eutectic.open(base)
    with progress("comparing deltas", left.nbytes) as advance:
        return compare_deltas(opened, left, right, rank=rank, report=advance)


def describe(a: Checkpoint, b: Checkpoint, found: Comparison) -> dict[str, Any]:
    """A comparison as plain data (the body of the JSON of `diff`)."""
    from eutectic.evaluation.compare import ABSENT, layer_distances

    def side(c: Checkpoint) -> dict[str, Any]:
        return {"path": None if c.path is None else str(c.path), "tensors": len(c), "bytes": c.nbytes}

    values = {
        "equal": found.equal,
        "different": len(found.changed),
        "incomparable": found.incomparable,
        "overall": _distance_entry(found.overall) if found.changed else None,
        "tensors": [{"name": p.name, **_distance_entry(p.distance)} for p in found.changed],
        "layers": [
            {"name": layer.name, "tensors": layer.tensors, "different_tensors": layer.different}
            | _distance_entry(layer.distance)
            for layer in layer_distances(a, b, found)
        ],
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


def _overlap_entry(overlaps: Overlaps, rank: int) -> dict[str, Any]:
    total = overlaps.total
    return {
        "rank": rank,
        "elements": total.elements,
        "nonfinite": total.nonfinite,
        "norm_a": float(total.norms[0]),
        "norm_b": float(total.norms[1]),
        "cosine": total.cosine()[0][1],
        "sign_conflict": total.sign_conflict()[0][1],
        "tensors": [
            {
                "name": t.name,
                "norm_a": float(t.sums.norms[0]),
                "norm_b": float(t.sums.norms[1]),
                "cosine": t.cosine,
                "sign_conflict": t.sign_conflict,
                "rank": t.rank,
                "left": t.left,
                "right": t.right,
                "left_chance": t.left_chance,
                "right_chance": t.right_chance,
                "no_directions": t.reason or None,
            }
            for t in overlaps.tensors
        ],
        "skipped": [{"name": name, "reason": reason} for name, reason in overlaps.skipped.items()],
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
