"""Other names for the same tensors, experts apart or together: read without a copy, in the reference's layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eutectic.weights.checkpoint import Checkpoint, open_checkpoint
from eutectic.weights.flat_views import Joined
from eutectic.weights.keymap import Presented, presented_as
from eutectic.weights.tensor_ref import StoredTensor

Make = Callable[..., Path]
OLD, NEW = "model.layers.3.block_sparse_moe.", "model.layers.3.mlp."
EXPERTS, OUT, WIDTH = 3, 4, 5
RANDOM = np.random.default_rng(0)


def experts(start: str, words: tuple[str, str, str], values: np.ndarray) -> dict[str, np.ndarray]:
    """Gate, up (both [out, width]) and down ([width, out]) of every expert."""
    found = {}
    for expert, (gate, up, down) in enumerate(values.reshape(EXPERTS, 3, OUT, WIDTH)):
        named = zip(words, (gate, up, down.reshape(WIDTH, OUT)), strict=True)
        found |= {f"{start}experts.{expert}.{word}.weight": np.ascontiguousarray(value) for word, value in named}
    return found


def fused(start: str, values: np.ndarray) -> dict[str, np.ndarray]:
    whole = values.reshape(EXPERTS, 3, OUT, WIDTH)
    return {
        f"{start}experts.gate_up_proj": np.ascontiguousarray(whole[:, :2].reshape(EXPERTS, 2 * OUT, WIDTH)),
        f"{start}experts.down_proj": np.ascontiguousarray(whole[:, 2].reshape(EXPERTS, WIDTH, OUT)),
    }


VALUES = RANDOM.standard_normal(EXPERTS * 3 * OUT * WIDTH).astype("f4")
MIXTRAL = {f"{OLD}gate.weight": np.ones((3, 5), "f4"), **experts(OLD, ("w1", "w3", "w2"), VALUES)}
QWEN = {f"{NEW}gate.weight": np.ones((3, 5), "f4"), **experts(NEW, ("gate_proj", "up_proj", "down_proj"), VALUES)}
TOGETHER = {f"{NEW}gate.weight": np.ones((3, 5), "f4"), **fused(NEW, VALUES)}


@pytest.fixture
def save(make_model: Make) -> Callable[[dict[str, np.ndarray]], Checkpoint]:
    count = iter(range(99))
    return lambda tensors: open_checkpoint(make_model(f"m{next(count)}", tensors))


@pytest.mark.parametrize("apart", [MIXTRAL, QWEN], ids=["w1-w3-w2", "gate-up-down"])
@pytest.mark.parametrize("join", [False, True])
def test_experts_both_ways(apart: dict[str, np.ndarray], join: bool, save: Callable[..., Checkpoint]) -> None:
    source, reference = (save(tensors) for tensors in ((apart, TOGETHER) if join else (TOGETHER, apart)))
    found = presented_as(source, reference)
    assert isinstance(found, Presented) and found.experts == 9
    assert found.keys() == reference.keys() and found.path == source.path and found.headers == source.headers
    for name, ref in reference.items():
        assert found[name].shape == ref.shape and found[name].name == name
        np.testing.assert_array_equal(found[name].to_numpy(), ref.to_numpy())
        for start in range(0, ref.numel, 7):
            stop = min(ref.numel, start + 11)
            assert found[name].read(start, stop) == ref.read(start, stop)
    kind = Joined if join else StoredTensor  # a cut is a place in the same file
    assert all(isinstance(found[name], kind) for name in found if "experts" in name)


def test_what_does_not_fit_together_stays_apart(save: Callable[..., Checkpoint]) -> None:
    reference = save(TOGETHER)
    missing = {name: value for name, value in QWEN.items() if "experts.1.up" not in name}
    odd = {**QWEN, f"{NEW}experts.0.up_proj.weight": np.ones((4, 6), "f4")}
    mixed = {**QWEN, f"{NEW}experts.0.up_proj.weight": np.ones((4, 5), "f2")}
    for tensors in (missing, odd, mixed):
        found = presented_as(save(tensors), reference)
        assert f"{NEW}experts.gate_up_proj" not in found and f"{NEW}experts.0.gate_proj.weight" in found
        assert f"{NEW}experts.down_proj" in found


@pytest.mark.parametrize(
    ("names", "others"),
    [
        (["h.0.ln_1.weight", "wte.weight"], ["transformer.h.0.ln_1.weight", "transformer.wte.weight"]),
        (["bert.encoder.layer.0.output.LayerNorm.gamma"], ["encoder.layer.0.output.LayerNorm.weight"]),
        (
            ["language_model.model.layers.0.mlp.up_proj.weight", "language_model.lm_head.weight", "vision_tower.x"],
            ["model.language_model.layers.0.mlp.up_proj.weight", "lm_head.weight", "model.vision_tower.x"],
        ),
        (["model.layers.0.w", "model.norm.w"], ["language_model.model.layers.0.w", "language_model.model.norm.w"]),
        (["vision_tower.vision_model.encoder.layers.0.w"], ["model.vision_tower.encoder.layers.0.w"]),
    ],
)  # fmt: skip
def test_names_both_ways(names: list[str], others: list[str], make_model: Make) -> None:
    values = [np.full(3, at, "f4") for at, _ in enumerate(names)]
    a, b = (
        open_checkpoint(make_model(folder, dict(zip(chosen, values, strict=True)), {"model_type": "bert"}))
        for folder, chosen in (("a", names), ("b", others))
    )
    for source, reference in ((a, b), (b, a)):
        found = presented_as(source, reference)
        assert isinstance(found, Presented) and set(found) == set(reference) and found.renamed == len(names)
        for name, ref in reference.items():
            np.testing.assert_array_equal(found[name].to_numpy(), ref.to_numpy())


def test_models_of_other_depths_and_strangers_are_left_alone(save: Callable[..., Checkpoint]) -> None:
    one = np.ones(3, "f4")
    deep, flat = save({f"model.layers.{at}.w": one for at in range(4)}), save({"model.layers.0.w": one})
    assert presented_as(deep, flat) is deep and presented_as(flat, deep) is flat
    stranger = save({"blorp.0.zork": one, "encoder.layers.0.w": one})
    assert presented_as(stranger, deep) is stranger
    both = save({"layers.0.w": one, "model.layers.0.w": one})  # the name is taken
    assert presented_as(both, deep) is both
