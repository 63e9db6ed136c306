"""Statistics of small networks against dense float64 references, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eutectic.errors import NonFiniteError, OutputError, RecipeError, SourceError
from eutectic.evaluation.collecting.collect import collect_statistics
from eutectic.evaluation.model import Model
from eutectic.evaluation.suite import load_suite
from eutectic.evaluation.tasks.task import Task
from eutectic.weights.checkpoint import open_checkpoint
from eutectic.weights.safetensors import write_safetensors
from eutectic.weights.statistics_folder import Statistics

ALL = ("fisher", "gram", "activations", "gradients")
MLP = {"model_type": "eutectic-mlp", "input_size": 6, "hidden_sizes": [5], "num_labels": 3, "norm": "layer"}


def write_model(folder: Path, config: dict[str, Any], seed: int = 0) -> Model:
    from eutectic.evaluation.networks import structure

    random = np.random.default_rng(seed)
    folder.mkdir()
    shapes = {name: tuple(tensor.shape) for name, tensor in structure(config).state_dict().items()}
    tensors = {n: random.normal(0, 0.5, shape).astype(np.float32) for n, shape in shapes.items()}
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config))
    return Model(open_checkpoint(folder))


def write_task(folder: Path, arrays: dict[str, np.ndarray], kind: str = "classification", **more: Any) -> Task:
    write_safetensors(folder / "train.safetensors", arrays)
    entry = {"name": "own", "kind": kind, "data": {"train": str(folder / "train.safetensors")}, **more}
    return load_suite({"tasks": [entry]}).tasks["own"]


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return write_model(tmp_path / "model", MLP)


@pytest.fixture
def task(tmp_path: Path) -> Task:
    random = np.random.default_rng(1)
    inputs = random.normal(size=(7, 6)).astype(np.float32)
    return write_task(tmp_path, {"inputs": inputs, "labels": random.integers(0, 3, 7)})


def arrays(found: Statistics, kind: str) -> dict[str, np.ndarray]:
    return {name: ref.to_numpy().astype(np.float64) for name, ref in found.tensors(kind).items()}


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 1e-5 * max(1e-30, np.abs(wanted).max())


def reference(model: Model, task: Any, labels: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Fisher and mean gradient by autograd in float64, one sample and class at a time."""
    network = model.network.double().requires_grad_(True)
    x, y = task.column("train", "inputs").astype(np.float64), task.column("train", "labels")
    fisher: dict[str, Any] = {name: 0.0 for name, _ in network.named_parameters()}
    gradient = dict(fisher)
    for sample, label in zip(x, y, strict=True):
        logs = network(torch.from_numpy(sample[None])).log_softmax(-1)[0]
        for c in range(3):
            grads = torch.autograd.grad(logs[c], list(network.parameters()), retain_graph=True)
            share = float(logs[c].detach().exp()) if labels == "model" else float(c == label)
            for name, grad in zip(fisher, grads, strict=True):
                fisher[name] = fisher[name] + share * grad.numpy() ** 2 / len(x)
                gradient[name] = gradient[name] - float(c == label) * grad.numpy() / len(x)
    return fisher, gradient  # type: ignore[return-value]


@pytest.mark.parametrize("labels", ["data", "model"])
@pytest.mark.parametrize("memory", [1, 400, 1 << 20])
def test_fisher_and_gradients_equal_autograd(
    model: Model, task: Task, tmp_path: Path, labels: Any, memory: int
) -> None:
    kinds = ("fisher", "gradients")
    found = collect_statistics(model, task, tmp_path / "s", kinds=kinds, labels=labels, memory=memory)
    fisher, gradient = reference(model, task, labels)
    for kind, wanted in (("fisher", fisher), ("gradients", gradient)):
        tensors = arrays(found, kind)
        assert set(tensors) == set(model.checkpoint)
        for name in tensors:
            close(tensors[name], wanted[name])


