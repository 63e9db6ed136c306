"""What the laws measure with: twins run, gradients, jumps, wrong values, equal bits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from eutectic.methods.method import Method, Parameter
from eutectic.ops.program import Program, Tile
from eutectic.testing.cases import Case, noise

if TYPE_CHECKING:
    import torch

__all__ = [
    "EPSILON", "assert_close", "gradients_of", "jumps", "powers", "run_program", "same_bits", "size_of",
    "wrong_values",
]  # fmt: skip

EPSILON = 2.0**-23  # of float32: the arithmetic that every method may use


def run_program(program: Program, case: Case) -> torch.Tensor:
    """A fast twin on one small tensor, as the engine runs it."""
    import numpy as np
    import torch

    shape, n, float32 = case.tensors[0].shape, case.tensors[0].numel(), 2
    rows = torch.stack(case.inputs).reshape(len(case.inputs), n).numpy().view(np.uint8).copy()
    codes, bad = np.full(len(rows), float32, dtype=np.int64), np.zeros(len(rows), dtype=np.int64)
    tile, out = Tile(rows, codes, n, 0, 0, bad), np.zeros(4 * n, dtype=np.uint8)
    if not n:
        return torch.empty(shape)
    found = program.begin(n, 1)
    while (reduction := program.wants(found)) is not None:
        lead = () if reduction.fold == "sum" else (1,)
        total = np.zeros((*lead, *reduction.shape), dtype=reduction.dtype)
        program.reduce(reduction, tile, found, total)
        found = program.solve(reduction, total, found)
    program.combine(tile, found, out, float32)
    return torch.from_numpy(out.view(np.float32)).reshape(shape)


def gradients_of(
    measure: Callable[[list[torch.Tensor]], torch.Tensor], inputs: list[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    import torch

    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    value = measure(leaves)
    assert value.requires_grad, "no gradient reaches any input"
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    return tuple(torch.zeros_like(leaf) if got is None else got for leaf, got in zip(leaves, found, strict=True))


def jumps(method: Method, case: Case) -> torch.Tensor:
    """Where the result jumps when the inputs change by their last bits (an election decided by rounding)."""
    import torch

    merged = case.merge(method)
    jumps = torch.zeros(merged.shape, dtype=torch.bool)
    for seed in range(8):
        moved = case.map(lambda x, s=seed: x * (1 + 8 * EPSILON * noise(x.shape, s)))
        jumps |= (moved.merge(method) - merged).abs() > 1024 * EPSILON * max(case.size, size_of(merged))
    return jumps


def wrong_values(parameter: Parameter) -> list[Any]:
    """Values outside a parameter's type and range."""
    wrong: list[Any] = [None, "no such choice", {}]
    if float in parameter.types:
        wrong += [math.nan, math.inf]
    if {float, int} & {*parameter.types}:
        wrong += [bound + way for bound, way in ((parameter.range.low, -1), (parameter.range.high, 1))
                  if math.isfinite(bound)]  # fmt: skip
    return wrong


def powers(count: int, case: Case) -> list[float]:
    numbers = case.random()
    return [2.0 ** numbers.randint(-36, 17) for _ in range(count)]


def size_of(tensor: torch.Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    import torch

    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(
        a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8)
    )  # fmt: skip


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float, where: str = "") -> None:
    apart = size_of(found.double() - expected.double())
    assert apart <= tolerance, f"{where}{found.tolist()}, not {expected.tolist()} (apart {apart:g} > {tolerance:g})"
