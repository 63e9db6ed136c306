"""`eutectic merge`: from a recipe to a finished model folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eutectic.cli.habits import EPILOG, mergekit_flags
from eutectic.cli.output import emit_json, format_bytes, json_option
from eutectic.cli.run_options import describe, run_options

if TYPE_CHECKING:
    from rich.progress import Progress

    from eutectic.recipes.plan import Plan

__all__ = ["merge"]


@click.command(epilog=EPILOG)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@run_options
@click.option("--resume", is_flag=True, help="Continue a killed run; a finished OUT of this recipe is accepted.")
@click.option("--force", is_flag=True, help="Replace OUT, and drop anything unfinished.")
@click.option("--dry-run", is_flag=True, help="Only print the plan.")
@click.option("--no-fsync", is_flag=True, help="Do not flush to the disk before the final rename.")
@click.option("--hash-sources", is_flag=True, help="Record the hash of every source file, not only of its header.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
@click.option("--verbose", "-v", count=True, help="Print the plan first.")
@mergekit_flags
@json_option
def merge(
    recipe: Path,
    out: Path,
    options: dict[str, Any],
    resume: bool,
    force: bool,
    dry_run: bool,
    no_fsync: bool,
    hash_sources: bool,
    quiet: bool,
    verbose: int,
    as_json: bool,
) -> None:
    """Merge checkpoints as RECIPE says and write the model folder OUT.

    RECIPE is a YAML file in mergekit's form, or the recipe.lock.json of an earlier merge, which rebuilds the
    same bytes. OUT appears only when it is whole; until then everything lies in OUT.partial.
    """
    from eutectic.recipes.merge import merge as run
    from eutectic.recipes.merge import plan as foretell
    from eutectic.recipes.plan import Options

    chosen = Options(**options, fsync=not no_fsync, hash_sources=hash_sources)
    if dry_run:
        made = foretell(recipe, chosen)
        emit_json("merge", {"dry_run": True, **made.to_json()}) if as_json else click.echo("\n".join(describe(made)))
        return
    watcher = _watcher(quiet=quiet or as_json, verbose=verbose)
    begun = time.perf_counter()
    try:
        folder = run(recipe, out, chosen, resume=resume, force=force, watcher=watcher)
    finally:
        watcher.close()
    seconds = time.perf_counter() - begun
    made = watcher.plan
    if as_json:
        done = {"out": str(folder), "seconds": round(seconds, 3), "already_finished": made is None}
        emit_json("merge", done if made is None else {**done, "plan": made.to_json()})
    elif not quiet:
        if made is None:
            click.echo(f"{out} is this merge already, finished.")
        else:
            moved = made.bytes_read + made.nbytes
            rate = f"{format_bytes(int(moved / max(seconds, 1e-9)))}/s"
            click.echo(f"{out}: {len(made)} tensors, {format_bytes(made.nbytes)} in {seconds:.1f} s ({rate})")


def _watcher(*, quiet: bool, verbose: int) -> Any:
    """A watcher that draws on stderr: a bar where that is a terminal, sentences elsewhere."""
    from eutectic.recipes.merge import Watcher

    class Screen(Watcher):
        def __init__(self) -> None:
            self.plan: Plan | None = None
            self.bar: Progress | None = None
            self.advance: Callable[[int], None] = lambda nbytes: None

        def planned(self, plan: Plan) -> None:
            self.plan = plan
            if verbose and not quiet:
                click.echo("\n".join(describe(plan)), err=True)
            if quiet or not sys.stderr.isatty():
                return
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            columns = (
                TextColumn("merging"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
            )  # fmt: skip
            self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self.bar.start()
            task = self.bar.add_task("merging", total=sum(plan.input_bytes(s) + s.nbytes for s in plan.steps))
            bar = self.bar
            self.advance = lambda nbytes: bar.advance(task, nbytes)

        def compiling(self) -> None:
            if not quiet:
                click.echo("Compiling the merge kernels for this machine; this happens once.", err=True)

        def moved(self, nbytes: int) -> None:
            self.advance(nbytes)

        def close(self) -> None:
            if self.bar is not None:
                self.bar.stop()

    return Screen()
