"""TALL masks and BitDelta against ten lines of numpy in float64; sizes, rounding, ranges."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import eutectic
from eutectic.pools.pool import open_pool

TYPES = {"float32": np.float32, "float64": np.float64, "bfloat16": np.float32, "float16": np.float32}
SHAPES = {"a": (37, 13), "b": (9,), "c": (3, 5, 7), "d": (), "e": (0, 4), "f": (640, 1000)}  # counts not whole bytes
Models = dict[str, dict[str, torch.Tensor]]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., tuple[dict[str, Path], Models]]:
    """``write(dtype, count)``: a base and experts near it, on disk and in memory."""

    def make(dtype: str, count: int = 3) -> tuple[dict[str, Path], Models]:
        random, paths, models = np.random.default_rng(0), {}, {}
        for name in ("base", *(f"e{at}" for at in range(count))):
            near = models.get("base", {})
            tensors = {
                key: torch.from_numpy(np.asarray(random.normal(size=shape) * (1 if name == "base" else 0.02))).to(
                    getattr(torch, dtype)
                )
                + (near[key] if near else 0)
                for key, shape in SHAPES.items()
            }
            models[name] = {key: tensor.contiguous() for key, tensor in tensors.items()}
            paths[name] = tmp_path / dtype / name
            paths[name].mkdir(parents=True)
            save_file(models[name], paths[name] / "model.safetensors", metadata={"format": "pt"})
        return paths, models

    return make


def wide(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy()


@pytest.mark.parametrize("dtype", TYPES)
def test_tall_is_what_its_formula_says(write: Callable[..., tuple[dict[str, Path], Models]], dtype: str) -> None:
    paths, models = write(dtype)
    base = models.pop("base")
    out = paths["base"].parent / "pool"
    shares = (0.2, 0.4, 1.0)
    experts = {name: paths[name] for name in models}
    pool = eutectic.pack(paths["base"], experts, out, mask_lambda=shares)
    for name, share in zip(models, shares, strict=True):
        missed = change = 0.0
        masks = load_file(out / "experts" / f"{name}.safetensors")
        for key, ref in base.items():
            deltas = {n: wide(m[key]) - wide(ref) for n, m in models.items()}
            total = sum(deltas.values())
            mask = np.abs(deltas[name]) > share * np.abs(total - deltas[name])
            stored = torch.from_numpy(np.asarray(total)).to(torch.float32 if dtype != "float64" else torch.float64)
            stored = stored.to(ref.dtype)
            exact = wide(ref) + mask * wide(stored)
            found = pool[name][key].to_torch()
            assert found.dtype == ref.dtype and found.shape == ref.shape
            tolerance = {"float32": 1e-6, "float64": 1e-14, "bfloat16": 2**-7, "float16": 2**-10}[dtype]
            np.testing.assert_allclose(wide(found), exact, rtol=tolerance, atol=tolerance / 4)
            if ref.numel():
                packed = np.packbits(mask.reshape(-1), bitorder="little")
                np.testing.assert_array_equal(masks[f"{key}#mask"].numpy(), packed)
            missed += ((wide(found) - wide(models[name][key])) ** 2).sum()
            change += (deltas[name] ** 2).sum()
        assert pool.manifest.experts[name].error == pytest.approx((missed / change) ** 0.5, rel=1e-6)


@pytest.mark.parametrize("scale", ["row", "tensor"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bitdelta_has_the_best_size_for_each_row(
    write: Callable[..., tuple[dict[str, Path], Models]], dtype: str, scale: str
) -> None:
    paths, models = write(dtype, 2)
    out = paths["base"].parent / "pool"
    pool = eutectic.pack(paths["base"], {"e0": paths["e0"], "e1": paths["e1"]}, out, scheme="bitdelta", scale=scale)
    for name in ("e0", "e1"):
        for key, ref in models["base"].items():
            delta = wide(models[name][key]) - wide(ref)
            count = len(delta) if scale == "row" and delta.ndim > 1 else 1
            rows = delta.reshape(count, delta.size // count) if count else delta
            size = np.abs(rows).mean(1, keepdims=True) if rows.size else np.zeros((count, 1))
            exact = wide(ref) + (np.where(rows < 0, -1, 1) * size).reshape(delta.shape)
            tolerance = 1e-6 if dtype == "float32" else 2**-7
            np.testing.assert_allclose(wide(pool[name][key].to_torch()), exact, rtol=tolerance, atol=tolerance / 4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("count", [1, 5, 20])
def test_the_archive_is_as_small_as_the_formula(
    write: Callable[..., tuple[dict[str, Path], Models]], dtype: str, count: int
) -> None:
    paths, models = write(dtype, count)
    out = paths["base"].parent / "pool"
    eutectic.pack(paths["base"], [str(paths[f"e{at}"]) for at in range(count)], out)
    size = sum(path.stat().st_size for path in out.rglob("*.safetensors"))
    element = models["base"]["f"].element_size()
    raw = (count + 1) * sum(tensor.numel() * element for tensor in models["base"].values())
    formula = (2 + count / (8 * element)) / (count + 1)
    assert size <= (formula + 0.02) * raw


@pytest.mark.parametrize("scheme", ["tall", "bitdelta", "twin", "rmm"])
def test_any_range_and_any_number_of_threads_give_the_same_bytes(
    write: Callable[..., tuple[dict[str, Path], Models]], scheme: str
) -> None:
    paths, _ = write("bfloat16", 3)
    experts = [str(paths[f"e{at}"]) for at in range(3)]
    pools = [
        eutectic.pack(paths["base"], experts, paths["base"].parent / f"p{threads}", scheme=scheme, threads=threads)
        for threads in (1, 3)
    ]
    for name in pools[0]:
        first, second = (pool.manifest.experts[name] for pool in pools)
        assert first.file == second.file and first.error == second.error
        for ref in pools[0][name].values():
            whole, at = bytes(ref.read()), ref.dtype.size
            for start in {0, min(1, ref.numel), ref.numel // 3}:
                for stop in {start, min(start + 11, ref.numel), ref.numel}:
                    if start <= stop:
                        assert bytes(ref.read(start, stop)) == whole[start * at : stop * at]


def test_an_expert_that_changes_nothing_is_the_base(
    write: Callable[..., tuple[dict[str, Path], Models]], tmp_path: Path
) -> None:
    paths, models = write("float32", 1)
    for scheme in ("tall", "bitdelta", "twin", "rmm"):
        experts = {"same": paths["base"], "e0": paths["e0"]}
        pool = eutectic.pack(paths["base"], experts, tmp_path / scheme, scheme=scheme)
        exact = scheme in ("tall", "bitdelta")  # the others give it a part of what e0 changes
        assert pool.manifest.experts["same"].error == (0 if exact else None)
        assert pool.manifest.experts["e0"].error is not None
        if exact:
            for key, tensor in models["base"].items():
                np.testing.assert_array_equal(pool["same"][key].to_numpy(), tensor.numpy())
    alone = eutectic.pack(paths["base"], {"same": paths["base"]}, tmp_path / "alone")
    assert alone["same"].nbytes == eutectic.open(paths["base"]).nbytes
    assert open_pool(tmp_path / "alone").manifest.shared is None
