"""The scheme rmm: exact where it should be, its errors those of a float64 reference, never larger than the experts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_adapters import WEIGHTS, drawn, factors, write_adapter, write_base

from eutectic.errors import NonFiniteError, RecipeError
from eutectic.pools.basis import RMM
from eutectic.pools.scheme import Part, Span, settle
from eutectic.weights.adapter import open_adapted
from eutectic.weights.checkpoint import Checkpoint, open_checkpoint

SCALE = 2.0  # alpha 8 over rank 4


class Packed(NamedTuple):
    """What a pool would hold: settings, parts and arrays by tensor."""

    core: Checkpoint
    settings: dict[str, dict[str, Any]]
    shared: dict[str, dict[str, np.ndarray]]
    own: dict[str, list[dict[str, np.ndarray]]]
    parts: dict[str, tuple[Mapping[str, Part], Mapping[str, Part]]]

    @property
    def nbytes(self) -> int:
        found = 0
        for name, (shared, own) in self.parts.items():
            found += sum(part.nbytes for part in shared.values())
            found += len(self.own[name]) * sum(part.nbytes for part in own.values())
        return found

    def member(self, name: str, at: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self.decoded(name, self.own[name][at], start, stop)

    def decoded(self, name: str, own: Mapping[str, np.ndarray], start: int = 0, stop: int | None = None) -> np.ndarray:
        core = self.core[name]
        span = Span(core.shape, start, core.numel if stop is None else stop)
        both = []
        for parts, arrays in zip(self.parts[name], (self.shared[name], own), strict=True):
            both.append({suffix: arrays[suffix][slice(*part.stretch(span))] for suffix, part in parts.items()})
        values = core.to_numpy().reshape(-1)[span.start : span.stop]
        return RMM.decode(span, values, *both, self.settings[name])


def as_stored(arrays: Mapping[str, np.ndarray], parts: Mapping[str, Part]) -> dict[str, np.ndarray]:
    """Rounded to the types of the parts, and of their sizes."""
    assert arrays.keys() == parts.keys()
    found = {}
    for suffix, part in parts.items():
        values = torch.from_numpy(np.ascontiguousarray(arrays[suffix])).to(getattr(torch, part.dtype.torch))
        assert values.shape == (part.numel,)
        found[suffix] = values.float().numpy()
    return found


def pack(core: Checkpoint, experts: Mapping[str, Checkpoint], **given: Any) -> Packed:
    common, _ = settle(RMM, given, list(experts))
    names = [name for name in core if core[name].dtype.floating]
    assert RMM.choose is not None
    chosen = RMM.choose(core, experts, names, common)
    packed = Packed(core, {name: {**common, **chosen[name]} for name in names}, {}, {}, {})
    for name, settings in packed.settings.items():
        ref = core[name]
        packed.parts[name] = RMM.parts(ref.shape, ref.dtype, len(experts), settings)
        refs = [expert[name] for expert in experts.values()]
        shared, own = RMM.encode(Span(ref.shape, 0, ref.numel), ref, refs, [settings] * len(refs), None)
        packed.shared[name] = as_stored(shared, packed.parts[name][0])
        packed.own[name] = [as_stored(arrays, packed.parts[name][1]) for arrays in own]
    return packed


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base")


@pytest.fixture
def pool_of(base: Path, tmp_path: Path) -> Any:
    """A base and adapters with the factors given."""

    def make(*found: Any, **config: Any) -> tuple[Checkpoint, dict[str, Checkpoint]]:
        core = open_checkpoint(base)
        folders = [write_adapter(tmp_path / f"a{at}", pairs, **config) for at, pairs in enumerate(found)]
        return core, {folder.name: open_adapted(core, folder) for folder in folders}

    return make


def changes(found: Any, name: str) -> np.ndarray:
    """s B A of all experts in float64; zeros where one has no such module."""
    dense = []
    for pairs in found:
        a, b = pairs.get(name, (np.zeros((1, WEIGHTS[name][1])), np.zeros((WEIGHTS[name][0], 1))))
        dense.append(8 / len(a) * b.astype(np.float64) @ a.astype(np.float64))
    return np.stack(dense)


def missed(packed: Packed, found: Any, name: str) -> float:
    """The squared error of all experts' changes of a weight."""
    core = packed.core[name].to_numpy().astype(np.float64)
    made = [packed.member(name, at).reshape(core.shape) - core for at in range(len(found))]
    return float(((np.stack(made) - changes(found, name)) ** 2).sum())


