"""The plan keeps its word: tensors, bytes, memory; and everything in the sources is accounted for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

import eutectic
from eutectic.errors import ResourceError
from eutectic.recipes.merge import merge, plan
from eutectic.recipes.plan import Options

# A small process in between: a process that pytest itself starts would inherit pytest's own peak.
MEASURE = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:])
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_maxrss * 1024)
sys.exit(os.waitstatus_to_exitcode(status))
"""

METHODS: dict[str, dict[str, Any]] = {
    "linear": {"weight": 0.5},
    "slerp": {"t": 0.5},
    "ties": {"weight": 0.5, "density": 0.3},
    "ties over the model": {"weight": 0.5, "density": 0.3, "scope": "model"},
    "dare_ties": {"weight": 0.5, "density": 0.3},
}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models of 56 MB: one large tensor, some middling, many small."""
    folder = tmp_path_factory.mktemp("large")
    generator = numpy.random.default_rng(3)
    for name in ("base", "a", "b"):
        tensors = {"embed.weight": generator.standard_normal((4000, 2000), dtype="f4")}
        tensors |= {f"layers.{at}.weight": generator.standard_normal((750, 1000), dtype="f4") for at in range(7)}
        tensors |= {f"layers.{at}.norm": generator.standard_normal(1000, dtype="f4") for at in range(300)}
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors")
    for method, parameters in METHODS.items():  # the peak is that of a run whose kernels are compiled already
        merge(recipe_in(folder, method, parameters), folder / "warm", Options(fsync=False), force=True)
    return folder


def recipe_in(folder: Path, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
    method = method.split()[0]
    found: dict[str, Any] = {"merge_method": method, "parameters": parameters}
    found["models"] = [{"model": str(folder / name)} for name in ("a", "b")]
    if method not in ("linear", "slerp"):
        found["base_model"] = str(folder / "base")
    return found


@pytest.mark.parametrize("budget", ["16MiB", "64MiB", None])
@pytest.mark.parametrize("method", METHODS)
def test_the_process_stays_below_the_peak_that_was_foretold(
    tmp_path: Path, large: Path, method: str, budget: str | None
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_in(large, method, METHODS[method])))
    options = ["--max-memory", budget] if budget else []
    command = [sys.executable, "-m", "eutectic.cli.main", "merge", path, tmp_path / "out", "--no-fsync", "--json"]
    done = subprocess.run([sys.executable, "-c", MEASURE, *command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report, _, reached = done.stdout.rstrip().rpartition("\n")
    memory = json.loads(report.splitlines()[-1])["plan"]["memory"]
    assert memory["buffers"] <= memory["budget"]
    assert int(reached) <= memory["peak"]


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 10_000_000])
def test_bytes_foretold_are_bytes_written(tmp_path: Path, large: Path, shard_bytes: int) -> None:
    made = plan(recipe_in(large, "linear", {"weight": 1}), shard_bytes=shard_bytes)
    merge(made.recipe, tmp_path / "out", Options(fsync=False, shard_bytes=shard_bytes))
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert [(f.name, f.stat().st_size) for f in files] == [(s["name"], s["bytes"]) for s in made.to_json()["shards"]]
    assert made.to_json()["disk"] == sum(file.stat().st_size for file in files)
    assert made.to_json()["bytes_written"] == eutectic.open(tmp_path / "out").nbytes
    assert made.to_json()["bytes_read"] == sum(eutectic.open(large / name).nbytes for name in ("a", "b"))


TYPES = ["float32", "float16", "bfloat16", "float64", "float8_e4m3fn", "int64", "uint8", "bool", "int8"]
NAMES = st.text(st.characters(categories=("L", "N"), include_characters="._-/ "), min_size=1, max_size=6)


@st.composite
def models(draw: st.DrawFn) -> list[dict[str, torch.Tensor]]:
    """Two or three sources whose names overlap at random and whose shapes agree."""
    pool = draw(
        st.dictionaries(
            NAMES.filter(lambda name: name.isprintable() and not name.endswith(("_scale", "_scale_inv"))),
            st.tuples(st.sampled_from(TYPES), st.lists(st.integers(0, 3), max_size=3)),
            min_size=1,
            max_size=6,
        )
    )
    found = []
    for _ in range(draw(st.integers(2, 3))):
        held = draw(st.sets(st.sampled_from(sorted(pool)), min_size=1))
        found.append({n: torch.ones(pool[n][1]).to(getattr(torch, pool[n][0])) for n in sorted(held)})
    return found


@settings(max_examples=40, deadline=None)
@given(sources=models())
def test_every_tensor_of_every_source_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory, sources: list[dict[str, torch.Tensor]]
) -> None:
    folder = tmp_path_factory.mktemp("sources")
    for at, tensors in enumerate(sources):
        (folder / str(at)).mkdir()
        save_torch(tensors, folder / str(at) / "model.safetensors")
    recipe = {"merge_method": "linear", "parameters": {"weight": 1}}
    recipe["models"] = [{"model": str(folder / str(at))} for at in range(len(sources))]  # type: ignore[assignment]
    everything = {name for tensors in sources for name in tensors}
    numbers = {n for n in everything if next(t[n] for t in sources if n in t).dtype.is_floating_point}
    everywhere = {name for name in everything if all(name in tensors for tensors in sources)}
    options = Options(allow_mismatch=True, fsync=False)
    made = plan(recipe, options)
    assert {step.name for step in made.steps} == everything
    assert {step.name for step in made.steps if step.action == "merge"} == numbers & everywhere
    said = "\n".join(made.account.lines)
    copied = everything - (numbers & everywhere)
    assert f"merged: {len(everything) - len(copied)} tensor" in said
    counts = [int(line.split(": ")[2].split()[0]) for line in made.account.lines[1:]]
    assert sum(counts) == len(copied)
    merge(recipe, folder / "out", options)
    written = eutectic.open(folder / "out")
    assert written.keys() == everything
    assert made.nbytes == written.nbytes and made.numel == written.numel == sum(step.numel for step in made.steps)
    for name in everything:  # merging ones gives ones, copying them too
        origin = next(tensors[name] for tensors in sources if name in tensors)
        assert written[name].shape == tuple(origin.shape) and f"torch.{written[name].dtype}" == str(origin.dtype)
        assert torch.equal(written[name].to_torch().double(), origin.double())


def test_a_plan_reads_headers_only(tmp_path: Path) -> None:
    """Sources of 8 GB that take no room on the disk are planned at once."""
    numel = 2_000_000_000
    header = json.dumps({"w": {"dtype": "F32", "shape": [numel], "data_offsets": [0, 4 * numel]}}).encode()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        with open(tmp_path / name / "model.safetensors", "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + 4 * numel)
    made = plan(recipe_in(tmp_path, "linear", {"weight": 1}))
    assert made.nbytes == 4 * numel and made.bytes_read == 8 * numel
    assert made["w"].read(numel - 1, numel) == bytes(4)


@pytest.mark.parametrize(
    ("method", "torch_only"),
    [(m, t) for t in (False, True) for m in METHODS if not (t and "model" in m)],  # which runs in the kernels only
)
def test_buffers_fit_any_budget_at_or_above_the_floor(
    family: dict[str, Path], tmp_path: Path, method: str, torch_only: bool
) -> None:
    recipe = recipe_in(tmp_path, method, METHODS[method])
    with pytest.raises(ResourceError, match="below the floor") as caught:
        plan(recipe, max_memory=1, torch_only=torch_only)
    floor = int(str(caught.value).split("floor of ")[1].split(" bytes")[0].replace(",", ""))
    for budget in (floor, floor + 1, 2 * floor, 3 * floor + 7, 1 << 30):
        for threads in (1, 2, 16):
            shape = plan(recipe, max_memory=budget, threads=threads, torch_only=torch_only).shape
            assert shape.buffers <= budget and 1 <= shape.threads <= threads
    with pytest.raises(ResourceError):
        plan(recipe, max_memory=floor - 1, torch_only=torch_only)


def test_a_plan_is_a_checkpoint(family: dict[str, Path], tmp_path: Path) -> None:
    made = plan(recipe_in(tmp_path, "linear", {"weight": 1}))
    assert isinstance(made, eutectic.Checkpoint) and made.config == {"model_type": "tiny"}
    assert list(made) == [step.name for step in made.steps] and len(made) == 5
    assert "absent" not in made
    with pytest.raises(KeyError):
        made["absent"]


def test_command_and_function_foretell_the_same(
    family: dict[str, Path], write_recipe: Callable[..., Path], cli: Callable[..., Result], tmp_path: Path
) -> None:
    recipe = write_recipe("ties", [family["a"], family["b"]], family["base"], weight=1, density=0.5)
    told = json.loads(cli("plan", recipe, "--json", "--threads", 1).stdout)
    assert {key: told[key] for key in plan(recipe, threads=1).to_json()} == plan(recipe, threads=1).to_json()
    words = cli("plan", recipe, "--out", tmp_path / "out").stdout
    for said in ("merged: 4 tensors", "steps (int64)", str(family["base"]), "No licence is stated"):
        assert said in words
    assert not (tmp_path / "out").exists()
    assert repr(plan(recipe)) == f"Plan('ties', 5 tensors, {plan(recipe).nbytes} bytes)"
    for out in (tmp_path / ("x" * 250), tmp_path / ("x" * 300) / "out"):
        assert "internal" not in cli("plan", recipe, "--out", out).stderr
