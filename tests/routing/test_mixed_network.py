"""Mixed networks: equal to networks whose weights are formed for each sample, for every kind of layer."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from eutectic.errors import SourceError
from eutectic.evaluation.networks import load_network, structure
from eutectic.routing.mixed_network import Difference, MixedNetwork

EXPERTS, RANK, BATCH = 3, 2, 7
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}
MLP = {"model_type": "eutectic-mlp", "input_size": 16, "hidden_sizes": [12, 12], "norm": "layer", "num_labels": 5}
CNN = {"model_type": "eutectic-cnn", "image_size": 8, "channels": [4, 8], "hidden_sizes": [6], "num_labels": 3}
PIXELS, TOKENS, CHANNELS = torch.randn(BATCH, 16), torch.randint(0, 9, (BATCH, 5)), torch.randn(BATCH, 8, 9, 9)


def transformer(config: Any, architecture: str) -> dict[str, Any]:
    return {**json.loads(config.to_json_string(use_diff=False)), "architectures": [architecture]}


NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": MLP,
    "cnn": CNN,
    "bert": transformer(transformers.BertConfig(**SMALL), "BertModel"),
    "bert-classifier": transformer(
        transformers.BertConfig(**SMALL, num_labels=3), "BertForSequenceClassification"
    ),
    "llama": transformer(transformers.LlamaConfig(**SMALL), "LlamaForCausalLM"),
    "llama-tied": transformer(transformers.LlamaConfig(**SMALL, tie_word_embeddings=True), "LlamaForCausalLM"),
    "qwen3": transformer(
        transformers.Qwen3Config(**SMALL, head_dim=8, num_key_value_heads=1), "Qwen3ForCausalLM"
    ),
    "gpt2": transformer(transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=64), "GPT2LMHeadModel"),
}  # fmt: skip


def differences(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Difference]:
    torch.manual_seed(seed)
    found = {}
    for name, shape in shapes.items():
        rest = int(np.prod(shape[1:]))
        found[name] = Difference(
            0.3 * torch.randn(EXPERTS, shape[0], RANK), 0.3 * torch.randn(EXPERTS, RANK, rest)
        ) if len(shape) > 1 else Difference(0.3 * torch.randn(EXPERTS, *shape))  # fmt: skip
    return found


def formed(difference: Difference, gates: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Σ g_t v_t for one sample, in float64."""
    v = difference.left.double() if difference.right is None else difference.left.double() @ difference.right.double()
    return torch.tensordot(gates.double(), v, 1).reshape(shape)


def gates_of(kind: str) -> torch.Tensor:
    if kind == "soft":
        return torch.softmax(torch.randn(BATCH, EXPERTS), 1)
    chosen = torch.randint(0, EXPERTS, (BATCH,))
    return torch.nn.functional.one_hot(chosen.sort()[0] if kind == "sorted" else chosen, EXPERTS).float()


