"""`eutectic pool`: a base and many experts in one folder, from which each expert comes back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eutectic.cli.bisect import bisect
from eutectic.cli.blame import blame
from eutectic.cli.output import emit_json, json_option, print_fields, print_table, progress
from eutectic.cli.sizes import format_bytes

if TYPE_CHECKING:
    from eutectic.pools.packing import Estimate, Packing
    from eutectic.pools.pool import Pool

__all__ = ["pool"]

DIFFERENT = 7


@click.group()
def pool() -> None:
    """Keep a base and many experts in one folder, each to be had back as POOL#NAME."""


@pool.command()
@click.argument("base")
@click.argument("experts", nargs=-1, required=True, metavar="[NAME=]EXPERT...")
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="The pool's folder.")
@click.option("--scheme", "-s", default="tall", show_default=True, metavar="NAME", help="See `eutectic pool schemes`.")
@click.option(
    "--set", "pairs", multiple=True, metavar="NAME=VALUE",
    help="A setting of the scheme; of experts one value, or one for each with commas between.",
)  # fmt: skip
@click.option(
    "--base", "keep", type=click.Choice(["store", "reference"]), default="store", show_default=True,
    help="Keep the base in the pool, or only where it lies.",
)  # fmt: skip
@click.option("--threads", type=click.IntRange(1), help="[default: one for each core]")
@click.option("--dry-run", is_flag=True, help="Say what each scheme would take and lose, and stop.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
@json_option
def pack(
    base: str,
    experts: tuple[str, ...],
    out: Path,
    scheme: str,
    pairs: tuple[str, ...],
    keep: str,
    threads: int | None,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Pack BASE and its EXPERTS.

    Before anything is written, a table says for every scheme how many bytes it takes and how far the rebuilt experts
    would be from the originals: the norm of what they miss over that of their changes, on a sample of the tensors.
    """
    from eutectic.pools.folder import refuse_target
    from eutectic.pools.pack import write_pool
    from eutectic.pools.packing import prepare
    from eutectic.pools.scheme import SCHEMES
    from eutectic.recipes.pooling import named, open_reference, side_of

    if not dry_run:
        refuse_target(out)
    settings = _settings(pairs)
    source = open_reference(base)
    found = {name: open_reference(reference) for name, reference in named(experts).items()}
    packing = prepare(source, found, scheme, settings)  # refuses what cannot be packed, before any work
    offers = [] if quiet and not (dry_run and as_json) else _offers(packing, list(SCHEMES), settings)
    if not as_json and not quiet:
        _show_offers(offers, packing)
    if dry_run:
        if as_json:
            emit_json("pool pack", {"raw": packing.raw, "schemes": [vars(offer) for offer in offers]})
        return
    total = sum(ref.nbytes for name, ref in source.checkpoint.items() if name in packing.changed) * (len(found) + 1)
    with progress("packing", total) as advance:
        made = write_pool(
            packing, out, side_of(source), store_base=keep == "store", threads=threads, report=advance
        )  # fmt: skip
    if as_json:
        emit_json("pool pack", {**_described(made), "schemes": [vars(offer) for offer in offers]})
    elif not quiet:
        click.echo(f"{out}: {_line(made, packing.raw)}")


@pool.command()
@json_option
def schemes(as_json: bool) -> None:
    """List the ways to keep experts, with their settings."""
    from eutectic.pools.scheme import SCHEMES, get_scheme

    found = [get_scheme(name) for name in SCHEMES]
    if as_json:
        listed = {
            one.name: {
                "summary": one.summary, "reference": one.reference,
                "settings": {n: {"default": p.default, "summary": p.summary} for n, p in one.parameters.items()},
            }
            for one in found
        }  # fmt: skip
        emit_json("pool schemes", {"schemes": listed})
        return
    for at, one in enumerate(found):
        click.echo(("\n" if at else "") + f"{one.name}: {one.summary}")
        click.echo(f"  {one.reference}")
        print_fields([(f"  {n}", f"{p.summary} [{p.default}]") for n, p in one.parameters.items()])


@pool.command("list")
@click.argument("path", metavar="POOL", type=click.Path(path_type=Path))
@json_option
def list_members(path: Path, as_json: bool) -> None:
    """List the members of POOL: bytes of their own, and the error that they were packed with."""
    from eutectic.pools.pool import open_pool

    opened = open_pool(path)
    if as_json:
        emit_json("pool list", _described(opened))
        return
    facts = opened.manifest
    stored = "in the pool" if facts.core.stored else f"not stored: {facts.core.source}"
    print_fields([
        ("scheme", f"{facts.scheme}: {opened.scheme.summary}"),
        ("settings", ", ".join(f"{key} {value}" for key, value in facts.settings.items()) or "none"),
        ("base", f"{facts.core.name}, {stored}") if facts.base is None else ("shared expert", "in the pool"),
        ("bytes", format_bytes(sum(file.bytes for file in facts.files.values()))),
    ])  # fmt: skip
    click.echo()
    rows = []
    for name, expert in facts.experts.items():
        own = format_bytes(0 if expert.file is None else expert.file.bytes)
        error = "of nothing" if expert.error is None else f"{expert.error:.4f}"
        rows.append((name, expert.name, own, error, expert.licence or ""))
    print_table(("member", "packed from", "own bytes", "error", "licence"), rows)


@pool.command()
@click.argument("path", metavar="POOL", type=click.Path(path_type=Path))
@click.argument("name")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace OUT.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
@json_option
def get(path: Path, name: str, out: Path, force: bool, quiet: bool, as_json: bool) -> None:
    """Write the member NAME of POOL as a model folder. As POOL#NAME it can be used without."""
    from eutectic.errors import OutputError
    from eutectic.pools.pool import open_member
    from eutectic.recipes.merge import merge

    open_member(path, name)
    if out.exists() and not force:
        raise OutputError(f"{out} exists; --force replaces it")
    recipe = {"merge_method": "passthrough", "models": [{"model": f"{path}#{name}"}]}
    merge(recipe, out, force=force)
    if as_json:
        emit_json("pool get", {"pool": str(path), "member": name, "out": str(out)})
    elif not quiet:
        click.echo(f"wrote {out}")


@pool.command()
@click.argument("path", metavar="POOL", type=click.Path(path_type=Path))
@json_option
@click.pass_context
def verify(ctx: click.Context, path: Path, as_json: bool) -> None:
    """Check the files of POOL against their digests, and its base."""
    from eutectic.recipes.verify_pool import verify_pool

    found = verify_pool(path)
    if as_json:
        emit_json(
            "pool verify",
            {"pool": str(path), "files": found.files, "bytes": found.nbytes, "problems": list(found.problems)},
        )
    else:
        for problem in found.problems:
            click.echo(problem)
        if found.sound:
            click.echo(f"{path}: sound ({found.files} files, {format_bytes(found.nbytes)})")
    if not found.sound:
        ctx.exit(DIFFERENT)


@pool.command()
@click.argument("path", metavar="POOL", type=click.Path(path_type=Path))
@click.argument("expert", metavar="[NAME=]EXPERT")
@click.option("--recompute", is_flag=True, help="Pack all again, so that what they share holds this one, too.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
@json_option
def add(path: Path, expert: str, recompute: bool, quiet: bool, as_json: bool) -> None:
    """Add EXPERT to POOL. Where others depend on it (scheme tall), all are packed again from their sources."""
    from eutectic.recipes.pool_changes import add as add_to

    _changed(add_to(path, expert, recompute=recompute), "add", quiet=quiet, as_json=as_json)


@pool.command()
@click.argument("path", metavar="POOL", type=click.Path(path_type=Path))
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--keep-shared", is_flag=True, help="Leave what experts share as it is, with what it holds of them.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
@json_option
def remove(path: Path, names: tuple[str, ...], keep_shared: bool, quiet: bool, as_json: bool) -> None:
    """Remove members from POOL, also from what the others share: that is made again from the others' sources."""
    from eutectic.recipes.pool_changes import remove as remove_from

    _changed(remove_from(path, names, keep_shared=keep_shared), "remove", quiet=quiet, as_json=as_json)


@pool.command()
@click.argument("path", metavar="POOL", type=click.Path(path_type=Path))
@json_option
def log(path: Path, as_json: bool) -> None:
    """Show what was done with POOL, the newest last."""
    from eutectic.pools.pool import open_pool

    entries = open_pool(path).manifest.log
    if as_json:
        emit_json("pool log", {"pool": str(path), "log": [entry.model_dump() for entry in entries]})
        return
    rows = [(e.time, e.action, ", ".join(e.experts), e.scheme, format_bytes(e.bytes)) for e in entries]
    print_table(("when", "what", "experts", "scheme", "bytes after"), rows)


pool.add_command(blame)
pool.add_command(bisect)


def _settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Settings from ``NAME=VALUE``; several values have commas between."""
    from eutectic.errors import RecipeError

    found: dict[str, Any] = {}
    for text in pairs:
        name, mark, value = text.partition("=")
        if not mark or not name:
            raise RecipeError(f"--set {text!r}: a setting is NAME=VALUE")
        values = [_number(part.strip()) for part in value.split(",")]
        found[name.replace("-", "_")] = values[0] if len(values) == 1 else values
    return found


def _number(text: str) -> float | int | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _offers(packing: Packing, names: Sequence[str], settings: dict[str, Any]) -> list[Estimate]:
    """What every scheme would cost, the others with their defaults."""
    from eutectic.pools.packing import estimate

    return [
        estimate(packing.base, packing.experts, name, settings if name == packing.scheme.name else {}) for name in names
    ]


def _show_offers(offers: Sequence[Estimate], packing: Packing) -> None:
    rows = [
        ("->" if offer.scheme == packing.scheme.name else "", offer.scheme, format_bytes(offer.nbytes),
         f"{offer.share:.1%}", f"{offer.error:.3f}")
        for offer in offers
    ]  # fmt: skip
    models = f"{len(packing.experts) + 1} models, {format_bytes(packing.raw)}"
    print_table(("", "scheme", "bytes", f"of {models}", "error, on a sample"), rows)


def _described(opened: Pool) -> dict[str, Any]:
    facts = opened.manifest
    experts = {
        name: {
            "source": one.source, "name": one.name, "error": one.error, "licence": one.licence,
            "bytes": one.file.bytes if one.file is not None else 0, "settings": one.settings,
        }
        for name, one in facts.experts.items()
    }  # fmt: skip
    return {
        "pool": str(opened.path), "scheme": facts.scheme, "settings": facts.settings,
        "bytes": sum(file.bytes for file in facts.files.values()),
        "core": {"name": facts.core.name, "stored": facts.core.stored, "source": facts.core.source},
        "experts": experts,
    }  # fmt: skip


def _line(opened: Pool, raw: int | None = None) -> str:
    size = sum(file.bytes for file in opened.manifest.files.values())
    share = f", {size / raw:.1%} of {format_bytes(raw)}" if raw else ""
    members = f"{len(opened)} member{'s' if len(opened) != 1 else ''}"
    return f"{members} ({', '.join(opened)}), {format_bytes(size)}{share}"


def _changed(opened: Pool, action: str, *, quiet: bool, as_json: bool) -> None:
    if as_json:
        emit_json(f"pool {action}", _described(opened))
    elif not quiet:
        click.echo(f"{opened.path}: {_line(opened)}")
