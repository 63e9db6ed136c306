"""`eutectic demo`: the whole path on real experts, with a table and a picture at the end."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import click

from eutectic.cli.output import emit_json, json_option, print_table

__all__ = ["demo"]


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default="demo-output", show_default=True, help="Target folder.")
@click.option("--seeds", type=click.IntRange(1, 20), default=3, show_default=True, help="Families to build.")
@click.option("--force", is_flag=True, help="Build the families anew.")
@click.option("--quiet", "-q", is_flag=True, help="Print only the table.")
@json_option
def demo(out: Path, seeds: int, force: bool, quiet: bool, as_json: bool) -> None:
    """Build small real experts, merge them by several methods, measure each, and draw the result.

    Everything happens offline in about half a minute: handwritten digits from scikit-learn, one base and five
    experts a family, each expert fine-tuned on one view of the images. Knobs are tuned on validation images
    and reported on test images, over several families.
    """
    from eutectic.errors import MissingDependencyError, OutputError
    from eutectic.evaluation.picture import Row, draw_scores
    from eutectic.zoo.demo import run_demo

    if find_spec("matplotlib") is None:  # said before the work, not after it
        raise MissingDependencyError("pictures need matplotlib; pip install 'eutectic[plot]'")
    talk = None if quiet or as_json else lambda line: click.echo(line, err=True)
    try:
        out.mkdir(parents=True, exist_ok=True)
        results = run_demo(out, seeds=seeds, force=force, report=talk)
    except OSError as error:
        raise OutputError(f"{error.filename or out}: cannot be written: {error.strerror or error}") from None
    picture = out / "scores.png"
    rows = [Row(r.label, r.group, r.views, r.mean, r.stderr) for r in results]
    over = f"{seeds} families" if seeds > 1 else "the images of one family"
    draw_scores(
        rows,
        picture,
        title="One model for all views of the digits",
        note=f"Test accuracy; standard error over {over}. Every knob tuned on validation images.",
        reference="base",
    )
    if as_json:
        emit_json("demo", {"out": str(out), "picture": str(picture), "rows": [vars(r) for r in results]})
        return
    views = list(results[0].views)
    if not quiet:
        click.echo()
    print_table(
        ("test accuracy, %", *(f">{view}" for view in views), ">mean", ">error", "tuned"),
        [
            (
                r.label,
                *(f"{100 * r.views[view]:.1f}" for view in views),
                f"{100 * r.mean:.1f}",
                f"±{100 * r.stderr:.1f}",
                ", ".join(f"{value:g}" for value in r.settings.values())
                + (" (at the grid's edge)" if r.at_edge else ""),
            )
            for r in results
        ],
    )
    if quiet:
        return
    click.echo(
        f"\nStandard errors are over {over}. The tuned merges of all experts lie close together; what they show is\n"
        "one model that serves all views better than the base or any expert does, though no view as well as its expert."
    )
    click.echo(f"Picture: {picture}   Models: {out / 'merged'}   Recipes: {out / 'recipes'}")
