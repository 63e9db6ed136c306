"""Flags that mergekit's users type from habit: accepted where there is nothing to do, else refused."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

import click

__all__ = ["mergekit_flags"]

SWITCHES = (
    "--lazy-unpickle", "--low-cpu-memory", "--copy-tokenizer", "--clone-tensors", "--trust-remote-code",
    "--safe-serialization", "--write-model-card", "--async-write", "--gpu-rich",
)  # fmt: skip
VALUES = ("--write-threads", "--transformers-cache", "--lora-merge-cache", "--lora-merge-dtype")
GPU = ("--read-to-gpu", "--multi-gpu")
_EPILOG = (
    "From mergekit's habit these are accepted and change nothing: "
    + ", ".join((*SWITCHES, *VALUES))
    + ". Reading is always lazy, the tokenizer always copied, the card always written."
)
# wrapped here, and after \b left alone: click would break flags at their hyphens
EPILOG = "\b\n" + "\n".join(textwrap.wrap(_EPILOG, 76, break_on_hyphens=False))


def _note(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value:
        ctx.meta.setdefault("eutectic.habits", []).append(parameter.opts[0])


def _refuse_gpu(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value:
        raise click.UsageError(f"{parameter.opts[0]}: a merge takes one GPU; say --device cuda, or cuda:1", ctx)


def mergekit_flags(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags; none of them reaches the command."""
    for flag in SWITCHES:
        off = f"/--no-{flag[2:]}" if flag != "--trust-remote-code" else ""
        function = click.option(
            flag + off, default=None, is_flag=True, hidden=True, expose_value=False, callback=_note
        )(function)
    for flag in VALUES:
        function = click.option(flag, hidden=True, expose_value=False, callback=_note)(function)
    for flag in GPU:
        function = click.option(flag, is_flag=True, hidden=True, expose_value=False, callback=_refuse_gpu)(function)
    return function
