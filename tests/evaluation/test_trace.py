"""`trace` over merges that eutectic makes: weights recovered, verdicts, what cannot be identified."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import eutectic
from eutectic.errors import SourceError
from eutectic.evaluation.trace import Trace, trace
from eutectic.evaluation.verdict import changes_by_layer, verdict
from eutectic.weights.checkpoint import open_checkpoint

LAYERS = 4
Models = dict[str, Path]


@pytest.fixture
def models(make_model: Callable[..., Path], tmp_path: Path) -> Callable[[str], Models]:
    """``models("bfloat16")``: a base and four fine-tunes whose changes are about a hundredth of the weights."""

    def make(dtype: str) -> Models:
        random = np.random.default_rng(3)
        shapes = {"embed.weight": (90, 32), "norm.weight": (32,)}
        for layer in range(LAYERS):
            shapes |= {f"layers.{layer}.mlp.weight": (64, 32), f"layers.{layer}.norm.weight": (32,)}
        base = {n: (0.02 if len(s) > 1 else 0.1) * random.standard_normal(s) + (len(s) == 1) for n, s in shapes.items()}
        made: Models = {}
        for name in ("base", "a", "b", "c", "idle"):
            change = 0.0 if name == "base" else 0.01
            tensors = {
                n: (w + change * np.abs(w).mean() * random.standard_normal(w.shape)).astype(np.float32)
                for n, w in base.items()
            }
            made[name] = make_model(f"{dtype}-{name}", tensors)
            if dtype != "float32":  # written in the type by a merge of one
                recipe = {"merge_method": "passthrough", "models": [{"model": str(made[name])}], "dtype": dtype}
                eutectic.merge(recipe, tmp_path / "stored" / name)
                made[name] = tmp_path / "stored" / name
        return made

    return make


def merge(models: Models, out: Path, method: str, weights: dict[str, Any], base: str | None = None, **top: Any) -> Path:
    """A real merge; `weights` maps names to weights, or to all the parameters of a source."""
    sources = [
        {"model": str(models[n]), "parameters": w if isinstance(w, dict) else {"weight": w}} for n, w in weights.items()
    ]
    recipe = {"merge_method": method, "models": sources, **top}
    if base:
        recipe["base_model"] = str(models[base])
    eutectic.merge(recipe, out)
    return out


def find(checkpoint: Path, models: Models, *names: str, base: str | None = None) -> Trace:
    return trace(open_checkpoint(checkpoint), {n: open_checkpoint(models[n]) for n in names}, base=base)


def near(found: Trace, expected: dict[str, float], within: float = 1e-3) -> bool:
    values = dict(zip(found.candidates, found.whole.coefficients, strict=True))
    return all(abs((values[n] or 0.0) - expected.get(n, 0.0)) < within for n in values if values[n] is not None)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_linear_with_an_idle_candidate(models: Callable[[str], Models], tmp_path: Path, dtype: str) -> None:
    made = models(dtype)
    out = merge(made, tmp_path / "out", "linear", {"a": 0.2, "b": 0.3, "c": 0.5})
    for base, names in ((None, "abc"), ("base", ["base", *"abc"])):
        found = find(out, made, *names, "idle", base=base)
        assert near(found, {"a": 0.2, "b": 0.3, "c": 0.5}) and found.kind == "linear" and not found.free
        assert found.parents == ("a", "b", "c")
        assert verdict(found).startswith("linear merge with weights a 0.")
        idle = found.candidates.index("idle")
        value, error = found.whole.coefficients[idle], found.whole.errors[idle]
        assert value is not None and error is not None and abs(value) < 4 * error < 1e-3
        assert 0.2 < found.whole.over_rounding < 1.5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_task_arithmetic(models: Callable[[str], Models], tmp_path: Path, dtype: str) -> None:
    made = models(dtype)
    out = merge(made, tmp_path / "out", "task_arithmetic", {"a": 0.4, "b": 0.35}, "base")
    found = find(out, made, "a", "b", "idle", "base", base="base")
    assert found.candidates == ("base", "a", "b", "idle") and near(found, {"base": 0.25, "a": 0.4, "b": 0.35})
    assert found.kind == "linear" and found.parents == ("base", "a", "b")
    assert verdict(found).startswith("task arithmetic on base with weights a 0.")
    without = find(out, made, "a", "b")
    assert without.kind == "not_linear" and "not linear" in verdict(without)


def test_more_than_the_whole_is_task_arithmetic_on_a_candidate(models: Callable[[str], Models], tmp_path: Path) -> None:
    made = models("float32")
    out = merge(made, tmp_path / "out", "task_arithmetic", {"a": 0.8, "b": 0.7}, "base")
    found = find(out, made, "a", "b", "base")
    assert near(found, {"base": -0.5, "a": 0.8, "b": 0.7}) and "task arithmetic on base" in verdict(found)


def test_a_sum_that_is_not_one(models: Callable[[str], Models], tmp_path: Path) -> None:
    made = models("float32")
    out = merge(made, tmp_path / "out", "linear", {"a": 0.3, "b": 0.9}, parameters={"normalize": False})
    found = find(out, made, "a", "b", "idle")
    assert (found.kind, found.free) == ("linear", True) and near(found, {"a": 0.3, "b": 0.9})
    assert "not normalised (their sum is 1.2000)" in verdict(found)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gradient_over_the_layers(models: Callable[[str], Models], tmp_path: Path, dtype: str) -> None:
    made = models(dtype)
    out = merge(made, tmp_path / "out", "linear", {"a": [0.2, 0.8], "b": [0.8, 0.2]})
    found = find(out, made, "a", "b", "idle", base=None)
    assert found.kind == "linear_by_layer" and changes_by_layer(found) == "gradient"
    assert found.parents == ("a", "b")
    for layer in range(LAYERS):
        (part,) = (part for part in found.layers if part.label == f"layers.{layer}")
        wanted = 0.2 + 0.6 * layer / (LAYERS - 1)
        got = part.fit.coefficients
        assert part.explained and np.allclose(np.array(got, float), [wanted, 1 - wanted, 0], atol=1e-3)


def test_slices(models: Callable[[str], Models], tmp_path: Path) -> None:
    made = models("bfloat16")
    slices = [{"sources": [{"model": str(made[n]), "layer_range": r}]} for n, r in (("a", [0, 1]), ("b", [1, 4]))]
    eutectic.merge({"merge_method": "passthrough", "slices": slices}, tmp_path / "out")
    found = find(tmp_path / "out", made, "a", "b", "c")
    assert found.kind == "linear_by_layer" and changes_by_layer(found) == "slices" and found.parents == ("a", "b")
    assert "that change over the layers (slices)" in verdict(found)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ties_is_not_linear(models: Callable[[str], Models], tmp_path: Path, dtype: str) -> None:
    made = models(dtype)
    settings = {"weight": 0.5, "density": 0.3}
    out = merge(made, tmp_path / "out", "ties", {"a": settings, "b": settings}, "base")
    found = find(out, made, "base", "a", "b", "idle", base="base")
    assert found.kind == "not_linear" and verdict(found).startswith("not linear in these candidates")
    assert found.whole.over_rounding > 10 and {"a", "b"} <= set(found.parents) and "idle" not in found.parents
    assert found.shares[0] > 0.2  # what was trimmed is the base's


def test_slerp_is_linear_per_tensor(make_model: Callable[..., Path], tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    made = {
        name: make_model(
            name, {f"layers.{i}.{w}": random.standard_normal((40, 50)).astype(np.float32) for i in (0, 1) for w in "kv"}
        )
        for name in "ab"
    }
    recipe = {"merge_method": "slerp", "base_model": str(made["a"]), "models": [{"model": str(made["b"])}]}
    recipe["models"].insert(0, {"model": str(made["a"])})
    eutectic.merge(recipe | {"parameters": {"t": 0.3}}, tmp_path / "out")
    found = find(tmp_path / "out", made, "a", "b")
    assert found.kind == "linear_by_tensor" and found.free
    assert found.slerp is not None and np.allclose(found.slerp, 0.3, atol=1e-3)
    assert "linear per tensor" in verdict(found) and "as slerp makes them (t = 0.300)" in verdict(found)


def test_equal(models: Callable[[str], Models]) -> None:
    made = models("bfloat16")
    found = find(made["b"], made, "a", "b", "c", base=None)
    assert (found.kind, found.equal_to, found.parents) == ("equal", ("b",), ("b",))
    assert verdict(found) == "equal to b" and found.shares[1] == 1


def test_identical_candidates_are_not_split(models: Callable[[str], Models], tmp_path: Path) -> None:
    made = models("float32")
    out = merge(made, tmp_path / "out", "linear", {"a": 0.4, "b": 0.6})
    made["twin"] = made["a"]
    found = find(out, made, "b", "a", "twin")
    (group,) = found.whole.together
    assert [found.candidates[i] for i in group.members] == ["a", "twin"]
    assert group.total == pytest.approx(0.4, abs=1e-3) and found.whole.coefficients[1:] == (None, None)
    assert found.whole.coefficients[0] == pytest.approx(0.6, abs=1e-3)
    assert "a or twin together 0.4000" in verdict(found)
    first = find(out, made, "a", "twin", "b")  # the reference itself is one of the two
    assert first.whole.coefficients[:2] == (None, None) and first.whole.together[0].total == pytest.approx(0.4)


def test_a_candidate_that_is_a_mixture_of_others(models: Callable[[str], Models], tmp_path: Path) -> None:
    made = models("bfloat16")
    out = merge(made, tmp_path / "out", "linear", {"a": 0.5, "b": 0.5}, dtype="float64")
    made["half"] = merge(made, tmp_path / "half", "linear", {"a": 0.5, "b": 0.5}, dtype="float64")
    found = find(out, made, "c", "a", "b", "half")
    assert found.equal_to == ("half",)
    (group,) = found.whole.together
    assert set(group.members) == {1, 2, 3} and found.whole.coefficients[0] == pytest.approx(0, abs=1e-6)


def test_layers_in_which_two_candidates_are_equal(
    models: Callable[[str], Models], make_model: Callable[..., Path], tmp_path: Path
) -> None:
    made = models("float32")
    a, b = ({n: t.to_numpy() for n, t in open_checkpoint(made[name]).items()} for name in ("a", "b"))
    made["mixed"] = make_model("mixed", {n: a[n] if n.startswith("layers.1") else b[n] for n in a})
    out = merge(made, tmp_path / "out", "linear", {"a": 0.3, "mixed": 0.7})
    found = find(out, made, "c", "a", "mixed")
    assert near(found, {"a": 0.3, "mixed": 0.7}) and not found.whole.together
    linked = {part.label: part.fit.together for part in found.layers if part.fit.together}
    assert list(linked) == ["layers.1"] and linked["layers.1"][0].members == (1, 2)


def test_bfloat16_values_stored_as_float32(models: Callable[[str], Models], tmp_path: Path) -> None:
    made = models("bfloat16")
    merge(made, tmp_path / "short", "linear", {"a": 0.3, "b": 0.7})
    recipe = {"merge_method": "passthrough", "models": [{"model": str(tmp_path / "short")}], "dtype": "float32"}
    eutectic.merge(recipe, tmp_path / "long")
    found = find(tmp_path / "long", made, "a", "b", "c")
    assert found.kind == "linear" and 0.5 < found.whole.over_rounding < 1.5


def test_what_cannot_be_compared_is_named(make_model: Callable[..., Path]) -> None:
    random = np.random.default_rng(4)
    w = random.standard_normal((2, 30)).astype(np.float32)
    a = make_model("a", {"w": w[0], "steps": np.array([1]), "short": w[0, :3], "x": np.float32([np.nan, 1, 2])})
    b = make_model("b", {"w": w[1], "steps": np.array([2]), "short": w[0, :4], "x": w[1, :3]})
    child = make_model("child", {"w": (w[0] + w[1]) / 2, "steps": np.array([1]), "short": w[0, :3], "own": w[0],
                                 "x": w[0, :3]})  # fmt: skip
    found = find(child, {"a": a, "b": b}, "a", "b")
    assert found.nonfinite == 1 and found.elements == 32
    assert found.skipped["own"] == "not in a, b" and found.skipped["short"] == "[3], in b [4]"
    assert "no floating-point numbers" in found.skipped["steps"]
    with pytest.raises(SourceError, match="nothing to trace"):
        find(make_model("other", {"v": w}), {"a": a}, "a")
    with pytest.raises(SourceError, match="the base 'A' is none of the candidates"):
        find(child, {"a": a}, "a", base="A")
