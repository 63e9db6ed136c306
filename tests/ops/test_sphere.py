"""Coefficients of spherical interpolation against vectors in float64."""

from __future__ import annotations

import numpy as np
import pytest

from eutectic.ops.sphere import slerp_coefficients


def gram(a: np.ndarray, b: np.ndarray) -> list[list[float]]:
    return [[float(x @ y) for y in (a, b)] for x in (a, b)]


def vectors(angle: float, lengths: tuple[float, float] = (1.0, 1.0)) -> tuple[np.ndarray, np.ndarray]:
    return lengths[0] * np.array([1.0, 0.0]), lengths[1] * np.array([np.cos(angle), np.sin(angle)])


@pytest.mark.parametrize("angle", [0.1, 1.0, np.pi / 2, 3.0])
@pytest.mark.parametrize("t", [-0.5, 0.0, 0.25, 0.5, 1.0, 1.5])
def test_the_result_turns_by_a_share_of_the_angle(angle: float, t: float) -> None:
    a, b = vectors(angle)
    first, second = slerp_coefficients(gram(a, b), t)
    np.testing.assert_allclose(first * a + second * b, [np.cos(t * angle), np.sin(t * angle)], atol=1e-12)


@pytest.mark.parametrize("lengths", [(2.0, 0.5), (1e-3, 1e6)])
def test_the_angle_does_not_depend_on_the_lengths(lengths: tuple[float, float]) -> None:
    expected = slerp_coefficients(gram(*vectors(1.2)), 0.3)
    assert slerp_coefficients(gram(*vectors(1.2, lengths)), 0.3) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("angle", [0.0, 0.01, np.pi, np.pi - 0.01])
def test_nearly_parallel_vectors_mix_linearly(angle: float) -> None:
    assert slerp_coefficients(gram(*vectors(angle)), 0.25) == (0.75, 0.25)


@pytest.mark.parametrize("cosine", [0.99949, 0.99951, -0.99949, -0.99951])
def test_the_border_of_nearly_parallel(cosine: float) -> None:
    linear = slerp_coefficients([[1.0, cosine], [cosine, 1.0]], 0.25) == (0.75, 0.25)
    assert linear == (abs(cosine) > 0.9995)


@pytest.mark.parametrize("lengths", [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (1e-9, 1.0)])
def test_a_vector_without_length_counts_as_orthogonal(lengths: tuple[float, float]) -> None:
    expected = (np.sin(0.75 * np.pi / 2), np.sin(0.25 * np.pi / 2))
    assert slerp_coefficients(gram(*vectors(0.3, lengths)), 0.25) == pytest.approx(expected)


def test_what_is_not_a_number_mixes_linearly() -> None:
    assert slerp_coefficients([[1.0, float("nan")], [float("nan"), 1.0]], 0.25) == (0.75, 0.25)
