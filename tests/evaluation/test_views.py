"""Accuracies agree with a ten-line float64 reference; standard errors with their definition; misfits are named."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from eutectic.errors import NonFiniteError, SourceError
from eutectic.evaluation.views import measure_views

VIEWS = {"plain": lambda x: x, "reversed": lambda x: x[:, ::-1], "negative": lambda x: -x}


def random_network(sizes=(6, 8, 8, 4), seed=0, numbers=(0, 1, 2)):
    draw = np.random.default_rng(seed)
    tensors = {}
    for number, inputs, outputs in zip(numbers, sizes, sizes[1:], strict=False):
        tensors[f"layers.{number}.weight"] = draw.standard_normal((outputs, inputs)).astype(np.float32)
        tensors[f"layers.{number}.bias"] = draw.standard_normal(outputs).astype(np.float32)
    return tensors


def random_data(n=50, pixels=6, classes=4, seed=1):
    draw = np.random.default_rng(seed)
    return draw.standard_normal((n, pixels)).astype(np.float32), draw.integers(0, classes, n)


def reference_hits(tensors, images, labels):
    x = images.astype(np.float64)
    numbers = sorted({int(name.split(".")[1]) for name in tensors})
    for number in numbers:
        x = x @ tensors[f"layers.{number}.weight"].astype(np.float64).T + tensors[f"layers.{number}.bias"]
        x = np.maximum(x, 0) if number != numbers[-1] else x
    return (x.argmax(axis=1) == labels).astype(np.float64)


def test_accuracy_and_standard_errors_against_their_definitions():
    network, (images, labels) = random_network(), random_data()
    scores = measure_views(network, images, labels, VIEWS)
    hits = {name: reference_hits(network, view(images), labels) for name, view in VIEWS.items()}
    n = len(labels)
    for name, score in scores.views.items():
        p = hits[name].mean()
        assert score.value == p
        assert score.stderr == pytest.approx((p * (1 - p) / (n - 1)) ** 0.5)
        assert score.n == n and score.seconds > 0
    per_image = np.mean(list(hits.values()), axis=0)
    assert scores.mean.value == pytest.approx(np.mean([s.value for s in scores.views.values()]))
    assert scores.mean.stderr == pytest.approx((((per_image - per_image.mean()) ** 2).sum() / (n - 1) / n) ** 0.5)


def test_one_view_shown_twice_does_not_shrink_the_error():
    network, (images, labels) = random_network(), random_data()
    scores = measure_views(network, images, labels, {"a": VIEWS["plain"], "b": VIEWS["plain"]})
    assert scores.mean.stderr == scores.views["a"].stderr


def test_layers_follow_their_numbers_not_the_order_of_names():
    network, (images, labels) = random_network(numbers=(0, 2, 10)), random_data()
    shuffled = dict(sorted(network.items(), reverse=True))
    assert measure_views(shuffled, images, labels, VIEWS).mean.value == pytest.approx(
        np.mean([reference_hits(network, view(images), labels).mean() for view in VIEWS.values()])
    )


def test_torch_tensors_of_any_float_type_are_taken():
    import torch

    network, (images, labels) = random_network(), random_data()
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        tensors = {name: torch.tensor(array, dtype=dtype, requires_grad=True) for name, array in network.items()}
        plain = {name: tensor.detach().float().numpy() for name, tensor in tensors.items()}
        measured, expected = (measure_views(c, images, labels, VIEWS) for c in (tensors, plain))
        assert measured.mean.value == expected.mean.value


def without(name):
    return {n: t for n, t in random_network().items() if n != name}


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ({}, "share one prefix"),
        (random_network() | {"embed.weight": np.ones((2, 2))}, "'embed.weight'"),
        (random_network() | {"other.3.weight": np.ones((2, 2))}, "one prefix"),
        (without("layers.1.bias"), "layers.1.bias is missing"),
        (random_network() | {"layers.1.bias": np.ones(3)}, r"layers.1: weight \[8, 8\] and bias \[3\]"),
        (random_network() | {"layers.2.weight": np.ones((4, 7))}, "layers.2.weight takes 7 inputs, layers.1 gives 8"),
        (random_network(sizes=(5, 8, 8, 4)), r"images \[50, 6\] do not fit"),
        (random_network(sizes=(6, 8, 8, 2)), "the network has 2 classes"),
    ],
)
def test_a_network_that_does_not_fit_is_named(network, words):
    with pytest.raises(SourceError, match=words):
        measure_views(network, *random_data(), VIEWS)


def test_data_that_does_not_fit_is_named():
    images, labels = random_data()
    with pytest.raises(SourceError, match="labels"):
        measure_views(random_network(), images, labels[:-1], VIEWS)
    with pytest.raises(SourceError, match="at least 2"):
        measure_views(random_network(), images[:1], labels[:1], VIEWS)
    with pytest.raises(SourceError, match="no view"):
        measure_views(random_network(), images, labels, {})


def test_an_answer_of_nan_is_an_error_not_an_accuracy():
    network = random_network()
    network["layers.0.weight"][0, 0] = np.nan
    with pytest.raises(NonFiniteError, match=r"layers\.2"):
        measure_views(network, *random_data(), VIEWS)


def test_six_views_of_450_images_take_no_noticeable_time():
    network, data = random_network((64, 256, 256, 10)), random_data(450, 64, 10)
    views = {str(i): VIEWS["plain"] for i in range(6)}
    measure_views(network, *data, views)
    best = min(_seconds(lambda: measure_views(network, *data, views)) for _ in range(5))
    assert best < 0.5  # about 0.02 on an idle machine; this one may be busy


def _seconds(call):
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def test_measuring_needs_no_torch():
    code = "import sys, eutectic.evaluation.views; print('torch' in sys.modules, 'sklearn' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "False"]
