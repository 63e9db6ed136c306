"""Elements of any float type to an array of float32 and back, rounded once. Legend: `codec_kernels.py`."""

from __future__ import annotations

import numpy as np

from eutectic.ops.codec_kernels import STEP, decode, encode, kernel

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
def squares(base, expert, near, code):  # pragma: no cover - compiled
    """(sum of (near - expert)^2, of (expert - base)^2) in float64; near is rounded to a half type of `code` before."""
    missed, changed = 0.0, 0.0
    values, raw = np.empty(STEP, np.float32), np.empty(4 * STEP, np.uint8)
    for start in range(0, len(base), STEP):
        m = min(STEP, len(base) - start)
        low, high, found = base[start : start + m], expert[start : start + m], near[start : start + m]
        if code < 2:
            for i in range(m):
                values[i] = np.float32(found[i])
            encode(values.view(np.uint32), m, raw, code, 0)
            decode(raw, code, 0, m, values.view(np.uint32))
        for i in range(m):
            own = np.float64(high[i])
            off = (np.float64(values[i]) if code < 2 else np.float64(found[i])) - own
            delta = own - np.float64(low[i])
            missed += off * off
            changed += delta * delta
    return missed, changed
