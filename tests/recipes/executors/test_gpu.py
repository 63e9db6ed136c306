"""The GPU's executor on whatever device there is: the same bytes as torch on the CPU, in bounded host memory.

Without a GPU the pipeline runs with the CPU as its device; where CUDA is found the same tests take that, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import eutectic
from eutectic.errors import MethodError, NonFiniteError, ResourceError
from eutectic.methods import BUILT_IN
from eutectic.ops.program import BLOCK
from eutectic.recipes.executors import gpu
from eutectic.recipes.plan import Options, Plan, make_plan
from eutectic.recipes.profile import Profile
from eutectic.recipes.schema import load_recipe

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
Make = Callable[..., Path]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What `--device cuda` comes to: the GPU, or the CPU in its place."""
    if request.param == "cpu":
        monkeypatch.setattr(gpu, "check_device", lambda plan: torch.device("cpu"))
    yield request.param


@pytest.fixture
def models(make_model: Make) -> dict[str, Path]:
    """Models of several types, with a tensor of many pieces and blocks, an odd one, an empty one and an integer one."""
    random = numpy.random.default_rng(3)

    def tensors() -> dict[str, numpy.ndarray]:
        return {
            "big.weight": random.standard_normal((700, 333), dtype=numpy.float32),
            "half.weight": random.standard_normal((33, 65)).astype(numpy.float16),
            "bias": random.standard_normal(7, dtype=numpy.float32),
            "empty": numpy.zeros((0, 4), numpy.float32),
            "steps": numpy.arange(5),
        }

    return {name: make_model(name, tensors(), {"model_type": "tiny"}) for name in ("base", "a", "b")}


def _recipe(models: dict[str, Path], method: str, **parameters: Any) -> dict[str, Any]:
    found = BUILT_IN[method]
    names = ["a", "b"] if found.sources[1] is None or found.sources[1] > 1 else ["a"]
    document: dict[str, Any] = {"merge_method": method, "models": [{"model": str(models[n])} for n in names]}
    if found.base in ("required", "first"):
        document["base_model"] = str(models["base"])
        if found.base == "first":
            document["models"] = document["models"][:1]
    return document | {"parameters": parameters} if parameters else document


PARAMETERS: dict[str, dict[str, Any]] = {
    "linear": {"weight": 0.5},
    "nuslerp": {"weight": 0.5},
    "multislerp": {"weight": 0.5},
    "slerp": {"t": 0.3},
    "nearswap": {"t": 0.1},
    "task_arithmetic": {"weight": 0.4},
    "ties": {"weight": 0.4, "density": 0.3},
    "dare_linear": {"weight": 0.4, "density": 0.3},
    "dare_ties": {"weight": 0.4, "density": 0.3},
    "della": {"weight": 0.4, "density": 0.5, "epsilon": 0.2},
    "della_linear": {"weight": 0.4, "density": 0.5, "epsilon": 0.2},
    "breadcrumbs": {"weight": 0.4, "density": 0.5, "gamma": 0.05},
    "breadcrumbs_ties": {"weight": 0.4, "density": 0.5, "gamma": 0.05},
    "sce": {"select_topk": 0.5},
}


ALONE = sorted(name for name, method in BUILT_IN.items() if method.needs is None)
"""tests/recipes/test_source_statistics.py has those that need statistics."""


