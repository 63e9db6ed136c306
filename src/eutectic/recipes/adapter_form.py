"""The key `adapter` of a recipe: how the merge of adapters becomes an adapter again."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from eutectic.recipes.faults import shown
from eutectic.recipes.references import Strict
from eutectic.recipes.values import fault

__all__ = ["AdapterForm"]


def _rank(value: Any) -> Any:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise fault(f"must be a whole number, at least 1; found {shown(value)}")
    return value


def _share(value: Any) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (number and 0 < value < 1):
        raise fault(f"must be a number between 0 and 1; found {shown(value)}")
    return value


class AdapterForm(Strict, frozen=True):
    """How merged adapters are written."""

    space: Literal["product", "factors"] = Field(
        "product", description="product merges what the adapters change, factors averages their A and B apart."
    )
    rank: Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_rank)] = Field(
        None, description="Of every module, at most. Default: as exact as it needs."
    )
    max_error: Annotated[Annotated[float, Field(gt=0, lt=1)] | None, BeforeValidator(_share)] = Field(
        None, description="Take the smallest rank whose relative error is at most this."
    )

    def model_post_init(self, context: Any, /) -> None:
        """Refuse a rank of factors that are averaged: theirs stays."""
        if self.space == "factors" and (self.rank is not None or self.max_error is not None):
            raise fault("takes no rank and no max_error with 'space: factors', which keeps the rank of the sources")

    def data(self) -> dict[str, Any]:
        """Plain data without defaults."""
        return self.model_dump(exclude_defaults=True)
