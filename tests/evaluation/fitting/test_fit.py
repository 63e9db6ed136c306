"""Learning through the merge: gradients and steps against whole-graph float64 references, resuming, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call

import eutectic
from eutectic.errors import NonFiniteError, OutputError, RecipeError, SourceError
from eutectic.evaluation.fitting.adam import Adam
from eutectic.evaluation.fitting.blend import Blend
from eutectic.evaluation.fitting.fit import fit
from eutectic.evaluation.networks import load_network, structure
from eutectic.methods import get_method
from eutectic.recipes.merge import plan
from eutectic.weights.safetensors import write_safetensors

MLP = {"model_type": "eutectic-mlp", "input_size": 6, "hidden_sizes": [5], "num_labels": 3, "norm": "layer"}
LM = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 256, "hidden_size": 8,
    "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}  # fmt: skip
BERT = {
    "model_type": "bert", "architectures": ["BertModel"], "vocab_size": 20, "hidden_size": 8, "intermediate_size": 12,
    "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 8,
}  # fmt: skip


def write_models(folder: Path, config: dict[str, Any], dtype: str = "float32") -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in structure(config).state_dict().items()}
    for seed, model in enumerate(("base", "a", "b")):
        random = np.random.default_rng(seed)
        tensors = {n: random.normal(0, 0.5, shape).astype(dtype) for n, shape in shapes.items()}
        (folder / model).mkdir()
        write_safetensors(folder / model / "model.safetensors", tensors)
        (folder / model / "config.json").write_text(json.dumps(config))


def write_suite(folder: Path, columns: dict[str, np.ndarray], kind: str = "classification", **more: Any) -> Path:
    tasks = []
    for at, name in enumerate(("one", "two")):
        file = folder / f"{name}.safetensors"
        write_safetensors(file, {key: np.roll(column, at, axis=0) for key, column in columns.items()})
        tasks.append({"name": name, "kind": kind, "data": {"train": str(file)}, **more})
    (folder / "suite.json").write_text(json.dumps({"name": "own", "tasks": tasks}))
    return folder / "suite.json"


def recipe(folder: Path, method: str = "task_arithmetic", **parameters: Any) -> dict[str, Any]:
    base = {} if get_method(method).base == "unused" else {"base_model": str(folder / "base")}
    models = [{"model": str(folder / "a")}, {"model": str(folder / "b")}]
    return {"merge_method": method, **base, "models": models, "parameters": {"weight": 0.3, **parameters}}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    write_models(tmp_path, MLP)
    random = np.random.default_rng(9)
    inputs = random.normal(size=(20, 6)).astype(np.float32)
    write_suite(tmp_path, {"inputs": inputs, "labels": random.integers(0, 3, 20)})
    return tmp_path


@pytest.mark.parametrize("granularity", ["source", "layer", "tensor"])
@pytest.mark.parametrize(
    ("method", "name", "more"),
    [
        ("task_arithmetic", "weight", {}),
        ("task_arithmetic", "weight", {"normalize": True, "lambda": 0.7}),
        ("task_arithmetic", "lambda", {}),
        ("linear", "weight", {}),
        ("ties", "lambda", {"density": 0.5}),
    ],
)
def test_the_gradient_is_that_of_the_whole_graph(
    tmp_path: Path, method: str, name: str, more: dict[str, Any], granularity: Any
) -> None:
    """One graph from the values to the loss in float64, all tensors at once, against the one cut at the tensors."""
    write_models(tmp_path, MLP, "float64")
    blend = Blend(plan(recipe(tmp_path, method, **more)), name, granularity)
    network = load_network(blend.tensors(blend.start), MLP).double().requires_grad_(False)
    x = torch.from_numpy(np.random.default_rng(3).normal(size=(7, 6)))

    def entropy(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        logs = functional_call(network, tensors, (x,)).log_softmax(-1)
        return -(logs.exp() * logs).sum(-1).mean()

    values = (blend.start + 0.01).requires_grad_(True)
    states = [{n: t.to_torch() for n, t in eutectic.open(tmp_path / m).items()} for m in ("base", "a", "b")]
    chosen = get_method(method)
    numbers = {n: at for at, names in enumerate(blend.groups.values()) for n in names}
    whole: dict[str, torch.Tensor] = {}
    for tensor, group in numbers.items():
        row = list(values[group].unbind())
        settled = chosen.settle({"weight": 0.3, **more}, 2)[0]
        settled[name] = row if blend.parameter.per_source else row[0]
        base = states[0][tensor] if chosen.base != "unused" else None
        whole[tensor] = chosen.apply([s[tensor] for s in states[1:]], base, settled, None)  # type: ignore[arg-type]
    (wanted,) = torch.autograd.grad(entropy(whole), values)

    leaves = {n: t.requires_grad_(True) for n, t in blend.tensors(values.detach()).items()}
    entropy(leaves).backward()
    found = blend.gradient(values.detach(), {n: t.grad for n, t in leaves.items()})
    assert found.shape == wanted.shape and torch.allclose(found, wanted, rtol=1e-9, atol=1e-12)
    if (method, name, more) == ("task_arithmetic", "weight", {}) and granularity == "tensor":
        for tensor, group in numbers.items():  # the exact shortcut: <dL/dθ, τ>
            products = [((s[tensor] - states[0][tensor]) * leaves[tensor].grad).sum() for s in states[1:]]
            assert torch.allclose(found[group], torch.stack(products), rtol=1e-9, atol=1e-12)


def test_adam_is_torchs() -> None:
    start = torch.tensor([0.3, -0.2], dtype=torch.float64)
    theirs = start.clone().requires_grad_(True)
    optimiser, ours = torch.optim.Adam([theirs], lr=0.01), Adam(start, 0.01)
    for step in range(20):
        theirs.grad = torch.sin(theirs.detach() * (step + 1))
        ours.descend(torch.sin(ours.values * (step + 1)))
        optimiser.step()
        ours = Adam.load(json.loads(json.dumps(ours.state())), 0.01)
    assert torch.allclose(ours.values, theirs.detach(), rtol=1e-12)


@pytest.mark.parametrize("granularity", ["source", "layer", "tensor"])
def test_the_recipe_merges_to_what_was_measured(home: Path, granularity: Any) -> None:
    found = fit(recipe(home), home / "suite.json", home / "out.yaml", granularity=granularity, steps=12, rate=0.05)
    assert sum(found.facts["after"].values()) < sum(found.facts["before"].values())
    values = found.recipe["models"][0]["parameters"]["weight"]
    network = load_network(plan(str(home / "out.yaml")), MLP)
    x = torch.from_numpy(eutectic.open(home / "one.safetensors")["inputs"].to_numpy())
    logs = network(x).detach().log_softmax(-1)
    assert float(-(logs.exp() * logs).sum(-1).mean()) == pytest.approx(found.facts["after"]["one"], abs=2e-6)
    assert isinstance(values, float) if granularity == "source" else values[0]["filter"].startswith("re:^")
    facts = json.loads((home / "out.fit.json").read_text())
    assert facts["curve"][-1][0] == 12 and facts["data"]["one"]["samples"] == 20 and facts["seed"] == 0
    assert "weight" not in found.recipe.get("parameters", {})


def test_no_label_is_read_for_entropy(home: Path) -> None:
    wanted = fit(recipe(home), home / "suite.json", steps=3).recipe
    for name in ("one", "two"):
        inputs = eutectic.open(home / f"{name}.safetensors")["inputs"].to_numpy()
        write_safetensors(home / f"{name}.safetensors", {"inputs": inputs})
    assert fit(recipe(home), home / "suite.json", steps=3).recipe == wanted
    with pytest.raises(SourceError, match="needs 'labels'"):
        fit(recipe(home), home / "suite.json", steps=3, objective="loss")


def test_same_seed_same_numbers_and_resumed_ones(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(out: str, **more: Any) -> Any:
        return fit(recipe(home), home / "suite.json", home / out, steps=9, batch=4, objective="loss", **more)

    whole = run("whole.yaml")
    assert run("again.yaml").recipe == whole.recipe
    assert run("other.yaml", seed=1).recipe != whole.recipe
    monkeypatch.setattr("eutectic.evaluation.fitting.fit.KEPT", 0.0)
    real, calls = Adam.descend, list[int]()

    def descend(self: Adam, gradient: torch.Tensor) -> None:
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append(1)
        real(self, gradient)

    monkeypatch.setattr(Adam, "descend", descend)
    with pytest.raises(KeyboardInterrupt):
        run("cut.yaml")
    monkeypatch.setattr(Adam, "descend", real)
    assert not (home / "cut.yaml").exists()
    with pytest.raises(OutputError, match="--resume continues it"):
        run("cut.yaml")
    with pytest.raises(OutputError, match="of another fit"):
        run("cut.yaml", seed=3, resume=True)
    lines: list[str] = []
    assert run("cut.yaml", resume=True, report=lines.append).recipe == whole.recipe
    assert "resumed after 5 of 9 steps" in lines
    assert not list(home.glob("*.partial"))
    with pytest.raises(OutputError, match="exists; --force"):
        run("cut.yaml")


def test_texts_of_bytes(tmp_path: Path) -> None:
    write_models(tmp_path, LM)
    ids = np.random.default_rng(0).integers(0, 256, (6, 9)).astype(np.uint8)
    suite = write_suite(tmp_path, {"input_ids": ids}, kind="bits_per_byte")
    for objective in ("entropy", "loss"):
        found = fit(recipe(tmp_path), suite, steps=8, rate=0.02, objective=objective, granularity="layer")  # type: ignore[arg-type]
        assert sum(found.facts["after"].values()) < sum(found.facts["before"].values())


def test_an_encoder_with_a_head_of_its_own(tmp_path: Path) -> None:
    write_models(tmp_path, BERT)
    random = np.random.default_rng(0)
    head = {"weight": random.normal(size=(3, 8)).astype(np.float32), "bias": np.zeros(3, dtype=np.float32)}
    write_safetensors(tmp_path / "head.safetensors", head)
    mask = np.ones((5, 6), dtype=np.int64)
    mask[2, 4:] = 0
    columns = {"input_ids": random.integers(0, 20, (5, 6)), "attention_mask": mask}
    suite = write_suite(tmp_path, columns, head=str(tmp_path / "head.safetensors"))
    found = fit(recipe(tmp_path), suite, steps=6, rate=0.02)
    assert sum(found.facts["after"].values()) < sum(found.facts["before"].values())


def test_sources_that_are_recipes(home: Path) -> None:
    inner = {"merge_method": "linear", "models": [{"model": str(home / "a")}, {"model": str(home / "b")}],
             "parameters": {"weight": 1}}  # fmt: skip
    nested = {**recipe(home), "models": [{"model": inner}, {"model": str(home / "b")}]}
    found = fit(nested, home / "suite.json", steps=4, rate=0.05)
    assert set(plan(found.recipe)) == set(eutectic.open(home / "a"))


@pytest.mark.parametrize(
    ("change", "more", "words"),
    [
        ({"merge_method": "tsv_m"}, {}, "tsv_m has no finite gradient"),
        ({}, {"parameter": "wieght"}, "did you mean 'weight'"),
        ({}, {"parameter": "normalize"}, "is no number to learn"),
        ({"merge_method": "ties"}, {"parameter": "density"}, "ties (lets no gradient|cannot be differentiated)"),
        ({}, {"tasks": ["three"]}, "no task 'three'"),
        ({}, {"split": "trian"}, "no split 'trian'"),
        ({}, {"steps": 0}, "must be at least 1"),
    ],
)
def test_what_cannot_be_learned(home: Path, change: dict[str, Any], more: dict[str, Any], words: str) -> None:
    document = {**recipe(home), **change}
    if change.get("merge_method") == "ties":
        document["parameters"] = {"weight": 0.3, "density": 0.5}
    with pytest.raises(RecipeError, match=words):
        fit(document, home / "suite.json", home / "out.yaml", **{"steps": 2, **more})
    assert not list(home.glob("out*"))


def test_data_that_cannot_be_used(home: Path) -> None:
    suite = json.loads((home / "suite.json").read_text())
    other = {"name": "size", "kind": "python", "function": "builtins:len"}
    with pytest.raises(RecipeError, match="classification or bits_per_byte, not python"):
        fit(recipe(home), {"tasks": [other]}, steps=1)
    write_safetensors(home / "two.safetensors", {"inputs": np.full((3, 6), np.nan, dtype=np.float32)})
    with pytest.raises(NonFiniteError, match=r"task two: the objective is nan"):
        fit(recipe(home), suite, home / "out.yaml", steps=2)
    (home / "two.safetensors").unlink()
    with pytest.raises(SourceError, match="its train data"):
        fit(recipe(home), suite, steps=2)
    assert not list(home.glob("out*"))
