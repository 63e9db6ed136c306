"""Which of several models is the base, how far the others are, against numpy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eutectic.errors import SourceError
from eutectic.evaluation.kinship import find_kin
from eutectic.weights.checkpoint import Checkpoint, open_checkpoint

Tensors = dict[str, np.ndarray]


@pytest.fixture
def family(make_model: Callable[..., Path]) -> dict[str, Checkpoint]:
    """``base``, its fine-tunes ``x`` (the one looked at), ``sister``, ``twin`` (= x), and ``stranger``."""
    random = np.random.default_rng(0)

    def draw(scale: float = 1.0) -> Tensors:
        return {"a": scale * random.standard_normal((50, 60)), "b": scale * random.standard_normal(70)}

    base = draw()
    x, sister = ({n: v + d for (n, v), d in zip(base.items(), draw(0.05).values(), strict=True)} for _ in range(2))
    sister = {n: v + 0.5 * (x[n] - base[n]) for n, v in sister.items()}
    models = {"base": base, "x": x, "sister": sister, "twin": x, "stranger": draw()}
    return {name: open_checkpoint(make_model(name, tensors)) for name, tensors in models.items()}


def flat(checkpoint: Checkpoint) -> np.ndarray:
    return np.concatenate([tensor.to_numpy().ravel() for tensor in checkpoint.values()])


def test_the_base_is_the_nearest_and_deltas_are_measured_from_it(family: dict[str, Checkpoint]) -> None:
    told: list[int] = []
    others = {name: family[name] for name in ("stranger", "sister", "base")}
    found = find_kin(family["x"], others, report=told.append)
    x, base, sister, stranger = (flat(family[n]) for n in ("x", "base", "sister", "stranger"))
    assert [kin.name for kin in found.kin] == ["base", "sister", "stranger"]
    assert (found.base, found.given, found.verdict) == ("base", False, "base (the nearest)")
    for kin, other in zip(found.kin, (base, sister, stranger), strict=True):
        assert kin.distance == pytest.approx(np.linalg.norm(x - other) / np.linalg.norm(x), rel=1e-12)
        assert (kin.tensors, kin.share) == (2, 1.0)
    expected = (x - base) @ (sister - base) / np.linalg.norm(x - base) / np.linalg.norm(sister - base)
    assert found.kin[0].delta_cosine is None and found.kin[1].delta_cosine == pytest.approx(expected, abs=1e-12)
    assert [kin.related for kin in found.kin] == [True, True, False]
    assert sum(told) == family["x"].nbytes


def test_a_base_that_is_given_is_taken(family: dict[str, Checkpoint]) -> None:
    found = find_kin(family["x"], {"stranger": family["stranger"], "sister": family["sister"]}, base="stranger")
    assert (found.base, found.verdict) == ("stranger", "stranger (as given, yet far from it)")


def test_equal_and_unrelated(family: dict[str, Checkpoint]) -> None:
    found = find_kin(family["x"], {"twin": family["twin"], "base": family["base"]})
    assert found.verdict == "equal to twin" and found.kin[0].equal and found.base == "base"
    alone = find_kin(family["x"], {"stranger": family["stranger"]})
    assert (alone.base, alone.verdict) == (None, "related to none of them")


def test_what_shares_nothing(family: dict[str, Checkpoint], make_model: Callable[..., Path]) -> None:
    other = open_checkpoint(make_model("other", {"a": np.zeros(3), "b": np.zeros(70, np.int64)}))
    found = find_kin(family["x"], {"other": other, "base": family["base"]})
    assert found.base == "base" and found.kin[1].distance is None and found.kin[1].tensors == 0
    with pytest.raises(SourceError, match="none of other has a tensor of floats"):
        find_kin(family["x"], {"other": other})
    with pytest.raises(SourceError, match="no candidates"):
        find_kin(family["x"], {})
