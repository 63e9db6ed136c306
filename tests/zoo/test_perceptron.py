"""Training: one step agrees with the textbook, the start stays untouched, keys name the random numbers."""

from __future__ import annotations

import numpy as np

from eutectic.zoo import perceptron
from eutectic.zoo.perceptron import initial_perceptron, train_perceptron


def test_two_steps_of_a_linear_classifier_against_float64():
    # One image only, so that every batch is the same whatever is drawn.
    x, label, rate = np.array([[0.5, -1.0, 2.0]], dtype=np.float32), np.array([1]), 0.1
    start = initial_perceptron([3, 4], key="start")
    trained = train_perceptron(start, x, label, steps=2, rate=rate, key="order")
    weight, bias = (start[f"layers.0.{part}"].astype(np.float64) for part in ("weight", "bias"))
    v_weight, v_bias = np.zeros_like(weight), np.zeros_like(bias)
    for _ in range(2):
        logits = weight @ x[0] + bias
        slope = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        slope[label] -= 1
        v_weight, v_bias = perceptron.MOMENTUM * v_weight + np.outer(slope, x[0]), perceptron.MOMENTUM * v_bias + slope
        weight, bias = weight - rate * v_weight, bias - rate * v_bias
    np.testing.assert_allclose(trained["layers.0.weight"], weight, atol=1e-6)
    np.testing.assert_allclose(trained["layers.0.bias"], bias, atol=1e-6)


def test_keys_name_the_random_numbers_and_the_start_is_left_alone():
    images = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    labels = np.arange(40) % 3
    start = initial_perceptron([6, 8, 3], key="a")
    kept = {name: array.copy() for name, array in start.items()}
    runs = [train_perceptron(start, images, labels, steps=5, rate=0.01, key=key) for key in ("a", "a", "b")]
    for name in start:
        assert np.array_equal(start[name], kept[name])
        assert np.array_equal(runs[0][name], runs[1][name])
    assert not np.array_equal(runs[0]["layers.0.weight"], runs[2]["layers.0.weight"])
    other = initial_perceptron([6, 8, 3], key="b")
    assert not np.array_equal(start["layers.0.weight"], other["layers.0.weight"])
