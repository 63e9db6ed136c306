"""`eutectic bisect`: by halving, the layers of an expert that carry a regression, or the expert that began it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eutectic.cli.ablating import (
    ablation,
    effect_cells,
    effect_json,
    header_json,
    measuring,
    print_header,
    quoted_share,
)
from eutectic.cli.output import emit_json, json_option, print_table

if TYPE_CHECKING:
    from eutectic.evaluation.bisect import OfExperts, OfLayers

__all__ = ["bisect", "describe_experts", "describe_layers"]


@click.command()
@click.argument("recipe")
@measuring
@click.option("--expert", metavar="NAME", help="Bisect this expert's layers, rather than the order of the experts.")
@click.option(
    "--share", type=click.FloatRange(0, 1, min_open=True), default=0.5, show_default=True,
    help="Of the regression that counts.",
)  # fmt: skip
@json_option
def bisect(
    recipe: str,
    suite: str,
    task: str | None,
    against: str,
    split: str,
    fidelity: float,
    ledger: Path | None,
    quiet: bool,
    expert: str | None,
    share: float,
    as_json: bool,
) -> None:
    """Find by halving what made the merge of RECIPE worse on a task.

    \b
      eutectic bisect recipe.yaml --suite family --task general
      eutectic bisect recipe.yaml --suite family --task general --expert invert

    Without --expert: the first expert, in the recipe's order, with which the merge of all up to it lacks the share of
    what the whole merge lacks. With it: the run of that expert's layers without which the share is gone. Halving
    assumes that more layers left out, or more experts added, never turn the result round; what is found is measured.
    """
    from eutectic.evaluation.bisect import OfLayers, bisect_experts, bisect_layers

    with ablation(
        recipe, suite=suite, task=task, split=split, fidelity=fidelity, ledger=ledger, quiet=quiet or as_json
    ) as case:
        made = bisect_experts(case, against, share) if expert is None else bisect_layers(case, expert, against, share)
    found = made.regression
    if as_json:
        facts = describe_layers(made) if isinstance(made, OfLayers) else describe_experts(made)
        emit_json("bisect", {**header_json(case, found, against), "share": share, **facts})
        return
    print_header(case, found, against)
    if found.found:
        _print_layers(made, share) if isinstance(made, OfLayers) else _print_experts(made, share)


def describe_layers(found: OfLayers) -> dict[str, Any]:
    """A bisection of layers as plain data (part of the JSON of `bisect`)."""
    run = found.run
    return {
        "expert": found.expert,
        "layers": list(found.layers),
        "verdict": "no regression" if run is None else run.verdict,
        "run": [] if run is None else list(found.layers[run.start : run.stop]),
        "restores": None if run is None else run.restored,
        "rest_restores": None if run is None else run.rest,
        "effect": None if found.effect is None else effect_json(found.effect),
        "measured": [] if run is None else [
            {"without": [found.layers[at] for at in sorted(probe.removed)], "restores": probe.restored}
            for probe in run.probes
        ],
    }  # fmt: skip


def describe_experts(found: OfExperts) -> dict[str, Any]:
    """A bisection of the experts' order as plain data (part of the JSON of `bisect`)."""
    first, experts = found.first, found.experts
    return {
        "expert": experts[first.at] if first is not None and first.verdict == "found" else None,
        "verdict": "no regression" if first is None else first.verdict,
        "effect": None if found.effect is None else effect_json(found.effect),
        "measured": [
            {"experts": list(experts[:k]), "lacks": lack, "share": found.regression.restored(lack)}
            for k, lack in found.shortfalls.items()
        ],
    }


def _print_layers(found: OfLayers, share: float) -> None:
    run, effect = found.run, found.effect
    assert run is not None and effect is not None  # there is a regression
    rows = [
        [_places(found.layers, sorted(probe.removed)), quoted_share(probe.restored)]
        for probe in sorted(run.probes, key=lambda probe: (-len(probe.removed), min(probe.removed)))
    ]
    print_table([f"without {found.expert} in", ">restores"], rows, title="Measured")
    where = _places(found.layers, range(run.start, run.stop))
    click.echo()
    if run.verdict == "elsewhere":
        click.echo(
            f"elsewhere: without {found.expert} in all its layers {quoted_share(run.restored)} of the regression is "
            f"gone, not {quoted_share(share)}. It is not its alone, or its layers cancel: see `eutectic blame`"
        )
    elif run.verdict == "spread":
        click.echo(
            f"spread: the least run found is {where}, without which {quoted_share(run.restored)} is gone; without the "
            f"expert's other layers {quoted_share(run.rest)} is. No few layers carry it: see `eutectic blame --expert`"
        )
    else:
        click.echo(
            f"found: {where}, without which {quoted_share(run.restored)} of the regression is gone; without the "
            f"expert's other layers {quoted_share(run.rest)} is"
        )
    print_table(["without it", ">change", "95% interval", ">p"], [[where, *effect_cells(effect)]])


def _print_experts(found: OfExperts, share: float) -> None:
    first, experts = found.first, found.experts
    assert first is not None  # there is a regression
    rows = [
        [", ".join(experts[:k]) or "none", f"{lack:.4f}", quoted_share(found.regression.restored(lack))]
        for k, lack in found.shortfalls.items()
    ]
    print_table(["experts", ">lacks", ">of the regression"], rows, title="Measured")
    click.echo()
    if first.verdict == "before" or found.effect is None:
        fewest = experts[0] if first.at else "none"
        click.echo(
            f"before: the merge of {fewest} lacks {quoted_share(share)} already; nothing that was added began it"
        )
        return
    click.echo(f"found: {experts[first.at]}, with which the merge begins to lack {quoted_share(share)} of it")
    print_table(
        ["without it alone", ">change", "95% interval", ">p"], [[experts[first.at], *effect_cells(found.effect)]]
    )
    if not found.effect.sure or found.effect.difference.value < 0:
        click.echo("\nleft out alone it mends nothing: those before or behind it do the same harm")


def _places(layers: tuple[str, ...], places: Iterable[int]) -> str:
    """Layers in words: runs by their ends, as "h.3 to h.5, head"."""
    runs: list[list[int]] = []
    for at in places:
        if runs and at == runs[-1][-1] + 1:
            runs[-1].append(at)
        else:
            runs.append([at])
    ends = [(layers[run[0]], layers[run[-1]]) for run in runs]
    return ", ".join(a if a == b else f"{a} to {b}" for a, b in ends)
