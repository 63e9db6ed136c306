"""From tensors and a config.json to a network: equal to the one that transformers loads, and every misfit is named."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from eutectic.errors import MissingDependencyError, SourceError
from eutectic.evaluation.networks import load_network, pooled, structure
from eutectic.weights.checkpoint import open_checkpoint

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}
CNN = {"model_type": "eutectic-cnn", "image_size": 8, "channels": [4, 8], "hidden_sizes": [6], "num_labels": 3}
MLP = {"model_type": "eutectic-mlp", "input_size": 4, "hidden_sizes": [8], "norm": "layer", "num_labels": 3}


def make(kind: str, **more: Any) -> tuple[torch.nn.Module, dict[str, Any]]:
    config = {
        "tied": transformers.LlamaConfig(**SMALL, tie_word_embeddings=True),
        "untied": transformers.LlamaConfig(**SMALL),
        "gpt2": transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=64),
        "encoder": transformers.BertConfig(**SMALL),
        "classifier": transformers.BertConfig(**SMALL, num_labels=3),
    }[kind]
    model = {
        "gpt2": transformers.GPT2LMHeadModel,
        "encoder": transformers.BertModel,
        "classifier": transformers.BertForSequenceClassification,
    }.get(kind, transformers.LlamaForCausalLM)
    torch.manual_seed(0)
    built = model(config).eval()
    return built, {**json.loads(config.to_json_string(use_diff=False)), "architectures": [model.__name__]}


@pytest.mark.parametrize("kind", ["tied", "untied", "gpt2", "encoder", "classifier"])
def test_equal_to_the_network_that_transformers_loads(kind: str, tmp_path) -> None:
    model, _ = make(kind)
    model.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        for tensors in (checkpoint, {name: tensor.to_numpy() for name, tensor in checkpoint.items()}):
            network = load_network(tensors, checkpoint.config)
            assert not network.training and type(network) is type(model)
            assert torch.equal(network(input_ids=ids)[0], model(input_ids=ids)[0])


def test_networks_of_one_structure_are_apart_and_other_types_widen() -> None:
    network = load_network(state := dict(make("untied")[0].state_dict()), config := make("untied")[1])
    halves = load_network({name: tensor.to(torch.bfloat16) for name, tensor in state.items()}, config)
    double = load_network({name: 2 * tensor for name, tensor in state.items()}, config)
    name = "model.norm.weight"
    assert halves.get_parameter(name).dtype == torch.float32
    assert torch.equal(double.get_parameter(name), 2 * network.get_parameter(name))


@pytest.mark.parametrize("config", [CNN, MLP], ids=["cnn", "mlp"])
def test_our_own_networks_take_images_of_either_type(config: dict[str, Any]) -> None:
    slots = structure(config).state_dict()
    assert all(slot.is_meta for slot in slots.values()) and any(name.startswith("norms.") for name in slots)
    random = np.random.default_rng(0)
    network = load_network({n: random.standard_normal(s.shape).astype("f4") for n, s in slots.items()}, config)
    pixels = torch.from_numpy(random.integers(0, 256, (5, 64 if config is CNN else 4), dtype=np.uint8))
    with torch.no_grad():
        logits = network(pixels)
        assert logits.shape == (5, 3)
        assert torch.equal(logits, network(pixels.float() / 255))
        if config is CNN:
            assert torch.equal(logits, network(pixels.reshape(5, 8, 8)))


def test_a_perceptron_against_float64() -> None:
    random = np.random.default_rng(1)
    tensors = {name: random.standard_normal(slot.shape) for name, slot in structure(MLP).state_dict().items()}
    x = random.standard_normal((3, 4))
    hidden = x @ tensors["layers.0.weight"].T + tensors["layers.0.bias"]
    hidden = (hidden - hidden.mean(1, keepdims=True)) / np.sqrt(hidden.var(1, keepdims=True) + 1e-5)
    hidden = np.maximum(hidden * tensors["norms.0.weight"] + tensors["norms.0.bias"], 0)
    wanted = hidden @ tensors["layers.1.weight"].T + tensors["layers.1.bias"]
    with torch.no_grad():
        found = load_network(tensors, MLP)(torch.from_numpy(x).float())
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5, atol=1e-5)


def test_the_mean_of_hidden_states_leaves_padding_out() -> None:
    model, config = make("encoder")
    network = load_network(dict(model.state_dict()), config)
    ids, mask = torch.tensor([[5, 6, 0, 0]], dtype=torch.uint8), torch.tensor([[1, 1, 0, 0]], dtype=torch.uint8)
    with torch.no_grad():
        alone = model(input_ids=ids[:, :2].long()).last_hidden_state.mean(1)
        assert torch.allclose(pooled(network, ids, mask), alone, atol=1e-5)


def test_a_misfit_names_the_tensor() -> None:
    model, config = make("untied")
    state = dict(model.state_dict())
    for change, words in (
        ({"lm_head.weight": None}, "lm_head.weight: is missing; the llama of config.json has such a tensor"),
        ({"lm_heed.weight": state["lm_head.weight"]}, "lm_heed.weight: is no tensor of the llama"),
        ({"lm_head.weight": state["lm_head.weight"][:5]}, r"lm_head.weight: is \[5, 16\], .* has \[64, 16\] there"),
    ):
        tensors = {name: tensor for name, tensor in {**state, **change}.items() if tensor is not None}
        with pytest.raises(SourceError, match=words):
            load_network(tensors, config)
    with pytest.raises(SourceError, match="names no model_type"):
        load_network({}, {})
    with pytest.raises(SourceError, match="transformers cannot build the nonsense"):
        load_network({}, {"model_type": "nonsense"})
    with pytest.raises(SourceError, match="does not describe a eutectic-cnn"):
        load_network({}, {"model_type": "eutectic-cnn"})


def test_without_transformers_the_pip_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match="pip install transformers"):
        load_network({}, {"model_type": "llama", "hidden_size": 8})
