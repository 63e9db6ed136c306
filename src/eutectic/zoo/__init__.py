"""Small families of real experts, trained on the spot and offline: what `eutectic zoo` and `eutectic demo` use."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["FAMILIES", "FamilyEntry"]


class FamilyEntry(NamedTuple):
    """A family that can be built: where its builder is (``"module:function"``) and what it is, in one line."""

    builder: str
    summary: str


# Plain text, so that listing the families imports neither torch nor scikit-learn.
FAMILIES: dict[str, FamilyEntry] = {
    "digits": FamilyEntry(
        builder="eutectic.zoo.digits:build_digits",
        summary="five experts on five views of scikit-learn's handwritten digits, fine-tuned from one base",
    ),
}
