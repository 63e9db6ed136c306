"""Every registered method keeps the laws that its facts promise, and every law can be broken."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
import torch

import eutectic
from eutectic.errors import MissingDependencyError
from eutectic.methods.method import Method, PerSource, Range, each, merge_method
from eutectic.ops.random import Draws
from eutectic.ops.weighted_sum import WeightedSum
from eutectic.testing import LAWS, check_method, laws_of

SPARSE: list[dict[str, Any]] = [
    {"density": 0.5},
    {"weight": [0.5, 0.25, 1.0], "density": [0.25, 0.5, 0.75], "lambda_": 0.5, "normalize": True, "rescale": False},
    {"weight": [1.0, -0.5], "density": 0.5, "rescale": "inverse_density", "normalize": False},
]
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "linear": [{}, {"weight": [0.5, 0.25, 1.0]}, {"weight": [3, -1], "normalize": False}],
    "slerp": [{}, {"t": 0.0}, {"t": 0.75}],
    "task_arithmetic": [{}, {"weight": [0.5, -0.25], "lambda_": 0.5}, {"weight": [0.5, 0.25], "normalize": True}],
    "ties": [*SPARSE, {"density": 0.5, "rescale": True, "sign_vote": "paper"}, {"density": 0.0}],
    "dare_linear": SPARSE,
    "dare_ties": [*SPARSE, {"density": 0.5, "sign_vote": "paper", "normalize": True}],
    "passthrough": [{}, {"scale": 0.5}],
    "soup": [{}, {"weight": [0.5, 0.25, 1.0]}],
    "ema": [{}, {"decay": 0.0}, {"decay": 0.75}],
    "expo": [{}, {"alpha": -0.5}],
    "model_stock": [{}, {"filter_wise": True}],
    "nuslerp": [
        {},
        {"weight": [1.0, -1.0]},
        {"nuslerp_flatten": False},
        {"nuslerp_flatten": False, "nuslerp_row_wise": True},
    ],
    "multislerp": [{}, {"weight": [0.5, 0.25, 1.0], "normalize_weights": False}],
    "karcher": [{}, {"max_iter": 0}],
    "breadcrumbs": [{"density": 0.5, "gamma": 0.25}, {"density": [0.25, 0.75], "weight": [1, -0.5], "rescale": True}],
    "breadcrumbs_ties": [{"density": 0.5, "gamma": 0.25}, {"density": 0.5, "sign_vote": "paper", "normalize": True}],
    "della_linear": [{"density": 0.5}, {"density": 0.5, "epsilon": 0.25, "rescale": "inverse_probability"}],
    "della": [{"density": 0.5}, {"density": [0.5, 0.75], "rescale": False, "normalize": False, "weight": [1, -0.5]}],
    "sce": [{}, {"select_topk": 0.5}, {"select_topk": 0.0}],
    "magmax": [{}, {"lambda_": 0.5}],
    "ram": [{}, {"epsilon": 1.0}],
    "ramplus_tl": [{}, {"r": 0.5, "alpha": 2.0}],
    "pcb": [{}, {"variant": "main", "density": 0.5}, {"variant": "vision", "weight": [0.5, -0.25], "density": 0.75}],
    "consensus": [{}, {"mask_lambda": [0.25, 1.0, 0.5], "agreement": 1, "weight": [0.5, 1.0, -0.25]}],
    "emr": [{}, {"weight": [0.5, -0.25], "lambda_": 0.5}],
    "localize_and_stitch": [{"density": 0.5}, {"density": [0.25, 0.75], "weight": [1, -0.5]}],
    "tsv_m": [{}, {"weight": [0.5, -0.25], "lambda_": 0.5}],
    "r_tsvm": [{}, {"outlier": "clip", "weight": [0.5, -0.25], "epsilon": 0.25, "eta": 1.0}],
    "iso_c": [{}, {"weight": [0.5, -0.25], "lambda_": 0.5}],
    "iso_cts": [{}, {"weight": [0.5, -0.25], "common": 0.25}],
    "task_arithmetic_sb": [{}, {"weight": [0.5, -0.25], "threshold": 0.5}],
    "ties_sb": [{}, {"weight": [0.5, -0.25], "density": 0.5, "threshold": 0.5, "normalize": False}],
    "wudi": [{}, {"weight": [0.5, -0.25], "lambda_": 0.5}],
    "knots_ties": [{}, {"weight": [0.5, -0.25], "density": 0.5, "normalize": False}],
    "fisher": [{}, {"weight": [0.5, 0.25, 1.0], "floor": 0.5}],
    "regmean": [{}, {"weight": [0.5, 0.25, 1.0], "ratio": 0.5}],
    "task_arithmetic_svc": [{}, {"weight": [0.5, -0.25], "lambda_": 1.0, "alpha": 0.5}],
}


FORM = {"kept", "pure", "scalars", "faults"}  # laws that no parameter's value bears on


def promises() -> list[Any]:
    return [
        pytest.param(method, setting, law, id=f"{name}-{at}-{law}")
        for name, method in eutectic.list_methods().items()
        for at, setting in enumerate(SETTINGS.get(name, [{}]))
        for law in laws_of(method)
        if at == 0 or law not in FORM
    ]


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread() -> Iterator[None]:
    """torch's own threads would wait for one another on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("method", "setting", "law"), promises())
