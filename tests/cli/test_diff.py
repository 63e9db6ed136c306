"""`eutectic diff`: exit codes, text and JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from eutectic.cli.main import main
from eutectic.weights.safetensors import write_safetensors


def model(folder: Path, tensors: dict[str, np.ndarray], config: dict[str, Any] | None = None) -> Path:
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", tensors)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def layers(count: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {f"layers.{i}.w": rng.standard_normal((4, 5)).astype(np.float32) for i in range(count)}


def diff(*args: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["diff", *map(str, args)], catch_exceptions=False)
    assert result.stderr == ""
    return result.exit_code, result.stdout


def diff_json(*args: str | Path) -> tuple[int, dict[str, Any]]:
    code, shown = diff(*args, "--json")
    return code, json.loads(shown)


def test_identical(tmp_path: Path) -> None:
    a, b = model(tmp_path / "a", layers(), {"x": 1}), model(tmp_path / "b", layers(), {"x": 1})
    code, shown = diff(a, b)
    assert code == 0 and "values  equal in 3 tensors" in shown and "result  identical\n" in shown
    code, found = diff_json(a, b)
    assert code == 0 and found["identical"] and found["values"]["equal"] == 3
    assert found["values"]["overall"] is None and found["a"]["path"] == str(a)


def test_values_differ(tmp_path: Path) -> None:
    changed = layers()
    changed["layers.1.w"] = changed["layers.1.w"] * np.float32(2)
    a, b = model(tmp_path / "a", layers()), model(tmp_path / "b", changed)
    code, shown = diff(a, b)
    assert code == 1 and "1 tensor differs, 2 equal" in shown
    assert "result  different\n" in shown
    code, found = diff_json(a, b)
    (tensor,) = found["values"]["tensors"]
    assert (code, found["identical"], tensor["name"]) == (1, False, "layers.1.w")
    assert tensor["relative_l2"] == pytest.approx(1.0) and tensor["cosine"] == pytest.approx(1.0)
    assert (tensor["different"], tensor["different_share"], tensor["opposite_sign_share"]) == (20, 1.0, 0.0)


def test_headers_only_does_not_read_values(tmp_path: Path) -> None:
    changed = {name: -array for name, array in layers().items()}
    a, b = model(tmp_path / "a", layers()), model(tmp_path / "b", changed)
    code, shown = diff(a, b, "--headers-only")
    assert code == 0 and "not compared (--headers-only)" in shown and "identical, as far as headers tell" in shown
    assert diff_json(a, b, "--headers-only")[1]["values"] is None
    assert diff(a, b)[0] == 1


def test_names_shapes_types_and_config(tmp_path: Path) -> None:
    b_tensors = layers(3) | {"layers.0.w": np.zeros((4, 6), np.float32), "head": np.zeros(2, np.float32)}
    b_tensors["layers.2.w"] = b_tensors["layers.2.w"].astype(np.float64)
    a = model(tmp_path / "a", layers(3) | {"old.0.w": np.zeros(1), "old.1.w": np.zeros(1)}, {"size": 4, "same": 1})
    b = model(tmp_path / "b", b_tensors, {"size": 5, "same": 1, "rope": {"theta": 1.0}})
    code, found = diff_json(a, b)
    assert code == 1
    assert (found["only_in_a"], found["only_in_b"]) == (["old.0.w", "old.1.w"], ["head"])
    assert {pair["name"]: (pair["a"], pair["b"]) for pair in found["mismatched"]} == {
        "layers.0.w": ({"shape": [4, 5], "dtype": "float32"}, {"shape": [4, 6], "dtype": "float32"}),
        "layers.2.w": ({"shape": [4, 5], "dtype": "float32"}, {"shape": [4, 5], "dtype": "float64"}),
    }
    assert found["config"] == [{"key": "rope.theta", "b": 1.0}, {"key": "size", "a": 4, "b": 5}]
    assert (found["values"]["equal"], found["values"]["tensors"]) == (2, [])
    shown = diff(a, b)[1]
    assert "names   3 in both, 2 only in A, 1 only in B" in shown
    assert "shapes  1 tensor differs" in shown and "types   1 tensor differs" in shown
    assert "config  2 keys differ" in shown
    assert "old.{0,1}.w" in shown and "(absent)" in shown and "[4, 5] float32  [4, 6] float32" in shown


def test_patterns_worst_first_and_every_tensor(tmp_path: Path) -> None:
    a, rng = {}, np.random.default_rng(1)
    for i in range(40):
        a |= {f"layers.{i}.{part}.w": rng.standard_normal(8).astype(np.float32) for part in ("down", "up")}
    b = {name: array * np.float32(1.5 if "up" in name else 1.25) for name, array in a.items()}
    folders = model(tmp_path / "a", a), model(tmp_path / "b", b)
    shown = diff(*folders)[1]
    assert shown.index("layers.{0..39}.up.w") < shown.index("layers.{0..39}.down.w")
    assert "Most different tensors" in shown and len(shown.splitlines()) < 25
    every = diff(*folders, "--tensors")[1]
    assert "layers.39.down.w" in every and "{" not in every
    names = [tensor["name"] for tensor in diff_json(*folders)[1]["values"]["tensors"]]
    assert len(names) == 80 and all("up" in name for name in names[:40])


def test_nan_is_told(tmp_path: Path) -> None:
    bad = layers(1)
    bad["layers.0.w"][1, 1] = np.nan
    a, b = model(tmp_path / "a", layers(1)), model(tmp_path / "b", bad)
    assert "1 element with NaN or infinity" in diff(a, b)[1]
    tensor = diff_json(a, b)[1]["values"]["tensors"][0]
    assert (tensor["nonfinite"], tensor["different"], tensor["relative_l2"]) == (1, 1, 0.0)


def test_nothing_in_common(tmp_path: Path) -> None:
    a, b = model(tmp_path / "a", {"x": np.zeros(1)}), model(tmp_path / "b", {"y": np.zeros(1)})
    code, shown = diff(a, b)
    assert code == 1 and "values  nothing to compare" in shown


def test_a_single_file_has_no_config_to_compare(tmp_path: Path) -> None:
    a = model(tmp_path / "a", layers(), {"x": 1})
    b = model(tmp_path / "b", layers())
    code, shown = diff(a, b / "model.safetensors")
    assert code == 0 and "config  not compared, only A has a config.json" in shown


def test_a_missing_side_is_an_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["diff", str(model(tmp_path / "a", layers())), str(tmp_path / "nope")])
    assert result.exit_code == 4 and "no such file" in result.stderr


def test_layers_in_their_order_with_a_bar(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    a = {f"h.{i}.{part}": random.standard_normal(6) for i in (10, 2, 0) for part in ("w", "b")} | {"out": np.ones(2)}
    b = {name: value * (1 + 0.1 * (name == "h.2.w") + 0.05 * name.startswith("h.10")) for name, value in a.items()}
    folders = model(tmp_path / "a", a), model(tmp_path / "b", b)
    shown = diff(*folders, "--layers")[1].split("By layer\n")[1].splitlines()
    assert [line.split()[0] for line in shown] == ["layer", "h.0", "h.2", "h.10", "out"]
    assert "0 of 2" in shown[1] and "1 of 2" in shown[2] and shown[2].endswith("█" * 24) and "█" not in shown[1]
    layers = diff_json(*folders)[1]["values"]["layers"]
    assert [(e["name"], e["tensors"], e["different_tensors"]) for e in layers] == [
        ("h.0", 2, 0), ("h.2", 2, 1), ("h.10", 2, 2), ("out", 1, 0),
    ]  # fmt: skip
    assert layers[2]["relative_l2"] == pytest.approx(0.05)


def test_changes_from_a_base(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    base = {"w": random.standard_normal((30, 40)), "b": random.standard_normal(40)}
    change = {name: random.standard_normal(value.shape) for name, value in base.items()}
    folders = [
        model(tmp_path / label, {n: v + scale * change[n] for n, v in base.items()})
        for label, scale in (("base", 0.0), ("a", 1.0), ("b", -0.5))
    ]
    code, shown = diff(*folders[1:], "--base", folders[0])
    assert code == 1 and "Changes from the base\n  norms   A " in shown
    assert "cosine  -1.000000" in shown and "signs   100% of the elements" in shown and "no matrix" in shown
    found = diff_json(*folders[1:], "--base", folders[0], "--rank", "3")[1]["deltas"]
    tensors = {entry["name"]: entry for entry in found["tensors"]}
    assert found["cosine"] == pytest.approx(-1) and tensors["w"]["left"] == pytest.approx(1)
    assert (tensors["w"]["rank"], tensors["w"]["left_chance"], tensors["b"]["no_directions"]) == (3, 0.1, "no matrix")
    assert diff_json(*folders[1:])[1]["deltas"] is None
    for flag in ("--layers", f"--base={folders[0]}"):
        refused = CliRunner().invoke(main, ["diff", *map(str, folders[1:]), "--headers-only", flag])
        assert refused.exit_code == 2 and "need values" in refused.stderr
