"""Layers by numbering: the names that public checkpoints use, several stacks, positions."""

from __future__ import annotations

import pytest

from eutectic.weights.layers import depth_keys, follows_layers, layer_of, main_stack, position_of, stacks_of


@pytest.mark.parametrize(
    ("name", "stack", "number"),
    [
        ("model.layers.11.self_attn.q_proj.weight", "model.layers.", 11),
        ("transformer.h.0.attn.c_attn.bias", "transformer.h.", 0),
        ("encoder.block.2.layer.1.DenseReluDense.wi.weight", "encoder.block.", 2),
        ("model.vision_tower.encoder.layers.3.norm1.bias", "model.vision_tower.encoder.layers.", 3),
        ("0.weight", "", 0),
        ("blocks.7", "blocks.", 7),
    ],
)
def test_names(name: str, stack: str, number: int) -> None:
    found = layer_of(name)
    assert found is not None and (found.stack, found.number) == (stack, number)
    assert f"{found.stack}{found.number}{found.rest}" == name


@pytest.mark.parametrize(
    "name", ["lm_head.weight", "layer01.w", "layers.01.w", "w2.weight", "", "h.9999999999.w", "h..w"]
)
def test_what_is_no_layer(name: str) -> None:
    assert layer_of(name) is None


def test_stacks_count_to_their_highest_number() -> None:
    assert stacks_of(["h.0.w", "h.5.w", "v.1.w", "e"]) == {"h.": 6, "v.": 2}


@pytest.mark.parametrize(
    ("config", "stack"),
    [
        ({"num_hidden_layers": 3}, "text.h."),
        ({"text_config": {"num_hidden_layers": 3}, "vision_config": {"num_hidden_layers": 2}}, "text.h."),
        ({"num_hidden_layers": 2}, "vision.h."),
        ({}, None),
        ({"encoder_layers": 2, "decoder_layers": 3}, None),
        ({"n_layer": True}, None),
    ],
)
def test_which_stack_counts(config: dict[str, object], stack: str | None) -> None:
    assert main_stack(["vision.h.0.w", "vision.h.1.w", "text.h.2.w"], config) == stack
    assert main_stack(["only.0.w"], config) == "only."


def test_depths_are_found_in_nested_configurations() -> None:
    config = {"n_layer": 4, "vision_config": {"depth": 2}, "other": {"depth": 9}}
    assert list(depth_keys(config)) == [(("n_layer",), 4), (("vision_config", "depth"), 2)]


def test_positions_run_from_zero_to_one() -> None:
    assert [position_of(i, 5) for i in range(5)] == [0, 0.25, 0.5, 0.75, 1] and position_of(0, 1) == 1


@pytest.mark.parametrize(
    ("name", "behind"),
    [
        ("model.norm.weight", True), ("transformer.ln_f.bias", True), ("score.weight", True), ("lm_head.weight", True),
        ("model.embed_tokens.weight", False), ("bert.embeddings.norm.weight", False), ("wpe.weight", False),
    ],
)  # fmt: skip
def test_what_follows_the_layers(name: str, behind: bool) -> None:
    assert follows_layers(name) == behind
