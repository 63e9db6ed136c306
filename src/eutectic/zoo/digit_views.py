"""The images of the digits family: scikit-learn's handwritten digits, split once for all, and five views of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from eutectic.errors import MissingDependencyError
from eutectic.evaluation.classification import View

__all__ = ["CLASSES", "PIXELS", "SPLITS", "VIEWS", "Split", "load_splits"]

SIDE, PIXELS, CLASSES = 8, 64, 10
SPLITS = ("train", "validation", "test")
_ODD = (np.indices((SIDE, SIDE)).sum(axis=0) % 2 == 1).reshape(PIXELS)


def _flip(images: np.ndarray) -> np.ndarray:
    return images.reshape(-1, SIDE, SIDE)[:, :, ::-1].reshape(-1, PIXELS)


def _shift(images: np.ndarray) -> np.ndarray:
    return np.roll(images.reshape(-1, SIDE, SIDE), 2, axis=2).reshape(-1, PIXELS)


# Each view maps images [n, 64] in 0..1 to images [n, 64] in 0..1 and can be undone: no digit is lost in it.
VIEWS: dict[str, View] = {
    "upright": lambda images: images,
    "flip": _flip,  # left to right
    "shift": _shift,  # two pixels to the right, around the edge
    "invert": lambda images: 1 - images,
    "checker": lambda images: np.where(_ODD, 1 - images, images),  # every other pixel inverted
}


class Split(NamedTuple):
    """Upright images, float32 [n, 64] in 0..1, and their labels, int64 [n] in 0..9."""

    images: np.ndarray
    labels: np.ndarray


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
