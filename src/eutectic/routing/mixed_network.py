"""A network whose parameters are θ_s + Σ_t g_t v_t for each sample of a batch, without ever forming them.

The network of the shared parameters θ_s stays as it is. A layer in which experts differ gets a forward of its own that
adds what the differences v_t change in its answer: low-rank products for matrices, kernels and rows of embeddings,
per-sample gains and shifts for norms and biases. While no gates are set, the network is the shared one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from eutectic.errors import SourceError, nearest
from eutectic.ops.grouped_lowrank import Gates, add_grouped_lowrank, add_mixed

if TYPE_CHECKING:
    import torch

    Mixed = Callable[[torch.Tensor, Gates], torch.Tensor]
    Own = Mapping[str, "Difference"]

__all__ = ["Difference", "MixedNetwork"]


class Difference(NamedTuple):
    """What each of T experts has in one tensor besides the shared part.

    Of a matrix or kernel [m, ...]: `left` [T, m, r], `right` [T, r, rest], v_t = left_t right_t. Of a vector: `left`
    [T, d], and no `right`.
    """

    left: torch.Tensor
    right: torch.Tensor | None = None


class MixedNetwork:
    """The network of the shared expert and the differences of its experts, by the names of its tensors.

    Raises:
        SourceError: a difference belongs to a layer that cannot be mixed, or to nothing in the network.

    >>> import torch
    >>> network = torch.nn.Linear(2, 1, bias=False)
    >>> _ = torch.nn.init.zeros_(network.weight)
    >>> v = Difference(torch.ones(2, 1, 1), torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
    >>> mixed = MixedNetwork(network, {"weight": v})
    >>> with torch.no_grad(), mixed.gated(torch.tensor([[1.0, 0.0], [0.5, 0.5]])):
    ...     network(torch.tensor([[2.0, 4.0], [2.0, 4.0]])).tolist()
    [[2.0], [3.0]]
    """

    def __init__(self, network: torch.nn.Module, differences: Mapping[str, Difference]) -> None:
        self.network = network
        self._gates: Gates | None = None
        slots = dict(network.named_parameters(remove_duplicate=False))
        for name in differences:
            if name not in slots:
                hint = nearest(name, slots)
                raise SourceError(f"{name}: experts differ in it, and it is no parameter of the network{hint}")
        found = {id(slots[name]): difference for name, difference in differences.items()}  # tied: one for all places
        for path, module in network.named_modules():
            own = {n: found[id(slot)] for n, slot in module.named_parameters(recurse=False) if id(slot) in found}
            if own:
                module.forward = self._forward(path, module, own)

    @contextmanager
    def gated(self, weights: torch.Tensor | None) -> Iterator[torch.nn.Module]:
        """The network for a batch of n samples: row i of `weights` [n, T] mixes the experts of sample i."""
        before, self._gates = self._gates, None if weights is None else Gates(weights)
        try:
            yield self.network
        finally:
            self._gates = before

    def answer(self, weights: torch.Tensor | None, *inputs: Any, **named: Any) -> Any:
        """What the network answers to a batch with these gates.

        Samples of one expert are brought together for it and put back after, for they cost less so. A cache that the
        network makes stays in its order: calls that go on with it need the same weights.
        """
        order = None if weights is None else _by_expert(weights)
        if weights is None or order is None:
            with self.gated(weights) as network:
                return network(*inputs, **named)

        def taken(value: Any) -> Any:
            return value[order] if _is_batch(value, len(order)) else value

        with self.gated(weights[order]) as network:
            found = network(*map(taken, inputs), **{name: taken(value) for name, value in named.items()})
        return _put_back(found, order.argsort())

    def _forward(self, path: str, module: torch.nn.Module, own: Own) -> Callable[..., torch.Tensor]:
        plain, mixed = module.forward, _mixed(path, module, own)

        def forward(x: torch.Tensor, *more: Any, **named: Any) -> torch.Tensor:
            gates = self._gates
            if gates is None:
                return plain(x, *more, **named)
            if x.shape[0] != len(gates):
                if x.shape[0] != 1:
                    raise SourceError(
                        f"{path}: gets {x.shape[0]} rows for {len(gates)} samples; a layer that regroups its inputs "
                        "cannot be mixed for each of them"
                    )
                x = x.expand(len(gates), *x.shape[1:])  # the same for all samples, such as positions
            return mixed(x, gates)

        return forward


def _by_expert(weights: torch.Tensor) -> torch.Tensor | None:
    """The order in which the samples of each expert lie together; None where they do, or take several experts."""
    import torch

    if int((weights != 0).sum(1).max()) > 1:
        return None
    order = weights.argmax(1).argsort(stable=True)
    return None if torch.equal(order, torch.arange(len(order))) else order


def _is_batch(value: Any, n: int) -> bool:
    """Whether a value has a row for each of n samples."""
    import torch

    return isinstance(value, torch.Tensor) and value.ndim > 1 and len(value) == n


def _put_back(answer: Any, order: torch.Tensor) -> Any:
    """An answer's rows in the order of the samples: a tensor, or transformers' mapping of tensors."""
    if _is_batch(answer, len(order)):
        return answer[order]
    if isinstance(answer, tuple):
        return tuple(_put_back(part, order) for part in answer)
    if isinstance(answer, MutableMapping):
        for name, part in answer.items():
            answer[name] = _put_back(part, order)
    return answer


def _mixed(path: str, module: torch.nn.Module, own: Own) -> Mixed:
    """What a layer answers with its experts mixed.

    Raises:
        SourceError: it is of a kind that cannot be mixed.
    """
    from torch import nn

    kinds: dict[type[nn.Module], Callable[[Any, Own], Mixed]] = {
        nn.Linear: _linear, nn.Embedding: _embedding, nn.Conv1d: _convolution, nn.Conv2d: _convolution,
        nn.LayerNorm: _norm, nn.GroupNorm: _norm, nn.RMSNorm: _norm,
    }  # fmt: skip
    for kind, make in kinds.items():
        if isinstance(module, kind) and type(module).forward is kind.forward and getattr(module, "groups", 1) == 1:
            return make(module, own)
    if type(module).__name__ == "Conv1D":
        return _turned_linear(module, own)
    if "norm" in type(module).__name__.lower() and [name for name, _ in module.named_parameters()] == ["weight"]:
        return _gain(module, own)
    name = f"{path}.{next(iter(own))}".removeprefix(".")
    raise SourceError(
        f"{name}: experts differ in a {type(module).__name__}, which cannot be mixed for each input; use the experts "
        "as whole models"
    )


def _linear(module: Any, own: Own) -> Mixed:
    """x (W_s + Σ g_t L_t R_t)' + b."""
    from torch.nn.functional import linear

    factors, bias = _factors(own), own.get("bias")
    turned = factors and (factors[1].flatten(0, 1).T.contiguous(), factors[0].transpose(1, 2).flatten(0, 1))

    def mixed(x: torch.Tensor, gates: Gates) -> torch.Tensor:
        out = linear(x, module.weight, module.bias)
        if turned:
            add_grouped_lowrank(out, x, *turned, gates)
        return _shifted(out, bias, gates, out.ndim - 1)

    return mixed


def _turned_linear(module: Any, own: Own) -> Mixed:
    """x (W_s + Σ g_t L_t R_t) + b: transformers' Conv1D, a linear layer whose weight is stored [inputs, outputs]."""
    factors, bias = _factors(own), own.get("bias")
    sides = factors and (factors[0].transpose(0, 1).flatten(1), factors[1].flatten(0, 1))

    def mixed(x: torch.Tensor, gates: Gates) -> torch.Tensor:
        out = x @ module.weight + module.bias
        if sides:
            add_grouped_lowrank(out, x, *sides, gates)
        return _shifted(out, bias, gates, out.ndim - 1)

    return mixed


def _embedding(module: Any, own: Own) -> Mixed:
    """Rows of E_s + Σ g_t L_t R_t: of the left factors only the rows that are asked for are read."""
    from torch.nn.functional import embedding

    left, right = own["weight"]
    assert right is not None
    rows, up = left.transpose(0, 1).flatten(1), right.flatten(0, 1)
    return lambda x, gates: add_mixed(embedding(x, module.weight), embedding(x, rows), up, gates)


def _convolution(module: Any, own: Own) -> Mixed:
    """The right factors are kernels, the left ones kernels of one tap; the gates scale the channels between them."""
    factors, bias = _factors(own), own.get("bias")
    kernels, taps = None, None
    if factors:
        kernels = factors[1].flatten(0, 1).reshape(-1, *module.weight.shape[1:])
        taps = factors[0].transpose(0, 1).flatten(1)

    def mixed(x: torch.Tensor, gates: Gates) -> torch.Tensor:
        out = module._conv_forward(x, module.weight, module.bias)
        if kernels is not None and taps is not None:
            hidden = module._conv_forward(x, kernels, None).unflatten(1, (gates.weights.shape[1], -1))
            hidden = (hidden * gates.like(hidden, 1)).flatten(1, 2)
            out = out + (taps @ hidden.flatten(2)).reshape(out.shape)
        return _shifted(out, bias, gates, 1)

    return mixed


def _norm(module: Any, own: Own) -> Mixed:
    """γ ⊙ norm(x) + β, with each sample's γ and β."""
    from torch.nn import GroupNorm, LayerNorm
    from torch.nn.functional import group_norm, layer_norm, rms_norm

    gain, shift = (_multiplied_out(own.get(name), module) for name in ("weight", "bias"))

    def mixed(x: torch.Tensor, gates: Gates) -> torch.Tensor:
        axis = x.ndim - module.weight.ndim
        if isinstance(module, GroupNorm):
            plain, axis = group_norm(x, module.num_groups, None, None, module.eps), 1
        elif isinstance(module, LayerNorm):
            plain = layer_norm(x, module.normalized_shape, None, None, module.eps)
        else:
            plain = rms_norm(x, module.normalized_shape, None, module.eps)
        out = plain * _per_sample(module.weight, gain, gates, axis, x.ndim)
        bias = getattr(module, "bias", None)
        return out if bias is None else out + _per_sample(bias, shift, gates, axis, x.ndim)

    return mixed


def _gain(module: Any, own: Own) -> Mixed:
    """A norm that is not torch's: its own formula, with each sample's gain in place of the shared one."""
    from torch.func import functional_call

    formula = copy.deepcopy(module)

    def mixed(x: torch.Tensor, gates: Gates) -> torch.Tensor:
        gain = _per_sample(module.weight, own["weight"].left, gates, x.ndim - module.weight.ndim, x.ndim)
        return functional_call(formula, {"weight": gain}, (x,))

    return mixed


def _factors(own: Own) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The factors of the layer's weight, where experts differ in it."""
    if "weight" not in own:
        return None
    left, right = own["weight"]
    assert right is not None  # as `Difference` says of whatever is no vector
    return left, right


def _multiplied_out(difference: Difference | None, module: Any) -> torch.Tensor | None:
    """[T, ...] of a norm's parameter, which may have several axes and so come in factors."""
    if difference is None or difference.right is None:
        return difference and difference.left
    return (difference.left @ difference.right).unflatten(2, module.weight.shape[1:])


def _shifted(out: torch.Tensor, bias: Difference | None, gates: Gates, axis: int) -> torch.Tensor:
    """`out` with each sample's part of the bias along an axis."""
    return out if bias is None else out + _placed(gates.mixed(bias.left), axis, out.ndim)


def _per_sample(
    shared: torch.Tensor, difference: torch.Tensor | None, gates: Gates, axis: int, ndim: int
) -> torch.Tensor:
    """p_s + Σ g_t p_t, to be multiplied with or added to a tensor of `ndim` axes, from `axis` on."""
    if difference is None:
        return _placed(shared.unsqueeze(0), axis, ndim)
    mixed = gates.mixed(difference.flatten(1)).unflatten(1, difference.shape[1:])
    return _placed(shared + mixed, axis, ndim)


def _placed(vectors: torch.Tensor, axis: int, ndim: int) -> torch.Tensor:
    """[n, d..] -> [n, 1.., d.., 1..] of `ndim` axes, the first d at `axis`."""
    behind = ndim - axis - (vectors.ndim - 1)
    return vectors.reshape(vectors.shape[0], *(1,) * (axis - 1), *vectors.shape[1:], *(1,) * behind)
