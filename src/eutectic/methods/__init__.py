"""Merge methods: pure functions over tensors with declared facts. One file each, named as the paper names it.

`get_method` finds one by name, `list_methods` all of them, built in or installed by a plug-in (entry-point group
``eutectic.methods``: each entry point is a `Method`). A built-in name cannot be taken by a plug-in.
"""

from __future__ import annotations

from eutectic.errors import MethodError, nearest
from eutectic.methods.dare import dare_linear, dare_ties
from eutectic.methods.linear import linear
from eutectic.methods.method import Method, PerSource, Range, each, merge_method
from eutectic.methods.passthrough import passthrough
from eutectic.methods.slerp import slerp
from eutectic.methods.task_arithmetic import task_arithmetic
from eutectic.methods.ties import ties
from eutectic.registry import Plugins

__all__ = [
    "BUILT_IN",
    "Method",
    "PerSource",
    "Range",
    "dare_linear",
    "dare_ties",
    "each",
    "get_method",
    "linear",
    "list_methods",
    "merge_method",
    "passthrough",
    "slerp",
    "task_arithmetic",
    "ties",
]

BUILT_IN = {
    method.name: method for method in (linear, slerp, task_arithmetic, ties, dare_linear, dare_ties, passthrough)
}

_plugins = Plugins("eutectic.methods")


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        MethodError: nobody offers it (with the nearest name), or a plug-in that should cannot be loaded.

    >>> get_method("ties").scope
    'tensor'
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    known = [*BUILT_IN, *_plugins.names()]
    if name not in known:
        raise MethodError(
            f"no merge method is called {name!r}{nearest(name, known) or '; see `eutectic list methods`'}"
        )
    found = _plugins.load(name)
    if not isinstance(found, Method):
        raise MethodError(f"the plug-in method {name!r} is {type(found).__name__}, not a Method; decorate it")
    return found


def list_methods() -> dict[str, Method]:
    """Every method by name, the built-in ones first."""
    return {name: get_method(name) for name in [*BUILT_IN, *(n for n in _plugins.names() if n not in BUILT_IN)]}
