"""Matrices of codes with a scale for each block of them: W = (q - z) s, z and s of the block that an entry lies in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from eutectic.errors import FormatError
from eutectic.weights.dtypes import DType
from eutectic.weights.quantized.tensor import DequantisedTensor, numbers, place, raw, rows_of
from eutectic.weights.tensor_ref import TensorRef

__all__ = ["BlockNumbers", "Grid", "GridTensor", "Numbers", "grid_of"]


class Numbers(Protocol):
    """Numbers for rows first .. last of a matrix: float32 [rows, blocks of columns]."""

    def read(self, first: int, last: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Grid:
    """How matrices [rows, columns], stacked, are cut: into blocks of `height` x `width`, the last ones smaller."""

    rows: int
    columns: int
    height: int
    width: int

    @property
    def across(self) -> int:
        """Blocks beside one another."""
        return -(-self.columns // self.width)

    @property
    def down(self) -> int:
        """Blocks below one another in one matrix."""
        return -(-self.rows // self.height)


@dataclass(frozen=True, eq=False)
class BlockNumbers:
    """One number for each block of a grid, read as they are needed."""

    ref: TensorRef
    grid: Grid

    def read(self, first: int, last: int) -> np.ndarray:
        """The numbers of rows first .. last."""
        row = np.arange(first, last)
        block = row // self.grid.rows * self.grid.down + row % self.grid.rows // self.grid.height
        low, high = int(block[0]), int(block[-1]) + 1
        found = numbers(self.ref, low * self.grid.across, high * self.grid.across)
        return found.reshape(-1, self.grid.across)[block - low]


def grid_of(code: TensorRef, scale: TensorRef, shape: tuple[int, ...], blocks: Sequence[tuple[int, int]]) -> Grid:
    """The grid that a scale's shape means: one number for all, for each row, or for blocks of one of the sizes given.

    Raises:
        FormatError: it is none of these.
    """
    rows, columns = shape[-2] if len(shape) > 1 else 1, max(1, shape[-1] if shape else 1)
    stack = shape[:-2]
    if scale.numel == 1:
        return Grid(max(1, math.prod(stack) * rows), columns, max(1, math.prod(stack) * rows), columns)
    plain = scale.shape[:-1] if scale.shape[-1] == 1 else scale.shape
    if scale.shape == (*stack, rows, 1) or (scale.shape == (*stack, rows) and len(shape) > 1):
        return Grid(rows, columns, 1, columns)
    if stack and plain in (stack, (*stack, 1)):
        return Grid(rows, columns, rows, columns)
    for height, width in blocks:
        grid = Grid(rows, columns, height, width)
        if scale.shape == (*stack, grid.down, grid.across):
            return grid
    tried = " or ".join(f"{height} x {width}" for height, width in blocks)
    raise FormatError(
        f"{place(scale)} {list(scale.shape)} fits {code.name!r} {list(shape)} neither as one number, nor by rows"
        + (f", nor in blocks of {tried}" if tried else "")
        + "; does config.json belong to these weights?"
    )


class GridTensor(DequantisedTensor):
    """Rows of codes, stored one after another, with scales and perhaps zero points by block.

    `widen` makes float32 [rows, columns] of the bytes [rows, n] of some rows; `index` is the block of each column
    where columns are not simply blocks in order.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        codes: TensorRef,
        native: DType,
        widen: Callable[[np.ndarray], np.ndarray],
        scale: Numbers,
        zero: Numbers | None = None,
        *,
        width: int,
        index: Callable[[], np.ndarray | None] = lambda: None,
    ) -> None:
        rows, self.row = rows_of(shape)
        super().__init__(name, shape, codes, native, self.row)
        self.widen, self.scale, self.zero, self.width, self.index = widen, scale, zero, width, index
        self.stored = codes.numel // max(1, rows)

    def decode(self, start: int, stop: int) -> np.ndarray:
        first, last = start // self.unit, stop // self.unit
        stored = raw(self.codes, first * self.stored, last * self.stored)
        values = self.widen(stored.reshape(last - first, -1))
        index = self.index()
        if self.zero is not None:
            _apply(np.subtract, values, self.zero.read(first, last), self.width, index)
        _apply(np.multiply, values, self.scale.read(first, last), self.width, index)
        return values.reshape(-1)


def _apply(operation: np.ufunc, values: np.ndarray, by: np.ndarray, width: int, index: np.ndarray | None) -> None:
    """`values` [rows, columns] combined in place with `by` [rows, blocks]."""
    rows, columns = values.shape
    if index is not None:
        operation(values, by[:, index], out=values)
    elif columns % width == 0:
        blocks = values.reshape(rows, -1, width)
        operation(blocks, by[:, :, None], out=blocks)
    else:
        operation(values, np.repeat(by, width, axis=1)[:, :columns], out=values)
