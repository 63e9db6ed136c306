"""`eutectic inspect`: counts, files, layers, patterns, JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from eutectic.cli.inspect import describe
from eutectic.cli.main import main
from eutectic.weights.checkpoint import open_checkpoint
from eutectic.weights.safetensors import write_safetensors

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": True}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder of two shards: three layers, an embedding, norms in float32."""
    folder = tmp_path / "model"
    folder.mkdir()
    first: dict[str, np.ndarray] = {"model.embed_tokens.weight": np.zeros((10, 4), np.float16)}
    second: dict[str, np.ndarray] = {}
    for layer in range(3):
        second[f"model.layers.{layer}.mlp.up_proj.weight"] = np.zeros((8, 4), np.float16)
        second[f"model.layers.{layer}.norm.weight"] = np.zeros(4, np.float32)
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    write_safetensors(folder / shards[0], first)
    write_safetensors(folder / shards[1], second)
    weight_map = dict.fromkeys(first, shards[0]) | dict.fromkeys(second, shards[1])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def inspect(*args: str | Path) -> str:
    result = CliRunner().invoke(main, ["inspect", *map(str, args)], catch_exceptions=False)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def inspect_json(*args: str | Path) -> dict[str, Any]:
    return json.loads(inspect(*args, "--json"))


def test_json(model: Path) -> None:
    found = inspect_json(model)
    assert (found["command"], found["schema"], found["path"]) == ("inspect", 1, str(model))
    assert (found["tensor_count"], found["parameters"], found["bytes"]) == (7, 40 + 3 * 36, 80 + 3 * 80)
    assert (found["architectures"], found["model_type"]) == (["LlamaForCausalLM"], "llama")
    assert (found["tied_embeddings"], found["output_head"]) == (True, None)
    assert found["dtypes"] == [
        {"dtype": "float16", "tensors": 4, "parameters": 136, "bytes": 272},
        {"dtype": "float32", "tensors": 3, "parameters": 12, "bytes": 48},
    ]
    assert [(file["name"], file["tensors"]) for file in found["files"]] == [
        ("model-00001-of-00002.safetensors", 1),
        ("model-00002-of-00002.safetensors", 6),
    ]
    assert found["layers"] == [{"prefix": "model.layers", "first": 0, "last": 2, "count": 3}]
    assert found["largest"][0]["name"] == "model.embed_tokens.weight"
    assert [(p["pattern"], p["count"], p["shape"]) for p in found["patterns"]] == [
        ("model.embed_tokens.weight", 1, [10, 4]),
        ("model.layers.{0..2}.mlp.up_proj.weight", 3, [8, 4]),
        ("model.layers.{0..2}.norm.weight", 3, [4]),
    ]
    assert sum(p["bytes"] for p in found["patterns"]) == found["bytes"]
    assert "tensors" not in found


def test_json_with_tensors_lists_each(model: Path) -> None:
    tensors = inspect_json(model, "--tensors")["tensors"]
    assert len(tensors) == 7
    assert tensors[0] == {
        "name": "model.embed_tokens.weight", "shape": [10, 4], "dtype": "float16",
        "parameters": 40, "bytes": 80, "file": "model-00001-of-00002.safetensors",
    }  # fmt: skip


def test_text(model: Path) -> None:
    shown = inspect(model)
    assert shown.startswith(f"{model}\n  kind        model\n  model       LlamaForCausalLM (llama)\n")
    assert "  parameters  148\n" in shown
    assert "  layers      3 in model.layers\n" in shown
    assert "  tied        yes, says config.json\n" in shown
    assert "model-{00001,00002}-of-00002.safetensors x2" in shown
    assert "model.layers.{0..2}.mlp.up_proj.weight      3  [8, 4]   float16" in shown


def test_text_with_tensors(model: Path) -> None:
    shown = inspect(model, "--tensors")
    assert "model.layers.1.norm.weight" in shown and "{" not in shown.split("Tensors\n")[1]


@pytest.mark.parametrize(
    ("tied", "head", "words"),
    [
        (True, True, "yes, says config.json; yet lm_head.weight is stored too"),
        (False, True, "no, says config.json; lm_head.weight is stored"),
        (None, False, "not stated; no lm_head is stored"),
    ],
)
def test_tied_embeddings(tmp_path: Path, tied: bool | None, head: bool, words: str) -> None:
    write_safetensors(tmp_path / "model.safetensors", {"lm_head.weight" if head else "w": np.zeros(2, np.float32)})
    if tied is not None:
        (tmp_path / "config.json").write_text(json.dumps({"text_config": {"tie_word_embeddings": tied}}))
    assert f"  tied        {words}\n" in inspect(tmp_path)


