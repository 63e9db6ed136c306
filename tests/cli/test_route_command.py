"""`eutectic route`: a router fitted into a pool, and a pool measured; what goes wrong says where."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from eutectic.evaluation.networks import structure
from eutectic.recipes.pooling import pack
from eutectic.weights.safetensors import write_safetensors

CONFIG = {"model_type": "eutectic-mlp", "input_size": 6, "hidden_sizes": [8], "num_labels": 3}


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Two experts that differ from a random base in all tensors, kept whole."""
    random, places = np.random.default_rng(0), {}
    shapes = {name: tuple(slot.shape) for name, slot in structure(CONFIG).named_parameters()}
    for name in ("base", "a", "b"):
        tensors = {key: random.standard_normal(shape).astype("f4") for key, shape in shapes.items()}
        places[name] = tmp_path / "models" / name
        places[name].mkdir(parents=True)
        write_safetensors(places[name] / "model.safetensors", tensors)
        (places[name] / "config.json").write_text(json.dumps(CONFIG))
    pack(places.pop("base"), places, tmp_path / "pool", scheme="twin", share=1.0)
    shutil.rmtree(tmp_path / "models")
    return tmp_path / "pool"


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """Two tasks whose inputs lie apart."""
    random, tasks = np.random.default_rng(1), []
    for name, place in (("a", -1), ("b", 1)):
        data = {}
        for split in ("train", "validation"):
            data[split] = f"{name}.{split}.safetensors"
            inputs = (place + 0.3 * random.standard_normal((30, 6))).astype("f4")
            write_safetensors(tmp_path / data[split], {"inputs": inputs, "labels": random.integers(0, 3, 30)})
        tasks.append({"name": name, "kind": "classification", "data": data, "expert": name})
    path = tmp_path / "suite.json"
    path.write_text(json.dumps({"name": "apart", "tasks": tasks}))
    return path


def test_fit_and_evaluate(cli: Callable[..., Result], pool: Path, suite: Path) -> None:
    done = cli("route", "fit", pool, "--data", suite)
    assert done.exit_code == 0, done.output
    assert "100.0% of validation, the mean over experts" in done.stdout and "60 samples read" in done.stderr
    measured = cli("route", "evaluate", pool, "--suite", suite, "--split", "validation")
    assert measured.exit_code == 0, measured.output
    head, *_ = measured.stdout.splitlines()
    assert head.split() == ["task", "unit", "shared", "router", "oracle"]
    assert "one expert for everything" in measured.stdout and "the router's choices" in measured.stdout


def test_json(cli: Callable[..., Result], pool: Path, suite: Path) -> None:
    fitted = json.loads(cli("route", "fit", pool, "-d", suite, "--limit", 10, "--seed", 3, "--json").stdout)
    assert fitted["command"] == "route fit" and fitted["samples"] == {"a": 10, "b": 10} and fitted["accuracy"] == 1
    assert fitted["choices"] == {"a": {"a": 30, "b": 0}, "b": {"a": 0, "b": 30}}
    done = cli("route", "evaluate", pool, "-s", suite, "--split", "validation", "--top", "soft", "--json")
    found: dict[str, Any] = json.loads(done.stdout)
    assert set(found["scores"]) == {"shared", "router", "oracle", "#a", "#b"} and found["accuracy"] == 1
    assert found["scores"]["oracle"]["a"] == found["scores"]["#a"]["a"] and found["routed"]["b"]["n"] == 30


def test_the_oracle_needs_no_router(cli: Callable[..., Result], pool: Path, suite: Path) -> None:
    refused = cli("route", "evaluate", pool, "-s", suite, "--split", "validation")
    assert refused.exit_code == 4 and "has no router yet" in refused.stderr
    done = cli("route", "evaluate", pool, "-s", suite, "--split", "validation", "--oracle")
    assert done.exit_code == 0 and "router" not in done.stdout


def test_faults(cli: Callable[..., Result], pool: Path, suite: Path) -> None:
    gone = cli("route", "fit", pool.parent, "-d", suite)
    assert gone.exit_code == 4 and "no pool (pool.json is missing)" in gone.stderr
    one = cli("route", "fit", pool, "-d", suite, "--task", "a")
    assert one.exit_code == 3 and "no task is that of b" in one.stderr
    assert cli("route", "fit", pool, "-d", suite, "--hidden", 0).exit_code == 2
    cli("route", "fit", pool, "-d", suite)
    missing = cli("route", "evaluate", pool, "-s", suite)  # the suite has no test data
    assert missing.exit_code == 1 and "not measured: router, task a: task a: no split 'test'" in missing.stderr
    assert sorted(path.name for path in pool.iterdir()) == ["core", "experts", "pool.json", "router.safetensors"]
