"""Eutectic: compose neural models that already exist.

>>> import eutectic
>>> checkpoint = eutectic.open("models/base")             # doctest: +SKIP
>>> eutectic.merge("recipe.yaml", "merged")               # doctest: +SKIP
>>> planned = eutectic.merge("recipe.yaml")               # doctest: +SKIP
>>> planned["lm_head.weight"].to_torch()                  # doctest: +SKIP

Importing this loads neither torch nor numpy; every name below is imported when it is first used.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from collections.abc import Callable

    from eutectic.errors import EutecticError as EutecticError
    from eutectic.methods import list_methods as list_methods
    from eutectic.methods.method import merge_method as merge_method
    from eutectic.methods.state_dicts import merge_state_dicts as merge_state_dicts
    from eutectic.recipes.merge import Watcher as Watcher
    from eutectic.recipes.merge import merge as merge
    from eutectic.recipes.merge import plan as plan
    from eutectic.recipes.plan import Options as Options
    from eutectic.recipes.plan import Plan as Plan
    from eutectic.recipes.pooling import pack as pack
    from eutectic.recipes.verify import verify as verify
    from eutectic.weights.checkpoint import Checkpoint as Checkpoint
    from eutectic.weights.tensor_ref import TensorRef as TensorRef

    fit: Callable[..., Any]  # of a higher layer, which lower ones must not reach through this package

_HOMES = {
    "Checkpoint": "weights.checkpoint",
    "EutecticError": "errors",
    "Options": "recipes.plan",
    "Plan": "recipes.plan",
    "TensorRef": "weights.tensor_ref",
    "Watcher": "recipes.merge",
    "fit": "evaluation.fitting.fit",
    "list_methods": "methods",
    "merge": "recipes.merge",
    "merge_method": "methods.method",
    "merge_state_dicts": "methods.state_dicts",
    "pack": "recipes.pooling",
    "plan": "recipes.merge",
    "verify": "recipes.verify",
}

__all__ = [
    "Checkpoint",
    "EutecticError",
    "Options",
    "Plan",
    "TensorRef",
    "Watcher",
    "fit",
    "list_methods",
    "merge",
    "merge_method",
    "merge_state_dicts",
    "open",
    "pack",
    "plan",
    "verify",
]


def open(source: Any, **options: Any) -> Checkpoint:
    """A lazy `Checkpoint`: of a model folder or weight file, or of a recipe (which merges when it is read).

    Args:
        source: a path to a folder, a weight file, a recipe file or a lock file; a pool's member, ``POOL#NAME``; or a
            recipe as a mapping.
        options: for a recipe, fields of `Options`, such as ``seed=1``.

    >>> eutectic.open("models/base")["model.norm.weight"].shape          # doctest: +SKIP
    """
    is_recipe = not isinstance(source, (str, os.PathLike)) or str(source).endswith((".yaml", ".yml", ".lock.json"))
    if is_recipe:
        from eutectic.recipes.merge import plan

        return plan(source, **options)
    from eutectic.weights.checkpoint import open_checkpoint

    if options:
        raise TypeError(f"{source} is no recipe and takes no options")
    return open_checkpoint(source)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"eutectic.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'eutectic' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
