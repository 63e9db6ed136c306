"""The package under examples/plugin as a user would install it: found, listed, planned and merged from outside.

The package is put on PYTHONPATH with the `.dist-info` that an installer writes, made by hand, because a build
needs a backend that an offline checkout may lack; where setuptools is there, one test has pip do it.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import eutectic

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest brings it
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugin"
PROJECT = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
POINTS = PROJECT["entry-points"]["eutectic.methods"]
BATCH = """
import json, sys
from click.testing import CliRunner
from eutectic.cli.main import main
for arguments in json.load(sys.stdin):
    done = CliRunner().invoke(main, arguments)
    print(json.dumps([done.exit_code, done.stdout, done.stderr]))
"""
SHAPES = {"w": (700, 300), "wide": (3, 100_001), "conv": (6, 4, 3, 3), "bias": (300,), "scale": (), "empty": (0, 8)}
BUDGETS = ("8MiB", "32MiB", "256MiB")


# --- installing


def install(site: Path, name: str, points: dict[str, str]) -> None:
    """The metadata that makes a package on `site` an installed one."""
    folder = site / f"{name.replace('-', '_')}-0.1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    lines = [f"{point} = {value}" for point, value in points.items()]
    (folder / "entry_points.txt").write_text("\n".join(["[eutectic.methods]", *lines, ""]))
    (folder / "RECORD").write_text("")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages that holds the example."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(EXAMPLE / "src" / "more_merges", folder / "more_merges")
    install(folder, PROJECT["name"], POINTS)
    return folder


def run(site: Path, *command: str, given: str = "") -> subprocess.CompletedProcess[str]:
    paths = [str(site), str(Path(eutectic.__file__).parents[1])]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        [sys.executable, *command], input=given, capture_output=True, text=True, env=env, check=False, timeout=120
    )


def cli(site: Path, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, with the plug-ins of `site` installed."""
    return run(site, "-m", "eutectic.cli.main", *map(str, arguments))


def batch(site: Path, calls: list[list[Any]]) -> Iterator[tuple[int, str, str]]:
    """Several command lines in one process: torch is slow to import."""
    done = run(site, "-c", BATCH, given=json.dumps([[str(word) for word in call] for call in calls]))
    assert done.returncode == 0, done.stderr
    yield from (tuple(json.loads(line)) for line in done.stdout.splitlines())


def test_pip_installs_the_example(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "plugin")  # building leaves files behind
    flags = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *flags, "--target", str(tmp_path / "site"), str(tmp_path / "plugin")],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[Distribution] = list(distributions(path=[str(tmp_path / "site")]))
    assert [d.metadata["Name"] for d in found] == ["more-merges"]
    assert {p.name: p.value for p in found[0].entry_points if p.group == "eutectic.methods"} == POINTS
    assert (tmp_path / "site" / "more_merges" / "median.py").is_file()