def reference(found: Any, name: str, p: int) -> np.ndarray:
    """The paper's changes from p directions of the factors as they are, position by position, in float64."""
    a = np.stack([pairs[name][0] for pairs in found]).astype(np.float64)
    b = np.stack([SCALE * pairs[name][1] for pairs in found]).astype(np.float64)

    def near(x: np.ndarray) -> np.ndarray:
        """x [n, r] of one position."""
        mean = x.mean(0)
        values, vectors = np.linalg.eigh((x - mean).T @ (x - mean))
        u = vectors[:, np.argsort(values)[::-1][:p]]
        return mean + (x - mean) @ u @ u.T

    near_b = np.stack([near(b[:, row]) for row in range(b.shape[1])], 1)
    near_a = np.stack([near(a[:, :, column]) for column in range(a.shape[2])], 2)
    return near_b @ near_a


@pytest.mark.parametrize("p", [1, 2])
def test_as_the_paper_has_it(pool_of: Any, p: int) -> None:
    found = [factors(seed) for seed in range(6)]
    packed = pack(*pool_of(*found), directions=p, gauge="stored")
    for name in WEIGHTS:
        assert packed.settings[name]["kept"] == "basis"
        core = packed.core[name].to_numpy().astype(np.float64)
        for at, change in enumerate(reference(found, name, p)):
            np.testing.assert_allclose(packed.member(name, at).reshape(core.shape), core + change, rtol=0, atol=2e-6)
        wanted = float(((reference(found, name, p) - changes(found, name)) ** 2).sum())
        assert missed(packed, found, name) == pytest.approx(wanted, rel=1e-4)
    n, r = 6, 4
    whole = n * sum(4 * r * (rows + columns) for rows, columns in WEIGHTS.values())
    norm = n * 4 * 16  # the norm is a vector, kept as it is
    assert (packed.nbytes - norm) / whole == pytest.approx((p * (r + n) + r) / (r * n))


@pytest.mark.parametrize("gauge", ["auto", "stored", "balanced", "aligned"])
@pytest.mark.parametrize("share", ["position", "layer"])
def test_exact_at_full_rank_and_never_larger_than_the_experts(pool_of: Any, gauge: str, share: str) -> None:
    found = [factors(seed) for seed in range(8)]
    packed = pack(*pool_of(*found), directions=7, gauge=gauge, share=share)
    whole = 8 * sum(4 * 4 * (rows + columns) + 4 for rows, columns in WEIGHTS.values()) + 8 * 4 * 16
    assert packed.nbytes <= whole
    for name in WEIGHTS:
        core = packed.core[name].to_numpy().astype(np.float64)
        for at, change in enumerate(changes(found, name)):
            np.testing.assert_allclose(packed.member(name, at).reshape(core.shape), core + change, rtol=0, atol=1e-6)


@pytest.mark.parametrize("gauge", ["stored", "balanced", "aligned"])
@pytest.mark.parametrize(("count", "rank"), [(2, 4), (3, 16), (5, 2)])
def test_a_basis_of_full_rank_is_exact(pool_of: Any, gauge: str, count: int, rank: int) -> None:
    """The basis itself, where factors would be smaller, too."""
    found = [factors(seed, rank) for seed in range(count)]
    core, experts = pool_of(*found)
    p = min(rank, count - 1)
    for name in WEIGHTS:
        chosen = {"kept": "basis", "width": rank, "dtype": "float32", "directions": p, "gauge": gauge}
        settings = {"share": "position", "rank": 16, **chosen}
        ref = core[name]
        span = Span(ref.shape, 0, ref.numel)
        shared, own = RMM.encode(span, ref, [e[name] for e in experts.values()], [settings] * count, None)
        parts = RMM.parts(ref.shape, ref.dtype, count, settings)
        values = ref.to_numpy().reshape(-1)
        for arrays, change in zip(own, changes(found, name), strict=True):
            made = RMM.decode(span, values, as_stored(shared, parts[0]), as_stored(arrays, parts[1]), settings)
            np.testing.assert_allclose(made, values + change.reshape(-1), rtol=0, atol=2e-6)


