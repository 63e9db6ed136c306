"""The router: fitted with the same bits each time, every expert counted alike, and strict about what it reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eutectic.errors import SourceError
from eutectic.routing.router import Router, RouterSettings, fit_router

QUICK = RouterSettings(hidden=8, steps=80, batch=32)


def clouds(counts: tuple[int, ...], seed: int = 0) -> dict[str, np.ndarray]:
    """Points around a place for each expert, in five dimensions of different scales; one says nothing."""
    random = np.random.default_rng(seed)
    scale = np.array([1, 100, 0.01, 1, 0])
    places = 6 * np.random.default_rng(9).standard_normal((len(counts), 5))
    return {
        f"e{at}": ((places[at] + random.standard_normal((n, 5))) * scale).astype("f4") for at, n in enumerate(counts)
    }


def test_what_it_learned_and_the_same_bits_each_time() -> None:
    torch.manual_seed(1)
    router = fit_router(clouds((80, 80, 80)), QUICK)
    torch.manual_seed(2)
    again = fit_router(clouds((80, 80, 80)), QUICK)
    other = fit_router(clouds((80, 80, 80)), RouterSettings(hidden=8, steps=80, batch=32, seed=1))
    assert router.digest == again.digest != other.digest and router.experts == ("e0", "e1", "e2")
    for at, unseen in enumerate(clouds((50, 50, 50), seed=1).values()):
        chosen = router.gates(torch.from_numpy(unseen), soft=False)
        assert chosen[:, at].mean() > 0.9 and (chosen.sum(1) == 1).all()
        soft = router.gates(torch.from_numpy(unseen), soft=True)
        assert torch.equal(soft.argmax(1), chosen.argmax(1))
        torch.testing.assert_close(soft.sum(1), torch.ones(50))


def test_probabilities_against_numpy() -> None:
    router, x = fit_router(clouds((30, 30)), QUICK), clouds((7, 1))["e0"]
    t = {name: tensor.astype(np.float64) for name, tensor in router.tensors.items()}
    hidden = np.maximum((x - t["mean"]) / t["spread"] @ t["hidden.weight"].T + t["hidden.bias"], 0)
    logits = hidden @ t["out.weight"].T + t["out.bias"]
    wanted = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(router.probabilities(torch.from_numpy(x)).numpy(), wanted, atol=1e-5)


def test_an_expert_with_few_samples_counts_as_much() -> None:
    random = np.random.default_rng(0)
    known = {"many": random.standard_normal((900, 2)), "few": random.standard_normal((30, 2)) + 1.0}
    router = fit_router(known, QUICK)
    there = torch.full((1, 2), 0.8)  # nearer to the few, among more of the many
    assert router.gates(there, soft=False)[0, 1] == 1


def test_what_it_refuses() -> None:
    known = clouds((10, 10))
    with pytest.raises(SourceError, match="expert e1: NaN or infinity"):
        fit_router({**known, "e1": np.full((3, 5), np.nan)}, QUICK)
    with pytest.raises(SourceError, match="expert e1: no samples"):
        fit_router({**known, "e1": np.empty((0, 5))}, QUICK)
    router = fit_router(known, QUICK)
    with pytest.raises(SourceError, match="the router reads 5 features, the network has 4"):
        router.probabilities(torch.zeros(2, 4))
    with pytest.raises(SourceError, match=r"out\.weight: a router of 3 experts"):
        Router((*router.experts, "third"), router.tensors)
