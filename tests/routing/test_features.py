"""Features: the last hidden states, averaged over the tokens that count; of images the last layer's input."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from eutectic.errors import SourceError
from eutectic.evaluation.image_networks import perceptron
from eutectic.evaluation.networks import pooled
from eutectic.routing.features import answer_and_features, features

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40}
IDS = torch.randint(0, 40, (3, 5))


def test_texts_without_their_padding() -> None:
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**SMALL, num_labels=2)).eval()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]])
    named = {"input_ids": IDS, "attention_mask": mask}
    with torch.no_grad():
        wanted = pooled(model.bert, IDS, mask)
        answer, found = answer_and_features(model, (), named)
        assert torch.equal(answer.logits, model(**named).logits) and torch.allclose(found, wanted)
        assert torch.allclose(features(model, (), named), wanted)


def test_a_language_model_before_its_head() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMALL)).eval()
    with torch.no_grad():
        wanted = model.model(input_ids=IDS).last_hidden_state.mean(1)
        found = features(model, (), {"input_ids": IDS, "use_cache": True, "past_key_values": None})
        assert torch.allclose(found, wanted) and torch.allclose(answer_and_features(model, (IDS,), {})[1], wanted)


def test_images_before_the_last_layer() -> None:
    network = perceptron({"input_size": 4, "hidden_sizes": [8], "norm": "layer", "num_labels": 3})
    x = torch.rand(5, 2, 2)
    with torch.no_grad():
        answer, found = answer_and_features(network, (x,), {})
        layers, norms = network.layers, network.norms  # type: ignore[attr-defined]
        wanted = torch.relu(norms[0](layers[0](x.flatten(1))))  # type: ignore[operator,index]
        assert torch.equal(found, wanted) and torch.equal(features(network, (x,), {}), wanted)
        assert torch.equal(answer, network(x)) and not network.layers[-1]._forward_pre_hooks  # type: ignore


def test_networks_without_known_states_are_refused() -> None:
    with pytest.raises(SourceError, match="a Linear has no hidden states"):
        features(nn.Linear(2, 2), (torch.zeros(1, 2),), {})