def test_registered_methods_keep_their_laws(method: Method, setting: dict[str, Any], law: str) -> None:
    LAWS[law](method, **setting)


# ---------------------------------------------------------------- methods that say one thing and do another


@merge_method()
def flattens(tensors):
    return tensors[0].reshape(-1)


@merge_method()
def overwrites(tensors):
    return tensors[0].add_(1)


_calls = itertools.count()


@merge_method()
def remembers(tensors):
    return tensors[0] + next(_calls)


@merge_method(stochastic=True)
def ignores_the_draws(tensors, *, draws: Draws):
    return tensors[0]


@merge_method(stochastic=True)
def ignores_the_place(tensors, *, draws: Draws):
    return tensors[0] * Draws(draws.seed, draws.tensor).keep(0, tensors[0], 0.5)


@merge_method()
def divides(tensors):
    return tensors[0] / tensors[0]


@merge_method()
def cuts_the_gradient(tensors):
    return tensors[0].detach() * 2.0


@merge_method()
def half_a_gradient(tensors):
    return tensors[0] * tensors[0].detach()


@merge_method(sources=(2, 2))
def divides_in_secret(tensors):
    gap = tensors[0] - tensors[1]
    return tensors[0] + (tensors[1] / gap).where(gap.abs() > 0, 0.0) * gap


@merge_method()
def adds(tensors):
    return sum(tensors) * 2.0


@merge_method(sources=(2, None))
def prefers_the_first(tensors):
    return tensors[0] * 0.75 + sum(tensors[1:]) * 0.25


@merge_method(space="delta", base="required")
def moves_the_base(
    tensors, *, base: torch.Tensor, weight: Annotated[PerSource[float], "of each delta"], lambda_: float = 1.0
):
    return base * 1.0009765625 + sum(w * (t - base) for w, t in zip(weight, tensors, strict=True))


@merge_method()
def centres(tensors):
    return tensors[0] - (tensors[0].mean() if tensors[0].numel() else 0.0)


@merge_method(scope="row")
def mixes_rows(tensors):
    return tensors[0].cumsum(0) if tensors[0].dim() else tensors[0]


class Halving(Method):
    """One number is shared out among the sources, against the rule."""

    def settle(self, given, sources, semantics="mergekit"):
        shared = {k: v / 2 if isinstance(v, float) else v for k, v in given.items()}
        return super().settle(shared, sources, semantics)


class Lenient(Method):
    """Faults are passed over."""

    def settle(self, given, sources, semantics="mergekit"):
        settled, _ = super().settle(given, sources, semantics)
        return {name: settled.get(name, parameter.default) for name, parameter in self.parameters.items()}, []


def _weighted(tensors, *, weight: Annotated[PerSource[float], Range(0, 4), "share"] = each(1.0)):
    return sum(w * t for w, t in zip(weight, tensors, strict=True))


