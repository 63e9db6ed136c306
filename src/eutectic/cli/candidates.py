"""Several models on one command line: `--among A B C`, short names for them, and opening each."""

from __future__ import annotations

import os
from pathlib import Path

import click

import eutectic
from eutectic.weights.checkpoint import Checkpoint, open_checkpoint

__all__ = ["Listing", "labelled", "open_model"]


class Listing(click.Command):
    """A command whose option ``--among`` takes every word up to the next option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        inside, fresh = False, False
        for at, word in enumerate(args):
            if word == "--":
                return super().parse_args(ctx, spread + args[at:])
            if word.startswith("-"):
                inside = fresh = word == "--among"
            elif inside and not fresh:
                spread.append("--among")
            else:
                fresh = False
            spread.append(word)
        return super().parse_args(ctx, spread)


def labelled(paths: tuple[str, ...], base: str | None) -> tuple[dict[str, Checkpoint], str | None]:
    """The candidates by short names, the base (which may be among them) first; paths where names would clash."""
    ordered: list[str] = list(dict.fromkeys((base, *paths) if base else paths))
    if base:
        same = os.path.realpath(base)
        ordered = [path for path in ordered if path == base or os.path.realpath(path) != same]
    short = [Path(path).name or path for path in ordered]
    labels = [name if short.count(name) == 1 else path for name, path in zip(short, ordered, strict=True)]
    return {label: open_model(path) for label, path in zip(labels, ordered, strict=True)}, labels[0] if base else None


def open_model(source: str) -> Checkpoint:
    """A checkpoint from what a recipe calls a model, or from a recipe."""
    from eutectic.recipes.references import resolve_model
    from eutectic.weights.adapter import open_adapted
    from eutectic.weights.quantized.dequantise import open_dequantised

    path, adapter = resolve_model(source)
    if adapter is None:
        return open_dequantised(eutectic.open(source))
    return open_adapted(open_dequantised(open_checkpoint(path)), adapter)
