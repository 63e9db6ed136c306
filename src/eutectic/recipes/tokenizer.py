"""The keys of a recipe that say which tokens the result has, in mergekit's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from eutectic.recipes.faults import NOTHING, OTHER_TOKEN, PATH, ZERO_ROW
from eutectic.recipes.references import Strict
from eutectic.recipes.values import PathText, Text, fault

__all__ = ["BASE", "UNION", "ModelText", "OtherToken", "TokenSource", "Tokenizer", "ZeroRow", "taken_from"]

UNION, BASE = "union", "base"


def _model_text(value: Any) -> Any:
    """mergekit's mappings for a model as text."""
    if isinstance(value, Mapping) and "model" in value and value.keys() <= {"model", "lora"}:
        model, lora = _model_text(value["model"]), _model_text(value.get("lora"))
        return model if lora is None or not isinstance(model, str) else f"{model}+{lora}"
    if isinstance(value, Mapping) and "path" in value and value.keys() <= {"path", "revision"}:
        return value["path"] if value.get("revision") is None else f"{value['path']}@{value['revision']}"
    return value


ModelText = Annotated[PathText, BeforeValidator(_model_text)]


class ZeroRow(Strict, frozen=True):
    """An embedding of zeros."""

    kind: Literal["zero"]


class OtherToken(Strict, frozen=True):
    """The embedding that a model has for some token: by its text or its number."""

    kind: Literal["model_token"]
    model: ModelText = Field(description="One of the models that are merged.")
    token: Text | None = Field(None, description="The token's text.")
    token_id: Annotated[int, Field(strict=True, ge=0)] | None = Field(None, description="Or its number.")

    def model_post_init(self, context: Any, /) -> None:
        """Refuse both of text and number, and neither."""
        if (self.token is None) == (self.token_id is None):
            raise fault("needs either a token or a token_id")


def _kind(value: Any) -> str | None:
    if value is None:
        return NOTHING
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    return PATH if kind is None else {"zero": ZERO_ROW, "model_token": OTHER_TOKEN}.get(str(kind), "")


Embedding = Annotated[
    Annotated[ModelText, Tag(PATH)]
    | Annotated[ZeroRow, Tag(ZERO_ROW)]
    | Annotated[OtherToken, Tag(OTHER_TOKEN)]
    | Annotated[None, Tag(NOTHING)],
    Discriminator(_kind),
]


class TokenSource(Strict, frozen=True):
    """Where the embedding of one token comes from."""

    source: Embedding = Field(None, description="A model, {kind: zero}, or {kind: model_token, model, token}.")
    force: Annotated[bool, Field(strict=True)] = Field(
        False, description="Take it in every model, also in those that have the token."
    )


class Tokenizer(Strict, frozen=True):
    """Which tokens the result has, and where embeddings come from that a model lacks."""

    source: ModelText = Field(UNION, description="union (of all models), base, or a model.")
    tokens: Mapping[str, TokenSource] = Field(default_factory=dict, description="Embeddings of single tokens.")
    pad_to_multiple_of: Annotated[int, Field(strict=True, ge=1, le=1 << 20)] | None = Field(
        None, description="Round the number of embeddings up."
    )

    def __hash__(self) -> int:
        return hash((self.source, tuple(self.tokens), self.pad_to_multiple_of))

    def data(self, shown: Any) -> dict[str, Any]:
        """Plain data with models as `shown` writes them."""
        found: dict[str, Any] = {"source": self.source if self.source in (UNION, BASE) else shown(self.source)}
        if self.tokens:
            found["tokens"] = {token: _token_data(source, shown) for token, source in sorted(self.tokens.items())}
        if self.pad_to_multiple_of is not None:
            found["pad_to_multiple_of"] = self.pad_to_multiple_of
        return found


def taken_from(source: str) -> Tokenizer:
    """What ``tokenizer_source`` stands for."""
    return Tokenizer.model_validate({"source": source})


def _token_data(token: TokenSource, shown: Any) -> dict[str, Any]:
    forced = {"force": True} if token.force else {}
    source = token.source
    if isinstance(source, ZeroRow):
        return {"source": {"kind": "zero"}, **forced}
    if isinstance(source, OtherToken):
        which = {"token_id": source.token_id} if source.token is None else {"token": source.token}
        return {"source": {"kind": "model_token", "model": shown(source.model), **which}, **forced}
    return forced if source is None else {"source": shown(source), **forced}