@pytest.mark.parametrize("name", POINTS)
def test_the_methods_keep_the_laws_that_they_promise(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import importlib

    from eutectic.testing import check_method

    monkeypatch.syspath_prepend(EXAMPLE / "src")
    module, _, attribute = POINTS[name].partition(":")
    method = getattr(importlib.import_module(module), attribute)
    assert method.name == name
    check_method(method)


# --- listing and planning


def test_listed_beside_the_built_in_ones(site: Path) -> None:
    done = cli(site, "list", "methods", "--json")
    found = {facts["name"]: facts for facts in json.loads(done.stdout)["methods"]}
    assert done.returncode == 0 and json.loads(done.stdout)["broken"] == {}
    assert next(iter(found)) == "linear" and list(found)[-3:] == sorted(POINTS)
    assert [found[name]["scope"] for name in ("median", "row_norm", "crossover")] == ["element", "row", "element"]
    assert found["crossover"]["stochastic"] and not found["median"]["fast_twin"]


def test_explained_by_name(site: Path) -> None:
    shown = cli(site, "list", "methods", "median").stdout
    assert "median: base plus the coordinate-wise median" in shown and "arXiv 1803.01498" in shown
    assert "lambda" in shown and "scale of the median task vector" in shown


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four models with tensors of every kind, one of them stored in bfloat16."""
    folder = tmp_path_factory.mktemp("models")
    random = torch.Generator().manual_seed(3)
    for name in ("base", "a", "b", "c"):
        tensors = {key: torch.randn(shape, generator=random) for key, shape in SHAPES.items()}
        tensors["half"] = torch.randn((70, 300), generator=random).bfloat16()
        (folder / name).mkdir()
        save_file({**tensors, "steps": torch.tensor([3])}, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text('{"model_type": "tiny"}')
    return {name: folder / name for name in ("base", "a", "b", "c")}


def recipe(path: Path, method: str, models: dict[str, Path], **parameters: Any) -> Path:
    """A recipe over a, b and c; a value that is a list has one entry per source."""
    each = {name: value for name, value in parameters.items() if isinstance(value, list)}
    whole = {name: value for name, value in parameters.items() if name not in each}
    sources = [
        {"model": str(models[name]), "parameters": {key: value[at] for key, value in each.items()}}
        for at, name in enumerate("abc")
    ]
    document: dict[str, Any] = {"merge_method": method, "models": sources, "parameters": whole}
    if method == "median":
        document["base_model"] = str(models["base"])
    path.write_text(json.dumps(document))  # JSON is YAML
    return path


def test_planned_like_a_built_in_one(site: Path, models: dict[str, Path], tmp_path: Path) -> None:
    done = cli(site, "plan", recipe(tmp_path / "r.yaml", "median", models), "--json")
    plan = json.loads(done.stdout)
    assert (done.returncode, plan["method"], plan["torch"], plan["passes"]) == (0, "median", True, 1)
    assert any("copied" in line and "steps" in line for line in plan["accounts"])


def test_faults_name_the_place_and_the_nearest_name(site: Path, models: dict[str, Path], tmp_path: Path) -> None:
    calls = [
        ["plan", recipe(tmp_path / "1.yaml", "median", models, lamda=0.5)],
        ["plan", recipe(tmp_path / "2.yaml", "row_norm", models, weight=[1.0, 1.0, -1.0])],
        ["plan", recipe(tmp_path / "3.yaml", "row_nrom", models)],
        ["list", "methods", "crosover"],
    ]
    found = list(batch(site, calls))
    assert [code for code, _, _ in found] == [3, 3, 3, 3]
    assert "1.yaml:1:" in found[0][2] and "median has no parameter" in found[0][2]
    assert "must lie in 0 to 1e+06, not -1" in found[1][2]
    assert "did you mean 'row_norm'?" in found[2][2]
    assert "did you mean 'crossover'?" in found[3][2]


# --- merging


def doubles(folder: Path) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy() for name, tensor in load_file(folder / "model.safetensors").items()}


def median_of(base: np.ndarray, sources: list[np.ndarray]) -> np.ndarray:
    return base + 0.5 * np.median([source - base for source in sources], axis=0)


def row_norm_of(sources: list[np.ndarray], weight: list[float]) -> np.ndarray:
    shares = np.array(weight) / sum(weight)
    average = np.tensordot(shares, np.stack(sources), axes=1)
    if average.ndim < 2 or not average.size:
        return average
    rows = [source.reshape(len(source), -1) for source in (*sources, average)]
    *norms, length = [np.sqrt((row**2).sum(axis=1)) for row in rows]
    wanted = np.tensordot(shares, np.stack(norms), axes=1)
    return average * (wanted / length).reshape(-1, *[1] * (average.ndim - 1))


def test_merges_agree_with_numpy(site: Path, models: dict[str, Path], tmp_path: Path) -> None:
    weight = [1.0, 0.5, 2.0]
    done = cli(site, "merge", recipe(tmp_path / "m.yaml", "median", models, **{"lambda": 0.5}), tmp_path / "median")
    assert done.returncode == 0, done.stderr
    calls = [
        ["merge", recipe(tmp_path / "r.yaml", "row_norm", models, weight=weight), tmp_path / "row_norm"],
        ["merge", recipe(tmp_path / "c.yaml", "crossover", models), tmp_path / "crossover", "--seed", "5"],
    ]
    assert [code for code, _, _ in batch(site, calls)] == [0, 0]
    merged = {name: doubles(tmp_path / name) for name in POINTS}
    stored = {name: doubles(path) for name, path in models.items()}
    for key in (*SHAPES, "half"):
        sources = [stored[name][key] for name in "abc"]
        error = 2.0**-8 if key == "half" else 2.0**-22
        close = {"rtol": error, "atol": error, "strict": True}
        np.testing.assert_allclose(merged["median"][key], median_of(stored["base"][key], sources), **close)
        np.testing.assert_allclose(merged["row_norm"][key], row_norm_of(sources, weight), **close)
        assert np.any([merged["crossover"][key] == source for source in sources], axis=0).all()
    shares = [np.mean(merged["crossover"]["wide"] == stored[name]["wide"]) for name in "abc"]
    np.testing.assert_allclose(shares, 1 / 3, atol=0.005)  # 5 standard errors
    assert all(merged[name]["steps"] == [3] for name in POINTS)


@pytest.mark.parametrize("method", POINTS)
def test_bytes_depend_neither_on_threads_nor_on_memory(
    site: Path, models: dict[str, Path], tmp_path: Path, method: str
) -> None:
    path = recipe(tmp_path / "recipe.yaml", method, models)
    ways = [*itertools.product((1, 3), BUDGETS), (2, BUDGETS[0])]
    calls = [
        ["merge", path, tmp_path / str(at), "--threads", threads, "--max-memory", memory, "--seed", "1", "--json"]
        for at, (threads, memory) in enumerate(ways)
    ]
    again = ["merge", tmp_path / "0" / "recipe.lock.json", tmp_path / "again", "--json"]
    other = ["merge", path, tmp_path / "other", "--seed", "2", "--json"]
    found = list(batch(site, [*calls, again, other]))
    assert [code for code, _, _ in found] == [0] * len(found), found
    cuts = {
        (plan["threads"], plan["tile_elements"])
        for _, out, _ in found
        for plan in [json.loads(out.splitlines()[-1])["plan"]]
    }
    assert len(cuts) >= 4
    folders = [*map(str, range(len(ways))), "again"]
    assert len({(tmp_path / name / "model.safetensors").read_bytes() for name in folders}) == 1
    reseeded = (tmp_path / "other" / "model.safetensors").read_bytes()
    assert (reseeded != (tmp_path / "0" / "model.safetensors").read_bytes()) == (method == "crossover")


def test_a_row_method_inside_a_method_with_kernels(site: Path, models: dict[str, Path], tmp_path: Path) -> None:
    inner = recipe(tmp_path / "inner.yaml", "row_norm", models)
    document = {"merge_method": "slerp", "parameters": {"t": 0.3}}
    for name, first in (("nested", inner), ("flat", tmp_path / "inner")):
        sources = [{"model": str(first)}, {"model": str(models["b"])}]
        (tmp_path / f"{name}.yaml").write_text(json.dumps({**document, "models": sources}))
    calls = [["merge", tmp_path / f"{name}.yaml", tmp_path / name] for name in ("inner", "nested", "flat")]
    assert [code for code, _, _ in batch(site, calls)] == [0, 0, 0]
    nested, flat = (load_file(tmp_path / name / "model.safetensors") for name in ("nested", "flat"))
    assert [name for name in flat if name != "half" and not torch.equal(nested[name], flat[name])] == []


# --- plug-ins that are broken


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, site: Path) -> Path:
    """The example beside a package that does everything wrong."""
    folder = tmp_path_factory.mktemp("broken")
    shutil.copytree(site, folder, dirs_exist_ok=True)
    (folder / "fails.py").write_text("raise RuntimeError('no licence\\nfor this machine')\n")
    (folder / "sound.py").write_text(
        "from eutectic.methods import merge_method\n"
        "@merge_method(summary='the first source')\n"
        "def first(tensors):\n    return tensors[0]\n"
        "def plain(tensors):\n    return tensors[0]\n"
    )
    points = {
        "fails": "fails:method", "missing": "no_such_module:method", "plain": "sound:plain", "first": "sound:first",
        "alias": "sound:first", "linear": "sound:first",
    }  # fmt: skip
    install(folder, "bad-merges", points)
    install(folder, "other-merges", {"twice": "sound:first"})
    install(folder, "third-merges", {"twice": "sound:plain"})
    return folder


def test_a_broken_plugin_is_listed_and_in_nobodys_way(broken: Path) -> None:
    done = cli(broken, "list", "methods")
    assert (done.returncode, done.stderr) == (0, "")
    table, _, faults = done.stdout.partition("Plug-ins that cannot be used:")
    assert all(f"  {name} " in table for name in ("linear", "median", "row_norm", "crossover", "first"))
    lines = [line for line in faults.splitlines() if line.startswith("  - ")]
    assert len(lines) == 6 and all("-merges" in line for line in lines)
    for words in (
        "'fails' of bad-merges (fails:method) failed to load: RuntimeError: no licence\\nfor this machine",
        "'missing' of bad-merges (no_such_module:method) failed to load: ModuleNotFoundError",
        "'plain' of bad-merges (sound:plain) is of type function, not a Method",
        "'alias' of bad-merges (sound:first) calls itself 'first'",
        "'twice' is offered by other-merges (sound:first) and third-merges (sound:plain); uninstall all but one",
        "'linear' is built in and stays so; that of bad-merges (sound:first) needs another name",
    ):
        assert words in faults


def test_a_broken_plugin_is_an_error_where_it_is_used(broken: Path, models: dict[str, Path], tmp_path: Path) -> None:
    names = ("median", "first", "linear", "fails", "missing", "plain", "alias")
    parameters: dict[str, dict[str, Any]] = {"linear": {"weight": 1.0}}
    calls = [["plan", recipe(tmp_path / f"{n}.yaml", n, models, **parameters.get(n, {}))] for n in names]
    found = list(batch(broken, [*calls, ["list", "methods", "fails"], ["list", "methods", "--json"]]))
    assert [code for code, _, _ in found] == [0, 0, 0, 3, 3, 3, 3, 3, 0]
    for (_, _, error), name in zip(found[3:7], names[3:], strict=True):
        assert f"{name}.yaml:1:" in error and "bad-merges" in error and "Traceback" not in error
    assert "bad-merges" in found[7][2]
    assert sorted(json.loads(found[8][1])["broken"]) == ["alias", "fails", "linear", "missing", "plain", "twice"]


def test_nothing_is_left_behind_in_the_example() -> None:
    ignored = {"__pycache__"}
    names = {path.name for path in EXAMPLE.rglob("*") if not ignored & set(path.parts)}
    assert not {name for name in names if name.endswith((".egg-info", ".dist-info")) or name == "build"}
