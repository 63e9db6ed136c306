"""A Twin pool at run time: the shared expert's network, and for each input a mix of the experts' parts.

Nothing is rebuilt: the factors stay factors (`MixedNetwork`). What mixes them is a router, or a fixed choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from eutectic.errors import RecipeError, nearest
from eutectic.evaluation.model import Model
from eutectic.pools.pool import Pool
from eutectic.pools.twin import TWIN, rank_of
from eutectic.routing.features import features
from eutectic.routing.mixed_network import Difference, MixedNetwork
from eutectic.routing.router import Router
from eutectic.weights.checkpoint import Checkpoint
from eutectic.weights.digest import hash_bytes

if TYPE_CHECKING:
    import torch

    Choice = Callable[[tuple[torch.Tensor, ...], Mapping[str, Any]], torch.Tensor | None]

__all__ = ["MixedModel", "Mixer", "check_twin", "differences"]


def check_twin(pool: Pool) -> None:
    """Refuse pools of other schemes.

    Raises:
        RecipeError: it is one.
    """
    if pool.scheme.name != TWIN.name:
        raise RecipeError(
            f"{pool.path}: a pool of scheme {pool.scheme.name}, whose experts cannot be mixed for each input; pack the "
            f"experts again with --scheme {TWIN.name}"
        )


class Mixer:
    """The network of a Twin pool, and the ways to mix its experts.

    Raises:
        RecipeError: a pool of another scheme. SourceError: experts that differ where networks cannot be mixed.
    """

    def __init__(self, pool: Pool) -> None:
        from eutectic.evaluation.networks import load_network

        check_twin(pool)
        self.pool, self.experts = pool, tuple(pool)
        self.mixed = MixedNetwork(load_network(pool.core, pool.core.config), differences(pool))

    def shared(self) -> MixedModel:
        """The shared expert alone."""
        return MixedModel(self, lambda inputs, named: None, "shared", "shared")

    def single(self, expert: str) -> MixedModel:
        """One expert for every input.

        Raises:
            RecipeError: the pool has no such expert.
        """
        import torch

        if expert not in self.experts:
            hint = nearest(expert, self.experts) or f"; it has {', '.join(self.experts)}"
            raise RecipeError(f"{self.pool.path}: no expert {expert!r}{hint}")
        row = torch.nn.functional.one_hot(torch.tensor(self.experts.index(expert)), len(self.experts)).float()
        return MixedModel(self, lambda inputs, named: row.expand(_batch(inputs, named), -1), f"#{expert}", expert)

    def routed(self, router: Router, *, soft: bool = False) -> MixedModel:
        """The experts that a router chooses for each input by itself; of a text that is continued, by its beginning."""

        def choose(inputs: tuple[torch.Tensor, ...], named: Mapping[str, Any]) -> torch.Tensor:
            return router.gates(features(self.mixed.network, inputs, named), soft=soft)

        return MixedModel(self, choose, "router", f"{router.digest} {soft}")


class MixedModel(Model):
    """A Twin pool as something to measure: `choose` gives the mixing weights of each batch, None for the shared expert.

    `chosen` collects the weights of every batch, in the order in which a task asks; `mark` tells the ways to choose
    apart.
    """

    def __init__(self, mixer: Mixer, choose: Choice, label: str, mark: str) -> None:
        super().__init__(mixer.pool.core, label)
        self._mark = f"{mixer.pool.manifest.text()} {mark}"
        self.chosen: list[torch.Tensor] = []
        self._network = _mixing_network(mixer.mixed, choose, self.chosen)

    @property
    def identity(self) -> str:
        """Of the whole pool and of what chooses."""
        return hash_bytes(self._mark.encode())

    @property
    def networks(self) -> list[torch.nn.Module]:
        """One network, which mixes."""
        return [self._network]


def differences(pool: Pool) -> dict[str, Difference]:
    """The parts of all experts of a Twin pool by tensor; an expert without a part there has none of it."""

    owns = [pool.own(expert) for expert in pool]
    names = dict.fromkeys(key.rpartition("#")[0] for own in owns for key in own)
    found = {}
    for name in names:
        core, settings = pool.core[name], {**pool.manifest.settings, **pool.manifest.tensors.get(name, {})}
        if rank_of(core.shape, settings) is None:
            found[name] = _factored(_stacked(owns, f"{name}#whole", core.to_torch().float()))
            continue
        left, right = (_stacked(owns, f"{name}#{side}") for side in ("left", "right"))
        stack = left.ndim > 3  # of matrices, such as a long kernel for each output
        found[name] = _factored(left @ right) if stack else Difference(left, right)
    return found


def _stacked(owns: list[Checkpoint], key: str, less: torch.Tensor | float = 0.0) -> torch.Tensor:
    """One stored array of every expert, with `less` taken away; zero for experts that have none."""
    import torch

    parts = [own[key].to_torch().float() - less if key in own else None for own in owns]
    like = next(part for part in parts if part is not None)
    return torch.stack([torch.zeros_like(like) if part is None else part for part in parts])


def _factored(wholes: torch.Tensor) -> Difference:
    """Differences [T, m, ...] as factors, one of them the identity of the smaller side; vectors as they are."""
    import torch

    if wholes.ndim < 3:
        return Difference(wholes)
    count, m = wholes.shape[:2]
    flat = wholes.flatten(2)
    if m <= flat.shape[2]:
        return Difference(torch.eye(m).expand(count, m, m), flat)
    return Difference(flat, torch.eye(flat.shape[2]).expand(count, -1, -1))


def _mixing_network(mixed: MixedNetwork, choose: Choice, chosen: list[torch.Tensor]) -> torch.nn.Module:
    import torch

    class Mixing(torch.nn.Module):
        """Chooses when a batch begins; what continues it (past_key_values) keeps the choice."""

        weights: torch.Tensor | None = None

        def forward(self, *inputs: torch.Tensor, **named: Any) -> Any:
            if named.get("past_key_values") is None:
                self.weights = choose(inputs, named)
                if self.weights is not None:
                    chosen.append(self.weights)
            return mixed.answer(self.weights, *inputs, **named)

    return Mixing().eval()


def _batch(inputs: tuple[torch.Tensor, ...], named: Mapping[str, Any]) -> int:
    """How many samples a call has."""
    first = inputs[0] if inputs else next(value for value in named.values() if value is not None)
    return len(first)
