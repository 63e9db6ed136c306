"""Through the engine: kernels give the bits of the torch functions, for any tiles, threads, budgets and types."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import eutectic
from eutectic import methods
from eutectic.errors import NonFiniteError
from eutectic.methods.method import merge_method
from eutectic.ops.program import BLOCK
from eutectic.recipes import cutting
from eutectic.recipes.cutting import buffers_of

Tensors = dict[str, torch.Tensor]
LARGE = 3 * BLOCK + 5_000
NAMES = ("base", "a", "b", "c")
BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
OUT_DTYPES = ("bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2")

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("linear", {"weight": 0.3}),
    "linear sum": ("linear", {"weight": 0.7, "normalize": False}),
    "slerp": ("slerp", {"t": 0.3}),
    "task_arithmetic": ("task_arithmetic", {"weight": 0.7, "lambda": 0.9}),
    "ties": ("ties", {"weight": 0.7, "density": 0.3}),
    "ties l1": ("ties", {"weight": -0.7, "density": 0.3, "rescale": True, "sign_vote": "paper", "lambda": -0.9}),
    "ties whole": ("ties", {"weight": 0.7, "normalize": False}),
    "dare_linear": ("dare_linear", {"weight": 0.7, "density": 0.4}),
    "dare_linear inverse": ("dare_linear", {"weight": 0.7, "density": 0.4, "rescale": "inverse_density"}),
    "dare_ties": ("dare_ties", {"weight": 0.7, "density": 0.4, "normalize": True, "rescale": False}),
    "dare_ties l1": ("dare_ties", {"weight": 0.7, "density": 0.4, "sign_vote": "paper"}),
    "passthrough": ("passthrough", {"scale": 0.3}),
    "soup": ("soup", {}),
    "ema": ("ema", {"decay": 0.7}),
    "expo": ("expo", {"alpha": 0.3}),
    "model_stock": ("model_stock", {}),
    "model_stock rows": ("model_stock", {"filter_wise": True}),
    "nuslerp": ("nuslerp", {"weight": 0.7}),
    "nuslerp rows": ("nuslerp", {"weight": 0.7, "nuslerp_flatten": False}),
    "nuslerp columns": ("nuslerp", {"weight": 0.7, "nuslerp_flatten": False, "nuslerp_row_wise": True}),
    "nuslerp deltas": ("nuslerp", {"weight": 0.7}),
    "multislerp": ("multislerp", {"weight": 0.7}),
    "multislerp deltas": ("multislerp", {"weight": 0.7}),
    "karcher": ("karcher", {}),
    "breadcrumbs": ("breadcrumbs", {"weight": 0.7, "density": 0.3, "gamma": 0.02}),
    "breadcrumbs l1": ("breadcrumbs", {"weight": 0.7, "density": 0.6, "gamma": 0.3, "rescale": True}),
    "breadcrumbs_ties": ("breadcrumbs_ties", {"weight": -0.7, "density": 0.3, "gamma": 0.2, "sign_vote": "paper"}),
    "della_linear": ("della_linear", {"weight": 0.7, "density": 0.4}),
    "della_linear inverse": ("della_linear", {"weight": 0.7, "density": 0.4, "rescale": "inverse_probability"}),
    "della": ("della", {"weight": 0.7, "density": 0.4, "epsilon": 0.05}),
    "della none": ("della", {"weight": 0.7, "density": 0.4, "rescale": False}),
    "sce": ("sce", {}),
    "sce top": ("sce", {"select_topk": 0.3}),
    "magmax": ("magmax", {"lambda": 0.5}),
    "ram": ("ram", {"epsilon": 0.3}),
    "ramplus_tl": ("ramplus_tl", {"epsilon": 0.3}),
    "nearswap": ("nearswap", {"t": 0.3}),
    "arcee_fusion": ("arcee_fusion", {}),
    "consensus": ("consensus", {"weight": 0.7, "lambda": 0.9}),
    "consensus of all": ("consensus", {"mask_lambda": 0.2, "agreement": 3}),
    "emr": ("emr", {"weight": 0.7, "lambda": 0.9}),
    "localize_and_stitch": ("localize_and_stitch", {"weight": 0.7, "density": 0.3}),
    "localize_and_stitch whole": ("localize_and_stitch", {"density": 1.0, "lambda": 0.9}),
}


GRAM = {"slerp", "nuslerp", "multislerp", "karcher", "model_stock"}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def assert_same_bits(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], what: str = "") -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        different = (bits(found[name]) != bits(tensor)).sum().item()
        assert not different, f"{what} {name}: {different} bytes differ"


def lazily(recipe: Mapping[str, Any], **options: Any) -> Tensors:
    planned = eutectic.plan(recipe, **options)
    return {name: planned[name].to_torch() for name in planned}


def written(recipe: Mapping[str, Any], out: Path, **options: Any) -> Tensors:
    eutectic.merge(recipe, out, fsync=False, **options)
    return load_file(out / "model.safetensors")


class Family:
    """Checkpoints in a folder, and recipes over them."""

    def __init__(self, folder: Path, models: Mapping[str, Tensors]) -> None:
        self.folder = folder
        for name, tensors in models.items():
            save_file(tensors, folder / f"{name}.safetensors")

    def path(self, name: str) -> str:
        return str(self.folder / f"{name}.safetensors")

    def recipe(
        self, kind: str, models: list[Any] | None = None, dtype: str | None = None, **changes: Any
    ) -> dict[str, Any]:
        """A recipe of that kind over a, b, c (or as many as it takes)."""
        name, parameters = METHODS[kind]
        method = methods.get_method(name)
        models = models or [self.path(model) for model in ("a", "b", "c")]
        if method.sources[1]:
            models = models[: method.sources[1]]
        recipe: dict[str, Any] = {
            "merge_method": name,
            "models": [{"model": model} for model in models],
            "parameters": {**parameters, **changes},
        }
        if method.base == "required" or kind.endswith("deltas"):
            recipe["base_model"] = self.path("base")
        if dtype:
            recipe["out_dtype"] = dtype
        return recipe


def grid(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Few different numbers, so that many entries are equal and zero."""
    return torch.randint(-4, 5, shape, generator=generator) / 4


