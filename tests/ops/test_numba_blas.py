"""SciPy's linear algebra stays out until a compiled function asks for it, and is there then."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
import numpy as np
from eutectic.ops.numba_blas import defer_blas

defer_blas()
from numba import njit
from numba.np import linalg

assert njit(lambda x: x + 1)(1) == 2
assert "scipy.linalg" not in sys.modules
assert linalg.ensure_blas.__name__ == "ensure_blas"
a = np.arange(6.0).reshape(2, 3)
assert (njit(lambda x: np.dot(x, x.T))(a) == a @ a.T).all()
assert "scipy.linalg" in sys.modules
"""


def test_blas_is_loaded_when_it_is_used() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
