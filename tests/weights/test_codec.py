"""`widen`: every pattern of the narrow types, and the types that numpy knows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eutectic.weights.codec import widen
from eutectic.weights.dtypes import BY_NAME


@pytest.mark.parametrize("name", ["BF16", "F16", "F8_E4M3", "F8_E5M2"])
def test_every_pattern_widens_exactly(name: str) -> None:
    dtype = BY_NAME[name]
    raw = np.arange(1 << 8 * dtype.size, dtype=f"<u{dtype.size}").view(np.uint8)
    expected = torch.from_numpy(raw).view(getattr(torch, dtype.torch)).float().numpy()
    found = widen(raw, name).astype(np.float32)
    assert (np.isnan(found) == np.isnan(expected)).all()
    numbers = ~np.isnan(expected)
    assert (found.view(np.uint32)[numbers] == expected.view(np.uint32)[numbers]).all()


@pytest.mark.parametrize("name", [n for n, d in BY_NAME.items() if d.numpy != "|u1" and n not in ("BF16",)])
def test_types_of_numpy_are_views(name: str) -> None:
    raw = np.arange(32, dtype=np.uint8)
    found = widen(raw, name)
    assert found.dtype == np.dtype(BY_NAME[name].numpy)
    assert np.shares_memory(found, raw)
    assert found.tobytes() == raw.tobytes()
