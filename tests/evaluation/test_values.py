"""Values counted piece by piece, and the hazards in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eutectic.evaluation import values
from eutectic.evaluation.values import value_hazards, values_of
from eutectic.weights.checkpoint import open_checkpoint


def test_counts_and_hazards(make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "PIECE", 3)
    broken = np.array([1, np.nan, -np.inf, 0, -70000, 2, 0], np.float32)
    tensors = {"broken": broken, "empty": np.zeros(5, np.float16), "steps": np.ones(2, np.int64), "none": np.zeros(0)}
    found = values_of(open_checkpoint(make_model("m", tensors)))
    by_name = {entry.name: entry for entry in found}
    assert set(by_name) == {"broken", "empty"}
    first = by_name["broken"]
    assert (first.elements, first.nonfinite, first.zeros, first.largest) == (7, 2, 2, 70000.0)
    kinds = {hazard.kind: hazard.tensors for hazard in value_hazards(found)}
    assert kinds == {"nonfinite": ("broken",), "large": ("broken",), "zeros": ("empty",)}


def test_float32_that_holds_bfloat16(make_model: Callable[..., Path]) -> None:
    narrow = np.array([1.0, -2.5, 0.125], np.float32)
    assert value_hazards(values_of(open_checkpoint(make_model("m", {"w": narrow}))))[0].kind == "narrow"
    assert value_hazards(values_of(open_checkpoint(make_model("n", {"w": narrow / np.float32(3)})))) == []