def test_of_different_ranks_without_a_module_of_zeros_and_of_less_rank_than_it_has(pool_of: Any) -> None:
    found = [factors(0, 2), factors(1, 5), factors(2, 4), {**factors(3)}, factors(4), factors(5)]
    found[3] = {"layers.1.up.weight": found[3]["layers.1.up.weight"]}
    found[4] = {name: (a, 0 * b) for name, (a, b) in found[4].items()}
    found[5] = {name: (np.repeat(a[:1], 4, 0), b) for name, (a, b) in found[5].items()}
    core, experts = pool_of(*found)
    before = math.inf
    for p in range(1, 6):
        packed = pack(core, experts, directions=p)
        error = sum(missed(packed, found, name) for name in WEIGHTS)
        assert error < before or error < 1e-9
        before = error
        assert all(np.isfinite(packed.member(name, at)).all() for name in WEIGHTS for at in range(6))
    assert before < 1e-9


def test_one_expert_and_experts_without_any_change(pool_of: Any) -> None:
    found = [factors(0)]
    packed = pack(*pool_of(*found), budget=1.0)
    assert all(packed.settings[name]["kept"] == "factors" for name in WEIGHTS)
    assert missed(packed, found, "layers.0.q.weight") < 1e-9


@pytest.mark.parametrize(
    "settings", [{"budget": 0.5}, {"directions": 2}, {"error": 0.1}, {"directions": 1, "share": "layer"}]
)
def test_zeros_stay_zeros(pool_of: Any, settings: dict[str, Any]) -> None:
    zero = {name: (a, 0 * b) for name, (a, b) in factors(0).items()}
    packed = pack(*pool_of(zero, zero, zero), **settings)
    for name in WEIGHTS:
        np.testing.assert_array_equal(packed.member(name, 2), packed.core[name].to_numpy().reshape(-1))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_adapters_are_stored_in_their_type(pool_of: Any, dtype: str) -> None:
    found = [factors(seed) for seed in range(6)]
    core, experts = pool_of(*found, dtype=dtype, alpha=7)
    packed = pack(core, experts, directions=2)
    assert all(packed.settings[name]["dtype"] == dtype for name in WEIGHTS)
    n, r, p = 6, 4, 2
    whole = n * sum(2 * r * (rows + columns) for rows, columns in WEIGHTS.values())
    assert packed.nbytes - n * 4 * 16 == whole * (p * (r + n) + r) / (r * n)
    kept = pack(core, experts, budget=1.0)  # factors as they came, their scale apart
    for name in WEIGHTS:
        for at, expert in enumerate(experts.values()):
            np.testing.assert_array_equal(kept.member(name, at), expert[name].to_numpy().reshape(-1))
    wide, narrow = (sum(square(pack(core, experts, directions=2, dtype=kind), experts)) for kind in ("float32", dtype))
    assert wide <= narrow < 1.05 * wide


def square(packed: Packed, experts: Mapping[str, Checkpoint]) -> list[float]:
    """The squared error of every expert, against its dense tensors."""
    found = []
    for at, expert in enumerate(experts.values()):
        pairs = [(packed.member(name, at), expert[name].to_numpy().reshape(-1)) for name in WEIGHTS]
        found.append(sum(float(((a.astype(np.float64) - b) ** 2).sum()) for a, b in pairs))
    return found


