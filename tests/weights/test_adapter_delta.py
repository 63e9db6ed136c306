"""Adapters read without their base: s B A in every layout, the same bits for any range; refused where it is needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eutectic.errors import EutecticError
from eutectic.weights.adapter_delta import ZeroTensor, open_changes

Make = Callable[..., Path]


def pair(rows: int, rank: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return (
        random.standard_normal((rows, rank), dtype=np.float32),
        random.standard_normal((rank, width), dtype=np.float32),
    )


@pytest.mark.parametrize(
    ("config", "scale"),
    [({"lora_alpha": 8}, 2), ({"lora_alpha": 8, "use_rslora": True}, 4), ({"alpha_pattern": {"q": 2}}, 0.5)],
)
def test_the_change_is_the_scaled_product(config: dict[str, Any], scale: float, make_adapter: Make) -> None:
    b, a = pair(6, 4, 5)
    found = open_changes(make_adapter("lora", {"h.q": (b, a)}, **config))
    assert list(found) == ["h.q.weight"] and found["h.q.weight"].shape == (6, 5)
    expected = scale * b.astype("f8") @ a.astype("f8")
    np.testing.assert_allclose(found["h.q.weight"].to_numpy(), expected, rtol=1e-5, atol=1e-5)


def test_transposed_layers_embeddings_and_convolutions(make_adapter: Make) -> None:
    b, a = pair(6, 4, 5)
    turned = open_changes(make_adapter("turned", {"c": (b, a)}, fan_in_fan_out=True))["c.weight"]
    np.testing.assert_allclose(turned.to_numpy(), (b @ a).T, rtol=1e-5, atol=1e-5)
    table = open_changes(make_adapter("table", {"embed": (b, a)}))["embed.weight"]
    np.testing.assert_allclose(table.to_numpy(), (b @ a).T, rtol=1e-5, atol=1e-5)
    kernels = {"stem": (b.reshape(6, 4, 1, 1), np.tile(a[:, :, None, None], (1, 1, 2, 3)))}
    conv = open_changes(make_adapter("conv", kernels))["stem.weight"]
    assert conv.shape == (6, 5, 2, 3)
    np.testing.assert_allclose(conv.to_numpy()[:, :, 1, 2], b @ a, rtol=1e-5, atol=1e-5)


def test_any_range_has_the_same_bits(make_adapter: Make) -> None:
    ref = open_changes(make_adapter("lora", {"q": pair(7, 3, 11)}))["q.weight"]
    whole = bytes(ref.read())
    for start, stop in ((0, 1), (5, 40), (10, 33), (11, 22), (76, 77), (0, 77)):
        assert bytes(ref.read(start, stop)) == whole[4 * start : 4 * stop]
    assert bytes(ZeroTensor("z", (2, 3)).read(1, 4)) == bytes(12)


def test_what_was_saved_whole_and_what_peft_copied_of_the_base(make_adapter: Make) -> None:
    whole = {
        "head.weight": np.ones((2, 3), "f4"),
        "q.base_layer.bias": np.ones(6, "f4"),
        "embed.base_layer.weight": np.ones((5, 6), "f4"),
        "other.weight": np.ones(2, "f4"),
    }
    folder = make_adapter(
        "saved", {"q": pair(6, 2, 5), "embed": pair(6, 2, 5)}, whole, modules_to_save=["head"], bias="lora_only"
    )
    found = open_changes(folder)
    assert found.trained == {"head.weight", "q.bias"}
    assert set(found.copies) == {"embed.weight", "other.weight"}
    assert set(found) == {"q.weight", "embed.weight", "head.weight", "q.bias"}
    assert found["q.bias"].name == "base_model.model.q.base_layer.bias"  # as stored


@pytest.mark.parametrize(
    ("whole", "config", "words"),
    [
        ({"q.lora_magnitude_vector": np.ones(6, "f4")}, {"use_dora": True}, r"DoRA .* as \./base\+\./adapter"),
        ({}, {"trainable_token_indices": [1]}, "trainable_token_indices is set"),
        ({}, {"alora_invocation_tokens": [1]}, "alora_invocation_tokens is set"),
        ({}, {"peft_type": "LOHA"}, "of the kind 'LOHA'"),
    ],
)
def test_changes_that_only_the_base_tells_are_refused(
    whole: dict[str, np.ndarray], config: dict[str, Any], words: str, make_adapter: Make
) -> None:
    with pytest.raises(EutecticError, match=words):
        open_changes(make_adapter("lora", {"q": pair(6, 2, 5)}, whole, **config))


def test_factors_without_a_product_are_refused(make_adapter: Make) -> None:
    b, a = pair(6, 2, 5)
    with pytest.raises(EutecticError, match=r"q: lora_A \[2, 5\] and lora_B \[6, 1\] have no product"):
        open_changes(make_adapter("grouped", {"q": (b[:, :1], a)}))
