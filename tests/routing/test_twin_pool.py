"""A Twin pool at run time: its single experts are the pool's members, and routing needs no batch of one task."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from twin_pools import BYTES, ENCODER

from eutectic.errors import RecipeError, SourceError
from eutectic.evaluation.evaluator import Evaluator
from eutectic.evaluation.model import Model
from eutectic.evaluation.scores import Outcome, Scores
from eutectic.evaluation.suite import load_suite
from eutectic.pools.pool import Pool, open_pool
from eutectic.routing.fitting import fit_pool
from eutectic.routing.router import RouterSettings
from eutectic.routing.twin_pool import Mixer, differences

QUICK = RouterSettings(hidden=16, steps=60)


def samples(outcome: Outcome) -> np.ndarray:
    assert isinstance(outcome, Scores), outcome
    return outcome.samples


def same(pool: Pool, suite: dict[str, Any], split: str = "validation") -> None:
    """Single experts and the shared one score as the members and the core, built as whole networks."""
    mixer = Mixer(pool)
    with Evaluator(suite) as evaluator:
        for expert in pool:
            mixed = evaluator.measure(mixer.single(expert), split=split)
            whole = evaluator.measure(Model(pool[expert]), split=split)
            for name in whole:
                np.testing.assert_allclose(samples(mixed[name]), samples(whole[name]), atol=1e-5)
        plain = evaluator.measure(Model(pool.core), split=split)
        shared = evaluator.measure(mixer.shared(), split=split)
        assert all(np.array_equal(samples(plain[name]), samples(shared[name])) for name in plain)


def test_digits(digits_pool: Pool, digits_suite: dict[str, Any]) -> None:
    same(digits_pool, digits_suite)


def test_a_language_model_that_also_generates(random_pool: Callable[..., Pool], bytes_suite: dict[str, Any]) -> None:
    pool = random_pool(BYTES)
    same(pool, bytes_suite)
    mixer = Mixer(pool)
    prompts = ["abc:", "nop:", "abcdefgh", "zz zz zz"]
    router = fit_pool(pool, load_suite(bytes_suite), QUICK).router
    routed = mixer.routed(router)
    together = routed.complete(prompts, 6)
    assert together == [mixer.routed(router).complete([prompt], 6)[0] for prompt in prompts]
    members = {expert: Model(pool[expert]).complete(prompts, 6) for expert in pool}
    assert all(text in {texts[at] for texts in members.values()} for at, text in enumerate(together))


def test_an_encoder_with_heads(random_pool: Callable[..., Pool], headed_suite: dict[str, Any]) -> None:
    same(random_pool(ENCODER), headed_suite)


@pytest.mark.parametrize("soft", [False, True])
def test_a_stream_of_all_tasks_is_answered_as_each_task_is(
    digits_pool: Pool, digits_suite: dict[str, Any], soft: bool
) -> None:
    suite = load_suite(digits_suite)
    router, mixer = fit_pool(digits_pool, suite, QUICK).router, Mixer(digits_pool)
    parts = [task.column("validation", "inputs") for task in suite]  # type: ignore[attr-defined]
    whole = torch.from_numpy(np.concatenate(parts)).float()
    shuffled = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    stream, one = mixer.routed(router, soft=soft), mixer.routed(router, soft=soft)
    with torch.inference_mode():
        found = torch.cat([stream.networks[0](whole[rows]) for rows in shuffled.split(64)])
        wanted = torch.cat([one.networks[0](torch.from_numpy(part).float()) for part in parts])[shuffled]
        assert torch.equal(torch.cat(stream.chosen).argmax(1), torch.cat(one.chosen)[shuffled].argmax(1))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert len(torch.cat(stream.chosen).argmax(1).unique()) == 3


def test_mixing_follows_the_router(digits_pool: Pool, digits_suite: dict[str, Any]) -> None:
    """Top 1 is, sample by sample, what the chosen member answers."""
    suite = load_suite(digits_suite)
    router, mixer = fit_pool(digits_pool, suite, QUICK).router, Mixer(digits_pool)
    x = torch.from_numpy(suite.tasks["general"].column("validation", "inputs")).float()  # type: ignore[attr-defined]
    routed = mixer.routed(router)
    with torch.inference_mode():
        found = routed.networks[0](x)
        chosen = torch.cat(routed.chosen).argmax(1)
        for at, expert in enumerate(digits_pool):
            rows = chosen == at
            torch.testing.assert_close(found[rows], Model(digits_pool[expert]).network(x[rows]), rtol=1e-4, atol=1e-5)


def test_the_ways_to_choose_are_told_apart(digits_pool: Pool, digits_suite: dict[str, Any]) -> None:
    router, mixer = fit_pool(digits_pool, load_suite(digits_suite), QUICK).router, Mixer(digits_pool)
    ways = [mixer.shared(), mixer.routed(router), mixer.routed(router, soft=True), *map(mixer.single, digits_pool)]
    assert len({way.identity for way in ways} | {Model(digits_pool.core).identity}) == len(ways) + 1


def test_differences_are_what_the_members_have(digits_pool: Pool) -> None:
    for name, (left, right) in differences(digits_pool).items():
        core = digits_pool.core[name].to_torch()
        for at, expert in enumerate(digits_pool):
            v = left[at] if right is None else left[at] @ right[at]
            wanted = digits_pool[expert][name].to_torch() - core
            torch.testing.assert_close(v.reshape(wanted.shape), wanted, rtol=0, atol=1e-6)


def test_what_is_refused(digits_pool: Pool) -> None:
    with pytest.raises(RecipeError, match="no expert 'flop'; did you mean 'flip'"):
        Mixer(digits_pool).single("flop")
    path = digits_pool.path / "pool.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "scheme": "tall", "settings": {}}))
    with pytest.raises(RecipeError, match=r"a pool of scheme tall, .* pack the experts again with --scheme twin"):
        Mixer(open_pool(digits_pool.path))


def test_a_network_that_cannot_mix_says_so(random_pool: Callable[..., Pool], tmp_path: Path) -> None:
    pool = random_pool({
        "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "vocab_size": 40, "hidden_size": 16,
        "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
        "num_local_experts": 2,
    })  # fmt: skip
    with pytest.raises(SourceError, match="cannot be mixed for each input"):
        Mixer(pool)