def test_auto_takes_the_gauge_that_loses_least(pool_of: Any) -> None:
    turn = np.linalg.qr(drawn(6, 4, 4, seed=7).astype(np.float64))[0]
    start = factors(0)
    found = []
    for at in range(6):  # one start for the first weight, turned starts for the others
        own = factors(10 + at)
        pairs = {}
        for name, (a, b) in start.items():
            q = np.eye(4) if name == "layers.0.q.weight" else turn[at]
            near = (a + 0.1 * own[name][0], b + 0.1 * own[name][1])
            pairs[name] = ((q.T @ near[0]).astype(np.float32), (near[1] @ q).astype(np.float32))
        found.append(pairs)
    core, experts = pool_of(*found)
    auto = pack(core, experts, directions=1)
    others = {gauge: pack(core, experts, directions=1, gauge=gauge) for gauge in ("stored", "balanced", "aligned")}
    for name in WEIGHTS:
        errors = {gauge: missed(packed, found, name) for gauge, packed in others.items()}
        best = min(errors, key=lambda gauge: errors[gauge])
        assert missed(auto, found, name) == pytest.approx(errors[best], rel=1e-4)
        assert auto.settings[name]["gauge"] == best
    assert auto.settings["layers.1.q.weight"]["gauge"] == "aligned"


def test_aligned_factors_do_not_depend_on_how_a_change_was_written(pool_of: Any, tmp_path: Path) -> None:
    found = [factors(seed) for seed in range(5)]
    mixed = []
    for at, pairs in enumerate(found):
        g = drawn(4, 4, seed=at).astype(np.float64) + 3 * np.eye(4)
        mixed.append({
            name: (np.linalg.solve(g, a).astype(np.float32), (b @ g).astype(np.float32))
            for name, (a, b) in pairs.items()
        })  # fmt: skip
    core, experts = pool_of(*found, *mixed)
    labels = list(experts)
    one = pack(core, {label: experts[label] for label in labels[:5]}, directions=2, gauge="aligned")
    two = pack(core, {label: experts[label] for label in labels[5:]}, directions=2, gauge="aligned")
    for name in WEIGHTS:
        for at in range(5):
            np.testing.assert_allclose(one.member(name, at), two.member(name, at), rtol=0, atol=2e-5)


def test_a_larger_budget_is_kept_and_never_worse(pool_of: Any) -> None:
    found = [factors(seed) for seed in range(6)]
    core, experts = pool_of(*found)
    whole = 6 * (sum(4 * 4 * (rows + columns) + 4 for rows, columns in WEIGHTS.values()) + 4 * 16)
    before = math.inf
    for budget in (0.3, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0):
        packed = pack(core, experts, budget=budget)
        assert packed.nbytes <= budget * whole
        error = sum(missed(packed, found, name) for name in WEIGHTS)
        assert error <= before + 1e-9
        before = error
    assert before < 1e-9
    with pytest.raises(RecipeError, match=r"budget: 0.05 of .* bytes is too little; the means alone take"):
        pack(core, experts, budget=0.05)


def test_an_error_is_kept(pool_of: Any) -> None:
    found = [factors(seed) for seed in range(6)]
    core, experts = pool_of(*found)
    norm = sum(float((changes(found, name) ** 2).sum()) for name in WEIGHTS)
    sizes = []
    for wanted in (0.9, 0.6, 0.3, 0.01):
        packed = pack(core, experts, error=wanted)
        assert sum(missed(packed, found, name) for name in WEIGHTS) <= (wanted**2) * norm * (1 + 1e-6)
        sizes.append(packed.nbytes)
    assert sizes == sorted(sizes)
    with pytest.raises(RecipeError, match="directions and error are both given"):
        pack(core, experts, error=0.5, directions=2)


def test_the_same_bits_for_any_range(pool_of: Any) -> None:
    core, experts = pool_of(*(factors(seed) for seed in range(5)))
    for settings in ({"directions": 2}, {"directions": 1, "share": "layer"}, {"budget": 1.0}):
        packed = pack(core, experts, **settings)
        for name in WEIGHTS:
            whole = packed.member(name, 3)
            for start, stop in ((0, 8), (8, 72), (104, 384), (16, 17 * 8)):
                np.testing.assert_array_equal(packed.member(name, 3, start, stop), whole[start:stop])


