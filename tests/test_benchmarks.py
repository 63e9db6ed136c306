"""The scripts under benchmarks/ name things that exist: each takes minutes, so only what they import is tried."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(script for script in FOLDER.rglob("*.py") if ".work" not in script.parts)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_what_a_benchmark_imports_of_eutectic_is_there(script: Path) -> None:
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "eutectic":
            module = importlib.import_module(node.module or "")
            for name in (alias.name for alias in node.names):
                assert hasattr(module, name) or importlib.import_module(f"{node.module}.{name}")


def test_there_are_benchmarks() -> None:
    assert SCRIPTS
