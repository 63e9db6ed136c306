"""The flags that `merge` and `plan` share, and the plan in words."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from eutectic.cli.output import format_bytes, printable
from eutectic.cli.sizes import SIZE

if TYPE_CHECKING:
    from eutectic.recipes.plan import Plan

__all__ = ["describe", "run_options"]


def run_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags of `eutectic.Options`; they reach the command as one dict, `options`."""

    @click.option("--max-memory", type=SIZE, help="For tiles and buffers, such as 2GiB.  [default: 256MiB]")
    @click.option("--threads", "-j", "--num-threads", type=click.IntRange(min=1), help="[default: all cores]")
    @click.option("--seed", "--random-seed", type=click.IntRange(min=0), help="Of methods that draw random numbers.")
    @click.option("--out-shard-size", type=SIZE, help="Largest weight file, such as 5GB.  [default: 5GB]")
    @click.option("--allow-mismatch", "--allow-crimes", is_flag=True, help="Copy tensors that not every source has.")
    @click.option("--allow-nonfinite", is_flag=True, help="Merge sources that hold NaN or infinity.")
    @click.option("--semantics-only", "torch_only", is_flag=True, help="Run the torch functions, not the kernels.")
    @click.option("--device", default="cpu", help="cpu, or a GPU: cuda, cuda:1.", show_default=True)
    @click.option("--cuda", is_flag=True, hidden=True, help="The same as --device cuda.")
    @click.option("--executor", default="local", help="local, or a cluster: ray.", show_default=True)
    @click.option("--address", metavar="HOST:PORT", help="Of the Ray cluster.  [default: the one that runs here]")
    @functools.wraps(function)
    def command(
        max_memory: int | None,
        threads: int | None,
        seed: int | None,
        out_shard_size: int | None,
        allow_mismatch: bool,
        allow_nonfinite: bool,
        torch_only: bool,
        device: str,
        cuda: bool,
        executor: str,
        address: str | None,
        **rest: Any,
    ) -> Any:
        options: dict[str, Any] = {
            "threads": threads,
            "seed": seed,
            "allow_mismatch": allow_mismatch,
            "allow_nonfinite": allow_nonfinite,
            "torch_only": torch_only,
            "device": "cuda" if cuda and device in ("cpu", "auto") else "cpu" if device == "auto" else device,
            "executor": executor,
            "address": address,
        }
        if max_memory is not None:
            options["max_memory"] = max_memory
        if out_shard_size is not None:
            options["shard_bytes"] = out_shard_size
        return function(options=options, **rest)

    return command


def _where(plan: Plan) -> str:
    """Who merges, where that is not the kernels in this process."""
    if plan.options.on_gpu:
        return f", in torch on {plan.options.device}"
    cluster = f", on a Ray cluster, {len(plan.shards)} tasks" if plan.options.executor == "ray" else ""
    return (", in torch" if plan.uses_torch else "") + cluster


def describe(plan: Plan) -> list[str]:
    """The plan for people, one fact a line."""
    root = plan.tree.root
    shape, options = plan.shape, plan.options
    seconds, origin = plan.seconds()
    passes = 1 + plan.passes
    shards = plan.shards
    lines = [
        f"{root.method.name}: {root.method.summary}",
        f"  sources   {', '.join(leaf.label for leaf in plan.tree.sources)}",
        f"  reference {plan.tree.reference.label}",
        *(f"  {'tensors' if at == 0 else '':<9} {line}" for at, line in enumerate(plan.account.lines)),
        f"  reads     {format_bytes(plan.bytes_read)} in {passes} pass{'es' if passes > 1 else ''} or fewer"
        if passes > 1
        else f"  reads     {format_bytes(plan.bytes_read)} in 1 pass",
        f"  writes    {format_bytes(plan.disk)} in {len(shards)} file{'s' if len(shards) > 1 else ''}",
        f"  memory    {format_bytes(shape.buffers)} of buffers (budget "
        f"{format_bytes(options.max_memory)}), at most {format_bytes(plan.peak)} for the process",
        *([f"  device    about {format_bytes(plan.device_peak)} on {options.device}"] if options.on_gpu else []),
        f"  threads   {shape.threads}, tiles of {shape.tile:,} elements" + _where(plan),
        f"  time      about {seconds:.1f} s ({origin})",
    ]
    lines += [f"  note      {note}" for note in plan.notes]
    warning = plan.licence_warning
    if warning:
        lines.append(f"  licence   {warning}")
    return [printable(line) for line in lines]
