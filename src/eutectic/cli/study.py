"""`eutectic study`: a protocol that compares merge methods on families of experts."""

from __future__ import annotations

from pathlib import Path

import click

from eutectic.cli.output import emit_json, json_option

__all__ = ["study"]


@click.command()
@click.argument("name", metavar="mergebench|in-the-wild|3h|regimes")
@click.option(
    "--family", "-f", "families", multiple=True, required=True, type=click.Path(path_type=Path),
    help="A family's folder; repeatable: seeds of one variant, or (regimes) any.",
)  # fmt: skip
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="The run's folder.")
@click.option("--quick/--full", default=True, help="Few scales and subsets (the default), or twice and thrice as many.")
@click.option("--method", "-m", "methods", multiple=True, help="Only this method; repeatable.")
@click.option("--subsets", type=click.IntRange(1), help="How many random subsets (in-the-wild).")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of subsets and resampling.")
@click.option(
    "--fidelity", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True,
    help="Share of the validation samples that scales are chosen on.",
)  # fmt: skip
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
@json_option
def study(
    name: str,
    families: tuple[Path, ...],
    out: Path,
    quick: bool,
    methods: tuple[str, ...],
    subsets: int | None,
    seed: int,
    fidelity: float,
    quiet: bool,
    as_json: bool,
) -> None:
    """Compare merge methods on FAMILY by a protocol, and write OUT/results.json.

    \b
    mergebench   multi-task score, forgetting, run time and memory of every method
    in-the-wild  random subsets of the experts: better than the base, than the best of them?
    3h           conflicting objectives: mergers against data mixtures at equal compute
    regimes      which method wins where

    Scales are tuned on validation, the test split is for reporting. Everything measured is kept in OUT, so a killed
    run resumes where it was. `eutectic report OUT` shows the results.
    """
    from eutectic.evaluation.studies.study import Setup, run_study

    setup = Setup(quick=quick, seed=seed, subsets=subsets or 0, fidelity=fidelity, only=methods)
    talk = None if quiet or as_json else lambda line: click.echo(line, err=True)
    found = run_study(name, families, out, setup, report=talk)
    if as_json:
        emit_json("study", {"out": str(out), "results": found.to_json()})
    elif not quiet:
        for claim in found.claims:
            word = {True: "holds", False: "refuted", None: "open"}[claim.holds]
            click.echo(f"{claim.id}: {word}: {claim.claim} {claim.result}")
        for warning in found.warnings:
            click.echo(f"note: {warning}", err=True)
        click.echo(f"{out}: {len(found.rows)} rows; eutectic report {out} shows them")
