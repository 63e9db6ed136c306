"""The files beside the weights that name tokens: the tokenizer's own, the chat template, numbers in config.json."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from eutectic.errors import FormatError
from eutectic.recipes.chat_templates import CHAT_TEMPLATE
from eutectic.recipes.vocabulary import Unified
from eutectic.weights.layout import vocabulary_sizes
from eutectic.weights.vocabulary import TOKENIZER

__all__ = ["TOKENIZER_FILES", "renumbered", "with_template", "with_tokens"]

TOKENIZER_FILES = (
    "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*", "*.model",
    "*.jinja",
)  # fmt: skip
CONFIG, ADDED = "tokenizer_config.json", "added_tokens.json"


def with_tokens(files: Mapping[str, bytes], fresh: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """A tokenizer's files with more tokens, described as in tokenizer.json."""
    found = dict(files)
    if not fresh:
        return found
    if TOKENIZER in files:
        document = _object(files, TOKENIZER)
        document["added_tokens"] = [*document.get("added_tokens", ()), *fresh]
        found[TOKENIZER] = _json(document)
    if ADDED in files or TOKENIZER not in files:
        numbers = _object(files, ADDED) if ADDED in files else {}
        found[ADDED] = _json({**numbers, **{entry["content"]: entry["id"] for entry in fresh}})
    if CONFIG in files:
        config = _object(files, CONFIG)
        if isinstance(config.get("added_tokens_decoder"), dict):
            config["added_tokens_decoder"] |= {
                str(entry["id"]): {key: value for key, value in entry.items() if key != "id"} for entry in fresh
            }
            found[CONFIG] = _json(config)
    return found


def _object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        document = json.loads(files[name].decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{name} of the tokenizer: not valid JSON: {str(error)[:120]}") from None
    if not isinstance(document, dict):
        raise FormatError(f"{name} of the tokenizer: a JSON {type(document).__name__}, not an object")
    return document


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


def with_template(files: Mapping[str, bytes], template: str) -> dict[str, bytes]:
    """A tokenizer's files with one chat template, where every reader looks for it."""
    found = {name: content for name, content in files.items() if not name.startswith("chat_template")}
    found[CHAT_TEMPLATE] = template.encode()
    if CONFIG in files:
        found[CONFIG] = _json({**_object(files, CONFIG), "chat_template": template})
    return found


def renumbered(config: Mapping[str, Any], unified: Unified, source: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the result's number of embeddings and numbers of tokens.

    A token keeps its meaning: bos_token_id and the like follow the token to its new number. Where the result has no
    such token, the number is that of `source`, the configuration beside the result's tokenizer.
    """
    found = copy.deepcopy(dict(config))
    if unified.rows is not None:
        for path, _ in list(vocabulary_sizes(found)):
            owner = found
            for key in path[:-1]:
                owner = owner[key]
            owner[path[-1]] = unified.rows
    _renumber(found, unified, source)
    return found


def _renumber(config: dict[str, Any], unified: Unified, source: Mapping[str, Any]) -> None:
    for key, value in list(config.items()):
        if isinstance(value, dict):
            inner = source.get(key)
            _renumber(value, unified, inner if isinstance(inner, dict) else {})
        elif key.endswith(("token_id", "token_ids", "token_index")) and value is not None:
            numbers = value if isinstance(value, list) else [value]
            moved = [_moved(number, unified) for number in numbers]
            if None in moved:
                config[key] = source.get(key)
            else:
                config[key] = moved if isinstance(value, list) else moved[0]


def _moved(number: Any, unified: Unified) -> Any:
    """The new number of the reference model's token; what is no token's number stays."""
    if not isinstance(number, int) or number not in unified.reference.tokens:
        return number
    return unified.result.ids.get(unified.reference.tokens[number])
