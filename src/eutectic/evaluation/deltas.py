"""The experts' changes to their base, without holding a model: norms by layer, cosines, shares of opposed signs.

With d_i = expert_i - base over all common tensors of floats, all sums in float64 over blocks of one size and order:

    norms[i, l] = ||d_i|| over layer l      cosine[i, j] = <d_i, d_j> / (||d_i|| ||d_j||)
    sign_conflict[i, j] = #{t : d_i,t d_j,t < 0} / #{t : d_i,t and d_j,t not zero}
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eutectic.errors import SourceError
from eutectic.evaluation.distance import comparable
from eutectic.evaluation.results import Deltas
from eutectic.weights.codec import widen
from eutectic.weights.dtypes import BY_NAME
from eutectic.weights.layers import layer_of
from eutectic.weights.tensor_ref import TensorRef

__all__ = ["DeltaSums", "alike", "difference_blocks", "measure_deltas", "sum_deltas"]

BLOCK = 1 << 13  # elements at a time: the rows stay in the cache, and BLAS starts no threads
READ = 8 << 20  # bytes read at a time, of all the tensors together


@dataclass(frozen=True)
class DeltaSums:
    """Sums of one tensor or of several: products <d_i, d_j> [k, k], and pairs of elements that are nonzero in both
    [k, k], opposed [k, k]; `elements` counted, `nonfinite` left out. Adding two gives those of both parts."""

    products: np.ndarray
    both: np.ndarray
    opposed: np.ndarray
    elements: int = 0
    nonfinite: int = 0

    def __add__(self, other: DeltaSums) -> DeltaSums:
        return DeltaSums(
            self.products + other.products,
            self.both + other.both,
            self.opposed + other.opposed,
            self.elements + other.elements,
            self.nonfinite + other.nonfinite,
        )

    @classmethod
    def empty(cls, count: int) -> DeltaSums:
        """No element, of `count` experts."""
        square = np.zeros((count, count))
        return cls(square, square.astype(np.int64), square.astype(np.int64))

    @property
    def norms(self) -> np.ndarray:
        """||d_i|| [k]."""
        return np.sqrt(np.diagonal(self.products))

    def cosine(self) -> list[list[float | None]]:
        """Cosines [k, k]; None where a change is zero."""
        return _shares(self.products, np.outer(self.norms, self.norms))

    def sign_conflict(self) -> list[list[float | None]]:
        """Shares of opposed signs [k, k]; None where no element changed in both."""
        return _shares(self.opposed, self.both)


def measure_deltas(
    base: Mapping[str, TensorRef],
    experts: Mapping[str, Mapping[str, TensorRef]],
    *,
    report: Callable[[int], None] | None = None,
) -> Deltas:
    """Norms by layer, cosines and sign conflicts of the experts' deltas: the `deltas` of a study's results.

    A tensor counts if it holds floats and has one shape everywhere; what is not so is left out. A layer is a number of
    a stack, as `layer_of` reads names; tensors outside of stacks stand for themselves.

    Args:
        report: called with the number of the base's bytes done since the last call.

    Raises:
        SourceError: no expert, or no tensor of floats that all have.

    >>> import tempfile
    >>> from eutectic.weights.checkpoint import open_checkpoint
    >>> from eutectic.weights.safetensors import write_safetensors
    >>> folder = tempfile.mkdtemp()
    >>> for name, values in {"base": [0.0, 0.0], "a": [3.0, 4.0], "b": [-3.0, 4.0]}.items():
    ...     write_safetensors(f"{folder}/{name}.safetensors", {"w": np.array(values)})
    >>> base, a, b = (open_checkpoint(f"{folder}/{name}.safetensors") for name in ("base", "a", "b"))
    >>> found = measure_deltas(base, {"a": a, "b": b})
    >>> found.norms, found.cosine[0][1], found.sign_conflict[0][1]
    (((5.0,), (5.0,)), 0.28, 0.5)
    """
    if not experts:
        raise SourceError("no experts to compare with the base; name at least one")
    total = DeltaSums.empty(len(experts))
    layers: dict[str, DeltaSums] = {}
    for name, tensor in base.items():
        refs = [expert[name] for expert in experts.values() if name in expert]
        if len(refs) == len(experts) and alike(tensor, refs):
            sums = sum_deltas(tensor, refs)
            total += sums
            label = _layer(name)
            layers[label] = layers[label] + sums if label in layers else sums
        if report:
            report(tensor.nbytes)
    if not layers:
        raise SourceError(f"no tensor of floats is in the base and in all of {', '.join(experts)} with one shape")
    return Deltas(
        experts=tuple(experts),
        layers=tuple(layers),
        norms=tuple(tuple(float(s.norms[i]) for s in layers.values()) for i in range(len(experts))),
        cosine=tuple(map(tuple, total.cosine())),
        sign_conflict=tuple(map(tuple, total.sign_conflict())),
    )


def sum_deltas(base: TensorRef, experts: Sequence[TensorRef]) -> DeltaSums:
    """The sums of one tensor: floats of one shape."""
    count = len(experts)
    total = DeltaSums.empty(count)
    elements = 0
    for deltas in difference_blocks(base, experts):
        elements += deltas.shape[1]
        with np.errstate(all="ignore"):
            signs = np.sign(deltas)
            nonzero = np.abs(signs)
            # float64 holds whole numbers up to 2^53, and a block has 2^13 elements: these counts are exact
            agreement, both = signs @ signs.T, nonzero @ nonzero.T
            products = np.array([[float(x @ y) for y in deltas] for x in deltas])
        total += DeltaSums(products, both.astype(np.int64), ((both - agreement) / 2).astype(np.int64), deltas.shape[1])
    return DeltaSums(total.products, total.both, total.opposed, elements, base.numel - elements)


def difference_blocks(base: TensorRef, experts: Sequence[TensorRef], *, keep: bool = False) -> Iterator[np.ndarray]:
    """expert_i - base [k, n] in float64, a block at a time; elements with NaN or infinity anywhere are left out.

    With `keep` they are kept, and zero: what needs the places of elements takes them so.
    """
    refs = (base, *experts)
    step = max(1, READ // sum(ref.dtype.size for ref in refs) // BLOCK) * BLOCK
    for start in range(0, base.numel, step):
        stop = min(start + step, base.numel)
        raws = [np.frombuffer(ref.read(start, stop), np.uint8) for ref in refs]
        for at in range(0, stop - start, BLOCK):
            values = [
                widen(raw[at * ref.dtype.size : (at + BLOCK) * ref.dtype.size], ref.dtype.name)
                for raw, ref in zip(raws, refs, strict=True)
            ]
            with np.errstate(all="ignore"):
                rows = np.array(values[1:], dtype=np.float64) - values[0].astype(np.float64)
            finite = np.isfinite(rows).all(axis=0)
            if not finite.all():
                rows = np.where(finite, rows, 0.0) if keep else rows[:, finite]
            yield rows


def alike(base: TensorRef, experts: Sequence[TensorRef]) -> bool:
    """Floats with known values, of one shape, and not empty."""
    return base.numel > 0 and all(
        ref.shape == base.shape and BY_NAME[ref.dtype.name].floating and comparable("F64", ref.dtype.name)
        for ref in (base, *experts)
    )


def _layer(name: str) -> str:
    found = layer_of(name)
    return name if found is None else f"{found.stack}{found.number}"


def _shares(above: np.ndarray, below: np.ndarray) -> list[list[float | None]]:
    return [
        [_clipped(a / b) if b > 0 else None for a, b in zip(row, whole, strict=True)]
        for row, whole in zip(above.tolist(), below.tolist(), strict=True)
    ]


def _clipped(share: float) -> float:
    """Between -1 and 1: rounding in the last place carries a cosine over."""
    return max(-1.0, min(1.0, share))
