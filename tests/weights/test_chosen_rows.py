"""Chosen rows: what numpy's indexing gives, to the bit, for any range; own, lent, averaged, mean and zero rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eutectic.errors import FormatError
from eutectic.weights.checkpoint import Checkpoint, open_checkpoint
from eutectic.weights.chosen_rows import MEAN, ZERO, ChosenRows, Rows
from eutectic.weights.tensor_ref import StoredTensor, TensorRef

ROWS, WIDTH, LENT = 40, 7, 11


@pytest.fixture
def models(make_model: Callable[..., Path]) -> list[Checkpoint]:
    random = np.random.default_rng(0)
    kinds = (np.float32, np.float32, np.float16)
    return [
        open_checkpoint(make_model(f"m{at}", {"emb": random.standard_normal((ROWS, WIDTH)).astype(kind)}))
        for at, kind in enumerate(kinds)
    ]


def chosen(models: list[Checkpoint], lender: int, *, averages: bool = False) -> tuple[ChosenRows, np.ndarray]:
    """Rows in disorder, with a run in order, zeros, rows of another model; and what they should be."""
    random = np.random.default_rng(lender)
    tensor, other = models[0]["emb"], models[lender]["emb"]
    own = np.concatenate((random.permutation(ROWS), np.arange(5, 20), np.full(3, ZERO), random.permutation(ROWS)))
    lent: dict[int, list[tuple[TensorRef, int]]] = {}
    for row in random.choice(len(own), LENT, replace=False).tolist():
        own[row], lent[row] = ZERO, [(other, int(random.integers(ROWS)))]
    expected = np.where((own >= 0)[:, None], tensor.to_numpy()[own], np.float32(0))
    for row, found in lent.items():
        expected[row] = other.to_numpy()[found[0][1]]
    counted = len(own)
    if averages:
        row = int(np.flatnonzero(own >= 0)[4])
        lent[row], own[row] = [(tensor, 1), (other, 2)], ZERO
        expected[row] = (tensor.to_numpy()[1].astype(np.float64) + other.to_numpy()[2]) / 2
        own = np.append(own, [MEAN, MEAN])
        mean = expected.astype(np.float64).mean(axis=0).astype(np.float32)
        expected = np.concatenate((expected, [mean, mean]))
    return ChosenRows(tensor, Rows(own, lent, counted)), expected.astype(np.float32)


@pytest.mark.parametrize("lender", [1, 2])
@pytest.mark.parametrize("averages", [False, True])
def test_rows_are_those_that_were_chosen_in_any_range(models: list[Checkpoint], lender: int, averages: bool) -> None:
    ref, expected = chosen(models, lender, averages=averages)
    assert ref.shape == expected.shape and ref.dtype.name == "F32"
    np.testing.assert_allclose(ref.to_numpy(), expected, rtol=1e-6 if averages else 0)
    whole, n = bytes(ref.read()), ref.numel
    for start, stop in ((0, 1), (3, 4), (6, 8), (7, 14), (10, 300), (n - 9, n), (WIDTH * 45 + 2, WIDTH * 62 + 1)):
        assert bytes(ref.read(start, stop)) == whole[4 * start : 4 * stop], (start, stop)


def test_rows_of_a_narrow_type_stay_in_it(models: list[Checkpoint]) -> None:
    order = np.random.default_rng(5).permutation(ROWS)
    ref = ChosenRows(models[2]["emb"], Rows(order, {}, ROWS))
    assert ref.dtype.name == "F16"
    assert ref.to_numpy().tobytes() == models[2]["emb"].to_numpy()[order].tobytes()


def test_rows_of_a_tensor_that_is_no_file_are_read_one_by_one(models: list[Checkpoint]) -> None:
    """Chosen rows of chosen rows: the inner ones are calculated."""
    inner, values = chosen(models, 1)
    order = np.random.default_rng(6).permutation(len(values))
    np.testing.assert_array_equal(ChosenRows(inner, Rows(order, {}, len(order))).to_numpy(), values[order])


def test_a_file_that_ends_early_is_an_error(models: list[Checkpoint]) -> None:
    ref, _ = chosen(models, 1)
    stored = ref.tensor
    assert isinstance(stored, StoredTensor)
    path = Path(str(stored.file.path))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FormatError, match="ends at byte"):
        ref.read()
