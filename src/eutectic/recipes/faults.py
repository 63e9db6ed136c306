"""What pydantic found wrong with a recipe, as sentences for the person who wrote it.

pydantic's own wording never reaches the user: each kind of error that the schema can raise has a sentence
here, and any other kind falls back to a plain one.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from typing import Any

from eutectic.errors import nearest
from eutectic.recipes.document import Location

__all__ = [
    "FILE",
    "MERGEKIT",
    "NOTHING",
    "PATH",
    "RECIPE",
    "Problem",
    "concerns",
    "mended",
    "problems_of",
    "sentence_of",
    "shown",
    "sources_of",
    "too_deep",
]

Problem = tuple[Location, str]
MOST_NESTED = 16

# Tags of the kinds of reference; pydantic puts them into locations, where the user's file has nothing.
PATH, RECIPE, FILE, MERGEKIT, NOTHING = "<path>", "<recipe>", "<file>", "<mergekit>", "<nothing>"
ZERO_ROW, OTHER_TOKEN = "<zero>", "<model_token>"
_TAGS = (PATH, RECIPE, FILE, MERGEKIT, NOTHING, ZERO_ROW, OTHER_TOKEN)

# Keys that mergekit's schema has and this one does not, and what to do instead.
_LATER = {
    "override_architecture": "remove it; tensors are matched by name",
    "residual_weight": "remove it; mergekit ignores it too",
}
# Options of merge methods, often written one level too high.
_OPTIONS = {"weight", "density", "lambda", "epsilon", "gamma", "t", "normalize", "rescale", "int8_mask", "scale"}
_OPTIONS |= {"select_topk", "sign_vote", "max_iter", "tol", "eps", "alpha", "r", "filter_wise", "normalize_weights"}
_OPTIONS |= {"nuslerp_flatten", "nuslerp_row_wise", "scope"}
# Keys for which "?" stands in, when their value cannot be read, while the rest of the recipe is checked.
_NEEDED = ("merge_method", "model", "base_model")
_FORMS = ("models", "slices", "modules")
_STAND_IN = {"sources": {"model": "?", "layer_range": [0, 1]}}
_STAND_IN["slices"] = {"sources": [_STAND_IN["sources"]]}
_EXAMPLES = {
    "merge_method": "add for example 'merge_method: linear'",
    "models": "add a list of models, each '- model: ./path'",
    "slices": "add a list of slices, each with a list of sources",
    "sources": "add a list of sources, each '- {model: ./path, layer_range: [0, 16]}'",
    "modules": "add a module, such as 'text_decoder: {models: [{model: ./path}]}'",
    "layer_range": "add for example 'layer_range: [0, 16]'",
    "model": "each entry of 'models' starts with '- model: ./path'",
    "path": "add 'path: ./folder'",
}


def problems_of(errors: list[Any], known: Mapping[str, list[str]]) -> list[Problem]:
    """pydantic's errors as (location, sentence); what follows from another of them is left out.

    Args:
        errors: `ValidationError.errors()`.
        known: the keys of each kind of mapping: "recipe", "source", "file", "mergekit".
    """
    extra = [error["loc"] for error in errors if error["type"] == "extra_forbidden"]
    problems: list[Problem] = []
    for error in errors:
        *above, key = error["loc"] or ("",)
        misspelt = any([*above] == [*loc[:-1]] and nearest(str(loc[-1]), [str(key)]) for loc in extra)
        if error["type"] == "missing" and misspelt:
            continue  # the unknown key beside it says so
        if error["type"] == "too_short" and error["input"]:
            continue  # pydantic counts the valid items only
        problems.append((_location_of(error), sentence_of(error, known)))
    return problems


def _location_of(error: Mapping[str, Any]) -> Location:
    """pydantic's location without the tags that choose between kinds of reference, and without its mark of a key."""
    loc = error["loc"][:-1] if error["loc"][-1:] == ("[key]",) else error["loc"]
    return tuple(step for step in loc if step not in _TAGS)


