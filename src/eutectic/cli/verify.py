"""`eutectic verify`: is a merged folder still what was written?"""

from __future__ import annotations

from pathlib import Path

import click

from eutectic.cli.output import emit_json, format_bytes, json_option, printable, progress
from eutectic.cli.sizes import plural
from eutectic.errors import VerificationError

__all__ = ["verify"]

MOST_SHOWN = 20


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@json_option
def verify(out: Path, as_json: bool) -> None:
    """Hash the folder OUT again and compare every tensor and file with its recipe.lock.json.

    Exits 0 if all agree, 7 if anything differs.
    """
    from eutectic.recipes.verify import verify as check

    size = sum(path.stat().st_size for path in out.rglob("*.safetensors")) if out.is_dir() else 0
    with progress("verifying", size) as advance:
        found = check(out, advance)
    if as_json:
        emit_json("verify", {
            "sound": found.sound, "tensors": found.tensors, "files": found.files, "bytes": found.nbytes,
            "problems": list(found.problems),
        })  # fmt: skip
        if not found.sound:
            raise SystemExit(VerificationError.exit_code)
        return
    if not found.sound:
        more = len(found.problems) - MOST_SHOWN
        lines = [f"  - {problem}" for problem in found.problems[:MOST_SHOWN]] + (
            [f"  ... and {more} more"] if more > 0 else []
        )
        raise VerificationError("\n".join([f"{out} is not what was written:", *lines]))
    click.echo(
        f"{printable(str(out))} is sound: {plural(found.tensors, 'tensor')} ({format_bytes(found.nbytes)}) "
        f"and {plural(found.files, 'other file')} are as written."
    )
