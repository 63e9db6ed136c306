"""`compare`: what differs between two checkpoints, streamed; laws against plain numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eutectic.evaluation import compare as compare_module
from eutectic.evaluation.compare import ABSENT, compare
from eutectic.weights.checkpoint import Checkpoint, open_checkpoint
from eutectic.weights.safetensors import write_safetensors

RNG = np.random.default_rng(0)


def checkpoint(file: Path, tensors: dict[str, np.ndarray], config: dict | None = None) -> Checkpoint:
    write_safetensors(file, tensors)
    opened = open_checkpoint(file)
    return Checkpoint(dict(opened), path=file, config=config, headers=opened.headers)


@pytest.fixture
def pair(tmp_path: Path):
    """Builds two checkpoints from two dicts of arrays."""

    def build(a: dict[str, np.ndarray], b: dict[str, np.ndarray], configs=(None, None)):
        return (
            checkpoint(tmp_path / "a.safetensors", a, configs[0]),
            checkpoint(tmp_path / "b.safetensors", b, configs[1]),
        )

    return build


def test_a_checkpoint_is_identical_with_itself(pair) -> None:
    tensors = {"w": RNG.standard_normal(100).astype(np.float32), "n": np.array([np.nan, -0.0]), "e": np.zeros((0, 2))}
    found = compare(*pair(tensors, tensors))
    assert found.identical and (found.equal, found.common, found.changed) == (3, 3, ())


def test_one_bit_is_a_difference(pair) -> None:
    found = compare(*pair({"w": np.array([0.0, 1.0])}, {"w": np.array([-0.0, 1.0])}))
    assert not found.identical and found.changed[0].distance.different == 1
    assert found.changed[0].distance.max_abs == 0.0


@pytest.mark.parametrize("piece", [16, 24, 1000, 1 << 20])
@pytest.mark.parametrize("dtypes", [("f4", "f4"), ("f2", "f2"), ("f8", "f8"), ("f4", "f2"), ("f2", "f8")])
def test_measures_agree_with_numpy_for_any_piece(pair, monkeypatch, piece: int, dtypes: tuple[str, str]) -> None:
    monkeypatch.setattr(compare_module, "PIECE", piece)
    a = RNG.standard_normal((7, 31)).astype(dtypes[0])
    b = (a + 0.3 * RNG.standard_normal((7, 31)) * (np.arange(31) > 20)).astype(dtypes[1])
    found = compare(*pair({"w": a, "z": a}, {"w": b, "z": a}))
    assert found.equal == 1
    (changed,) = found.changed
    distance, x, y = changed.distance, a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    assert (distance.elements, distance.nonfinite) == (217, 0)
    assert distance.different == np.count_nonzero(x != y)
    assert distance.max_abs == np.abs(x - y).max()
    assert distance.relative_l2 == pytest.approx(np.linalg.norm(x - y) / np.linalg.norm(x), rel=1e-12)
    assert distance.cosine == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), rel=1e-12)
    assert distance.opposite_share == np.mean(np.sign(x) * np.sign(y) < 0)


def test_a_copy_in_another_type_has_equal_values(pair) -> None:
    values = RNG.standard_normal(50).astype(np.float16)
    found = compare(*pair({"w": values}, {"w": values.astype(np.float32)}))
    assert (found.equal, found.changed, len(found.mismatched), found.identical) == (1, (), 1, False)


def test_unlike_types_are_not_compared(pair) -> None:
    found = compare(*pair({"w": np.zeros(3, np.int32)}, {"w": np.zeros(3, np.float32)}))
    assert found.incomparable == ("w",) and len(found.mismatched) == 1 and not found.identical


def test_other_shapes_are_not_compared(pair) -> None:
    found = compare(*pair({"w": np.zeros((2, 3))}, {"w": np.zeros((3, 2))}))
    assert (found.equal, len(found.changed), found.mismatched[0].b.shape) == (0, 0, (3, 2))


def test_lonely_names(pair) -> None:
    found = compare(*pair({"x": np.zeros(1), "y": np.zeros(1)}, {"y": np.zeros(1), "z": np.zeros(1)}))
    assert (found.only_a, found.only_b, found.common) == (("x",), ("z",), 1)


def test_worst_first_and_unmeasurable_before_all(pair) -> None:
    ones = np.ones(4)
    a = {"little": ones, "much": ones, "nan": ones, "zero": 0 * ones}
    b = {"little": 1.1 * ones, "much": 2 * ones, "nan": np.array([np.nan, 1, 1, 1]), "zero": ones}
    assert [p.name for p in compare(*pair(a, b)).changed] in (
        ["nan", "zero", "much", "little"],
        ["zero", "nan", "much", "little"],
    )


def test_overall_is_the_distance_of_all_changed_elements(pair) -> None:
    a, b = {"x": np.array([3.0]), "y": np.array([4.0]), "z": np.ones(9)}, {"x": np.array([0.0]), "y": np.array([8.0])}
    found = compare(*pair(a, b | {"z": np.ones(9)}))
    assert (found.overall.relative_l2, found.overall.elements, found.overall.max_abs) == (1.0, 2, 4.0)


def test_headers_only_reads_no_value(pair, monkeypatch) -> None:
    monkeypatch.setattr(compare_module, "_compare_values", None)
    assert compare(*pair({"w": np.zeros(1)}, {"w": np.ones(1)}), values=False).identical


@pytest.mark.parametrize("piece", [16, 1 << 20])
def test_progress_counts_every_byte_of_the_common_names_once(pair, monkeypatch, piece: int) -> None:
    monkeypatch.setattr(compare_module, "PIECE", piece)
    ones = np.ones(40)
    a = {"same": ones, "late": ones, "shape": ones, "type": ones, "kind": ones, "only": ones}
    late = ones.copy()
    late[30] = 2
    b = {"same": ones, "late": late, "shape": np.ones(3), "type": ones.astype("f4"), "kind": ones.astype("i8")}
    seen: list[int] = []
    compare(*pair(a, b), report=seen.append)
    assert sum(seen) == 5 * ones.nbytes


def test_memory_is_bounded(pair) -> None:
    import tracemalloc

    array = np.ones(1_000_000, np.float32)
    a, b = pair({"w": array}, {"w": array * 2})
    tracemalloc.start()
    try:
        compare(a, b)
        assert tracemalloc.get_traced_memory()[1] < 4 * compare_module.PIECE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("a", "b", "differences"),
    [
        ({"x": 1}, {"x": 1.0}, []),
        ({"x": 1}, {"x": True}, [("x", 1, True)]),
        ({"x": float("nan")}, {"x": float("nan")}, []),
        ({"x": {"y": 1, "z": 2}}, {"x": {"y": 1, "z": 3}}, [("x.z", 2, 3)]),
        ({"x": {"y": 1}}, {"x": 5}, [("x", ABSENT, 5), ("x.y", 1, ABSENT)]),
        ({"x": {}, "w": 0}, {"w": 0}, [("x", {}, ABSENT)]),
        ({"x": [1, 2]}, {"x": [1, 3]}, [("x", [1, 2], [1, 3])]),
    ],
)
def test_config(pair, a: dict, b: dict, differences: list) -> None:
    tensors = {"w": np.zeros(1)}
    found = compare(*pair(tensors, tensors, (a, b)))
    assert [(entry.key, entry.a, entry.b) for entry in found.config] == differences
    assert found.identical == (not differences)


def test_config_on_one_side_only_is_no_difference(pair) -> None:
    tensors = {"w": np.zeros(1)}
    found = compare(*pair(tensors, tensors, ({"x": 1}, None)))
    assert found.identical and found.config_in == (True, False)
