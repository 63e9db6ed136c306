"""`eutectic trace`: the command line, its JSON, declared parents and licences."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import Result
from safetensors.numpy import save_file

import eutectic


@pytest.fixture
def experts(make_model: Callable[..., Path]) -> dict[str, Path]:
    """``base``, ``a``, ``b`` and ``c``, with licences on their cards."""
    random = np.random.default_rng(1)
    base = {f"layers.{i}.w": random.standard_normal((30, 40)) for i in range(2)}
    licences = {"base": "apache-2.0", "a": "mit", "b": "cc-by-nc-4.0", "c": "mit"}
    return {
        name: make_model(
            name,
            {n: (w + (name != "base") * 0.1 * random.standard_normal(w.shape)).astype("f4") for n, w in base.items()},
            card=f"---\nlicense: {licence}\n---\n",
        )
        for name, licence in licences.items()
    }


@pytest.fixture
def child(experts: dict[str, Path], tmp_path: Path) -> Path:
    """0.3 a + 0.7 b."""
    sources = [{"model": str(experts[n]), "parameters": {"weight": w}} for n, w in (("a", 0.3), ("b", 0.7))]
    eutectic.merge({"merge_method": "linear", "models": sources}, tmp_path / "child")
    return tmp_path / "child"


def facts(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_text(cli: Callable[..., Result], experts: dict[str, Path], child: Path) -> None:
    shown = cli("trace", child, "--among", experts["a"], experts["b"], experts["c"])
    assert shown.exit_code == 0 and shown.stderr == ""
    assert "verdict   linear merge with weights a 0.3000, b 0.7000\n" in shown.stdout
    assert "declared      a, b (recipe.lock.json)" in shown.stdout
    assert "b is cc-by-nc-4.0 (no commercial use), the checkpoint states no licence" in shown.stdout
    assert "Layer by layer" not in shown.stdout and "Tensor by tensor" not in shown.stdout
    every = cli("trace", child, "--tensors", "--base", experts["base"], "--among", experts["a"], experts["b"])
    assert "layers.1.w" in every.stdout and " base " in every.stdout


def test_json(cli: Callable[..., Result], experts: dict[str, Path], child: Path) -> None:
    found = facts(cli("trace", child, "--among", *experts.values(), "--base", experts["base"], "--json"))
    assert (found["command"], found["schema"], found["kind"]) == ("trace", 1, "linear")
    assert [c["name"] for c in found["candidates"]] == ["base", "a", "b", "c"] and found["candidates"][0]["base"]
    assert found["whole"]["coefficients"]["b"] == pytest.approx(0.7, abs=1e-6)
    assert abs(found["whole"]["coefficients"]["c"]) < 1e-6 and 0 < found["whole"]["errors"]["c"] < 1e-6
    assert found["parents"] == ["a", "b"] and found["lineage"]["undeclared"] == []
    assert [part["name"] for part in found["layers"]] == ["layers.0", "layers.1"]


def test_undeclared_and_falsely_declared_parents(
    cli: Callable[..., Result], experts: dict[str, Path], child: Path
) -> None:
    for name in ("recipe.lock.json", "recipe.yaml"):
        (child / name).unlink()
    card = {"base_model": ["org/A", "someone/c", "org/elsewhere"], "license": "apache-2.0"}
    (child / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")
    paths = [experts[n] for n in "abc"]
    lineage = facts(cli("trace", child, "--among", *paths, "--json"))["lineage"]
    assert (lineage["undeclared"], lineage["without_part"]) == (["b"], ["c"])
    assert lineage["not_examined"] == ["org/elsewhere"] and lineage["licence"] == "apache-2.0"
    assert lineage["conflicts"] == [
        "b is cc-by-nc-4.0 (no commercial use), the checkpoint apache-2.0: may conflict: check"
    ]
    shown = cli("trace", child, "--among", *paths).stdout
    assert "undeclared  b\n" in shown and "declared, no part  c\n" in shown and "not examined" in shown


def test_mergekit_config(cli: Callable[..., Result], experts: dict[str, Path], child: Path) -> None:
    for name in ("recipe.lock.json", "recipe.yaml", "README.md"):
        (child / name).unlink()
    (child / "mergekit_config.yml").write_text(
        "merge_method: linear\nslices:\n- sources:\n  - model: hub/a@main\n    layer_range: [0, 2]\n"
        "  - model: {model: {path: x/b+lora}}\n    layer_range: [0, 2]\n"
    )
    lineage = facts(cli("trace", child, "--among", experts["a"], experts["b"], "--json"))["lineage"]
    assert [entry["name"] for entry in lineage["declared"]] == ["hub/a@main", "x/b", "lora"]
    assert lineage["undeclared"] == [] and lineage["not_examined"] == ["lora"]
    (child / "mergekit_config.yml").write_text("a: [")
    broken = facts(cli("trace", child, "--among", experts["a"], experts["b"], "--json"))["lineage"]
    assert broken["declared"] == [] and broken["undeclared"] == ["a", "b"] and len(broken["unreadable"]) == 1


def test_names_that_clash_are_paths_and_the_base_is_listed_once(
    cli: Callable[..., Result], experts: dict[str, Path], child: Path, make_model: Callable[..., Path]
) -> None:
    other = make_model("elsewhere/a", {n: t.to_numpy() + 1 for n, t in eutectic.open(experts["a"]).items()})
    found = facts(cli("trace", child, "--among", experts["a"], other, experts["b"], "--base", experts["b"], "--json"))
    assert [c["name"] for c in found["candidates"]] == ["b", str(experts["a"]), str(other)]


def test_a_recipe_is_a_candidate_and_a_checkpoint(
    cli: Callable[..., Result], experts: dict[str, Path], write_recipe: Callable[..., Path]
) -> None:
    recipe = write_recipe("linear", [experts["a"], experts["b"]], weight=1.0)
    found = facts(cli("trace", recipe, "--among", experts["a"], experts["b"], "--json"))
    assert found["checkpoint"] is None and found["whole"]["coefficients"]["a"] == pytest.approx(0.5, abs=1e-6)
    assert facts(cli("trace", recipe, "--among", recipe, "--json"))["kind"] == "equal"


def test_a_model_with_an_adapter_is_a_candidate(
    cli: Callable[..., Result], make_model: Callable[..., Path], tmp_path: Path
) -> None:
    random = np.random.default_rng(8)
    base = make_model("base", {"layers.0.q.weight": random.standard_normal((20, 30)).astype("f4")})
    for name in ("one", "two"):
        adapter = tmp_path / name
        adapter.mkdir()
        (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
        pair = {"A": random.standard_normal((2, 30)), "B": random.standard_normal((20, 2))}
        save_file(
            {f"base_model.model.layers.0.q.lora_{k}.weight": v.astype("f4") for k, v in pair.items()},
            adapter / "adapter_model.safetensors",
        )
    sources = [
        {"model": f"{base}+{tmp_path / n}", "parameters": {"weight": w}} for n, w in (("one", 0.6), ("two", 0.3))
    ]
    recipe = {"merge_method": "task_arithmetic", "base_model": str(base), "models": sources}
    eutectic.merge(recipe, tmp_path / "child")
    paths = [f"{base}+{tmp_path / name}" for name in ("one", "two")]
    found = facts(cli("trace", tmp_path / "child", "--base", base, "--among", *paths, "--json"))
    values = found["whole"]["coefficients"]
    assert found["kind"] == "linear" and values == pytest.approx({"base": 0.1, "one": 0.6, "two": 0.3}, abs=1e-5)


def test_models_of_the_hub(
    cli: Callable[..., Result], experts: dict[str, Path], child: Path, serve_hub: Callable[..., Any]
) -> None:
    serve_hub({"org/child": child, "org/a": experts["a"], "other/b": experts["b"]})
    found = facts(cli("trace", "org/child", "--among", "org/a", "other/b", "--json"))
    assert found["kind"] == "linear" and found["parents"] == ["a", "b"] and found["lineage"]["undeclared"] == []
    assert found["whole"]["coefficients"]["b"] == pytest.approx(0.7, abs=1e-6)
    assert [entry["file"] for entry in found["lineage"]["declared"]][:1] == ["recipe.lock.json"]
    assert found["candidates"][1]["licence"] == "cc-by-nc-4.0"


def test_wrong_use(cli: Callable[..., Result], experts: dict[str, Path], child: Path) -> None:
    assert cli("trace", child).exit_code == 2
    assert "Missing argument 'CHECKPOINT'" in cli("trace", "--among", experts["a"], child).stderr
    assert cli("trace", child, "--among").exit_code == 2
    gone = cli("trace", child, "--among", experts["a"], "gone")
    assert gone.exit_code == 4 and "gone: no such file" in gone.stderr


def test_a_quantised_parent_is_read_as_dense(cli: Callable[..., Result], make_model: Callable[..., Path]) -> None:
    """LLM.int8: rows of codes over 127."""
    random = np.random.default_rng(0)
    codes, scale = random.integers(-127, 128, (48, 32)).astype("i1"), random.uniform(0.5, 1, 48).astype("f4")
    other = random.standard_normal((48, 32)).astype("f4")
    coded = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    a = make_model("coded", {"w.weight": codes, "w.SCB": scale}, coded)
    b = make_model("plain", {"w.weight": other}, {})
    sum_ = 0.25 * codes * scale[:, None] / 127 + 0.75 * other
    merged = make_model("merged", {"w.weight": sum_.astype("f4")}, {})
    found = facts(cli("trace", merged, "--among", a, b, "--json"))
    assert found["kind"] == "linear"
    assert found["whole"]["coefficients"] == pytest.approx({"coded": 0.25, "plain": 0.75}, abs=1e-5)
