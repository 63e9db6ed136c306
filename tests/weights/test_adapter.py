"""Adapters read as dense models: equal to PEFT's own merge, the same bits for any range, refused where unknown."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from eutectic.errors import EutecticError, SourceError
from eutectic.recipes.merge import merge, plan
from eutectic.recipes.opened import Opened
from eutectic.weights.adapter import open_adapted
from eutectic.weights.checkpoint import open_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 7},
    "rslora": {"r": 4, "use_rslora": True},
    "dora": {"r": 4, "use_dora": True},
    "patterns": {"r": 4, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.v_proj": 3}},
    "embedding": {"r": 4, "target_modules": ["embed_tokens", "q_proj"]},
    "saved": {"r": 4, "modules_to_save": ["lm_head"]},
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapt(base: Path, tmp_path: Path) -> Callable[..., dict[str, torch.Tensor]]:
    """Writes an adapter with random factors to `name`; returns the state that PEFT merges."""

    def make(name: str, **settings: Any) -> dict[str, torch.Tensor]:
        torch.manual_seed(len(name))
        settings = {"target_modules": ["q_proj", "v_proj", "down_proj"], **settings}
        model = peft.get_peft_model(
            transformers.LlamaForCausalLM.from_pretrained(base), peft.LoraConfig(task_type="CAUSAL_LM", **settings)
        )
        for key, value in model.named_parameters():
            if "lora_" in key or "modules_to_save" in key:
                value.data += 0.1 * torch.randn_like(value)
        model.save_pretrained(tmp_path / name)
        return model.merge_and_unload().state_dict()

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_one_adapter_is_what_peft_merges(
    kind: str, base: Path, adapt: Callable[..., dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    expected = adapt(kind, **KINDS[kind])
    recipe = {"merge_method": "passthrough", "models": [{"model": f"{base}+{tmp_path / kind}"}]}
    merge(recipe, tmp_path / "out", fsync=False)
    found = load_file(tmp_path / "out/model.safetensors")
    assert found.keys() == expected.keys()
    changed = 0
    before = load_file(base / "model.safetensors")
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-6 * value.abs().max(), name
        changed += not torch.equal(found[name], before[name])
    assert changed >= 3


def test_a_task_vector_of_an_adapter(base: Path, adapt: Callable[..., dict[str, torch.Tensor]], tmp_path: Path) -> None:
    """The adapter at weight 1 is itself, at weight 1/2 half of its delta; the mapping form means the same."""
    whole, before = adapt("lora"), load_file(base / "model.safetensors")
    model = {"model": {"path": str(base)}, "lora": str(tmp_path / "lora")}
    for weight in (1.0, 0.5):
        source = {"model": model, "parameters": {"weight": weight}}
        recipe = {"merge_method": "task_arithmetic", "base_model": str(base), "models": [source]}
        merge(recipe, tmp_path / f"out{weight}", fsync=False)
        found = load_file(tmp_path / f"out{weight}/model.safetensors")
        for name, value in whole.items():
            expected = before[name].double() + weight * (value.double() - before[name].double())
            torch.testing.assert_close(found[name].double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["lora", "dora", "embedding"])
def test_any_range_has_the_same_bits(
    kind: str, base: Path, adapt: Callable[..., dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    adapt(kind, **KINDS[kind])
    adapted = open_adapted(open_checkpoint(base), tmp_path / kind)
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"):
        ref = adapted[name]
        whole = bytes(ref.read())
        size = ref.dtype.size
        for start, stop in ((0, 1), (5, 40), (16, 32), (17, 18), (3, ref.numel), (0, ref.numel)):
            assert bytes(ref.read(start, stop)) == whole[start * size : stop * size]


def test_the_result_keeps_the_bases_type_and_the_lock_names_the_adapter(
    base: Path, adapt: Callable[..., dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    adapt("lora")
    half = {name: value.bfloat16() for name, value in load_file(base / "model.safetensors").items()}
    save_file(half, base / "model.safetensors")
    recipe = {"merge_method": "passthrough", "models": [{"model": f"{base}+{tmp_path / 'lora'}"}]}
    merge(recipe, tmp_path / "out", fsync=False)
    assert {value.dtype for value in load_file(tmp_path / "out/model.safetensors").values()} == {torch.bfloat16}
    lock = json.loads((tmp_path / "out/recipe.lock.json").read_text())
    names = [file["name"] for file in lock["sources"][0]["files"]]
    assert names == ["model.safetensors", "adapter_model.safetensors", "adapter_config.json"]
    merge(tmp_path / "out/recipe.lock.json", tmp_path / "again", fsync=False)
    first, again = (tmp_path / n / "model.safetensors" for n in ("out", "again"))
    assert first.read_bytes() == again.read_bytes()
    with pytest.raises(EutecticError, match="holds or lies inside the source"):
        merge(recipe, tmp_path / "lora", force=True)


def change(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"peft_type": "IA3"}, "of the kind 'IA3'"),
        ({"init_lora_weights": "pissa_niter_4"}, "began by changing the base"),
        ({"target_parameters": ["x"]}, "target_parameters is set"),
        ({"lora_alpha": None}, "lora_alpha None"),
        ({"lora_alpha": float("nan")}, "lora_alpha nan"),
        ({"lora_alpha": "8"}, "lora_alpha is '8', not a number"),
        ({"alpha_pattern": ["q"]}, r"alpha_pattern is \['q'\], not an object"),
        ({"alpha_pattern": {"(": 1}}, r"'\(' is no regular expression"),
        ({"modules_to_save": 5}, "modules_to_save is 5, not a list"),
        ({"base_model_name_or_path": 5}, "base_model_name_or_path is 5, not a text"),
        ({"fan_in_fan_out": True}, "does not fit"),
    ],
)
def test_adapters_that_are_not_understood_are_refused(
    settings: dict[str, Any], words: str, base: Path, adapt: Callable[..., Any], tmp_path: Path
) -> None:
    adapt("lora")
    change(tmp_path / "lora", **settings)
    with pytest.raises(EutecticError, match=words):
        plan({"merge_method": "passthrough", "models": [{"model": f"{base}+{tmp_path / 'lora'}"}]})


def test_what_is_no_adapter_of_this_base_is_refused(base: Path, adapt: Callable[..., Any], tmp_path: Path) -> None:
    adapt("lora")
    lora = tmp_path / "lora"

    def planned(model: str) -> None:
        plan({"merge_method": "passthrough", "models": [{"model": model}]})

    with pytest.raises(SourceError, match="is an adapter, not a model"):
        plan({"merge_method": "soup", "models": [{"model": str(base)}, {"model": str(lora)}]})
    with pytest.raises(SourceError, match="holds no adapter_config"):
        planned(f"{base}+{base}")
    with pytest.raises(SourceError, match="no such folder"):
        planned(f"{base}+{tmp_path / 'none'}")
    factors = load_file(lora / "adapter_model.safetensors")
    renamed = {key.replace("q_proj", "query"): value for key, value in factors.items()}
    save_file(renamed, lora / "adapter_model.safetensors")
    with pytest.raises(SourceError, match=r"adapts model\.layers\.0\.self_attn\.query, which the base"):
        planned(f"{base}+{lora}")
    save_file({k: v for k, v in factors.items() if "lora_B" not in k}, lora / "adapter_model.safetensors")
    with pytest.raises(EutecticError, match="the pair is not whole"):
        planned(f"{base}+{lora}")


def test_a_transposed_layer_is_adapted_transposed(make_model: Callable[..., Path], tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    weight = random.standard_normal((6, 4), dtype=np.float32)
    a, b = random.standard_normal((2, 6), dtype=np.float32), random.standard_normal((4, 2), dtype=np.float32)
    model = make_model("conv1d", {"h.0.c_attn.weight": weight})
    key = "base_model.model.h.0.c_attn.lora_{}.weight"
    lora = make_model("turned", {key.format("A"): a, key.format("B"): b})
    (lora / "model.safetensors").rename(lora / "adapter_model.safetensors")
    (lora / "adapter_config.json").write_text(json.dumps({"lora_alpha": 4, "fan_in_fan_out": True}))
    found = open_adapted(open_checkpoint(model), lora)["h.0.c_attn.weight"].to_numpy()
    np.testing.assert_allclose(found, weight + 2 * (b @ a).T, rtol=1e-5, atol=1e-6)


def test_a_convolution_is_adapted(make_model: Callable[..., Path]) -> None:
    random = np.random.default_rng(2)
    weight = random.standard_normal((5, 3, 2, 2), dtype=np.float32)
    a = random.standard_normal((2, 3, 2, 2), dtype=np.float32)
    b = random.standard_normal((5, 2, 1, 1), dtype=np.float32)
    model = make_model("conv", {"stem.weight": weight})
    key = "base_model.model.stem.lora_{}.weight"
    lora = make_model("kernels", {key.format("A"): a, key.format("B"): b})
    (lora / "model.safetensors").rename(lora / "adapter_model.safetensors")
    (lora / "adapter_config.json").write_text(json.dumps({"lora_alpha": 1, "peft_type": "LORA"}))
    found = open_adapted(open_checkpoint(model), lora)["stem.weight"].to_numpy()
    composed = torch.nn.functional.conv2d(torch.from_numpy(a).permute(1, 0, 2, 3), torch.from_numpy(b)).permute(
        1, 0, 2, 3
    )
    np.testing.assert_allclose(found, weight + 0.5 * composed.numpy(), rtol=1e-5, atol=1e-6)


def test_the_dense_model_is_neither_held_nor_written(make_model: Callable[..., Path], tmp_path: Path) -> None:
    """16 layers of 2 MB: what is allocated lies far below the base at any time, and only the result is written."""
    random = np.random.default_rng(3)
    names = [f"model.layers.{at}.mlp.up_proj" for at in range(16)]
    base = make_model("dense", {f"{n}.weight": random.standard_normal((1024, 512), dtype=np.float32) for n in names})
    key = "base_model.model.{}.lora_{}.weight"
    factors = {key.format(n, "A"): random.standard_normal((4, 512), dtype=np.float32) for n in names}
    factors |= {key.format(n, "B"): random.standard_normal((1024, 4), dtype=np.float32) for n in names}
    lora = make_model("thin", factors)
    (lora / "model.safetensors").rename(lora / "adapter_model.safetensors")
    (lora / "adapter_config.json").write_text(json.dumps({"lora_alpha": 4}))
    dense = (base / "model.safetensors").stat().st_size
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(base),
        "models": [{"model": f"{base}+{lora}", "parameters": {"weight": 0.5}}],
    }
    merge(recipe, tmp_path / "first", fsync=False)  # loads the kernels, which take memory, too
    before = set(tmp_path.iterdir())
    planned = plan(recipe, threads=1, max_memory=16 << 20)
    assert planned.bytes_read == 2 * (
        dense - 8 - int.from_bytes((base / "model.safetensors").read_bytes()[:8], "little")
    )
    tracemalloc.start()
    merge(recipe, tmp_path / "out", fsync=False, threads=1, max_memory=16 << 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < dense / 4
    assert peak < planned.shape.buffers + (2 << 20)  # side files, headers and the like
    assert set(tmp_path.iterdir()) - before == {tmp_path / "out"}


def test_views_of_a_part_of_a_pipeline_keep_its_file_name(make_model: Callable[..., Path], tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    base = make_model("unet", {"q.weight": random.normal(size=(6, 4)).astype("f4")}, config={})
    (base / "model.safetensors").rename(base / "diffusion_pytorch_model.safetensors")
    pair = {"A": random.normal(size=(1, 4)), "B": random.normal(size=(6, 1))}
    lora = tmp_path / "lora"
    lora.mkdir()
    stored = {f"base_model.model.q.lora_{side}.weight": torch.tensor(m).float() for side, m in pair.items()}
    save_file(stored, lora / "adapter_model.safetensors")
    (lora / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 1}')
    merge({"merge_method": "passthrough", "models": [{"model": f"{base}+{lora}"}]}, tmp_path / "out", fsync=False)
    assert (tmp_path / "out/diffusion_pytorch_model.safetensors").is_file()
    opened = Opened(1 << 20)
    assert plan({"merge_method": "soup", "models": [{"model": str(base)}]}, opened=opened).components == {
        "": "diffusion_pytorch_model"
    }