def sentence_of(error: Mapping[str, Any], known: Mapping[str, list[str]]) -> str:
    """One sentence for one of pydantic's errors: key, value found, what to do.

    >>> sentence_of({"type": "string_type", "loc": ("name",), "input": 7}, {})
    "'name' must be text; found 7; put it in quotes"
    """
    kind, value, context = error["type"], error.get("input"), error.get("ctx", {})
    key = _key(_location_of(error))
    if kind == "eutectic":
        return f"{key} {context['sentence']}"
    if kind == "missing":
        return f"key {key} is missing; {_EXAMPLES.get(str(error['loc'][-1]), 'add it')}"
    if kind == "extra_forbidden":
        return _extra(error["loc"], known)
    if kind == "none_required":
        return _later(str(error["loc"][-1]))
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        hint = nearest(value, choices) if isinstance(value, str) else ""
        return f"{key} must be {' or '.join(map(repr, choices))}; found {shown(value)}{hint}"
    if kind == "string_type":
        quotes = "; put it in quotes" if isinstance(value, (int, float)) else ""
        return f"{key} must be text; found {shown(value)}{quotes}"
    if kind in ("string_too_short", "string_pattern_mismatch"):
        return f"{key} must not be empty"
    if kind.startswith(("int_", "greater_than", "less_than")) and "tokenizer" in error["loc"]:
        return f"{key} must be a whole number, at least {context.get('ge', 1)}; found {shown(value)}"
    if kind == "bool_type":
        return f"{key} must be true or false; found {shown(value)}"
    if kind.startswith(("int_", "greater_than", "less_than")):
        return f"{key} must be a whole number from 0 to 2**64 - 1; found {shown(value)}"
    if kind == "too_short":
        return f"{key} is empty; {_EXAMPLES.get(str(error['loc'][-1]), _EXAMPLES['models'])}"
    if kind in ("tuple_type", "list_type"):
        return f"{key} must be a list; found {shown(value)}"
    if kind in ("dict_type", "mapping_type"):
        example = "text_decoder: {models: [...]}" if error["loc"][-1:] == ("modules",) else "weight: 0.5"
        return f"{key} must be a mapping such as '{example}'; found {shown(value)}"
    if kind.startswith(("model_", "dataclass_")):
        return _not_a_mapping(error["loc"], value)
    if kind.startswith("union_tag") and "tokens" in error["loc"]:
        return f"{key} must be a model, {{kind: zero}} or {{kind: model_token, model, token}}; found {shown(value)}"
    if kind.startswith("union_tag"):
        return f"{key} must be a path or a nested recipe; found {shown(value)}"
    return f"{key} does not take {shown(value)}"


def shown(value: Any) -> str:
    """A value as the user wrote it, in at most 60 characters.

    >>> shown(True), shown([1, 2]), shown(None), shown("x")
    ('true', 'a list', 'nothing', "'x'")
    """
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, float) and not math.isfinite(value):
        return f".{value!r}".replace(".-", "-.")
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]}...{text[0]}"


def _key(loc: Location) -> str:
    """The key that a person would point at: the last name of the location, with the index behind it."""
    if not loc:
        return "the recipe"
    if isinstance(loc[-1], int):
        return f"entry {loc[-1] + 1} of {_key(loc[:-1])}"
    return f"'{shown(loc[-1])[1:-1]}'"


def _extra(loc: tuple[Any, ...], known: Mapping[str, list[str]]) -> str:
    key, above = str(loc[-1]), loc[:-1]
    kind = "recipe"
    if above and above[-1] in (FILE, MERGEKIT):
        kind = above[-1].strip("<>")
    elif above and isinstance(above[-1], int):
        kind = {"slices": "slice", "sources": "slice source"}.get(str(above[-2]), "source")
    elif len(above) > 1 and above[-2] == "modules":
        kind = "module"
    elif above[-1:] == ("adapter",):
        kind = "adapter"
    elif "tokenizer" in above:
        kind = "other token" if OTHER_TOKEN in above else "token" if "tokens" in above else "tokenizer"
    if key in ("layer_range", "sources") and kind in ("recipe", "source", "module"):
        return f"unknown key {key!r} here; layers are chosen under 'slices:', each with a list of 'sources:'"
    names = known.get(kind, [])
    hint = nearest(key, names)
    if key in _LATER:
        return _later(key)
    if key in _OPTIONS and kind not in ("file", "mergekit"):
        return f"unknown key {key!r} here; a method's options belong under 'parameters:'"
    return f"unknown key {shown(key)}" + (hint or f"; known here: {', '.join(names)}")


def _later(key: str) -> str:
    return f"mergekit's {key!r} is not supported by Eutectic yet; {_LATER.get(key, 'remove it')}"


def _not_a_mapping(loc: tuple[Any, ...], value: Any) -> str:
    if loc and isinstance(loc[-1], int):
        example = f"- model: {value}" if isinstance(value, str) and len(value) < 60 else "- model: ./path"
        return f"{_key(loc)} must be a mapping; found {shown(value)}; write {example!r}"
    return f"{_key(_location_of({'loc': loc}))} must be a mapping of keys to values; found {shown(value)}"


