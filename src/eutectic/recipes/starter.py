"""A commented recipe to start from, written from a method's declared parameters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from eutectic.methods.method import Method, Parameter
from eutectic.recipes.yaml_text import dump_yaml

__all__ = ["starter"]


def starter(method: Method, models: Sequence[str] = (), base: str | None = None, dtype: str | None = None) -> str:
    """The text of a recipe for `method`: what must be given stands there, what may be given is commented out.

    Without `models` it names as many as the method needs, as paths to replace.

    >>> from eutectic.methods import get_method
    >>> print(starter(get_method("linear"), ["./a", "./b"]), end="")
    # linear: weighted average of the sources
    merge_method: linear
    models:
      - model: ./a
        parameters:
          weight: 0.5         # a number: share of each source
      - model: ./b
        parameters:
          weight: 0.5         # a number: share of each source
    # parameters:
    #   normalize: true       # true or false: divide by the sum of the weights
    # dtype: bfloat16         # of the result; without it, that of the reference model
    """
    fewest, most = method.sources
    wanted = max(fewest, 2 if most is None or most > 1 else 1)
    first = method.base == "first"
    names = list(models) or [f"./models/{letter}" for letter in "abcdefgh"[: wanted - first]]
    lines = [f"# {method.name}: {method.summary}", f"merge_method: {method.name}"]
    if base is not None or method.base in ("required", "first"):
        lines.append(f"base_model: {_text(base or './models/base')}")
    lines.append("models:")
    each = [p for p in method.parameters.values() if p.per_source]
    whole = [p for p in method.parameters.values() if not p.per_source]
    for name in names:
        lines.append(f"  - model: {_text(name)}")
        if method.needs is not None:
            folder = _text(f"./stats/{PurePath(name).name}")
            lines.append(_aligned(f"    statistics: {folder}", f"by eutectic stats collect --kinds {method.needs}"))
        needed = any(parameter.required for parameter in each)
        lines += _block(each, 4, len(names), needed=needed)
    lines += _block(whole, 0, len(names), needed=any(parameter.required for parameter in whole))
    if method.stochastic:
        lines.append(_aligned("# seed: 0", "of the random numbers; --seed overrides it"))
    line = "dtype: bfloat16" if dtype is None else f"dtype: {dtype}"
    lines.append(_aligned(line if dtype else f"# {line}", "of the result; without it, that of the reference model"))
    return "\n".join(lines) + "\n"


def _block(parameters: Sequence[Parameter], indent: int, sources: int, *, needed: bool) -> list[str]:
    """The lines of a `parameters` mapping; all comments where none is needed."""
    if not parameters:
        return []
    margin = " " * indent
    lines = [f"{margin}{'' if needed else '# '}parameters:"]
    for parameter in parameters:
        value = _value(parameter, sources)
        sign = "  " if needed and parameter.required else "  # " if needed else "#   "
        bounds = "" if str(parameter.range) == "-inf to inf" else f", {parameter.range}"
        meaning = f": {parameter.meaning}" if parameter.meaning else ""
        lines.append(_aligned(f"{margin}{sign}{parameter.name}: {value}", f"{parameter.expected}{bounds}{meaning}"))
    return lines


def _value(parameter: Parameter, sources: int) -> str:
    if not parameter.required:
        return dump_yaml([parameter.default]).strip()[2:]
    if parameter.name == "weight":
        return f"{round(1 / sources, 3):g}"
    low, high = parameter.range.low, parameter.range.high
    return "0.5" if low <= 0.5 <= high else f"{max(low, min(high, 1)):g}"


def _aligned(text: str, comment: str) -> str:
    return f"{text:<25} # {comment}"


def _text(value: str) -> str:
    return dump_yaml([value]).strip()[2:]
