"""Merge methods: pure functions over tensors with declared facts. One file each, named as the paper names it.

`get_method` finds one by name, `list_methods` all of them, built in or installed by a plug-in (entry-point group
``eutectic.methods``: each entry point is a `Method` of the same name). A built-in name cannot be taken by a plug-in.
`broken_methods` says which plug-ins cannot be used, and why; they are in nobody's way until they are asked for.
"""

from __future__ import annotations

from functools import cache

from eutectic.errors import EutecticError, MethodError, nearest
from eutectic.methods.arcee_fusion import arcee_fusion
from eutectic.methods.breadcrumbs import breadcrumbs, breadcrumbs_ties
from eutectic.methods.consensus import consensus
from eutectic.methods.dare import dare_linear, dare_ties
from eutectic.methods.della import della, della_linear
from eutectic.methods.ema import ema
from eutectic.methods.emr import emr
from eutectic.methods.expo import expo
from eutectic.methods.fisher import fisher
from eutectic.methods.iso_c import iso_c
from eutectic.methods.iso_cts import iso_cts
from eutectic.methods.karcher import karcher
from eutectic.methods.knots import knots_ties
from eutectic.methods.linear import linear
from eutectic.methods.localize_and_stitch import localize_and_stitch
from eutectic.methods.magmax import magmax
from eutectic.methods.method import Method, PerSource, Range, each, merge_method
from eutectic.methods.model_stock import model_stock
from eutectic.methods.multislerp import multislerp
from eutectic.methods.nearswap import nearswap
from eutectic.methods.nuslerp import nuslerp
from eutectic.methods.passthrough import passthrough
from eutectic.methods.pcb import pcb
from eutectic.methods.r_tsvm import r_tsvm
from eutectic.methods.ram import ram, ramplus_tl
from eutectic.methods.regmean import regmean
from eutectic.methods.sce import sce
from eutectic.methods.singular_value_calibration import task_arithmetic_svc
from eutectic.methods.slerp import slerp
from eutectic.methods.soup import soup
from eutectic.methods.subspace_boosting import task_arithmetic_sb, ties_sb
from eutectic.methods.task_arithmetic import task_arithmetic
from eutectic.methods.ties import ties
from eutectic.methods.tsv_m import tsv_m
from eutectic.methods.wudi import wudi
from eutectic.registry import Plugins

__all__ = [
    "BUILT_IN",
    "Method",
    "PerSource",
    "Range",
    "arcee_fusion",
    "breadcrumbs",
    "breadcrumbs_ties",
    "broken_methods",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "each",
    "ema",
    "expo",
    "fisher",
    "get_method",
    "iso_c",
    "iso_cts",
    "karcher",
    "knots_ties",
    "linear",
    "list_methods",
    "magmax",
    "merge_method",
    "model_stock",
    "multislerp",
    "nearswap",
    "nuslerp",
    "passthrough",
    "r_tsvm",
    "ram",
    "ramplus_tl",
    "regmean",
    "sce",
    "slerp",
    "soup",
    "task_arithmetic",
    "task_arithmetic_sb",
    "task_arithmetic_svc",
    "ties",
    "ties_sb",
    "tsv_m",
    "wudi",
]

BUILT_IN = {
    method.name: method
    for method in (
        linear,
        soup,
        ema,
        slerp,
        nuslerp,
        multislerp,
        karcher,
        task_arithmetic,
        expo,
        ties,
        dare_linear,
        dare_ties,
        della_linear,
        della,
        breadcrumbs,
        breadcrumbs_ties,
        model_stock,
        sce,
        magmax,
        ram,
        ramplus_tl,
        tsv_m,
        r_tsvm,
        iso_c,
        iso_cts,
        task_arithmetic_sb,
        ties_sb,
        wudi,
        knots_ties,
        task_arithmetic_svc,
        consensus,
        emr,
        localize_and_stitch,
        pcb,
        fisher,
        regmean,
        nearswap,
        arcee_fusion,
        passthrough,
    )
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
    try:
        found = _plugins.load(name)
    except EutecticError as error:
        raise MethodError(str(error)) from error
    if not isinstance(found, Method):
        raise MethodError(
            f"the plug-in method {name!r} of {_plugins.origin(name)} is of type {type(found).__name__}, not a Method; "
            "decorate the function with eutectic.merge_method"
        )
    if found.name != name:
        raise MethodError(
            f"the plug-in method {name!r} of {_plugins.origin(name)} calls itself {found.name!r}; "
            "its entry point and the method must have one name"
        )
    return found


def list_methods() -> dict[str, Method]:
    """Every method that can be used, by name, the built-in ones first."""
    plugins = [name for name in _plugins.names() if name not in broken_methods()]
    return BUILT_IN | {name: get_method(name) for name in plugins}


@cache
def broken_methods() -> dict[str, str]:
    """Why a plug-in method cannot be used, by name; looked up once."""
    faults: dict[str, str] = {}
    for name in _plugins.names():
        if name in BUILT_IN:
            faults[name] = f"{name!r} is built in and stays so; that of {_plugins.origin(name)} needs another name"
            continue
        try:
            get_method(name)
        except MethodError as error:
            faults[name] = str(error)
    return faults
