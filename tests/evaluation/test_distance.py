"""`measure`: every stored type, special values, and sums that add up over pieces."""

from __future__ import annotations

import numpy as np
import pytest

from eutectic.evaluation import distance as distance_module
from eutectic.evaluation.distance import Distance, comparable, measure
from eutectic.weights.dtypes import BY_NAME


def raw(values: object, dtype: str) -> np.ndarray:
    return np.array(values, dtype=BY_NAME[dtype].numpy).view(np.uint8)


@pytest.mark.parametrize("dtype", list(BY_NAME))
def test_every_type_can_be_measured(dtype: str) -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 2, 64 * BY_NAME[dtype].size, dtype=np.uint8)
    b = a.copy()
    b[-1] ^= 1
    found = measure(a, b, dtype, dtype)
    assert (found.elements, found.different) == (64, 1)


def test_bfloat16_widens_exactly() -> None:
    a, b = raw([0x3F80, 0x4000], "BF16"), raw([0x3F80, 0xC000], "BF16")  # 1, 2 and 1, -2
    found = measure(a, b, "BF16", "BF16")
    assert (found.max_abs, found.opposite, found.square_a, found.dot) == (4.0, 1, 5.0, -3.0)
    assert found.relative_l2 == pytest.approx(4 / 5**0.5) and found.cosine == pytest.approx(-0.6)


def test_nan_and_infinity_are_counted_and_left_out() -> None:
    a, b = raw([1.0, np.nan, np.inf, 2.0], "F32"), raw([1.0, np.nan, -np.inf, 3.0], "F32")
    found = measure(a, b, "F32", "F32")
    assert (found.different, found.nonfinite, found.max_abs, found.square_a) == (2, 2, 1.0, 5.0)


def test_nan_equals_nan_across_types() -> None:
    found = measure(raw([np.nan, 1.0], "F32"), raw([np.nan, 1.0], "F64"), "F32", "F64")
    assert (found.different, found.nonfinite) == (0, 1)


def test_huge_float64_has_no_relative_norm_but_no_error() -> None:
    found = measure(raw([1e300], "F64"), raw([2e300], "F64"), "F64", "F64")
    assert (found.max_abs, found.relative_l2, found.cosine, found.nonfinite) == (1e300, None, None, 0)


def test_integers_have_a_largest_difference_only() -> None:
    found = measure(raw([0, 255], "U8"), raw([255, 0], "U8"), "U8", "U8")
    assert (found.max_abs, found.relative_l2, found.cosine) == (255.0, None, None)


def test_zero_against_something_has_no_relative_norm() -> None:
    found = measure(raw([0.0], "F32"), raw([1.0], "F32"), "F32", "F32")
    assert (found.relative_l2, found.cosine, found.severity) == (None, None, float("inf"))


def test_parts_add_up_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    a, b = (rng.standard_normal(1000).astype(np.float32).view(np.uint8) for _ in range(2))
    whole = measure(a, b, "F32", "F32")
    monkeypatch.setattr(distance_module, "BLOCK", 37)
    blocks = measure(a, b, "F32", "F32")
    assert (blocks.different, blocks.opposite, blocks.max_abs) == (whole.different, whole.opposite, whole.max_abs)
    assert blocks.relative_l2 == pytest.approx(whole.relative_l2, rel=1e-13)
    assert blocks.cosine == pytest.approx(whole.cosine, rel=1e-13)


def test_nothing_is_neutral() -> None:
    one = measure(raw([1.0], "F32"), raw([2.0], "F32"), "F32", "F32")
    assert one + Distance() == one == Distance() + one
    assert (Distance().relative_l2, Distance().different_share, Distance().opposite_share) == (None, 0.0, 0.0)


def test_comparable() -> None:
    assert comparable("BF16", "F32") and comparable("F8_E4M3", "F16") and comparable("C64", "C64")
    assert not comparable("F32", "I32") and not comparable("F8_E8M0", "F32") and not comparable("I8", "I16")
