"""The text of a trace: what is skipped, what cannot be told apart, long tables cut short."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eutectic.cli.trace_report import MOST_ROWS, print_trace
from eutectic.evaluation.lineage import trace_lineage
from eutectic.evaluation.trace import trace
from eutectic.weights.checkpoint import Checkpoint, open_checkpoint


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def text(child: Checkpoint, candidates: dict[str, Checkpoint], *, every_tensor: bool = False) -> str:
        found = trace(child, candidates)
        print_trace(child, candidates, found, trace_lineage(child, candidates, found), every_tensor=every_tensor)
        return capsys.readouterr().out

    return text


def test_what_cannot_be_compared_or_told_apart(make_model: Callable[..., Path], show: Callable[..., str]) -> None:
    random = np.random.default_rng(0)
    a, b = random.standard_normal((2, 300)).astype("f4")
    made = {
        "a": make_model("a", {"w": a}), "b": make_model("b", {"w": b}), "twin": make_model("twin", {"w": b}),
        "child": make_model("child", {"w": 0.25 * a + 0.75 * b, "own": a}),
    }  # fmt: skip
    opened = {name: open_checkpoint(path) for name, path in made.items()}
    shown = show(opened.pop("child"), opened)
    assert "linear merge with weights a 0.2500, b or twin together 0.7500" in shown
    assert "b and twin cannot be told apart here: only their sum, 0.7500 is known" in shown
    assert "skipped" in shown and "own (not in a, b, twin)" in shown
    assert "declared      nothing: no lock file, recipe or model card names a parent" in shown


def test_long_tables_are_cut_unless_asked_for(make_model: Callable[..., Path], show: Callable[..., str]) -> None:
    random = np.random.default_rng(1)
    layers = MOST_ROWS + 3
    a, b = ({f"h.{i}.w": random.standard_normal(60).astype("f4") for i in range(layers)} for _ in "ab")
    mixed = {name: np.float32(i / layers) * a[name] + np.float32(1 - i / layers) * b[name] for i, name in enumerate(a)}
    opened = {n: open_checkpoint(make_model(n, t)) for n, t in (("a", a), ("b", b), ("child", mixed))}
    child = opened.pop("child")
    shown = show(child, opened)
    assert "Layer by layer" in shown and "... and 3 more; --json has all" in shown and f"h.{layers - 1}" not in shown
    assert f"h.{layers - 1}.w" in show(child, opened, every_tensor=True)
