"""Spectral methods through the engine: bits, tensors by token, promised memory, clear faults."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import eutectic
from eutectic.errors import MethodError
from eutectic.ops.spectrum import SpectrumCache

SPECTRAL = (
    "tsv_m",
    "r_tsvm",
    "iso_c",
    "iso_cts",
    "task_arithmetic_sb",
    "ties_sb",
    "wudi",
    "knots_ties",
    "task_arithmetic_svc",
)
SHAPES = {
    "model.embed_tokens.weight": (96, 24),
    "model.layers.0.mlp.up_proj.weight": (150, 40),
    "model.layers.0.mlp.down_proj.weight": (40, 150),
    "model.layers.0.attn.q_proj.weight": (130, 130),
    "model.layers.0.mlp.experts": (3, 20, 40),
    "model.layers.0.conv.weight": (16, 8, 3, 3),
    "model.layers.0.norm.weight": (40,),
    "model.norm.scale": (),
    "lm_head.weight": (96, 24),
}
# A small process in between: a process that pytest itself starts would inherit pytest's own peak.
MEASURE = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_maxrss * 1024)
sys.exit(os.waitstatus_to_exitcode(status))
"""
TOKENS = ("model.embed_tokens.weight", "lm_head.weight")
CONFIG = {"model_type": "llama", "vocab_size": 96}


def families(folder: Path, shapes: Mapping[str, tuple[int, ...]], count: int, scale: float = 0.1) -> list[str]:
    """A base in bfloat16 and fine-tunes of it, as folders."""
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    paths = []
    for at in range(count + 1):
        path = folder / ("base" if at == 0 else f"expert{at}")
        path.mkdir()
        moved = {n: t + scale * bool(at) * torch.randn(t.shape, generator=generator) for n, t in base.items()}
        save_file({n: t.to(torch.bfloat16) for n, t in moved.items()}, path / "model.safetensors")
        (path / "config.json").write_text(json.dumps(CONFIG))
        paths.append(str(path))
    return paths


def recipe(method: str, paths: list[str], **parameters: Any) -> dict[str, Any]:
    base, *models = paths
    return {
        "merge_method": method,
        "base_model": base,
        "models": [{"model": model, "parameters": {"weight": 1.0 - at / 4}} for at, model in enumerate(models)],
        "parameters": parameters,
        "out_dtype": "float32",
    }


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return families(tmp_path_factory.mktemp("spectral"), SHAPES, 3)


@pytest.mark.parametrize("method", SPECTRAL)
def test_any_threads_any_executor_the_same_bits_as_the_function(method: str, paths: list[str], tmp_path: Path) -> None:
    wanted = recipe(method, paths)
    planned = eutectic.plan(wanted)
    lazily = {name: planned[name].to_torch() for name in planned}
    for threads in (1, 2, 3):
        eutectic.merge(wanted, tmp_path / f"{threads}", threads=threads, fsync=False)
        found = load_file(tmp_path / f"{threads}" / "model.safetensors")
        assert all(torch.equal(found[name], lazily[name]) for name in SHAPES)
    base, *models = ({n: t.float() for n, t in load_file(f"{path}/model.safetensors").items()} for path in paths)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        here = eutectic.merge_state_dicts(
            models, method, base=base, parameters={"weight": [1.0, 0.75, 0.5]}, vocabulary=TOKENS
        )
        assert all(torch.equal(here[name], lazily[name]) for name in SHAPES)
    finally:
        torch.set_num_threads(before)


def test_embeddings_and_heads_are_averaged_whatever_the_settings(paths: list[str]) -> None:
    wanted = recipe("iso_c", paths)
    wanted["parameters"] = {"lambda": [{"filter": "mlp", "value": 0.5}, {"value": 2.0}]}
    planned = eutectic.plan(wanted)
    base, *models = (load_file(f"{path}/model.safetensors") for path in paths)
    for name in TOKENS:
        deltas = [w * (m[name].double() - base[name].double()) for w, m in zip((1, 0.75, 0.5), models, strict=True)]
        expected = base[name].double() + 2.0 * sum(deltas) / 3
        torch.testing.assert_close(planned[name].to_torch(), expected.float(), rtol=1e-6, atol=1e-6)
    told = "merged by mean_delta, for they have a row per token: 2 (lm_head.weight, model.embed_tokens.weight)"
    assert told in planned.to_json()["accounts"]
    assert {kind.step.name: kind.step.root.method.name for kind in planned.kinds}[TOKENS[0]] == "mean_delta"
    alone = eutectic.plan(wanted, torch_only=True)
    assert torch.equal(alone[TOKENS[0]].to_torch(), planned[TOKENS[0]].to_torch())


def test_an_inner_spectral_merge_averages_them_too(paths: list[str]) -> None:
    inner = recipe("tsv_m", paths)
    outer = {"merge_method": "linear", "models": [{"model": inner}], "parameters": {"weight": 1.0}}
    assert torch.equal(
        eutectic.plan({**outer, "out_dtype": "float32"})[TOKENS[0]].to_torch(),
        eutectic.plan(inner)[TOKENS[0]].to_torch(),
    )


def test_a_cache_shared_by_many_merges_changes_no_bit(paths: list[str]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    alone = {scale: eutectic.plan(recipe("tsv_m", paths, **{"lambda": scale}))[name].read() for scale in (0.5, 1.5)}
    with SpectrumCache() as cache:
        for scale, expected in alone.items():
            assert eutectic.plan(recipe("tsv_m", paths, **{"lambda": scale}))[name].read() == expected
        assert (cache.hits, cache.misses) == (3, 3)


def test_what_is_not_finite_is_told_by_tensor(paths: list[str], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    tensors = load_file(f"{paths[1]}/model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name][0, 0] = float("nan")
    save_file(tensors, broken / "model.safetensors")
    (broken / "config.json").write_text(json.dumps(CONFIG))
    wanted = recipe("tsv_m", [paths[0], str(broken), paths[2]])
    with pytest.raises(MethodError, match=rf"{name}.*NaN or infinity"):
        eutectic.plan(wanted, allow_nonfinite=True)[name].read()


@pytest.mark.parametrize("method", ["tsv_m", "wudi"])
def test_the_process_takes_no_more_than_the_buffers_that_were_foretold(method: str, tmp_path: Path) -> None:
    reached, buffers = [], []
    for at, shape in enumerate([(16, 16), (800, 2000)]):
        folder = tmp_path / str(at)
        folder.mkdir()
        wanted = recipe(method, families(folder, {"layers.0.weight": shape}, 3))
        (folder / "recipe.yaml").write_text(json.dumps(wanted))
        buffers.append(eutectic.plan(wanted, threads=1, max_memory=1 << 30).shape.buffers)
        options = ["--threads", "1", "--max-memory", "1GiB"]
        command = [sys.executable, "-m", "eutectic", "merge", folder / "recipe.yaml", folder / "out", *options]
        done = subprocess.run([sys.executable, "-c", MEASURE, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        reached.append(int(done.stdout.split()[-1]))
    assert reached[1] - reached[0] <= buffers[1]
