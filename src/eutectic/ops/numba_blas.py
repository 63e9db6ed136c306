"""Kernels without SciPy's linear algebra: numba finds out whether it is there by importing it, which takes longer than
loading the kernels, and none of them calls it."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

__all__ = ["defer_blas"]


def defer_blas() -> None:
    """Answer numba's question without the import; a function that calls BLAS still loads it when it is compiled.

    To be called before the first kernel is loaded; of a numba built otherwise it changes nothing.
    """
    linalg: Any = importlib.import_module("numba.np.linalg")
    ask = getattr(linalg, "ensure_blas", None)
    if ask is None or importlib.util.find_spec("scipy") is None:
        return
    linalg.ensure_blas = lambda: None
    try:
        arraymath: Any = importlib.import_module("numba.np.arraymath")
    finally:
        linalg.ensure_blas = ask
    arraymath.ensure_blas = ask