_PARAMETERS = merge_method()(_weighted).parameters
halves = Halving("halves", _weighted, "", "", _PARAMETERS)
lenient = Lenient("lenient", lambda tensors, *, weight: tensors[0], "", "", _PARAMETERS)


@merge_method(sources=(1, 1), lower=lambda setting: WeightedSum([1.5]))
def other_twin(tensors):
    return tensors[0] * 1.25


MUTANTS: list[tuple[str, Method, str]] = [
    ("kept", flattens, "the result has shape"),
    ("pure", overwrites, "input 0 is changed"),
    ("pure", remembers, "then"),
    ("seeded", remembers, "the seed matters"),
    ("seeded", ignores_the_draws, "the seed does not matter"),
    ("seeded", ignores_the_place, "the place of a tile does not matter"),
    ("finite", divides, "nan"),
    ("differentiable", cuts_the_gradient, "no gradient reaches any input"),
    ("differentiable", half_a_gradient, "the gradient says"),
    ("differentiable", divides_in_secret, "not finite where sources are the base"),
    ("idempotent", adds, "apart"),
    ("symmetric", prefers_the_first, "order"),
    ("zero_weights", moves_the_base, "for the base"),
    ("tiles", centres, "cut at"),
    ("tiles", mixes_rows, "cut at"),
    ("tiles", ignores_the_place, "cut at"),
    ("scalars", halves, "as a list"),
    ("faults", lenient, "an unknown parameter is accepted"),
    ("twin", other_twin, "the twin gives"),
]


@pytest.mark.parametrize(("law", "mutant", "finding"), MUTANTS, ids=[f"{law}-{m.name}" for law, m, _ in MUTANTS])
def test_each_law_finds_a_wrong_method(law: str, mutant: Method, finding: str) -> None:
    assert law in laws_of(mutant)
    with pytest.raises(AssertionError) as caught:
        LAWS[law](mutant)
    message = str(caught.value)
    assert message.startswith(f"{mutant.name} breaks the law {law!r}")
    assert finding in message
    assert "Case(tensors=" in message


def test_every_law_has_a_mutant() -> None:
    assert {law for law, _, _ in MUTANTS} == set(LAWS)


# ---------------------------------------------------------------- how the laws are chosen and told


def test_check_method_runs_what_the_facts_promise() -> None:
    @merge_method(sources=(2, None), scope="tensor", symmetric=False, idempotent=False)
    def last_but_one(tensors: Any) -> torch.Tensor:
        return tensors[-2] * 2.0

    held = check_method(last_but_one)
    assert held == laws_of(last_but_one)
    assert not {"symmetric", "idempotent", "tiles", "zero_weights", "scalars", "twin"} & set(held)
    assert {"kept", "pure", "seeded", "finite", "differentiable", "faults"} <= set(held)


def test_check_method_names_the_first_broken_law() -> None:
    with pytest.raises(AssertionError, match="divides breaks the law 'finite'"):
        check_method(divides)


def test_a_method_that_raises_breaks_the_law() -> None:
    @merge_method()
    def fails(tensors: Any) -> torch.Tensor:
        raise ZeroDivisionError("of my own")

    with pytest.raises(AssertionError, match="it raises ZeroDivisionError: of my own"):
        LAWS["kept"](fails)


def test_lists_fix_the_number_of_sources() -> None:
    counts = set()

    @merge_method()
    def counts_sources(tensors: Any, *, weight: Annotated[PerSource[float], "unused"]) -> torch.Tensor:
        counts.add(len(tensors))
        return tensors[0] * 1.0

    LAWS["kept"](counts_sources, weight=[1.0, 2.0, 3.0])
    assert counts == {3}
    LAWS["kept"](counts_sources, weight=1.0)
    assert counts == {1, 2, 3, 4}


def test_without_hypothesis_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(MissingDependencyError, match="pip install hypothesis"):
        check_method(flattens)


def test_importing_the_laws_loads_neither_torch_nor_hypothesis() -> None:
    script = "import sys, eutectic.testing; print([m for m in ('torch', 'hypothesis', 'numba') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