def test_full_models_lose_what_their_rank_leaves_out_and_vectors_nothing(base: Path, tmp_path: Path) -> None:
    core = open_checkpoint(base)
    experts, deltas = {}, {}
    for at in range(4):
        tensors = {name: core[name].to_torch().clone() for name in core}
        for name, shape in WEIGHTS.items():
            low = drawn(shape[0], 3, seed=at) @ drawn(3, shape[1], seed=9 + at)
            tensors[name] += torch.from_numpy(0.1 * low + 0.001 * drawn(*shape, seed=20 + at))
        tensors["layers.0.norm.weight"] += at
        save_file(tensors, tmp_path / f"e{at}.safetensors")
        experts[f"e{at}"] = open_checkpoint(tmp_path / f"e{at}.safetensors")
        deltas[f"e{at}"] = {name: (tensors[name] - core[name].to_torch()).double().numpy() for name in WEIGHTS}
    packed = pack(core, experts, directions=3, rank=3)
    for at, expert in enumerate(experts):
        norm = packed.member("layers.0.norm.weight", at)
        np.testing.assert_array_equal(norm, experts[expert]["layers.0.norm.weight"].to_numpy())
        for name in WEIGHTS:
            if packed.settings[name]["kept"] == "values":
                continue
            s = np.linalg.svd(deltas[expert][name], compute_uv=False)
            made = packed.member(name, at).astype(np.float64) - core[name].to_numpy().reshape(-1)
            error = np.linalg.norm(made - deltas[expert][name].reshape(-1))
            assert error == pytest.approx(np.sqrt((s[3:] ** 2).sum()), rel=1e-2)


def test_one_more_expert_is_kept_in_the_span_of_the_others(pool_of: Any) -> None:
    """Inside the span of what is stored it comes back; outside, the nearest in it at every position."""
    found = [factors(seed) for seed in range(9)]
    core, experts = pool_of(*found)
    labels = list(experts)
    assert RMM.extend is not None
    for settings in ({"directions": 2, "gauge": "stored"}, {"directions": 1}, {"directions": 2, "share": "layer"}):
        packed = pack(core, {label: experts[label] for label in labels[:8]}, **settings)
        for name in WEIGHTS:
            span = Span(core[name].shape, 0, core[name].numel)
            again, one_more = (
                as_stored(
                    RMM.extend(
                        span, core[name], packed.shared[name], experts[label][name], packed.settings[name], None
                    ),
                    packed.parts[name][1],
                )
                for label in (labels[2], labels[8])
            )
            np.testing.assert_allclose(packed.decoded(name, again), packed.member(name, 2), rtol=0, atol=1e-5)
            lost = packed.decoded(name, one_more) - experts[labels[8]][name].to_numpy().reshape(-1)
            change = experts[labels[8]][name].to_numpy() - core[name].to_numpy()
            assert 0 < np.linalg.norm(lost) < 1.3 * np.linalg.norm(change)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_adapter_with_nan_is_refused_before_anything_is_stored(pool_of: Any, bad: float) -> None:
    spoilt = factors(1)
    spoilt["layers.0.q.weight"][0][1, 2] = bad
    with pytest.raises(NonFiniteError, match=r"expert a1: the factors of 'layers.0.q.weight' hold NaN or infinity"):
        pack(*pool_of(factors(0), spoilt), directions=1)


def test_the_same_bits_with_any_number_of_threads(pool_of: Any) -> None:
    core, experts = pool_of(*(factors(seed, 16) for seed in range(6)))
    before, threads = None, torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            packed = pack(core, experts, budget=0.4)
            found = [packed.member(name, at).tobytes() for name in WEIGHTS for at in range(6)]
            assert before in (None, found)
            before = found
    finally:
        torch.set_num_threads(threads)