@pytest.mark.parametrize("method", ALONE)
def test_the_bytes_are_those_of_torch_on_the_cpu(
    method: str, models: dict[str, Path], tmp_path: Path, device: str, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    recipe = _recipe(models, method, **PARAMETERS.get(method, {}))
    if method == "passthrough":
        recipe["models"] = recipe["models"][:1]
    eutectic.merge(recipe, tmp_path / "cpu", torch_only=True, threads=1)
    eutectic.merge(recipe, tmp_path / "gpu", device="cuda", max_memory=4 << 20, threads=2)
    if device == "cpu":
        for name in ("model.safetensors",):
            assert contents(tmp_path / "cpu")[name] == contents(tmp_path / "gpu")[name]
    assert _steps_apart(tmp_path / "cpu", tmp_path / "gpu") <= 1
    eutectic.verify(tmp_path / "gpu")


def _steps_apart(left: Path, right: Path) -> float:
    """The largest distance of two results in steps of bfloat16."""
    worst = 0.0
    one, other = eutectic.open(left), eutectic.open(right)
    for name in one:
        a, b = (c[name].to_torch().double() for c in (one, other))
        if a.numel():
            step = torch.exp2(torch.floor(torch.log2(a.abs().clamp(min=1e-30))) - 7)
            worst = max(worst, float(((a - b).abs() / step).max()))
    return worst


def test_spans_do_not_change_the_bytes(
    models: dict[str, Path],
    tmp_path: Path,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
    contents: Callable[[Path], dict[str, bytes]],
) -> None:
    recipe = _recipe(models, "dare_linear", weight=0.4, density=0.3, rescale=False)
    recipe_rows = _recipe(models, "della", weight=0.4, density=0.5, epsilon=0.2, rescale=False)
    for at, wish in enumerate((recipe, recipe_rows, _recipe(models, "linear", weight=0.5))):
        eutectic.merge(wish, tmp_path / f"whole{at}", device="cuda")
        with monkeypatch.context() as patch:
            patch.setattr("eutectic.recipes.cutting.MOST_SPAN", BLOCK)
            eutectic.merge(wish, tmp_path / f"cut{at}", device="cuda", max_memory=2 << 20, threads=1)
        whole, cut = contents(tmp_path / f"whole{at}"), contents(tmp_path / f"cut{at}")
        assert whole["model.safetensors"] == cut["model.safetensors"]
        eutectic.verify(tmp_path / f"cut{at}")


def test_nested_recipes_round_as_on_the_cpu(
    models: dict[str, Path], tmp_path: Path, device: str, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    inner = _recipe(models, "linear", weight=0.5) | {"dtype": "bfloat16"}
    recipe = {
        "merge_method": "linear",
        "models": [{"model": inner}, {"model": str(models["base"])}],
        "parameters": {"weight": 0.5},
    }
    eutectic.merge(recipe, tmp_path / "cpu", torch_only=True)
    eutectic.merge(recipe, tmp_path / "gpu", device="cuda")
    name = "model.safetensors"
    assert contents(tmp_path / "cpu")[name] == contents(tmp_path / "gpu")[name]


def test_a_failure_leaves_a_run_that_resumes(
    models: dict[str, Path], tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _recipe(models, "linear", weight=0.5)
    out = tmp_path / "out"
    write, seen = gpu.GpuStream._write, []

    def fail(self: Any, *arguments: Any) -> None:
        seen.append(arguments)
        if len(seen) == 2:
            raise OSError(28, "no room")
        write(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(gpu.GpuStream, "_write", fail)
        with pytest.raises(OSError):
            eutectic.merge(recipe, out, device="cuda")
    assert not out.exists()
    eutectic.merge(recipe, out, device="cuda", resume=True)
    eutectic.verify(out)
    eutectic.merge(out / "recipe.lock.json", tmp_path / "again", device="cuda")


def test_out_of_device_memory_is_said_in_words(
    models: dict[str, Path], tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **more: Any) -> None:
        raise torch.OutOfMemoryError("1 GiB wanted")

    monkeypatch.setattr(gpu, "merge_in_torch", full)
    with pytest.raises(ResourceError, match=r"--device cuda: out of device memory"):
        eutectic.merge(_recipe(models, "linear", weight=0.5), tmp_path / "out", device="cuda")
    assert not (tmp_path / "out").exists()


def test_a_non_finite_source_is_named(make_model: Make, tmp_path: Path, device: str) -> None:
    bad = numpy.ones((3, 4), numpy.float32)
    bad[1, 2] = numpy.nan
    good = make_model("good", {"w": numpy.ones((3, 4), numpy.float32)})
    sick = make_model("sick", {"w": bad})
    recipe = {"merge_method": "soup", "models": [{"model": str(good)}, {"model": str(sick)}]}
    with pytest.raises(NonFiniteError, match=r"sick.*'w' holds nan at \[1, 2\]"):
        eutectic.merge(recipe, tmp_path / "out", device="cuda")
    eutectic.merge(recipe, tmp_path / "allowed", device="cuda", force=True, allow_nonfinite=True)


def test_a_result_beyond_its_type_is_refused(make_model: Make, tmp_path: Path, device: str) -> None:
    large = make_model("large", {"w": numpy.full((2, 2), 60000.0, numpy.float32)})
    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(large)}],
        "parameters": {"weight": 2.0, "normalize": False},
        "out_dtype": "float16",
    }
    with pytest.raises(NonFiniteError, match=r"'w' at \[0, 0\]: the result does not fit"):
        eutectic.merge(recipe, tmp_path / "out", device="cuda")


def test_reading_a_plan_lazily_takes_the_device(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(torch.Tensor, "to", _recording(torch.Tensor.to, asked))
    plan = eutectic.plan(_recipe(models, "linear", weight=0.5), device="cuda")
    try:
        plan["bias"].to_torch()
    except (RuntimeError, AssertionError):  # no such device here
        assert not torch.cuda.is_available()
    assert "cuda" in asked


def _recording(to: Callable[..., torch.Tensor], asked: list[Any]) -> Callable[..., torch.Tensor]:
    def record(tensor: torch.Tensor, *where: Any, **more: Any) -> torch.Tensor:
        asked.extend(where)
        return to(tensor, *where, **more)

    return record


@pytest.mark.parametrize("method", sorted(BUILT_IN))
def test_methods_make_their_tensors_where_their_inputs_are(method: str) -> None:
    """With another default device, whatever a method makes without naming its inputs' device would not fit them."""
    found = BUILT_IN[method]
    generator = torch.Generator().manual_seed(5)
    count = 1 if found.sources[1] == 1 or found.base == "first" else 2
    tensors = [torch.randn(6, 8, generator=generator) for _ in range(count)]
    base = torch.randn(6, 8, generator=generator) if found.base in ("required", "first") else None
    parameters = {PYTHON.get(k, k): v for k, v in PARAMETERS.get(method, {}).items()}
    square = torch.eye(8) if found.needs == "gram" else tensors[0] ** 2
    side = {} if found.needs is None else {"statistics": [square] * count}
    expected = found(tensors, base=base, **side, **parameters)
    with torch.device("meta"):
        merged = found(tensors, base=base, **side, **parameters)
    assert merged.device.type == "cpu"
    assert torch.equal(merged, expected)


PYTHON = {"lambda": "lambda_"}


# ---------------------------------------------------------------- what can be known before


def test_without_a_gpu_nothing_is_begun(models: dict[str, Path], tmp_path: Path, cli: Callable[..., Any]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"merge_method: soup\nmodels: [{{model: {models['a']}}}, {{model: {models['b']}}}]\n")
    for more in ([], ["--dry-run"]):
        result = cli("merge", recipe, tmp_path / "out", "--device", "cuda", *more)
        assert result.exit_code == 6
        assert "finds no GPU" in result.stderr and "Leave the flag out" in result.stderr
    assert not list(tmp_path.glob("out*"))


def test_too_little_device_memory_is_refused_with_the_tensor(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Small:
        @staticmethod
        def is_available() -> bool:
            return True

        @staticmethod
        def device_count() -> int:
            return 2

        @staticmethod
        def mem_get_info(device: Any) -> tuple[int, int]:
            return 1 << 20, 1 << 30

    monkeypatch.setattr(torch, "get_device_module", lambda device: Small)
    plan = eutectic.plan(_recipe(models, "ties", weight=0.4, density=0.3), device="cuda:1")
    with pytest.raises(ResourceError, match=r"big.weight \[700, 333\] needs about [\d,]+ bytes of device memory"):
        gpu.check_device(plan)
    plan = eutectic.plan(_recipe(models, "linear", weight=0.4), device="cuda:2")
    with pytest.raises(ResourceError, match="finds 2 GPUs, numbered from 0"):
        gpu.check_device(plan)


def test_host_memory_is_the_pinned_buffers(models: dict[str, Path]) -> None:
    def shape(**options: Any) -> Any:
        return eutectic.plan(_recipe(models, "ties", weight=0.4, density=0.3), device="cuda", **options).shape

    assert shape(threads=2).buffers == 2 * 2 * (32 << 20)
    assert shape(threads=2, max_memory=10 << 20).buffers == 2 * 2 * (2 << 20)
    assert shape(threads=16, max_memory=4 << 20).threads == 2
    with pytest.raises(ResourceError, match="below the floor of 2,097,152 bytes"):
        shape(max_memory=1 << 20)


def test_a_reduction_over_the_model_is_left_to_the_kernels(models: dict[str, Path]) -> None:
    recipe = _recipe(models, "ties", weight=0.4, density=0.3, scope="model")
    with pytest.raises(MethodError, match="--device cuda"):
        make_plan(load_recipe(recipe), Options(device="cuda"))


def test_the_profile_counts_every_thread(models: dict[str, Path], tmp_path: Path, device: str) -> None:
    profile = Profile()
    eutectic.merge(_recipe(models, "linear", weight=0.5), tmp_path / "out", device="cuda", profile=profile)
    phases = profile.to_json()["phases"]
    assert all(phases[phase]["seconds"] > 0 for phase in ("read", "compute", "hash", "write"))


def test_the_lock_file_says_which_kind_of_device(models: dict[str, Path], tmp_path: Path, device: str) -> None:
    recipe = _recipe(models, "linear", weight=0.5)
    out = eutectic.merge(recipe, tmp_path / "out", device="cuda")
    assert not isinstance(out, Plan)
    lock = eutectic.plan(out / "recipe.lock.json")
    assert lock.options.device == "cuda"
    assert eutectic.plan(out / "recipe.lock.json", device="cuda:3").options.device == "cuda:3"
    cpu = eutectic.merge(recipe, tmp_path / "cpu")
    assert not isinstance(cpu, Plan)
    with pytest.raises(eutectic.errors.RecipeError, match="--device: device was cpu when"):
        eutectic.plan(cpu / "recipe.lock.json", device="cuda")
