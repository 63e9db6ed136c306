"""Layout: the role of every tensor by the names of public checkpoints, stacks, experts, tokens, tied heads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy
import pytest

from eutectic.weights.checkpoint import open_checkpoint
from eutectic.weights.layout import is_log_space, layout_of, repeats_embedding, role_of, ties_heads

ROLES = {
    "model.layers.0.self_attn.q_proj.weight": "attention.q",
    "transformer.h.0.attn.c_attn.weight": "attention.qkv",
    "transformer.h.0.attn.c_proj.weight": "attention.o",
    "transformer.h.0.mlp.c_proj.weight": "mlp",
    "encoder.block.0.layer.0.SelfAttention.k.weight": "attention.k",
    "encoder.block.0.layer.1.DenseReluDense.wo.weight": "mlp",
    "encoder.layer.0.attention.self.query.weight": "attention.q",
    "encoder.layer.0.attention.output.dense.weight": "attention.o",
    "encoder.layer.0.output.dense.weight": "mlp",
    "layers.0.attention.wo.weight": "attention.o",
    "layers.0.feed_forward.w2.weight": "mlp",
    "model.layers.0.self_attn.kv_a_proj_with_mqa.weight": "attention",
    "model.layers.0.block_sparse_moe.gate.weight": "router",
    "model.layers.0.mlp.experts.7.up_proj.weight": "expert",
    "model.layers.0.mlp.shared_expert.up_proj.weight": "expert",
    "model.layers.0.mlp.shared_expert_gate.weight": "router",
    "model.layers.0.mlp.gate_proj.weight": "mlp",
    "model.layers.0.linear_attn.q_proj.weight": "recurrent",
    "backbone.layers.0.mixer.in_proj.weight": "recurrent",
    "backbone.layers.0.mixer.q_proj.weight": "attention.q",
    "backbone.layers.0.mixer.D": "log-space",
    "rwkv.blocks.0.attention.time_decay": "log-space",
    "model.layers.0.mamba.dt_proj.bias": "log-space",
    "model.layers.0.self_attn.q_proj.bias": "bias",
    "model.embed_tokens.weight": "embedding",
    "transformer.wpe.weight": "position",
    "model.encoder.embed_positions.weight": "position",
    "lm_head.weight": "head",
    "score.weight": "head",
    "multi_modal_projector.linear_1.weight": "projection",
    "text_model.embeddings.position_ids": "buffer",
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_out.0.weight": "attention.o",
    "unet/down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj.weight": "mlp",
    "layers.0.weight": "mlp",
    "blorp.0.zork": "other",
}
VECTORS = ("model.layers.0.self_attn.q_norm.weight", "h.0.ln_1.bias", "bert.embeddings.LayerNorm.gamma", "norm.weight")


@pytest.mark.parametrize("name", ROLES)
def test_roles(name: str) -> None:
    assert role_of(name) == ROLES[name]
    assert role_of(name.replace(".0.", ".31.")) == ROLES[name]
    assert is_log_space(name) == (ROLES[name] == "log-space")


@pytest.mark.parametrize("name", VECTORS)
def test_norms_are_vectors(name: str) -> None:
    assert role_of(name, 1) == "norm" != role_of(name, 2)


def test_the_rest_by_shape() -> None:
    assert role_of("model.diffusion_model.out.2.weight", 4) == "convolution"
    assert role_of("conv1.weight", 4) == "convolution"


def test_a_whole_checkpoint(make_model: Callable[..., Path]) -> None:
    tensors = {
        "model.embed_tokens.weight": numpy.ones((8, 2), "f4"),
        "model.layers.0.mlp.experts.0.up_proj.weight": numpy.ones((3, 2), "f4"),
        "model.layers.1.mlp.experts.5.up_proj.weight": numpy.ones((3, 2), "f4"),
        "lm_head.weight": numpy.ones((8, 2), "f4"),
        "odd": numpy.ones(3, "f4"),
    }
    folder = make_model("m", tensors, {"vocab_size": 8, "text_config": {"tie_word_embeddings": True}})
    checkpoint = open_checkpoint(folder)
    layout = layout_of(checkpoint)
    assert set(layout) == set(tensors) and layout.stacks == {"model.layers.": 2} and layout.recognised
    part = layout["model.layers.1.mlp.experts.5.up_proj.weight"]
    assert (part.role, part.stack, part.layer, part.expert) == ("expert", "model.layers.", 1, 5)
    assert part.vocabulary_axis is None and layout["lm_head.weight"].vocabulary_axis == 0
    assert layout.elements == {"embedding": 16, "head": 16, "expert": 12, "other": 3}
    assert ties_heads(checkpoint.config) and repeats_embedding(checkpoint, "lm_head.weight")


def test_a_head_of_its_own_repeats_nothing(make_model: Callable[..., Path]) -> None:
    table = numpy.arange(40_000, dtype="f4").reshape(20_000, 2)
    other = table.copy()
    other[-1] += 1
    checkpoint = open_checkpoint(make_model("m", {"wte.weight": table, "lm_head.weight": table}))
    assert repeats_embedding(checkpoint, "lm_head.weight")
    checkpoint = open_checkpoint(make_model("n", {"wte.weight": table, "lm_head.weight": table + 1}))
    assert not repeats_embedding(checkpoint, "lm_head.weight")
