"""`eutectic merge`: from a recipe to a finished model folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eutectic.cli.factored import modules_json, print_errors, written_in_words
from eutectic.cli.habits import EPILOG, mergekit_flags
from eutectic.cli.output import emit_event, emit_json, events_option, format_bytes, format_share, print_table
from eutectic.cli.run_options import describe, run_options
from eutectic.cli.sizes import plural

if TYPE_CHECKING:
    from eutectic.recipes.profile import Profile

__all__ = ["merge"]


@click.command(epilog=EPILOG)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@run_options
@click.option("--resume", is_flag=True, help="Continue a killed run; a finished OUT of this recipe is accepted.")
@click.option("--force", is_flag=True, help="Replace OUT, and drop anything unfinished.")
@click.option("--dry-run", is_flag=True, help="Check everything, print the plan, write nothing.")
@click.option("--profile", "profiled", is_flag=True, help="Say where the time went.")
@click.option("--no-fsync", is_flag=True, help="Do not flush to the disk before the final rename.")
@click.option("--hash-sources", is_flag=True, help="Record the hash of every source file, not only of its header.")
@click.option("--push-to-hub", "repo", metavar="ORG/NAME", help="Upload OUT to the hub when it is whole.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
@click.option("--verbose", "-v", count=True, help="Print the plan first.")
@mergekit_flags
@events_option
def merge(
    recipe: Path,
    out: Path,
    options: dict[str, Any],
    resume: bool,
    force: bool,
    dry_run: bool,
    profiled: bool,
    no_fsync: bool,
    hash_sources: bool,
    repo: str | None,
    quiet: bool,
    verbose: int,
    as_json: bool,
) -> None:
    """Merge checkpoints as RECIPE says and write the model folder OUT.

    RECIPE is a YAML file in mergekit's form, or the recipe.lock.json of an earlier merge, which rebuilds the
    same bytes. OUT appears only when it is whole; until then everything lies in OUT.partial.
    """
    from eutectic.recipes.profile import Profile

    if profiled and options["executor"] != "local":
        raise click.UsageError("--profile measures this process, and a cluster merges in others; leave one of them out")
    profile = Profile() if profiled else None
    from eutectic.cli.merge_watchers import Events, Screen
    from eutectic.recipes.merge import check_merge
    from eutectic.recipes.merge import merge as run
    from eutectic.recipes.plan import Options

    chosen = Options(**options, fsync=not no_fsync, hash_sources=hash_sources)
    if repo is not None:
        from eutectic.recipes.publish import check_push

        check_push(repo)
    if dry_run:
        made = check_merge(recipe, out, chosen, resume=resume, force=force)
        emit_json("merge", {"dry_run": True, **made.to_json()}) if as_json else click.echo("\n".join(describe(made)))
        return
    begun = time.perf_counter()
    watcher = Events() if as_json else Screen(quiet=quiet, verbose=verbose)
    try:
        folder = run(recipe, out, chosen, resume=resume, force=force, watcher=watcher, profile=profile)
    finally:
        watcher.close()
    address = None
    if repo is not None:
        from eutectic.recipes.publish import push

        address = push(Path(str(folder)), repo)
    seconds = time.perf_counter() - begun
    made = watcher.plan
    if as_json:
        done: dict[str, Any] = {"out": str(folder), "seconds": round(seconds, 3), "already_finished": made is None}
        done |= {} if address is None else {"pushed": address}
        done |= {} if made is None else {"plan": made.to_json()}
        done |= {"modules": modules_json(watcher.modules)} if watcher.modules else {}
        emit_event("merge", "finished", done if profile is None else {**done, "profile": profile.to_json()})
    elif not quiet:
        if made is None:
            click.echo(f"{out} is this merge already, finished.")
        else:
            moved = made.bytes_read + made.bytes_written
            rate = f"{format_bytes(int(moved / max(seconds, 1e-9)))}/s"
            written = written_in_words(made, watcher.modules, Path(str(folder)))
            click.echo(f"{out}: {written} in {seconds:.1f} s ({rate})")
            print_errors(watcher.modules)
        if address is not None:
            click.echo(f"pushed to {address}")
        if profile is not None:
            _print_profile(profile)


def _print_profile(profile: Profile) -> None:
    """The stages of the run, and what its threads did in the tiles."""
    from eutectic.recipes.profile import PHASES, STAGES

    found = profile.to_json()
    wall, threads = found["wall"], len(found["threads"])
    rows = [
        (stage, f"{found['stages'][stage]:.3f}", format_share(found["stages"][stage] / wall), what)
        for stage, what in STAGES.items()
    ]
    print_table(("stage", ">seconds", ">share", ""), [*rows, ("in all", f"{wall:.3f}", "100%", "")])
    if threads:
        rows = [
            (phase, f"{found['phases'][phase]['seconds']:.3f}", format_share(found["phases"][phase]["share"]), what)
            for phase, what in PHASES.items()
        ]
        title = f"In the tiles, summed over {plural(threads, 'thread')}"
        print_table(("phase", ">seconds", ">share", ""), rows, title=title)