@pytest.mark.parametrize("memory", [1, 1 << 20])
def test_gram_and_moments_equal_the_dense_ones(model: Model, task: Any, tmp_path: Path, memory: int) -> None:
    found = collect_statistics(model, task, tmp_path / "s", kinds=("gram", "activations"), memory=memory)
    w = {name: ref.to_numpy().astype(np.float64) for name, ref in model.checkpoint.items()}
    x = task.column("train", "inputs").astype(np.float64)
    hidden = x @ w["layers.0.weight"].T + w["layers.0.bias"]
    hidden = (hidden - hidden.mean(1, keepdims=True)) / np.sqrt(hidden.var(1, keepdims=True) + 1e-5)
    hidden = np.maximum(hidden * w["norms.0.weight"] + w["norms.0.bias"], 0)
    inputs = {"layers.0.weight": x, "layers.1.weight": hidden}
    assert set(found.tensors("gram")) == set(found.tensors("activations")) == set(inputs)
    for name, rows in inputs.items():
        close(arrays(found, "gram")[name], rows.T @ rows / len(rows))
        close(arrays(found, "activations")[name], np.stack([rows.mean(0), (rows**2).mean(0)]))


def test_a_convolution_has_the_gram_of_its_patches(tmp_path: Path) -> None:
    config = {"model_type": "eutectic-cnn", "image_size": 8, "channels": [4], "hidden_sizes": [], "num_labels": 2}
    model = write_model(tmp_path / "cnn", config)
    images = np.random.default_rng(0).random((3, 8, 8)).astype(np.float32)
    task = write_task(tmp_path, {"inputs": images, "labels": np.array([0, 1, 0])})
    gram = arrays(collect_statistics(model, task, tmp_path / "s", kinds=["gram"]), "gram")["convs.0.weight"]
    padded = np.pad(images.astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    patches = np.stack([p[i : i + 3, j : j + 3].ravel() for p in padded for i in range(8) for j in range(8)])
    close(gram, patches.T @ patches / len(patches))


def test_texts_of_bytes_and_shared_weights(tmp_path: Path) -> None:
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 256, "hidden_size": 8,
        "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    }  # fmt: skip
    model = write_model(tmp_path / "lm", config)
    ids = np.random.default_rng(0).integers(0, 256, (4, 9)).astype(np.uint8)
    task = write_task(tmp_path, {"input_ids": ids}, kind="bits_per_byte")
    found = collect_statistics(model, task, tmp_path / "s", kinds=ALL)
    assert "model.layers.0.mlp.down_proj.weight" in found.tensors("gram")
    assert "lm_head.weight" not in found.tensors("gram"), "the embedding's weight is used elsewhere, too"
    network: Any = model.network.double().requires_grad_(True)
    total: Any = 0.0
    for row in ids:
        tokens = torch.from_numpy(row[None].astype(np.int64))
        logs = network(input_ids=tokens).logits[0, :-1].log_softmax(-1)
        (grad,) = torch.autograd.grad(logs[range(8), tokens[0, 1:]].sum(), [network.model.embed_tokens.weight])
        total = total + grad.numpy() ** 2 / 4
    close(arrays(found, "fisher")["model.embed_tokens.weight"], total)


def test_padding_of_texts_changes_nothing(tmp_path: Path) -> None:
    config = {
        "model_type": "bert", "architectures": ["BertForSequenceClassification"], "vocab_size": 20, "hidden_size": 8,
        "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 8,
        "hidden_dropout_prob": 0.0,
    }  # fmt: skip
    model = write_model(tmp_path / "bert", config)
    ids = np.random.default_rng(0).integers(1, 20, (3, 4))
    found = []
    for width, name in ((4, "short"), (7, "long")):
        (tmp_path / f"{name}-data").mkdir()
        padded = np.zeros((3, width), dtype=np.int64)
        mask = np.zeros((3, width), dtype=np.int64)
        for row, length in enumerate((4, 3, 4)):
            padded[row, :length], mask[row, :length] = ids[row, :length], 1
        columns = {"input_ids": padded, "attention_mask": mask, "labels": np.array([0, 1, 0])}
        task = write_task(tmp_path / f"{name}-data", columns)
        found.append(collect_statistics(model, task, tmp_path / name, kinds=("gram", "fisher")))
    for kind in ("gram", "fisher"):
        short, long = (arrays(one, kind) for one in found)
        for name in short:
            close(long[name], short[name])
    mask[0] = [0, 1, 1, 1, 1, 0, 0]
    task = write_task(tmp_path, {"input_ids": padded, "attention_mask": mask, "labels": np.array([0, 1, 0])})
    with pytest.raises(SourceError, match="padding before tokens"):
        collect_statistics(model, task, tmp_path / "left")


def test_same_bits_and_samples_of_a_smaller_limit(model: Model, task: Task, tmp_path: Path) -> None:
    for name, memory in (("a", 1), ("b", 1 << 20)):
        collect_statistics(model, task, tmp_path / name, kinds=ALL, limit=5, memory=memory)
    for kind in ALL:
        one, other = ((tmp_path / name / f"{kind}.safetensors").read_bytes() for name in ("a", "b"))
        assert one == other
    facts = json.loads((tmp_path / "a/stats.json").read_text())
    assert facts["data"]["samples"] == 5 and facts["kinds"] == list(ALL)


def test_kinds_are_added_to_a_folder_of_the_same_model_and_data(model: Model, task: Task, tmp_path: Path) -> None:
    out, lines = tmp_path / "s", list[str]()
    collect_statistics(model, task, out, kinds=["fisher"])
    before = (out / "fisher.safetensors").stat().st_mtime_ns
    assert collect_statistics(model, task, out, kinds=["fisher", "gram"]).kinds == ("fisher", "gram")
    collect_statistics(model, task, out, kinds=["gram"], report=lines.append)
    assert lines == [f"{out}: has fisher, gram of this model and data already"]
    assert (out / "fisher.safetensors").stat().st_mtime_ns == before
    with pytest.raises(OutputError, match=r"statistics of other data \(task own, split train, samples 7"):
        collect_statistics(model, task, out, kinds=["gram"], limit=3)
    other = write_model(tmp_path / "other", MLP, seed=9)
    with pytest.raises(OutputError, match="statistics of another model"):
        collect_statistics(other, task, out, kinds=["activations"])
    assert sorted(file.name for file in out.iterdir()) == ["fisher.safetensors", "gram.safetensors", "stats.json"]


def test_nothing_half_written(model: Model, tmp_path: Path) -> None:
    inputs = np.ones((3, 6), dtype=np.float32)
    inputs[1, 2] = np.nan
    task = write_task(tmp_path, {"inputs": inputs, "labels": np.array([0, 1, 2])})
    with pytest.raises(NonFiniteError, match=r"the gram of layers\.0\.weight is NaN"):
        collect_statistics(model, task, tmp_path / "s", kinds=["gram"])
    assert not list(tmp_path.glob("s*"))


def test_what_cannot_be_collected(model: Model, task: Task, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="'fishr'; did you mean 'fisher'"):
        collect_statistics(model, task, tmp_path / "s", kinds=["fishr"])
    with pytest.raises(RecipeError, match="no split 'trai'"):
        collect_statistics(model, task, tmp_path / "s", split="trai")
    with pytest.raises(OutputError, match="holds no statistics"):
        collect_statistics(model, task, tmp_path / "model")
    python = load_suite({"tasks": [{"name": "size", "kind": "python", "function": "builtins:len"}]}).tasks["size"]
    with pytest.raises(RecipeError, match="classification or bits_per_byte, not python"):
        collect_statistics(model, python, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_inputs_without_labels(model: Model, tmp_path: Path) -> None:
    task = write_task(tmp_path, {"inputs": np.zeros((3, 6), dtype=np.float32), "labels": np.array([0, 1])})
    with pytest.raises(SourceError, match="3 inputs and 2 labels"):
        collect_statistics(model, task, tmp_path / "s")


def test_data_that_reaches_nothing_is_told(model: Model, tmp_path: Path) -> None:
    lines: list[str] = []
    task = write_task(tmp_path, {"inputs": np.zeros((2, 6), dtype=np.float32), "labels": np.array([0, 1])})
    collect_statistics(model, task, tmp_path / "s", kinds=["gram"], report=lines.append)
    assert lines[-1] == "gram: zero for 1 tensors, which this data does not reach: layers.0.weight"
