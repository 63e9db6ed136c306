"""What stands in for a method that leaves entries out, where every entry of a tensor must count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eutectic.methods.method import Method
from eutectic.methods.task_arithmetic import task_arithmetic

__all__ = ["dense_counterpart"]


def dense_counterpart(method: Method, settled: Mapping[str, Any], sources: int) -> tuple[Method, dict[str, Any]]:
    """Task arithmetic with the weights, lambda and normalize that a method has; the mean where it takes no weights.

    θ = θ0 + λ Σ w_k δ_k, divided by Σ w_k if the method normalises or takes no weights.

    >>> from eutectic.methods import get_method
    >>> dense, parameters = dense_counterpart(get_method("sce"), {"select_topk": 0.1}, 2)
    >>> dense.name, parameters
    ('task_arithmetic', {'weight': [1.0, 1.0], 'lambda': 1.0, 'normalize': True})
    """
    assert method.sparsifies
    return task_arithmetic, {
        "weight": settled.get("weight", [1.0] * sources),
        "lambda": settled.get("lambda", 1.0),
        "normalize": settled.get("normalize", "weight" not in settled),
    }
