"""`eutectic stats`: collecting for a recipe, what it prints, and what cannot begin."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from eutectic.zoo.digits import Family, build_digits

Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return build_digits(tmp_path_factory.mktemp("zoo") / "digits")


def test_from_statistics_to_a_merge(cli: Cli, digits: Family, tmp_path: Path) -> None:
    lines = ["merge_method: regmean", "models:"]
    for name in ("flip", "invert"):
        where = ["-d", digits.path, "-t", name, "-o", tmp_path / name, "--limit", 64]
        done = cli("stats", "collect", digits.experts[name], *where, "--kinds", "gram, activations")
        assert done.exit_code == 0, done.output
        assert "gram: 3 tensors, 64 samples, 1 pass" in done.stderr
        assert "split train, samples 64, labels data" in done.stdout
        lines.append(f"  - {{model: {digits.experts[name]}, statistics: ./{name}}}")
    (tmp_path / "r.yaml").write_text("\n".join(lines))
    done = cli("merge", tmp_path / "r.yaml", tmp_path / "out")
    assert done.exit_code == 0, done.output
    shown = json.loads(cli("stats", "show", tmp_path / "flip", "--json").stdout)
    assert list(shown["kinds"]) == ["gram", "activations"] and shown["kinds"]["gram"]["tensors"] == 3
    assert shown["data"]["task"] == "flip" and shown["model"]["name"] == str(digits.experts["flip"])


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"--task": "flp"}, 3, "no task 'flp'; did you mean 'flip'"),
        ({"--task": None}, 3, "has several tasks: --task chooses one of upright, flip"),
        ({"--kinds": "fisher,grams"}, 3, "no kind of statistics is called 'grams'; did you mean 'gram'"),
        ({"--split": "trian"}, 3, "no split 'trian'; did you mean 'train'"),
        ({"model": "nowhere"}, 4, "nowhere"),
        ({"model": "openai:http://localhost:1/v1#m"}, 3, "needs a model's weights"),
    ],
)
def test_what_cannot_begin(
    cli: Cli, digits: Family, tmp_path: Path, change: dict[str, Any], code: int, words: str
) -> None:
    chosen = {"model": digits.experts["flip"], "--task": "flip", "--kinds": "gram", "--split": "train", **change}
    model = chosen.pop("model")
    flags = [word for flag, value in chosen.items() if value is not None for word in (flag, value)]
    done = cli("stats", "collect", model, "--data", digits.path, "--out", tmp_path / "s", *flags)
    assert done.exit_code == code and words in done.stderr
    assert not list(tmp_path.iterdir())
