"""Norms, cosines and sign conflicts of deltas against numpy over whole arrays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eutectic.errors import SourceError
from eutectic.evaluation import deltas
from eutectic.evaluation.deltas import measure_deltas
from eutectic.weights.checkpoint import Checkpoint, open_checkpoint

Tensors = dict[str, np.ndarray]


@pytest.fixture
def open_(make_model: Callable[..., Path]) -> Callable[[str, Tensors], Checkpoint]:
    return lambda name, tensors: open_checkpoint(make_model(name, tensors))


def family(dtype: Any = np.float32) -> tuple[Tensors, dict[str, Tensors]]:
    random = np.random.default_rng(3)
    shapes = {"embed.w": (90, 40), "h.0.w": (70, 130), "h.0.b": (130,), "h.1.w": (70, 130), "h.1.b": (130,), "out": ()}
    base = {name: np.asarray(random.standard_normal(shape), dtype) for name, shape in shapes.items()}
    base["steps"] = np.array([7], np.int64)
    experts = {}
    for label, scale in (("a", 0.1), ("b", 0.2), ("c", 0.05)):
        changed = {n: np.asarray(v + scale * random.standard_normal(v.shape), v.dtype) for n, v in base.items()}
        changed["h.0.b"] = base["h.0.b"] if label == "c" else changed["h.0.b"]
        experts[label] = changed
    return base, experts


def reference(base: Tensors, experts: dict[str, Tensors]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    names = [name for name, value in base.items() if value.dtype.kind == "f"]
    layers = ["embed.w", "h.0", "h.1", "out"]
    parts = {layer: [n for n in names if n == layer or n.startswith(f"{layer}.")] for layer in layers}
    split = [
        {n: (e[n].astype(np.float64) - base[n].astype(np.float64)).reshape(-1) for n in names} for e in experts.values()
    ]
    norms = [[np.linalg.norm(np.concatenate([d[n] for n in parts[layer]])) for layer in layers] for d in split]
    flat = np.array([np.concatenate([d[n] for n in names]) for d in split])
    lengths = np.linalg.norm(flat, axis=1)
    both = np.array([[np.sum((x != 0) & (y != 0)) for y in flat] for x in flat])
    opposed = np.array([[np.sum(x * y < 0) for y in flat] for x in flat])
    return np.array(norms), flat @ flat.T / np.outer(lengths, lengths), opposed / both


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_equal_to_numpy(open_: Callable[..., Checkpoint], dtype: Any) -> None:
    base, experts = family(dtype)
    told: list[int] = []
    opened = open_("base", base)
    found = measure_deltas(opened, {n: open_(n, e) for n, e in experts.items()}, report=told.append)
    norms, cosine, conflict = reference(base, experts)
    assert (found.experts, found.layers) == (("a", "b", "c"), ("embed.w", "h.0", "h.1", "out"))
    np.testing.assert_allclose(found.norms, norms, rtol=1e-12)
    np.testing.assert_allclose(np.array(found.cosine, float), cosine, atol=1e-12)
    np.testing.assert_allclose(np.array(found.sign_conflict, float), conflict, atol=1e-12)
    assert sum(told) == opened.nbytes


def test_the_same_whatever_is_read_at_a_time(open_: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch) -> None:
    base, experts = family()
    base["wide"] = np.zeros((200, 300), np.float32)
    for at, expert in enumerate(experts.values()):
        expert["wide"] = np.random.default_rng(at).standard_normal((200, 300)).astype(np.float32)
    models = open_("base", base), {name: open_(name, e) for name, e in experts.items()}
    whole = measure_deltas(*models)
    monkeypatch.setattr(deltas, "READ", 1)
    assert measure_deltas(*models) == whole


def test_an_unchanged_expert_has_no_cosine(open_: Callable[..., Checkpoint]) -> None:
    base, experts = family()
    found = measure_deltas(open_("base", base), {"a": open_("a", experts["a"]), "same": open_("same", base)})
    assert found.norms[1] == (0, 0, 0, 0)
    assert found.cosine[0] == (1.0, None) and found.sign_conflict == ((0.0, None), (None, None))


def test_nan_and_infinity_are_left_out(open_: Callable[..., Checkpoint]) -> None:
    base = {"w": np.zeros(4, np.float32)}
    a, b = np.array([np.nan, 1, 2, np.inf], np.float32), np.array([1, 1, -2, 1], np.float32)
    found = measure_deltas(open_("base", base), {"a": open_("a", {"w": a}), "b": open_("b", {"w": b})})
    assert found.norms[0][0] == found.norms[1][0] == pytest.approx(5**0.5)
    assert found.cosine[0][1] == pytest.approx(-0.6) and found.sign_conflict[0][1] == 0.5


def test_what_cannot_be_compared_is_left_out_and_nothing_is_an_error(open_: Callable[..., Checkpoint]) -> None:
    base, experts = family()
    odd = {**experts["a"], "embed.w": np.zeros((2, 2), np.float32)}
    del odd["out"]
    found = measure_deltas(open_("base", base), {"odd": open_("odd", odd)})
    assert found.layers == ("h.0", "h.1")
    with pytest.raises(SourceError, match="no tensor of floats is in the base and in all of x"):
        measure_deltas(open_("base2", base), {"x": open_("x", {"steps": base["steps"]})})
    with pytest.raises(SourceError, match="no experts"):
        measure_deltas(open_("base3", base), {})