def models(dtypes: Mapping[str, torch.dtype], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensors]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: {
            tensor: (grid if "grid" in tensor else torch.randn)(shape, generator=generator).to(dtype)
            for tensor, shape in shapes.items()
        }
        for name, dtype in dtypes.items()
    }


MIXED = {"base": BF16, "a": F32, "b": F16, "c": BF16}
SMALL = {"w": (37, 80), "grid": (3, 1000), "bias": (5,), "scalar": (), "empty": (0, 4)}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Several blocks per tensor, and tensors of less than one; types mixed."""
    shapes = {"w": (5, LARGE // 5), "grid": (BLOCK + 7_000,), "bias": (5,), "scalar": (), "empty": (0, 4)}
    return Family(tmp_path_factory.mktemp("large"), models(MIXED, shapes))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(tmp_path_factory.mktemp("small"), models(MIXED, SMALL))


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread() -> Iterator[None]:
    """torch's own threads would wait for one another on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---------------------------------------------------------------- tiles, threads, budgets


@pytest.mark.parametrize("kind", METHODS)
def test_large_tensors(kind: str, large: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = large.recipe(kind, dtype="float32")
    expected = lazily(recipe, torch_only=True)
    assert_same_bits(lazily(recipe), expected, "lazily")
    for threads in (1, 2, 3):
        assert_same_bits(written(recipe, tmp_path / f"{threads}", threads=threads), expected, f"{threads} threads")
    monkeypatch.setattr(cutting, "MOST_TILE", BLOCK)
    assert_same_bits(lazily(recipe), expected, "lazily by blocks")
    for threads in (1, 3):
        assert eutectic.plan(recipe, threads=threads).shape.tile == BLOCK
        out = tmp_path / f"blocks {threads}"
        assert_same_bits(written(recipe, out, threads=threads), expected, f"{threads} threads by blocks")


@pytest.mark.parametrize("kind", ["linear", "slerp", "ties l1"])
def test_torch_alone_on_several_threads(kind: str, large: Family, tmp_path: Path) -> None:
    recipe = large.recipe(kind)
    found = written(recipe, tmp_path / "out", torch_only=True, threads=3)
    assert_same_bits(found, lazily(recipe, torch_only=True))


@pytest.mark.parametrize("kind", ["linear", "slerp", "ties l1", "dare_ties l1"])
def test_any_budget_gives_the_same_bits(kind: str, large: Family, tmp_path: Path) -> None:
    recipe = large.recipe(kind)
    expected = lazily(recipe)
    floor = buffers_of(eutectic.plan(recipe, threads=1).kinds, 0, 1, BLOCK)
    cut = set()
    for budget in (floor, 2 * floor, 12 * floor):
        shape = eutectic.plan(recipe, max_memory=budget, threads=3).shape
        cut.add((shape.threads, shape.tile))
        found = written(recipe, tmp_path / f"{budget}", max_memory=budget, threads=3)
        assert_same_bits(found, expected, f"{budget:,} bytes")
    assert len(cut) > 1


def test_ranges_of_a_planned_tensor_are_parts_of_the_whole(large: Family) -> None:
    for kind in ("linear", "ties l1", "dare_ties l1"):
        tensor = eutectic.plan(large.recipe(kind))["w"]
        whole, size = tensor.read(), tensor.dtype.size
        for first, last in ((0, 1), (1, 3), (BLOCK - 1, BLOCK + 1), (77, 2 * BLOCK), (2 * BLOCK + 1, tensor.numel)):
            assert tensor.read(first, last) == whole[first * size : last * size]


def test_seeds_and_names_choose_the_masks(large: Family) -> None:
    recipe = large.recipe("dare_linear")
    first, again, other = lazily(recipe, seed=1), lazily(recipe, seed=1), lazily(recipe, seed=2)
    assert_same_bits(first, again)
    assert not torch.equal(first["w"], other["w"])


# ---------------------------------------------------------------- types


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("dtype", OUT_DTYPES)
def test_every_result_type(kind: str, dtype: str, small: Family) -> None:
    recipe = small.recipe(kind, dtype=dtype)
    found, expected = lazily(recipe), lazily(recipe, torch_only=True)
    if kind.split()[0] in GRAM and dtype == "float64":  # Gram sums are added in another order
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-13, atol=1e-14)
        return
    assert_same_bits(found, expected)
    assert all(str(tensor.dtype) == f"torch.{dtype}" for tensor in found.values())


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("source", [BF16, F16, F32, F64, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_every_source_type(kind: str, source: torch.dtype, tmp_path: Path) -> None:
    family = Family(tmp_path, models(dict.fromkeys(NAMES, source), SMALL))
    recipe = family.recipe(kind, dtype="float32")
    assert_same_bits(lazily(recipe), lazily(recipe, torch_only=True))


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("wide", ["base", "a", "b"])
def test_one_float64_source_among_others(kind: str, wide: str, tmp_path: Path) -> None:
    family = Family(tmp_path, models({**MIXED, wide: F64}, SMALL))
    recipe = family.recipe(kind, dtype="float64")
    found, expected = lazily(recipe), lazily(recipe, torch_only=True)
    if kind.split()[0] in GRAM:
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-13, atol=1e-14)
        return
    assert_same_bits(found, expected)


@pytest.mark.parametrize("kind", METHODS)
def test_float64_beyond_the_range_of_float32(kind: str, tmp_path: Path) -> None:
    family = Family(tmp_path, models(dict.fromkeys(NAMES, F64), {"w": (4, 5)}))
    for name in NAMES:
        scaled = {tensor: values * 1e150 for tensor, values in load_file(family.path(name)).items()}
        save_file(scaled, family.path(name))
    merged = lazily(family.recipe(kind))["w"]
    assert merged.isfinite().all()
    assert merged.abs().max() > 1e148


@pytest.mark.parametrize("dtype", ["float16", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("torch_only", [False, True])
@pytest.mark.parametrize("kind", ["linear sum", "task_arithmetic", "ties whole"])
def test_results_that_overflow_are_refused_or_allowed(kind: str, torch_only: bool, dtype: str, tmp_path: Path) -> None:
    tensors = {name: {"w": torch.tensor([1.0, -3e5, 3e5, 2.0])} for name in NAMES}
    tensors["base"]["w"] = torch.zeros(4)
    recipe = Family(tmp_path, tensors).recipe(kind, dtype=dtype)
    with pytest.raises(NonFiniteError, match=r"'w' at \[1\]"):
        lazily(recipe, torch_only=torch_only)
    lost = lazily(recipe, torch_only=torch_only, allow_nonfinite=True)["w"].float().isfinite()
    assert lost.tolist() == [True, False, False, True]


# ---------------------------------------------------------------- what is not finite


@pytest.mark.parametrize("strange", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("torch_only", [False, True])
@pytest.mark.parametrize("kind", METHODS)
def test_sources_that_are_not_finite_are_refused(kind: str, torch_only: bool, strange: float, tmp_path: Path) -> None:
    tensors = models(MIXED, {"w": (3, 5)})
    tensors["a"]["w"][1, 2] = strange
    with pytest.raises(NonFiniteError, match=r"a.safetensors: 'w' holds .* at \[1, 2\]"):
        lazily(Family(tmp_path, tensors).recipe(kind), torch_only=torch_only)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("kind", METHODS)
def test_what_is_not_finite_is_merged_alike_where_allowed(kind: str, tmp_path: Path) -> None:
    tensors = models(dict.fromkeys(NAMES, F32), {"w": (40, 50), "calm": (40, 50)})
    for at, (name, strange) in enumerate(itertools.product(NAMES, (torch.nan, torch.inf, -torch.inf))):
        tensors[name]["w"].view(-1)[7 * at : 7 * at + 4] = strange
    recipe = Family(tmp_path, tensors).recipe(kind)
    found, expected = (lazily(recipe, allow_nonfinite=True, torch_only=only) for only in (False, True))
    for name, tensor in expected.items():
        assert torch.equal(found[name].isnan(), tensor.isnan())
        assert torch.equal(found[name].nan_to_num(nan=0.5), tensor.nan_to_num(nan=0.5))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("density", [0.0005, 0.001, 0.0015, 0.002, 0.004])
def test_trimming_counts_what_is_not_finite_as_largest(density: float, tmp_path: Path) -> None:
    tensors = models(dict.fromkeys(NAMES, F32), {"w": (40, 50)})
    for at, strange in enumerate((torch.inf, torch.nan, -torch.inf, torch.nan)):
        tensors["a"]["w"].view(-1)[100 * at] = strange
    recipe = Family(tmp_path, tensors).recipe("ties", density=density)
    found, expected = (lazily(recipe, allow_nonfinite=True, torch_only=only)["w"] for only in (False, True))
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


# ---------------------------------------------------------------- recipes inside recipes

NESTED = [
    ("linear", "ties"),
    ("linear", "dare_linear"),
    ("ties", "dare_ties l1"),
    ("ties l1", "ties"),
    ("dare_ties l1", "ties l1"),
    ("task_arithmetic", "slerp"),
    ("slerp", "linear"),
]


@pytest.mark.parametrize(("outer", "inner"), NESTED)
@pytest.mark.parametrize("inner_dtype", [None, "bfloat16", "float64"])
def test_nested_recipes(outer: str, inner: str, inner_dtype: str | None, small: Family) -> None:
    parts = [small.recipe(inner, dtype=inner_dtype), small.path("b"), small.path("c")]
    recipe = small.recipe(outer, parts, dtype="float32")
    assert_same_bits(lazily(recipe), lazily(recipe, torch_only=True))


def test_two_levels_of_nesting(small: Family) -> None:
    middle = small.recipe("ties", [small.recipe("dare_ties l1"), small.path("b")])
    recipe = small.recipe("linear", [middle, small.path("c")], dtype="float32")
    assert_same_bits(lazily(recipe), lazily(recipe, torch_only=True))


@pytest.mark.parametrize(("outer", "inner"), NESTED)
def test_a_nested_recipe_is_a_merge_in_two_stages(
    outer: str, inner: str, large: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "MOST_TILE", BLOCK)
    first = large.recipe(inner, dtype="float32")
    rest = [large.path("b"), large.path("c")]
    written(first, tmp_path / "stage")
    expected = lazily(large.recipe(outer, [str(tmp_path / "stage"), *rest], dtype="float32"))
    recipe = large.recipe(outer, [first, *rest], dtype="float32")
    assert_same_bits(lazily(recipe), expected, "lazily")
    assert_same_bits(written(recipe, tmp_path / "out", threads=2), expected, "written")


@pytest.mark.parametrize(("outer_scope", "inner_scope"), list(itertools.product(("tensor", "model"), repeat=2)))
def test_scopes_inside_scopes(
    outer_scope: str, inner_scope: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ties at the threshold in several tensors of several blocks: each merge must find its own."""
    monkeypatch.setattr(cutting, "MOST_TILE", BLOCK)
    shapes = dict.fromkeys(("grid.0", "grid.1", "grid.2"), (BLOCK + 9_000,))
    family = Family(tmp_path, models(dict.fromkeys(NAMES, F32), shapes))
    first = family.recipe("ties", dtype="float32", scope=inner_scope)
    rest = [family.path("b"), family.path("c")]
    written(first, tmp_path / "stage")
    expected = lazily(family.recipe("ties", [str(tmp_path / "stage"), *rest], scope=outer_scope))
    recipe = family.recipe("ties", [first, *rest], scope=outer_scope)
    assert_same_bits(lazily(recipe), expected, "lazily")
    assert_same_bits(written(recipe, tmp_path / "out", threads=2), expected, "written")


@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_the_scope_of_the_model_does_not_depend_on_tiles(
    scope: str, large: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = large.recipe("ties l1", scope=scope)
    expected = lazily(recipe)
    assert_same_bits(written(recipe, tmp_path / "3", threads=3), expected)
    monkeypatch.setattr(cutting, "MOST_TILE", BLOCK)
    assert_same_bits(lazily(recipe), expected)
    assert_same_bits(written(recipe, tmp_path / "blocks", threads=2), expected)


# ---------------------------------------------------------------- methods without a twin


@merge_method(scope="row")
def centred_rows(tensors):
    """Sources less their rows' means."""
    mean = sum(tensors) / len(tensors)
    return mean - mean.mean(-1, keepdim=True) if mean.dim() > 1 else mean


@merge_method(scope="element")
def middle(tensors):
    """The median of the sources."""
    import torch

    return torch.stack(list(tensors)).median(0).values


@pytest.mark.parametrize("method", [centred_rows, middle])
@pytest.mark.parametrize("inner", [None, "ties", "ties l1", "dare_linear", "slerp"])
def test_torch_methods_outside_and_kernels_inside(
    method: Any, inner: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(methods.BUILT_IN, method.name, method)
    monkeypatch.setattr(cutting, "MOST_TILE", BLOCK)
    shapes = {"w": (301, 401), "grid": (30_001, 3), "bias": (7,), "small": (100, 41)}
    family = Family(tmp_path, models(MIXED, shapes))
    parts = [family.recipe(inner)] if inner else [family.path("a")]
    recipe = {
        "merge_method": method.name,
        "models": [{"model": model} for model in (*parts, family.path("b"), family.path("c"))],
        "out_dtype": "float32",
    }
    expected = lazily(recipe, torch_only=True)
    assert_same_bits(lazily(recipe), expected, "lazily")
    assert_same_bits(written(recipe, tmp_path / "out", threads=2), expected, "written")
