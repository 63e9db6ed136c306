"""Training: a step agrees with the textbook, the start stays untouched, keys name the random numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eutectic.zoo import training
from eutectic.zoo.training import Schedule, accuracy, initial_tensors, train

MLP = {"model_type": "eutectic-digits-mlp", "input_size": 3, "hidden_sizes": [], "num_labels": 4}
DEEP = MLP | {"hidden_sizes": [8], "model_type": "eutectic-mlp", "norm": "layer"}
ONE = np.array([[0.5, -1.0, 2.0]], dtype=np.float32), np.array([1])  # every batch is the same, whatever is drawn


def slope(weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The gradient of the cross-entropy of a linear classifier on `ONE`."""
    logits = weight @ ONE[0][0] + bias
    found = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    found[ONE[1]] -= 1
    return np.outer(found, ONE[0][0]), found


def test_two_steps_with_momentum_against_float64():
    start = initial_tensors(MLP, key="start")
    trained = train(start, MLP, ONE, Schedule(2, 0.1, optimiser="momentum"), key="order")
    weight, bias = (start[f"layers.0.{part}"].astype(np.float64) for part in ("weight", "bias"))
    v_weight, v_bias = np.zeros_like(weight), np.zeros_like(bias)
    for _ in range(2):
        d_weight, d_bias = slope(weight, bias)
        v_weight, v_bias = training.MOMENTUM * v_weight + d_weight, training.MOMENTUM * v_bias + d_bias
        weight, bias = weight - 0.1 * v_weight, bias - 0.1 * v_bias
    np.testing.assert_allclose(trained["layers.0.weight"], weight, atol=1e-6)
    np.testing.assert_allclose(trained["layers.0.bias"], bias, atol=1e-6)


def test_the_first_step_of_adamw_against_float64():
    start = initial_tensors(MLP, key="start")
    rate = 0.1
    trained = train(start, MLP, ONE, Schedule(1, rate), key="order")
    weight, bias = (start[f"layers.0.{part}"].astype(np.float64) for part in ("weight", "bias"))
    d_weight, d_bias = slope(
        weight, bias
    )  # after one step both moments are the gradient's, so its length is of no matter
    np.testing.assert_allclose(
        trained["layers.0.weight"], weight * (1 - rate * training.DECAY) - rate * np.sign(d_weight), atol=1e-5
    )
    np.testing.assert_allclose(trained["layers.0.bias"], bias - rate * np.sign(d_bias), atol=1e-5)


@pytest.mark.parametrize("optimiser", ["momentum", "adamw"])
def test_keys_name_the_random_numbers_and_the_start_is_left_alone(optimiser):
    images = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    labels = np.arange(40) % 4
    start = initial_tensors(DEEP, key="a")
    kept = {name: array.copy() for name, array in start.items()}
    schedule = Schedule(5, 0.01, 8, optimiser)
    runs = [train(start, DEEP, (images, labels), schedule, key=key) for key in ("a", "a", "b")]
    for name in start:
        assert np.array_equal(start[name], kept[name])
        assert np.array_equal(runs[0][name], runs[1][name])
    assert not np.array_equal(runs[0]["layers.0.weight"], runs[2]["layers.0.weight"])
    other = initial_tensors(DEEP, key="b")
    assert not np.array_equal(start["layers.0.weight"], other["layers.0.weight"])


def test_a_separable_task_is_learned():
    images, labels = np.eye(3, dtype="float32"), np.array([2, 0, 1])
    trained = train(initial_tensors(DEEP, key="0"), DEEP, (images, labels), Schedule(60, 0.05, 8), key="1")
    assert accuracy(trained, DEEP, (images, labels)) == 1
    assert torch.get_default_dtype() == torch.float32
