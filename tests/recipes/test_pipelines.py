"""Diffusion models: folders of several models keep their structure; single files are one model of several parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from eutectic.errors import RecipeError, SourceError
from eutectic.recipes.merge import merge, plan
from eutectic.recipes.verify import verify
from eutectic.weights.checkpoint import open_checkpoint

UNET = {
    "conv_in.weight": (4, 2, 3, 3),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight": (8, 8),
    "down_blocks.0.resnets.0.norm1.weight": (8,),
    "mid_block.attentions.0.proj_in.weight": (8, 8),
}
VAE = {"encoder.conv_in.weight": (4, 3, 3, 3), "decoder.conv_out.bias": (3,)}
TEXT = {"text_model.embeddings.token_embedding.weight": (16, 4), "text_model.final_layer_norm.weight": (4,)}
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": [None, None],
}
FILES = {
    "model_index.json": INDEX,
    "unet/config.json": {"_class_name": "UNet2DConditionModel", "in_channels": 2},
    "vae/config.json": {"_class_name": "AutoencoderKL"},
    "text_encoder/config.json": {"model_type": "clip_text_model", "torch_dtype": "float32"},
    "tokenizer/vocab.json": {"a": 0},
    "scheduler/scheduler_config.json": {"beta_end": 0.012},
}
WEIGHTS = {
    "unet/diffusion_pytorch_model.safetensors": UNET,
    "vae/diffusion_pytorch_model.safetensors": VAE,
    "text_encoder/model.safetensors": TEXT,
}
NAMES = [f"{file.partition('/')[0]}/{name}" for file, shapes in WEIGHTS.items() for name in shapes]


@pytest.fixture
def pipelines(tmp_path: Path) -> list[Path]:
    """Two pipelines of one kind; each has a variant file and a text that belongs to no component."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for seed, folder in enumerate(folders):
        random = np.random.default_rng(seed)
        for name, content in FILES.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(json.dumps(content))
        for name, shapes in WEIGHTS.items():
            tensors = {key: random.standard_normal(shape, dtype="f4") for key, shape in shapes.items()}
            save_file(tensors, folder / name, metadata={"format": "pt"})
        (folder / "unet/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"a variant that nobody asked for")
        (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folders


def linear(folders: list[Path], **top: Any) -> dict[str, Any]:
    return {
        "merge_method": "linear",
        "models": [{"model": str(f)} for f in folders],
        "parameters": {"weight": 1},
        **top,
    }


def test_a_pipeline_is_one_checkpoint(pipelines: list[Path]) -> None:
    found = open_checkpoint(pipelines[0])
    assert set(found) == set(NAMES)
    assert found.components == {
        "unet": "diffusion_pytorch_model",
        "vae": "diffusion_pytorch_model",
        "text_encoder": "model",
    }
    assert all(ref.name == name for name, ref in found.items())
    files = {found.name_of(file) for file in found.headers}
    assert files == set(WEIGHTS)


def test_the_result_has_the_same_folders(pipelines: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = merge(linear(pipelines, dtype="float16"), out, fsync=False)
    assert made == out
    for name, shapes in WEIGHTS.items():
        found, (a, b) = load_file(out / name), (load_file(folder / name) for folder in pipelines)
        assert set(found) == set(shapes)
        for key, value in found.items():
            wanted = ((a[key].astype("f8") + b[key]) / 2).astype("f2")
            np.testing.assert_array_equal(value, wanted)
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert written == {*FILES, *WEIGHTS, "README.md", "recipe.yaml", "recipe.lock.json"}
    assert json.loads((out / "text_encoder/config.json").read_text())["torch_dtype"] == "float16"
    for name in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json"):
        assert (out / name).read_bytes() == (pipelines[0] / name).read_bytes()
    card = (out / "README.md").read_text()
    assert "library_name: diffusers" in card and "license: mit" in card and f"merged: {len(NAMES)} tensors" in card
    assert verify(out).sound
    (out / "vae/config.json").write_text("{}")
    assert verify(out).problems == ("vae/config.json: changed since it was written",)
    again = merge(out / "recipe.lock.json", tmp_path / "again", fsync=False)
    assert (
        isinstance(again, Path) and load_file(again / "unet/diffusion_pytorch_model.safetensors").keys() == UNET.keys()
    )


def test_components_are_modules(pipelines: list[Path], tmp_path: Path) -> None:
    both = [{"model": str(f), "parameters": {"weight": w}} for f, w in zip(pipelines, (0.25, 0.75), strict=True)]
    modules = {"unet": {"models": both}, "default": {"models": [{**both[0], "parameters": {"weight": 1.0}}]}}
    merge({"merge_method": "linear", "modules": modules}, tmp_path / "out", fsync=False)
    for name in WEIGHTS:
        found, (a, b) = load_file(tmp_path / "out" / name), (load_file(folder / name) for folder in pipelines)
        share = 0.75 if name.startswith("unet") else 0.0
        for key, value in found.items():
            np.testing.assert_allclose(value, (1 - share) * a[key] + share * b[key], rtol=1e-6, atol=1e-7)


def test_each_component_has_its_own_shards(pipelines: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge(linear(pipelines), out, shard_bytes=400, fsync=False)
    index = json.loads((out / "unet/diffusion_pytorch_model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(UNET) and all("/" not in file for file in index["weight_map"].values())
    assert index["metadata"]["total_size"] == sum(4 * int(np.prod(shape)) for shape in UNET.values())
    assert set(open_checkpoint(out)) == set(NAMES) and verify(out).sound
    assert open_checkpoint(out / "unet").components == {"": "diffusion_pytorch_model"}


def test_one_component_alone_keeps_its_file_name(pipelines: list[Path], tmp_path: Path) -> None:
    merge(linear([folder / "unet" for folder in pipelines], dtype="bfloat16"), tmp_path / "out", fsync=False)
    assert (tmp_path / "out/diffusion_pytorch_model.safetensors").is_file()
    assert json.loads((tmp_path / "out/config.json").read_text()) == FILES["unet/config.json"]


def test_what_is_wrong_is_told(pipelines: list[Path]) -> None:
    slices = [{"sources": [{"model": str(folder), "layer_range": [0, 1]}]} for folder in pipelines]
    with pytest.raises(RecipeError, match=r"slices\[0\]: which layers .* use 'modules'"):
        plan({"merge_method": "passthrough", "slices": slices})
    (pipelines[1] / "vae/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(SourceError, match=r"vae/decoder\.conv_out\.bias: in .*first; not in .*second"):
        plan(linear(pipelines))
    index = {"../second": ["x", "y"], "unet": "no list", "vae": [], "scheduler": []}
    (pipelines[1] / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match="names no folder with weights"):
        open_checkpoint(pipelines[1])


def test_a_single_file_of_all_parts(tmp_path: Path) -> None:
    shapes = {
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight": (8, 8),
        "model.diffusion_model.out.2.weight": (4, 8, 3, 3),
        "first_stage_model.encoder.conv_in.weight": (4, 3, 3, 3),
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (16, 4),
        "model_ema.decay": (),
    }
    ids = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    files = []
    for seed in range(2):
        random = np.random.default_rng(seed)
        tensors: dict[str, np.ndarray] = {
            name: np.asarray(random.standard_normal(s), "f4") for name, s in shapes.items()
        }
        files.append(tmp_path / f"sd-{seed}.safetensors")
        save_file({**tensors, ids: np.arange(77)[None] + seed}, files[-1])
    made = plan(linear(files))
    assert made.account.lines[0].startswith(f"merged: {len(shapes)} tensors") and len(made.account.lines) == 2
    assert made.account.lines[1].startswith("copied from the reference model: not floating-point numbers: 1")
    merge(linear(files), tmp_path / "out", fsync=False)
    found, (a, b) = load_file(tmp_path / "out/model.safetensors"), (load_file(file) for file in files)
    assert set(found) == {*shapes, ids} and np.array_equal(found[ids], a[ids])
    for name in shapes:
        np.testing.assert_allclose(found[name], (a[name].astype("f8") + b[name]) / 2, rtol=1e-6)


def test_inspect_shows_the_parts(pipelines: list[Path], cli: Callable[..., Any]) -> None:
    shown = cli("inspect", pipelines[0])
    assert shown.exit_code == 0 and "StableDiffusionPipeline" in shown.stdout
    assert "vae/diffusion_pytorch_model.safetensors" in shown.stdout and "convolution" in shown.stdout
