"""What a checkpoint's files declare: lock, recipes and card, readable or not; and the licence that a card states."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eutectic.evaluation.lineage import Declared, declared_parents, licence_of, trace_lineage
from eutectic.evaluation.trace import trace
from eutectic.weights.checkpoint import open_checkpoint


def test_every_file_is_asked(tmp_path: Path) -> None:
    (tmp_path / "recipe.lock.json").write_text(json.dumps({"sources": [{"name": "org/a"}, {"path": "x"}, 3]}))
    (tmp_path / "mergekit_config.yml").write_text(
        "merge_method: ties\nbase_model: {path: org/base, revision: main}\n"
        "slices: [{sources: [{model: ./b+./lora, layer_range: [0, 2]}]}]\n"
    )
    (tmp_path / "README.md").write_text("---\nbase_model: [org/c, 7]\n---\n")
    declared, unreadable = declared_parents(tmp_path)
    assert not unreadable
    assert declared == [
        Declared("org/a", "recipe.lock.json"), Declared("org/base", "mergekit_config.yml"),
        Declared("./b", "mergekit_config.yml"), Declared("./lora", "mergekit_config.yml"),
        Declared("org/c", "README.md"),
    ]  # fmt: skip


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    (tmp_path / "recipe.lock.json").write_text("{")
    (tmp_path / "mergekit_config.yml").write_text("models: [")
    declared, unreadable = declared_parents(tmp_path)
    assert declared == [] and len(unreadable) == 2
    assert "recipe.lock.json" in unreadable[0] and "mergekit_config.yml" in unreadable[1]


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: other\nlicense_name: llama3\n---\n", "llama3"),
        ("---\nlicense: [mit]\n---\n", None),
        (None, None),
    ],
)
def test_licences(make_model: Callable[..., Path], card: str | None, licence: str | None) -> None:
    model = open_checkpoint(make_model("m", {"w": np.ones(2, "f4")}, card=card))
    assert licence_of(model) == licence


def test_declared_against_found(make_model: Callable[..., Path]) -> None:
    random = np.random.default_rng(0)
    w = random.standard_normal((3, 400)).astype("f4")
    made = {name: make_model(name, {"w": row}) for name, row in zip("abc", w, strict=True)}
    card = "---\nbase_model: [org/A, elsewhere/c@main, far/away]\n---\n"
    child = open_checkpoint(make_model("child", {"w": (w[0] + w[1]) / 2}, card=card))
    candidates = {name: open_checkpoint(path) for name, path in made.items()}
    found = trace_lineage(child, candidates, trace(child, candidates))
    assert found.undeclared == ("b",) and found.without_part == ("c",) and found.not_examined == ("far/away",)
