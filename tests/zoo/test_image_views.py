"""Views: distinct, and nothing is lost in them."""

from __future__ import annotations

import numpy as np
import pytest

from eutectic.zoo.image_views import views_of


@pytest.mark.parametrize("side", [8, 28])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_views_keep_every_pixel_apart(side: int, dtype: str) -> None:
    pixels = side * side
    images = np.random.default_rng(0).permutation(pixels)[None] % 251
    images = images.astype(np.uint8) if dtype == "uint8" else (images / 255).astype(np.float32)
    seen = {name: view(images) for name, view in views_of(side).items()}
    for name, shown in seen.items():
        assert shown.shape == images.shape and shown.dtype == images.dtype, name
        assert len({other.tobytes() for other in seen.values()}) == len(seen)
    for name in ("flip", "invert", "checker", "swap"):
        np.testing.assert_allclose(views_of(side)[name](seen[name]), images, atol=1e-6)
    for name in ("flip", "shift", "turn", "swap", "comb"):
        assert np.array_equal(np.sort(seen[name]), np.sort(images))
