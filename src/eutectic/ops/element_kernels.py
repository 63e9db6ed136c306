"""Elements of any float type to an array of float32 and back, rounded once. Legend: `codec_kernels.py`."""

from __future__ import annotations

import numpy as np

from eutectic.ops.codec_kernels import decode, encode, kernel

__all__ = ["narrowed", "squares", "widened"]

COMPILED_IN = "127f3f7b12d1f1e0"


@kernel
def widened(raw, code, values):  # pragma: no cover - compiled
    """Fill `values` (float32 [n]) from elements of type `code` in `raw` (uint8); returns 1 if any is not finite."""
    return decode(raw, code, 0, len(values), values.view(np.uint32))


@kernel
def narrowed(values, code, raw):  # pragma: no cover - compiled
    """Fill `raw` (uint8) with `values` (float32 [n]) as elements of type `code`, rounded to nearest even."""
    encode(values.view(np.uint32), len(values), raw, code, 0)


@kernel
def squares(base, expert, near):  # pragma: no cover - compiled
    """(sum of (near - expert)^2, sum of (expert - base)^2) in float64, over flat arrays."""
    missed, changed = 0.0, 0.0
    for i in range(len(base)):
        off = np.float64(near[i]) - np.float64(expert[i])
        delta = np.float64(expert[i]) - np.float64(base[i])
        missed += off * off
        changed += delta * delta
    return missed, changed
