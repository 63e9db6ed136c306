"""What a merge wrote, in words; how an adapter's modules came out, as a table of the largest errors or plain data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eutectic.cli.output import format_bytes, format_share, print_table
from eutectic.cli.sizes import plural

if TYPE_CHECKING:
    from eutectic.recipes.lora_output import Factored
    from eutectic.recipes.plan import Plan

__all__ = ["modules_in_words", "modules_json", "print_errors", "written_in_words"]

MOST_SHOWN = 8


def modules_in_words(modules: Sequence[Factored]) -> str:
    """How many there are, and their ranks."""
    ranks = sorted({m.rank for m in modules})
    shown = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    return f"{plural(len(modules), 'module')}, rank {shown}"


def written_in_words(plan: Plan, modules: Sequence[Factored], folder: Path) -> str:
    """How much lies in the folder; of an adapter only its modules tell, for the plan knows the largest ranks alone."""
    if not modules:
        tensors = sum(len(shard.offsets) for shard in plan.shards)
        return f"{plural(tensors, 'tensor')}, {format_bytes(plan.bytes_written)}"
    written = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return f"an adapter of {modules_in_words(modules)}, {format_bytes(written)}"


def print_errors(modules: Sequence[Factored]) -> None:
    """The modules with the largest errors, worst first; nothing where none lost anything."""
    if not any(module.error for module in modules):
        return
    worst = sorted(modules, key=lambda m: -m.error)[:MOST_SHOWN]
    rows = [[m.module, "x".join(map(str, m.shape)), str(m.rank), format_share(m.error)] for m in worst]
    print_table(["module", "shape", "rank", "error"], rows, title="largest errors")


def modules_json(modules: Sequence[Factored]) -> list[dict[str, Any]]:
    """The modules in order; errors and changes are Frobenius norms, errors relative."""
    return [
        {"module": m.module, "shape": list(m.shape), "rank": m.rank, "error": m.error, "change": m.change}
        for m in modules
    ]