def too_deep(data: Any) -> list[Problem]:
    """Recipes written inside recipes beyond the bound, found before pydantic descends into them."""
    open_: list[tuple[Location, Any, int]] = [((), data, 0)]
    while open_:
        loc, recipe, depth = open_.pop()
        if depth > MOST_NESTED:
            return [(loc, f"recipes are nested more than {MOST_NESTED} deep")]
        open_ += [(where, value, depth + 1) for where, value in _inner(recipe, loc) if isinstance(value, dict)]
    return []


def _inner(recipe: Any, loc: Location) -> list[tuple[Location, Any]]:
    """Whatever stands where a recipe, or one of its parts, may name a model."""
    if not isinstance(recipe, dict):
        return []
    found: list[tuple[Location, Any]] = [((*loc, "base_model"), recipe.get("base_model"))]
    for key in ("models", "sources"):
        for at, source in _items(recipe.get(key)):
            found.append(((*loc, key, at, "model"), source.get("model") if isinstance(source, dict) else None))
    for at, part in _items(recipe.get("slices")):
        found += _inner(part, (*loc, "slices", at))
    for name, module in _items(recipe.get("modules")):
        found += [entry for entry in _inner(module, (*loc, "modules", name)) if "base_model" not in entry[0][-1:]]
    return found


def _items(value: Any) -> list[tuple[Any, Any]]:
    return list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []


def sources_of(data: Any, loc: Location = ()) -> list[Problem]:
    """Recipes and modules that do not have exactly one of the three ways to name what they merge."""
    if not isinstance(data, dict) or not (not loc or "merge_method" in data or any(form in data for form in _FORMS)):
        return []
    problems = _form(data, loc, _FORMS)
    if data.get("tokenizer") is not None and data.get("tokenizer_source") is not None:
        both = "'tokenizer' and 'tokenizer_source' stand side by side; put the source into 'tokenizer'"
        problems.append(((*loc, "tokenizer_source"), both))
    for name, module in _items(data.get("modules")):
        if isinstance(module, dict):
            problems += _form(module, (*loc, "modules", name), _FORMS[:2])
    for where, value in _inner(data, loc):
        problems += sources_of(value, where) if isinstance(value, dict) else []
    return problems


def _form(data: Mapping[str, Any], loc: Location, forms: tuple[str, ...]) -> list[Problem]:
    given = [form for form in forms if form in data]
    if len(given) > 1:
        which = " and ".join(map(repr, given))
        return [
            ((*loc, given[1]), f"{which} stand side by side; exactly one of {', '.join(forms)} says what is merged")
        ]
    misspelt = any(nearest(str(key), [form]) for key in data for form in forms)
    return [] if given or misspelt else [((*loc, "models"), f"key 'models' is missing; {_EXAMPLES['models']}")]


def mended(data: Any, faulty: list[Location]) -> Any:
    """A copy without the values at `faulty`; where a value cannot be missing, something stands in for it."""
    data = copy.deepcopy(data)
    for loc in faulty:
        parent = data
        for step in loc[:-1]:
            parent = _child(parent, step)
        if isinstance(parent, list) and isinstance(loc[-1], int):
            parent[loc[-1]] = _STAND_IN.get(str(loc[-2]), {"model": "?"})
        elif isinstance(parent, dict):
            key = str(loc[-1])
            parent.pop(key, None)
            if loc[-3:-2] == ("sources",) and "layer_range" not in parent:
                parent["layer_range"] = [0, 1]
            if loc[-3:-2] in (("slices",), ("modules",)):
                continue
            is_recipe = "merge_method" in parent or any(form in parent for form in _FORMS) or not loc[:-1]
            needed = [name for name in _NEEDED if (name == "model") != is_recipe and name not in parent]
            parent |= {name: "?" for name in needed if name == key or nearest(key, [name])}
    return data


def _child(node: Any, step: str | int) -> Any:
    if isinstance(node, dict):
        return node.get(step)
    return node[step] if isinstance(node, list) and isinstance(step, int) and step < len(node) else None


def concerns(problem: Problem, faulty: list[Location]) -> bool:
    """Whether a problem found in the mended recipe is about something that was removed from it."""
    loc, sentence = problem
    for other in faulty:
        if loc in (other, other[:-1]):
            return True
        owner = other[:-2]
        elsewhere = len(loc) >= len(owner) and loc[: len(owner)] != owner
        named = re.search(rf"\b{re.escape(str(other[-1]))}\b", sentence)
        if "parameters" in other[-2:-1] and named and not elsewhere:
            return True
    return False
