"""RegMean++: Gram matrices through the merged layers, against a dense float64 reference; whose they are; refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import eutectic
from eutectic.errors import OutputError, RecipeError
from eutectic.evaluation.collecting.samples import Samples
from eutectic.evaluation.collecting.through_merged import collect_through_merged, stages_of
from eutectic.evaluation.model import Model
from eutectic.evaluation.networks import structure
from eutectic.evaluation.suite import load_suite
from eutectic.recipes.merge import plan
from eutectic.weights.safetensors import write_safetensors

MLP = {"model_type": "eutectic-mlp", "input_size": 6, "hidden_sizes": [5, 4], "num_labels": 3}
LM = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 256, "hidden_size": 8,
    "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}  # fmt: skip


def write(folder: Path, config: dict[str, Any], columns: Any, kind: str = "classification") -> Path:
    tasks = []
    shapes = {name: tuple(tensor.shape) for name, tensor in structure(config).state_dict().items()}
    for seed, name in enumerate(("a", "b")):
        random = np.random.default_rng(seed)
        (folder / name).mkdir()
        tensors = {n: random.normal(0, 0.5, shape).astype(np.float32) for n, shape in shapes.items()}
        write_safetensors(folder / name / "model.safetensors", tensors)
        (folder / name / "config.json").write_text(json.dumps(config))
        write_safetensors(folder / f"{name}.safetensors", columns(random))
        tasks.append({"name": f"of-{name}", "kind": kind, "expert": name, "data": {"train": f"{name}.safetensors"}})
    (folder / "suite.json").write_text(json.dumps({"tasks": tasks}))
    return folder / "suite.json"


def labelled(random: np.random.Generator) -> dict[str, np.ndarray]:
    return {"inputs": random.normal(size=(40, 6)).astype(np.float32), "labels": random.integers(0, 3, 40)}


def recipe(folder: Path, folders: list[Path] | None = None, **parameters: Any) -> dict[str, Any]:
    models = [{"model": str(folder / name)} for name in ("a", "b")]
    if folders is not None:
        models = [{**model, "statistics": str(at)} for model, at in zip(models, folders, strict=True)]
    return {"merge_method": "regmean", "models": models, "parameters": {"ratio": 0.95, **parameters}}


def test_the_merge_is_the_dense_one(tmp_path: Path) -> None:
    """Layer after layer by hand: the inputs of each are what the merged ones before it send, on each source's data."""
    suite = write(tmp_path, MLP, labelled)
    folders = collect_through_merged(recipe(tmp_path), suite, tmp_path / "stats")
    assert folders == [tmp_path / "stats/a", tmp_path / "stats/b"]
    merged = plan(recipe(tmp_path, folders))
    w = [{n: t.to_numpy().astype(np.float64) for n, t in eutectic.open(tmp_path / m).items()} for m in "ab"]
    x = [eutectic.open(tmp_path / f"{m}.safetensors")["inputs"].to_numpy().astype(np.float64) for m in "ab"]
    for layer in range(3):
        grams = [rows.T @ rows / len(rows) for rows in x]
        grams = [g * 0.95 + np.diag(np.diagonal(g) * 0.05) for g in grams]
        name = f"layers.{layer}.weight"
        mean = (w[0][name] + w[1][name]) / 2  # stays where no input comes: units that are zero on all data
        pull = sum(g @ (one[name] - mean).T for g, one in zip(grams, w, strict=True))
        wanted = mean + (np.linalg.pinv(sum(grams), rcond=1e-6, hermitian=True) @ pull).T
        bias = (w[0][f"layers.{layer}.bias"] + w[1][f"layers.{layer}.bias"]) / 2
        assert np.abs(merged[name].to_numpy() - wanted).max() <= 1e-5 * np.abs(wanted).max()
        x = [np.maximum(rows @ wanted.T + bias, 0) for rows in x]


def test_stages_are_blocks_in_the_order_of_the_pass(tmp_path: Path) -> None:
    def columns(random: np.random.Generator) -> dict[str, np.ndarray]:
        return {"input_ids": random.integers(0, 256, (4, 9)).astype(np.uint8)}

    suite = write(tmp_path, LM, columns, "bits_per_byte")
    model = Model(eutectic.open(tmp_path / "a"))
    samples = Samples.of(load_suite(suite).tasks["of-a"], "train", model, limit=None, labels="data")
    stages = stages_of(model.network, list(reversed(list(model.checkpoint))), samples)
    firsts = ["model.embed_tokens.weight", "model.layers.0.input_layernorm.weight"]
    assert [min(stage) for stage in stages][:2] == firsts
    assert sorted(name for stage in stages for name in stage) == sorted(model.checkpoint)
    assert {name.split(".")[2] for name in stages[2]} == {"1"}
    folders = collect_through_merged(recipe(tmp_path), suite, tmp_path / "stats", limit=3)
    assert len(plan(recipe(tmp_path, folders))) == len(model.checkpoint)
    first = [eutectic.open(folder / "gram.safetensors")["model.layers.0.self_attn.q_proj.weight"] for folder in folders]
    assert all(np.isfinite(gram.to_numpy()).all() for gram in first)


def test_kept_where_they_are_and_refused_where_not_theirs(tmp_path: Path) -> None:
    suite = write(tmp_path, MLP, labelled)
    folders = collect_through_merged(recipe(tmp_path), suite, tmp_path / "stats", limit=9)
    before = [(folder / "gram.safetensors").read_bytes() for folder in folders]
    lines: list[str] = []
    collect_through_merged(recipe(tmp_path, folders), suite, tmp_path / "stats", limit=9, report=lines.append)
    assert len(lines) == 1 and "already" in lines[0]
    collect_through_merged(recipe(tmp_path), suite, tmp_path / "again", limit=9)
    assert before == [(tmp_path / "again" / name / "gram.safetensors").read_bytes() for name in "ab"]
    with pytest.raises(OutputError, match="another model or other data"):
        collect_through_merged(recipe(tmp_path), suite, tmp_path / "stats", limit=8)
    with pytest.raises(OutputError, match="another model or other data"):  # another ratio, other merged layers
        collect_through_merged(recipe(tmp_path, ratio=0.5), suite, tmp_path / "stats", limit=9)
    data = json.loads((folders[0] / "stats.json").read_text())["data"]
    assert (data["task"], data["samples"], data["inputs"]) == ("of-a", 9, "through the merged model")


def test_what_cannot_begin(tmp_path: Path) -> None:
    suite = write(tmp_path, MLP, labelled)
    inner = {"merge_method": "linear", "models": recipe(tmp_path)["models"], "parameters": {"weight": 1}}
    for change, more, words in [
        ({"merge_method": "fisher"}, {}, "are for regmean over models"),
        ({}, {"tasks": ["of-a"]}, "1 tasks for 2 sources"),
        ({"models": [{"model": str(tmp_path / "a")}, {"model": inner}]}, {}, "merge it first"),
    ]:
        with pytest.raises(RecipeError, match=words):
            collect_through_merged({**recipe(tmp_path), **change}, suite, tmp_path / "stats", **more)
    suite.write_text(suite.read_text().replace('"expert": "b"', '"expert": "c"'))
    with pytest.raises(RecipeError, match="no task has the expert b"):
        collect_through_merged(recipe(tmp_path), suite, tmp_path / "stats")
    assert not (tmp_path / "stats").exists()
