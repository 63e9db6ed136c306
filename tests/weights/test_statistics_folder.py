"""Folders of statistics: fingerprints of models, malformed folders, nothing half-written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eutectic.errors import FormatError, OutputError, SourceError
from eutectic.weights.checkpoint import open_checkpoint
from eutectic.weights.statistics_folder import identity_of, open_statistics, staged, write_facts, write_kind

FACTS = {"model": {"fingerprint": "m"}, "data": {"fingerprint": "d"}, "kinds": ["gram"]}


def test_a_model_is_known_by_a_few_values_of_each_tensor(make_model: Callable[..., Path]) -> None:
    tensors = {"a": np.zeros((9, 9), np.float32), "b": np.zeros((), np.float32), "c": np.zeros((0, 2), np.float32)}

    def identity(name: str, **changes: np.ndarray) -> str:
        return identity_of(open_checkpoint(make_model(name, {**tensors, **changes})))

    one = identity("one")
    assert identity("copy") == one
    middle = np.zeros((9, 9), np.float32)
    middle[4, 4] = 1
    others = [identity("x", a=middle), identity("y", b=np.ones((), np.float32)), identity("z", a=tensors["a"][:8])]
    assert len({one, *others}) == 4


def test_written_in_groups_and_read_back(tmp_path: Path) -> None:
    shapes = {"a": (2, 2), "b": (2, 3)}
    with staged(tmp_path / "s") as folder:
        groups = iter([{"b": np.ones((2, 3))}, {"a": np.full((2, 2), 2.0)}])
        write_kind(folder, "gram", shapes, groups)
        write_facts(folder, FACTS)
        assert not (tmp_path / "s").exists()
    found = open_statistics(tmp_path / "s")
    assert (found.model, found.data, found.kinds) == ("m", "d", ("gram",))
    assert found.tensors("gram")["a"].to_numpy().tolist() == [[2, 2], [2, 2]]
    with pytest.raises(SourceError, match="holds gram, not fisher"):
        found.tensors("fisher")


def test_nothing_is_left_of_what_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), staged(tmp_path / "s") as folder:
        (folder / "gram.safetensors").write_bytes(b"half")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "s.partial").mkdir()
    (tmp_path / "s.partial/gram.safetensors").write_bytes(b"half")
    with staged(tmp_path / "s") as folder:
        write_facts(folder, FACTS)
    (tmp_path / "t.partial").mkdir()
    (tmp_path / "t.partial/journal").write_bytes(b"of a merge")
    with pytest.raises(OutputError, match="holds something else"), staged(tmp_path / "t"):
        pass
    assert sorted(file.name for file in tmp_path.iterdir()) == ["s", "t.partial"]
    assert [file.name for file in (tmp_path / "s").iterdir()] == ["stats.json"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"statistics": 2}, "statistics of version 2; this reads 1"),
        ({"kinds": ["gramm"]}, "kinds must be some of fisher, gram"),
        ({"kinds": []}, "kinds must be some of"),
        ({"kinds": "gram"}, "kinds must be some of"),
        ({"model": "m"}, "model and data need a fingerprint each"),
        ({"data": {"fingerprint": 1}}, "model and data need a fingerprint each"),
    ],
)
def test_malformed_descriptions(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    (tmp_path / "stats.json").write_text(json.dumps({"statistics": 1, **FACTS, **change}))
    with pytest.raises(FormatError, match=words):
        open_statistics(tmp_path)


def test_no_statistics_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no statistics"):
        open_statistics(tmp_path)
