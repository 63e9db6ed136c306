"""A tensor of a plan reads like a stored one: any range, any order, any thread; equal to what is written."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import eutectic
from eutectic.errors import NonFiniteError
from eutectic.recipes.merge import merge, plan
from eutectic.recipes.plan import Options

N = 140_011  # two blocks and a bit
CASES: dict[str, dict[str, Any]] = {
    "linear": {},
    "ties": {"density": 0.3},
    "ties whole": {"density": 0.3, "scope": "model"},
    "dare_linear": {"density": 0.5},
    "torch": {"density": 0.5},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planned")
    generator = numpy.random.default_rng(11)
    for name in ("base", "a", "b"):
        tensors = {
            "w": generator.standard_normal(N, dtype="f4"),
            "v": generator.standard_normal((20, 30), dtype="f4"),
            "none": numpy.zeros((0, 3), "f4"),
            "scalar": generator.standard_normal((), dtype="f4"),
            "ids": numpy.arange(5),
        }
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors")
    return folder


def recipe_of(folder: Path, case: str) -> dict[str, Any]:
    method = "ties" if case == "torch" else case.split()[0]
    found: dict[str, Any] = {"merge_method": method, "parameters": {"weight": 0.7, **CASES[case]}}
    found["models"] = [{"model": str(folder / name)} for name in ("a", "b")]
    return found if method == "linear" else found | {"base_model": str(folder / "base")}


@pytest.mark.parametrize("case", CASES)
def test_ranged_reads_are_parts_of_what_is_written(tmp_path: Path, folder: Path, case: str) -> None:
    options = Options(fsync=False, torch_only=case == "torch")
    recipe = recipe_of(folder, case)
    merge(recipe, tmp_path / "out", options)
    written = {name: bytes(tensor.read()) for name, tensor in eutectic.open(tmp_path / "out").items()}
    made = plan(recipe, options)

    @settings(max_examples=4 if case == "torch" else 40, deadline=None)
    @given(st.integers(0, N), st.integers(0, N))
    def check(first: int, second: int) -> None:
        start, stop = sorted((first, second))
        assert made["w"].read(start, stop) == written["w"][4 * start : 4 * stop]

    check()
    for name in ("v", "none", "scalar", "ids", "w"):
        assert bytes(made[name].read()) == written[name]
        assert made[name].to_numpy().tobytes() == written[name]
        assert made[name].to_torch().numpy().tobytes() == written[name]


def test_threads_may_read_one_plan(folder: Path) -> None:
    made = plan(recipe_of(folder, "ties whole"))
    expected = {name: plan(recipe_of(folder, "ties whole"))[name].read() for name in ("w", "v", "scalar")}
    wrong: list[str] = []

    def read(name: str) -> None:
        for _ in range(3):
            if made[name].read() != expected[name]:
                wrong.append(name)

    threads = [threading.Thread(target=read, args=(name,)) for name in ("w", "v", "scalar", "w")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_plan_loads_as_a_state_dict(folder: Path) -> None:
    state = plan(recipe_of(folder, "linear")).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        "w": (N,), "v": (20, 30), "none": (0, 3), "scalar": (), "ids": (5,)
    }  # fmt: skip


def test_non_finite_sources_are_refused_when_read(tmp_path: Path, folder: Path) -> None:
    bad = {name: tensor.to_numpy().copy() for name, tensor in eutectic.open(folder / "a").items()}
    bad["w"][77] = numpy.nan
    (tmp_path / "a").mkdir()
    save_file(bad, tmp_path / "a" / "model.safetensors")
    recipe = {"merge_method": "linear", "parameters": {"weight": 1}}
    recipe["models"] = [{"model": str(tmp_path / "a")}, {"model": str(folder / "b")}]  # type: ignore[assignment]
    with pytest.raises(NonFiniteError, match=r"'w' holds nan at \[77\]"):
        plan(recipe)["w"].read()
    allowed = plan(recipe, allow_nonfinite=True)["w"].to_numpy()
    assert numpy.flatnonzero(numpy.isnan(allowed)).tolist() == [77]
