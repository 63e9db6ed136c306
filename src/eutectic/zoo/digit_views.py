"""The images of the digits family: scikit-learn's handwritten digits, split once for all, and five views of them."""

from __future__ import annotations

import numpy as np

from eutectic.errors import MissingDependencyError
from eutectic.evaluation.views import View
from eutectic.zoo.family import SPLITS
from eutectic.zoo.image_family import Split
from eutectic.zoo.image_views import views_of

__all__ = ["CLASSES", "PIXELS", "SPLITS", "VIEWS", "Split", "load_splits"]

SIDE, PIXELS, CLASSES = 8, 64, 10
VIEWS: dict[str, View] = dict(list(views_of(SIDE).items())[:5])  # upright, flip, shift, invert, checker


def load_splits() -> dict[str, Split]:
    """Half of each class's images train, a quarter each validates and tests: dealt in turn, no randomness."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingDependencyError(
            "the digits family takes its images from scikit-learn; pip install 'eutectic[zoo]'"
        ) from None
    images, labels = load_digits(return_X_y=True)
    images, labels = (images / 16).astype(np.float32), labels.astype(np.int64)
    turn = np.zeros(len(labels), dtype=np.int64)
    for digit in range(CLASSES):
        turn[labels == digit] = np.arange(np.count_nonzero(labels == digit)) % 4
    rows = {"train": turn < 2, "validation": turn == 2, "test": turn == 3}
    return {name: Split(images[rows[name]], labels[rows[name]]) for name in SPLITS}
