"""Twin-Merging: one shared expert, and of each expert the low-rank part of what it has besides.

    θ_s = θ_0 + λ Σ_t τ_t,   θ_t ~ θ_s + SVD_k(θ_t - θ_s)

The shared expert is the pool's core: the base is not needed to rebuild the experts. A matrix keeps k directions, a
share of its smaller side, as two factors with the singular values split evenly; kernels of convolutions are flattened,
stacks of matrices taken one by one, as in `ops.matrices`. Tensors of one axis, and matrices whose factors would be no
smaller, are kept whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eutectic.ops.matrices import matrix_shape
from eutectic.pools.scheme import Parameter, Part, Parts, Scheme, Span
from eutectic.weights.dtypes import DType

__all__ = ["TWIN", "rank_of", "shared_expert"]


def rank_of(shape: Sequence[int], settings: Mapping[str, Any]) -> int | None:
    """The rank that a tensor's matrices keep; None where it is kept whole.

    >>> [rank_of(shape, {"share": 0.1, "rank": 0}) for shape in ((64, 256), (10, 256), (10, 1), (64,))]
    [6, 1, None, None]
    """
    stack = matrix_shape(shape)
    if stack is None:
        return None
    _, m, n = stack
    rank = min(settings["rank"] or max(1, int(settings["share"] * min(m, n))), m, n)
    return rank if rank * (m + n) < m * n else None


def _is_stack(shape: Sequence[int]) -> bool:
    """Whether a row of the tensor is a matrix."""
    stack = matrix_shape(shape)
    return stack is not None and len(shape) == 3 and stack[1:] == tuple(shape[1:])


def _parts(shape: tuple[int, ...], dtype: DType, count: int, settings: Mapping[str, Any]) -> tuple[Parts, Parts]:
    rank, stack = rank_of(shape, settings), matrix_shape(shape)
    if rank is None or stack is None:
        return {}, {"whole": Part(dtype, shape)}
    number, m, n = stack
    if _is_stack(shape):
        return {}, {"left": Part(dtype, (number, m, rank), "row"), "right": Part(dtype, (number, rank, n), "row")}
    return {}, {"left": Part(dtype, (m, rank), "row"), "right": Part(dtype, (rank, n), "whole")}


def shared_expert(base: np.ndarray, experts: Sequence[np.ndarray], settings: Mapping[str, Any]) -> np.ndarray:
    """θ_0 + λ Σ_t (θ_t - θ_0) of a stretch, in float64."""
    total = np.zeros(len(base), dtype=np.float64)
    for expert in experts:
        total += expert
        total -= base
    return base + settings["lambda"] * total


def _encode(
    span: Span, core: np.ndarray, experts: Sequence[np.ndarray], settings: Sequence[Mapping[str, Any]], totals: Any
) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    return {}, [_extend(span, core, {}, expert, own, None) for expert, own in zip(experts, settings, strict=True)]


def _extend(
    span: Span, core: np.ndarray, shared: Any, expert: np.ndarray, settings: Mapping[str, Any], total: Any
) -> dict[str, np.ndarray]:
    """The factors of θ_t - θ_s; directions that it does not have are zero."""
    import torch

    from eutectic.ops.lowrank import factors
    from eutectic.ops.spectrum import spectrum

    rank, stack = rank_of(span.shape, settings), matrix_shape(span.shape)
    if rank is None or stack is None:
        return {"whole": expert}
    number, m, n = stack
    left, right = torch.zeros(number, m, rank, dtype=torch.float64), torch.zeros(number, rank, n, dtype=torch.float64)
    exclusive = torch.from_numpy(np.subtract(expert, core, dtype=np.float64)).reshape(stack)
    for at, matrix in enumerate(exclusive):
        u, v = factors(*spectrum(matrix, rank))
        left[at, :, : u.shape[1]], right[at, : v.shape[0]] = u, v
    return {"left": left.numpy().reshape(-1), "right": right.numpy().reshape(-1)}


def _decode(
    span: Span,
    core: np.ndarray,
    shared: Mapping[str, np.ndarray],
    own: Mapping[str, np.ndarray],
    settings: Mapping[str, Any],
) -> np.ndarray:
    from eutectic.weights.adapter_kernels import add_product

    rank, stack = rank_of(span.shape, settings), matrix_shape(span.shape)
    if rank is None or stack is None:
        return own["whole"]
    _, m, n = stack
    values, none = core.copy(), np.empty(0, dtype=np.uint16)
    size = m * n if _is_stack(span.shape) else span.numel
    lefts, rights = own["left"].reshape(-1, size // n, rank), own["right"].reshape(-1, rank, n)
    for at, (left, right) in enumerate(zip(lefts, rights, strict=True)):
        add_product(none, values[at * size : (at + 1) * size], left, right, np.float32(1), 0)
    return values


TWIN = Scheme(
    name="twin",
    summary="A shared expert, and a low-rank part of each expert; `eutectic route` mixes them for each input.",
    reference="Lu et al. 2024, Twin-Merging: Dynamic Integration of Modular Expertise in Model Merging, "
    "arXiv 2406.15479",
    parameters={
        "lambda": Parameter(0.3, "Share of every delta in the shared expert.", least=-100.0, most=100.0),
        "share": Parameter(0.1, "Rank of a matrix, as a share of its smaller side.", least=0.0, most=1.0),
        "rank": Parameter(0, "Rank of every matrix, in place of the share; 0: the share.", least=0.0, most=1e6),
    },
    parts=_parts,
    encode=_encode,
    decode=_decode,
    extend=_extend,
    core=shared_expert,
    encodes="tensor",
    decodes="row",
)
