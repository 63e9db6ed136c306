"""`eutectic blame` and `eutectic bisect`: tables, JSON, exit codes, and what cannot begin."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from safetensors.numpy import save_file

import eutectic
from eutectic.zoo.digits import Family, build_digits

Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return build_digits(tmp_path_factory.mktemp("zoo") / "digits")


@pytest.fixture
def recipe(digits: Family, tmp_path: Path, write_recipe: Callable[..., Path]) -> Path:
    """Two experts, one of which has noise in its middle layer."""
    stored = {name: tensor.to_numpy() for name, tensor in eutectic.open(digits.experts["flip"]).items()}
    noise = np.random.default_rng(5).standard_normal(stored["layers.1.weight"].shape).astype("f4")
    broken = tmp_path / "broken"
    broken.mkdir()
    changed = stored["layers.1.weight"] + np.float32(0.3) * noise
    save_file({**stored, "layers.1.weight": changed}, broken / "model.safetensors")
    (broken / "config.json").write_bytes((digits.experts["flip"] / "config.json").read_bytes())
    return write_recipe("task_arithmetic", [digits.experts["shift"], broken], base=digits.base, weight=0.4)


def row(text: str, name: str) -> list[str]:
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [name])


def test_blame_in_words(cli: Cli, digits: Family, recipe: Path, tmp_path: Path) -> None:
    ledger = tmp_path / "l.sqlite"
    done = cli("blame", recipe, "-s", digits.path, "-t", "upright", "--ledger", ledger, "--exhaustive")
    assert done.exit_code == 0, done.output
    assert row(done.stdout, "broken")[-1] == "harms" and row(done.stdout, "layers.1")[-1] == "harms"
    assert "Without broken in each layer" in done.stdout and "Shapley" in done.stdout
    assert done.stderr.count("without broken:") == 1  # each merge is measured, and named, once
    quiet = cli("blame", recipe, "-s", digits.path, "-t", "upright", "--ledger", ledger, "--no-layers", "-q")
    assert quiet.stderr == "" and "in each layer" not in quiet.stdout


def test_blame_as_json(cli: Cli, digits: Family, recipe: Path) -> None:
    done = cli("blame", recipe, "-s", digits.path, "-t", "upright", "--json")
    found = json.loads(done.stdout)
    assert found["command"] == "blame" and found["regression"]["found"] and found["suspect"] == "broken"
    assert found["reference"] - found["merge"] == pytest.approx(found["regression"]["difference"])
    assert found["layers"][0]["name"] == "layers.1"
    worst = found["experts"][0]
    assert worst["restores"] == pytest.approx(worst["difference"] / found["regression"]["difference"])


def test_no_regression_is_said(cli: Cli, digits: Family, recipe: Path) -> None:
    arguments = [recipe, "-s", digits.path, "-t", "upright", "--against", "broken", "-q"]
    for command in ("blame", "bisect"):
        done = cli(command, *arguments)
        assert done.exit_code == 0 and "no regression: the merge is better than broken" in done.stdout
    found = json.loads(cli("bisect", *arguments, "--expert", "broken", "--json").stdout)
    assert found["verdict"] == "no regression" and found["run"] == []


def test_bisect(cli: Cli, digits: Family, recipe: Path) -> None:
    where = ["-s", digits.path, "-t", "upright", "-q"]
    layers = cli("bisect", recipe, *where, "--expert", "broken")
    assert layers.exit_code == 0 and "found: layers.1, without which" in layers.stdout
    elsewhere = cli("bisect", recipe, *where, "--expert", "shift")
    assert elsewhere.exit_code == 0 and "elsewhere: without shift in all its layers" in elsewhere.stdout
    order = cli("bisect", recipe, *where)
    assert "found: broken, with which the merge begins to lack 50% of it" in order.stdout
    facts = json.loads(cli("bisect", recipe, *where, "--json").stdout)
    assert facts["expert"] == "broken" and [len(m["experts"]) for m in facts["measured"]] == [0, 1, 2]


def test_a_part_that_cannot_be_measured(cli: Cli, digits: Family, recipe: Path, tmp_path: Path) -> None:
    """A judge that refuses the base alone, which is what is left without the one expert."""
    judge = (
        "import numpy\ncalls = []\n\ndef judge(checkpoint, split):\n    calls.append(1)\n"
        "    if len(calls) == 4:\n        raise ValueError('tired')\n"
        "    return numpy.arange(8) + 10.0 * (len(calls) == 1)\n"
    )
    (tmp_path / "tired_judge.py").write_text(judge)
    task = {"name": "judge", "kind": "python", "function": "tired_judge:judge"}
    (tmp_path / "suite.json").write_text(json.dumps({"name": "own", "tasks": [task]}))
    done = cli("blame", recipe, "-s", tmp_path / "suite.json", "-q")
    assert done.exit_code == 1
    assert "not measured" in done.stdout and "without broken cannot be measured on task judge" in done.stderr
    assert "no expert by itself" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ({"--task": "uprigt"}, 3, "did you mean 'upright'"),
        ({}, 3, "--task chooses one of"),
        ({"--task": "upright", "--split": "nope"}, 4, "no split 'nope'"),
        ({"--task": "upright", "--expert": "brokn"}, 3, "no expert 'brokn'; did you mean 'broken'"),
        ({"--task": "upright", "--against": "nowhere"}, 4, "nowhere: no such file"),
    ],
)
def test_what_cannot_begin(cli: Cli, digits: Family, recipe: Path, arguments: Any, code: int, words: str) -> None:
    done = cli("blame", recipe, "-s", digits.path, *(word for pair in arguments.items() for word in pair))
    assert done.exit_code == code and words in done.stderr
    assert "measured" not in done.stdout
