"""What an expert changes in one weight, as factors L R: an adapter's own, or the best of a rank for a full model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from eutectic.errors import NonFiniteError
from eutectic.ops.lowrank import factors, product_svd, truncated_svd
from eutectic.ops.matrices import matrix_shape
from eutectic.weights.adapter import AdaptedTensor
from eutectic.weights.digest import hash_tensor
from eutectic.weights.dtypes import BY_NAME, DType
from eutectic.weights.tensor_ref import StoredTensor, TensorRef

if TYPE_CHECKING:
    import torch

__all__ = ["Change", "change_of", "is_same", "is_weight", "stacked", "widest"]


@dataclass(frozen=True)
class Change:
    """scale L R with L [m, r] and R [r, n] in float32; `dtype` is what the factors came in, None where nothing changed.

    `missed` is the squared norm of what they leave out of the change, and `square` that of the change.
    """

    left: np.ndarray
    right: np.ndarray
    scale: float
    dtype: DType | None
    missed: float
    square: float

    @property
    def rank(self) -> int:
        """r."""
        return self.left.shape[1]

    def within(self, width: int) -> Change:
        """The best change of rank `width`; itself where its own is no larger."""
        if self.rank <= width:
            return self
        import torch

        u, s, v = product_svd(torch.from_numpy(self.left), torch.from_numpy(self.right))
        b, a = factors(u[:, :width], s[:width], v[:, :width])
        lost = self.scale**2 * float((s[width:] ** 2).sum())
        return Change(b.float().numpy(), a.float().numpy(), self.scale, self.dtype, self.missed + lost, self.square)


def is_weight(ref: TensorRef) -> bool:
    """Whether a tensor is one matrix, as factors have it: two axes, or the kernel of a convolution."""
    shape = matrix_shape(ref.shape)
    return ref.dtype.floating and shape is not None and shape[0] == 1 and min(shape[1:]) > 1


def change_of(core: TensorRef, expert: TensorRef, rank: int, whose: str) -> Change:
    """What `expert` changes in the weight `core`: exactly where it is an adapter on it, else the best of `rank`.

    Raises:
        NonFiniteError: it holds NaN or infinity.
    """
    if is_same(core, expert):
        return _none(core)
    if isinstance(expert, AdaptedTensor) and expert.pair.magnitude is None and is_same(core, expert.base):
        return _of_pair(core, expert, whose)
    _, m, n = matrix_shape(core.shape) or (1, 1, core.numel)
    delta = (expert.to_torch().double() - core.to_torch().double()).reshape(m, n)
    square = float(delta.square().sum())
    if not math.isfinite(square):
        raise NonFiniteError(f"{whose}: {expert.name!r} holds NaN or infinity; repair it first")
    if not square:
        return _none(core)
    u, s, v = truncated_svd(delta.float(), rank, name=core.name)
    b, a = (side.contiguous() for side in factors(u, s, v))
    missed = float((delta - b.double() @ a.double()).square().sum())
    kind = expert.native if expert.native.size > 1 else BY_NAME["BF16"]
    return Change(b.numpy(), a.numpy(), 1.0, kind, missed, square)


def _none(core: TensorRef) -> Change:
    _, m, n = matrix_shape(core.shape) or (1, 1, core.numel)
    return Change(np.zeros((m, 0), np.float32), np.zeros((0, n), np.float32), 1.0, None, 0.0, 0.0)


def _of_pair(core: TensorRef, expert: AdaptedTensor, whose: str) -> Change:
    import torch

    pair = expert.pair
    left, right, _ = pair.read()
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        raise NonFiniteError(f"{whose}: the factors of {core.name!r} hold NaN or infinity; repair that adapter")
    tall, wide = torch.from_numpy(left).double(), torch.from_numpy(right).double()
    square = pair.scale**2 * float(((tall.T @ tall) * (wide @ wide.T)).sum())
    return Change(left, right, pair.scale, widest([pair.a.dtype, pair.b.dtype]), 0.0, square)


def is_same(one: TensorRef, other: TensorRef) -> bool:
    """Whether two tensors are the same: they lie at the same place, or hold the same bytes."""
    if one is other:
        return True
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if isinstance(one, StoredTensor) and isinstance(other, StoredTensor):
        if (one.file.path, one.offset) == (other.file.path, other.offset):
            return True
        return hash_tensor(one) == hash_tensor(other)
    return False


def widest(dtypes: Sequence[DType]) -> DType:
    """The type that holds numbers of all these types, float32 at most.

    >>> widest([BY_NAME["BF16"], BY_NAME["BF16"]]).name, widest([BY_NAME["BF16"], BY_NAME["F16"]]).name
    ('BF16', 'F32')
    """
    names = {dtype.name for dtype in dtypes}
    only = next(iter(names)) if len(names) == 1 else "F32"
    return BY_NAME[only if only in ("BF16", "F16") else "F32"]


def stacked(changes: Sequence[Change], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """L [n, outputs, width] and R [n, width, inputs] in float64, the scales in L, zeros beyond each rank."""
    import torch

    left = torch.zeros(len(changes), changes[0].left.shape[0], width, dtype=torch.float64)
    right = torch.zeros(len(changes), width, changes[0].right.shape[1], dtype=torch.float64)
    for at, change in enumerate(changes):
        left[at, :, : change.rank] = change.scale * torch.from_numpy(change.left).double()
        right[at, : change.rank] = torch.from_numpy(change.right).double()
    return left, right
