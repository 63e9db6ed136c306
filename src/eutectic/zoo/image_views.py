"""Views of images: the same pictures seen otherwise, each reversible, so that nothing is lost in it."""

from __future__ import annotations

import numpy as np

from eutectic.evaluation.views import View

__all__ = ["views_of"]


def views_of(side: int) -> dict[str, View]:
    """Views by name. Each maps images [n, side * side], float in 0..1 or uint8, to such images.

    >>> images = np.array([[0, 255, 0, 0]], dtype=np.uint8)
    >>> {name: view(images).ravel().tolist() for name, view in list(views_of(2).items())[3:6]}
    {'invert': [255, 0, 255, 255], 'checker': [0, 0, 255, 0], 'turn': [255, 0, 0, 0]}
    """
    odd = (np.indices((side, side)).sum(axis=0) % 2 == 1).reshape(-1)

    def square(images: np.ndarray) -> np.ndarray:
        return images.reshape(-1, side, side)

    def flat(images: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(images).reshape(-1, side * side)

    def invert(images: np.ndarray) -> np.ndarray:
        return (255 if images.dtype == np.uint8 else 1) - images

    return {
        "upright": lambda images: images,
        "flip": lambda images: flat(square(images)[:, :, ::-1]),  # left to right
        "shift": lambda images: flat(np.roll(square(images), side // 4, axis=2)),  # to the right, around the edge
        "invert": invert,
        "checker": lambda images: np.where(odd, invert(images), images),  # every other pixel inverted
        "turn": lambda images: flat(np.rot90(square(images), axes=(1, 2))),  # a quarter, to the left
        "swap": lambda images: flat(np.roll(square(images), side // 2, axis=1)),  # upper half and lower half
        "comb": lambda images: flat(np.concatenate([square(images)[:, 0::2], square(images)[:, 1::2]], axis=1)),
    }