LAYERS: dict[str, tuple[nn.Module, torch.Tensor]] = {
    "linear": (nn.Linear(16, 6), PIXELS),
    "linear-without-bias": (nn.Linear(16, 6, bias=False), torch.randn(BATCH, 3, 16)),
    "one-row-for-all": (nn.Linear(16, 6), torch.randn(1, 4, 16)),
    "turned": (Conv1D(6, 16), torch.randn(BATCH, 3, 16)),
    "embedding": (nn.Embedding(9, 6), TOKENS),
    "positions": (nn.Embedding(9, 6), torch.arange(5)[None]),
    "convolution": (nn.Conv2d(8, 6, 3, stride=2, padding=1), CHANNELS),
    "circular": (nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular", bias=False), CHANNELS),
    "convolution-1d": (nn.Conv1d(8, 6, 3, dilation=2), torch.randn(BATCH, 8, 9)),
    "layer-norm": (nn.LayerNorm(16), torch.randn(BATCH, 3, 16)),
    "layer-norm-2": (nn.LayerNorm((9, 9)), CHANNELS),
    "group-norm": (nn.GroupNorm(4, 8), CHANNELS),
    "rms-norm": (nn.RMSNorm(16), torch.randn(BATCH, 3, 16)),
    "llama-norm": (transformers.models.llama.modeling_llama.LlamaRMSNorm(16), torch.randn(BATCH, 3, 4, 16)),
    "gemma-norm": (transformers.models.gemma.modeling_gemma.GemmaRMSNorm(16), torch.randn(BATCH, 3, 16)),
}


@pytest.mark.parametrize("kind", ["soft", "one", "sorted"])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_equals_formed_weights(layer: str, kind: str, grouped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eutectic.ops.grouped_lowrank.WORTH", 0 if grouped else 1 << 60)
    module, x = LAYERS[layer]
    shared = {name: p.detach().clone() for name, p in module.named_parameters()}
    shapes = {name: tuple(p.shape) for name, p in shared.items()}
    parts, gates = differences(shapes), gates_of(kind)
    twin = copy.deepcopy(module).double()
    wanted = torch.stack([
        torch.func.functional_call(
            twin,
            {n: shared[n].double() + formed(parts[n], gates[at], shapes[n]) for n in shapes},
            (x[min(at, len(x) - 1)][None] if x.dtype == torch.long else x[min(at, len(x) - 1)][None].double(),),
        )[0]
        for at in range(BATCH)
    ])  # fmt: skip
    mixed = MixedNetwork(copy.deepcopy(module), parts)
    with torch.no_grad():
        plain = mixed.network(x)
        with mixed.gated(gates) as network:
            found = network(x)
        assert torch.equal(mixed.network(x), plain) and torch.equal(plain, module(x))
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["soft", "one"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_equals_formed_weights(name: str, kind: str) -> None:
    config = NETWORKS[name]
    random = np.random.default_rng(0)
    slots = structure(config)
    tied = name in ("llama-tied", "gpt2")
    shapes = {n: tuple(p.shape) for n, p in slots.named_parameters() if not (tied and n == "lm_head.weight")}
    tensors = {n: (0.3 * random.standard_normal(s)).astype("f4") for n, s in shapes.items()}
    parts, gates = differences(shapes), gates_of(kind)
    if name in ("mlp", "cnn"):
        inputs: dict[str, torch.Tensor] = {"inputs": torch.rand(BATCH, 16 if name == "mlp" else 64)}
    else:
        mask = (torch.arange(6) < torch.randint(2, 7, (BATCH, 1))).long()
        inputs = {"input_ids": torch.randint(0, 64, (BATCH, 6)), "attention_mask": mask}
    mixed = MixedNetwork(load_network(tensors, config), parts)

    def answer(network: torch.nn.Module, **inputs: torch.Tensor) -> torch.Tensor:
        found = network(**inputs)
        return found if isinstance(found, torch.Tensor) else found[0]

    with torch.no_grad():
        with mixed.gated(gates) as network:
            found = answer(network, **inputs)
        for at in range(BATCH):
            own = {n: torch.from_numpy(t) + formed(parts[n], gates[at], shapes[n]).float() for n, t in tensors.items()}
            alone = load_network(own, config)
            wanted = answer(alone, **{key: value[at : at + 1] for key, value in inputs.items()})[0]
            torch.testing.assert_close(found[at], wanted, rtol=1e-5, atol=1e-5)
        together = mixed.answer(gates, **inputs)
        together = together if isinstance(together, torch.Tensor) else together[0]
        torch.testing.assert_close(together, found, rtol=1e-5, atol=1e-5)
        plain = answer(load_network(tensors, config), **inputs)
        assert torch.equal(answer(mixed.network, **inputs), plain) and not torch.allclose(found, plain, atol=1e-2)


def test_no_gates_within_gates() -> None:
    mixed = MixedNetwork(nn.Linear(16, 6), differences({"weight": (6, 16)}))
    with torch.no_grad(), mixed.gated(gates_of("one")):
        with mixed.gated(None):
            assert torch.equal(mixed.network(PIXELS), nn.Linear.forward(mixed.network, PIXELS))
        assert not torch.equal(mixed.network(PIXELS), nn.Linear.forward(mixed.network, PIXELS))


def test_what_cannot_be_mixed_is_named() -> None:
    with pytest.raises(SourceError, match=r"0\.weihgt: experts differ .* did you mean '0.weight'"):
        MixedNetwork(nn.Sequential(nn.Linear(4, 4)), differences({"0.weihgt": (4, 4)}))
    with pytest.raises(SourceError, match=r"0\.weight: experts differ in a Bilinear"):
        MixedNetwork(nn.Sequential(nn.Bilinear(4, 4, 2)), differences({"0.weight": (2, 4, 4)}))
    with pytest.raises(SourceError, match="weight: experts differ in a Conv2d"):
        MixedNetwork(nn.Conv2d(4, 4, 3, groups=2), differences({"weight": (4, 2, 3, 3)}))
    scaled = transformers.models.gemma3.modeling_gemma3.Gemma3TextScaledWordEmbedding(9, 4, 0)
    with pytest.raises(SourceError, match="weight: experts differ in a Gemma3TextScaledWordEmbedding, which cannot"):
        MixedNetwork(scaled, differences({"weight": (9, 4)}))
    mixed = MixedNetwork(nn.Sequential(nn.Linear(16, 6)), differences({"0.weight": (6, 16)}))
    with pytest.raises(SourceError, match="0: gets 3 rows for 7 samples"), mixed.gated(gates_of("one")):
        mixed.network(PIXELS[:3])