def test_a_single_file_without_config(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    write_safetensors(file, {"0.weight": np.zeros((2, 2)), "2.weight": np.zeros((2, 2)), "empty": np.zeros((0, 3))})
    assert "unknown, no config.json names it" in inspect(file)
    found = inspect_json(file)
    assert found["layers"] == [{"prefix": "", "first": 0, "last": 2, "count": 2}]
    assert found["model_type"] is None and found["parameters"] == 8


def test_many_patterns_are_cut_with_a_word(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    write_safetensors(file, {f"tensor{i}.w": np.zeros(1, np.float32) for i in range(75)})
    assert "... and 15 more patterns" in inspect(file)
    assert len(inspect_json(file)["patterns"]) == 75


def test_a_strange_config_does_no_harm(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", {"w": np.zeros(1, np.float32)})
    strange = {"architectures": "Llama", "model_type": 5, "tie_word_embeddings": "yes", "text_config": []}
    (tmp_path / "config.json").write_text(json.dumps(strange))
    found = inspect_json(tmp_path)
    assert (found["architectures"], found["tied_embeddings"]) == ([], None)
    inspect(tmp_path)


def test_names_cannot_drive_the_terminal(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "m.safetensors", {"\x1b[2Jw\n": np.zeros(1, np.float32)})
    assert "\x1b" not in inspect(tmp_path) and "\\x1b[2Jw\\n" in inspect(tmp_path, "--tensors")


def test_errors_name_the_path(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["inspect", str(tmp_path), "--json"])
    assert result.exit_code == 4 and result.stderr.startswith(f"error: {tmp_path}: no weights found")
    assert json.loads(result.stdout)["error"]["type"] == "SourceError"


def test_any_checkpoint_can_be_described(model: Path) -> None:
    checkpoint = open_checkpoint(model)
    planned = type(checkpoint)(dict(checkpoint), config=CONFIG)
    found = describe(planned)
    assert (found["path"], found["files"], found["parameters"]) == (None, [], 148)


def write(folder: Path, name: str, tensors: dict[str, np.ndarray], **files: Any) -> Path:
    (folder / name).mkdir(parents=True)
    write_safetensors(folder / name / files.pop("weights", "model.safetensors"), tensors)
    for file, content in files.items():
        (folder / name / f"{file}.json").write_text(json.dumps(content))
    return folder / name


def test_hazards_and_parts(model: Path) -> None:
    found = inspect_json(model)
    assert found["kind"] == "model" and found["declared"] == []
    assert [hazard["kind"] for hazard in found["hazards"]] == ["mixed_types", "overflow", "no_tokenizer"]
    shown = inspect(model)
    assert "\nBeware when merging\n  - floats of several types" in shown


def test_values_are_read_when_asked_for(tmp_path: Path) -> None:
    folder = write(tmp_path, "m", {"w": np.array([np.nan, 1.5], np.float32)}, config={"model_type": "x"})
    assert "values" not in inspect_json(folder)
    found = inspect_json(folder, "--values")
    assert found["values"][0]["nonfinite"] == 1 and found["hazards"][0]["kind"] == "nonfinite"
    assert "1 value is NaN or infinite; a merge refuses them (w)" in inspect(folder, "--values")


def test_among_and_base(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    base = random.standard_normal((8, 8))
    a, b = (base + 0.1 * random.standard_normal((8, 8)) for _ in range(2))
    folders = [write(tmp_path, name, {"w": value}, config={}) for name, value in (("base", base), ("a", a), ("b", b))]
    found = inspect_json(folders[1], "--among", folders[0], folders[2])["kinship"]
    assert (found["base"], found["given"], found["verdict"]) == ("base", False, "base (the nearest)")
    assert [kin["name"] for kin in found["candidates"]] == ["base", "b"]
    shown = inspect(folders[1], "--base", folders[0], "--among", folders[2])
    assert "Likely base: base (as given)" in shown and "base (base)" in shown


def test_an_adapter_and_a_family(tmp_path: Path) -> None:
    base = {"w": np.zeros((4, 4), np.float32)}
    factors = {"base_model.model.w.lora_A.weight": np.zeros((2, 4), np.float32)}
    config = {"r": 2, "lora_alpha": 4, "target_modules": ["w"], "base_model_name_or_path": "org/base"}
    write(tmp_path, "f/base", base, config={})
    adapter = write(tmp_path, "f/adapters/fr", factors, weights="adapter_model.safetensors", adapter_config=config)
    (tmp_path / "f" / "family.json").write_text(
        json.dumps(
            {"name": "bytes", "base": "base", "adapters": {"fr": "adapters/fr"}, "experts": {"fr": "experts/fr"}}
        )
    )
    shown = inspect(adapter)
    assert "  kind            adapter\n" in shown and "  base            org/base\n" in shown
    assert inspect_json(adapter)["adapter"]["target_modules"] == ["w"]
    found = inspect_json(tmp_path / "f")
    assert (found["kind"], [m["name"] for m in found["members"]]) == ("family", ["base", "expert fr", "adapter fr"])
    assert found["members"][2]["parameters"] == 8 and "no such" in found["members"][1]["error"]
    assert "family of experts (bytes)" in inspect(tmp_path / "f")
    refused = CliRunner().invoke(main, ["inspect", str(tmp_path / "f"), "--values"])
    assert refused.exit_code == 2 and "inspect a model in it" in refused.stderr


def test_a_pipeline_is_looked_into_as_a_whole(tmp_path: Path) -> None:
    weights = {"w": np.zeros((4, 4), np.float32)}
    write(tmp_path, "p/unet", weights, weights="diffusion_pytorch_model.safetensors", config={"_class_name": "U"})
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (tmp_path / "p" / "model_index.json").write_text(json.dumps(index))
    found = inspect_json(tmp_path / "p")
    assert (found["kind"], found["parameters"]) == ("pipeline", 16)
    assert "  kind        diffusion pipeline\n" in inspect(tmp_path / "p")
