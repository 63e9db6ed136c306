"""One training loop for every family: the same bits each time on one machine with one version of torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from eutectic.evaluation.networks import load_network
from eutectic.weights.digest import hash_bytes

if TYPE_CHECKING:
    import torch

__all__ = [
    "Schedule", "accuracy", "arrays_of", "bits_per_byte", "generator", "initial_tensors", "label_loss",
    "next_byte_loss", "run_steps", "train", "undisturbed_torch",
]  # fmt: skip

Loss = Callable[..., "torch.Tensor"]  # (network, *arrays of one batch) -> mean loss

MOMENTUM = 0.9
BETAS, EPSILON, DECAY, CLIP = (0.9, 0.98), 1e-8, 0.01, 1.0  # of AdamW; the gradient's norm is clipped
WARM_UP = 0.05  # share of the steps over which the rate rises


class Schedule(NamedTuple):
    """How long and how fast: `batch` samples a step, drawn with replacement.

    ``"momentum"``: v <- 0.9 v + g, w <- w - rate v, at a constant rate. ``"adamw"``: AdamW, its rate rising over
    the first twentieth of the steps and falling to nothing along a cosine.
    """

    steps: int
    rate: float
    batch: int = 64
    optimiser: str = "adamw"


def initial_tensors(config: Mapping[str, Any], *, key: str, spread: float | None = None) -> dict[str, np.ndarray]:
    """Untrained float32 tensors of the network of `config`: matrices normal, biases 0, gains of norms 1.

    Args:
        config: what `load_network` takes.
        key: names the random numbers; the same key gives the same tensors.
        spread: standard deviation of the matrices; default He's, sqrt(2 / inputs).

    >>> config = {"model_type": "eutectic-mlp", "input_size": 64, "hidden_sizes": [], "num_labels": 10}
    >>> {name: tensor.shape for name, tensor in initial_tensors(config, key="0").items()}
    {'layers.0.weight': (10, 64), 'layers.0.bias': (10,)}
    """
    import torch

    from eutectic.evaluation.networks import structure

    tensors: dict[str, np.ndarray] = {}
    with undisturbed_torch():
        random = generator(key)
        for name, slot in structure(config).named_parameters():
            if slot.ndim > 1:
                deviation = spread or (2 / math.prod(slot.shape[1:])) ** 0.5
                drawn = torch.randn(slot.shape, generator=random, dtype=torch.float32)
                tensors[name] = (drawn * deviation).numpy()
            else:
                tensors[name] = np.full(slot.shape, 0 if name.endswith("bias") else 1, dtype=np.float32)
    return tensors


def train(
    start: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    data: Sequence[np.ndarray],
    schedule: Schedule,
    *,
    key: str,
    loss: Loss | None = None,
) -> dict[str, np.ndarray]:
    """The tensors after training from `start`, which is left as it is.

    Args:
        config: what `load_network` takes.
        data: arrays of one length; a batch takes the same rows of each.
        key: names the random numbers that draw the batches.
        loss: (network, *batch) -> mean loss; default the cross-entropy of labels, `label_loss`.

    >>> config = {"model_type": "eutectic-mlp", "input_size": 4, "hidden_sizes": [8], "num_labels": 2}
    >>> images, labels = np.eye(4, dtype="float32"), np.array([0, 1, 0, 1])
    >>> start = initial_tensors(config, key="start")
    >>> trained = train(start, config, (images, labels), Schedule(50, 0.1, optimiser="momentum"), key="order")
    >>> hidden = np.maximum(images @ trained["layers.0.weight"].T + trained["layers.0.bias"], 0)
    >>> (hidden @ trained["layers.1.weight"].T + trained["layers.1.bias"]).argmax(axis=1)
    array([0, 1, 0, 1])
    """
    with undisturbed_torch():
        network = load_network({name: np.array(tensor) for name, tensor in start.items()}, config)
        run_steps(network, list(network.parameters()), data, schedule, key=key, loss=loss or label_loss)
        return arrays_of(network, start)


def run_steps(
    network: torch.nn.Module,
    parameters: Sequence[torch.nn.Parameter],
    data: Sequence[np.ndarray],
    schedule: Schedule,
    *,
    key: str,
    loss: Loss,
) -> None:
    """Change `parameters` (some or all of the network's) in place; call it within `undisturbed_torch`."""
    import torch

    columns = [torch.from_numpy(np.ascontiguousarray(array)) for array in data]
    random, rows = generator(key), len(columns[0])
    step = _momentum(parameters, schedule) if schedule.optimiser == "momentum" else _adamw(parameters, schedule)
    network.train()
    for number in range(schedule.steps):
        batch = torch.randint(rows, (schedule.batch,), generator=random)
        value = loss(network, *(column[batch] for column in columns))
        step(number, torch.autograd.grad(value, list(parameters)))
    network.eval()


def _momentum(parameters: Sequence[torch.nn.Parameter], schedule: Schedule) -> Callable[[int, Any], None]:
    import torch

    velocity = [torch.zeros_like(parameter) for parameter in parameters]

    @torch.no_grad()
    def step(number: int, gradients: Sequence[torch.Tensor]) -> None:
        for parameter, v, gradient in zip(parameters, velocity, gradients, strict=True):
            parameter -= schedule.rate * v.mul_(MOMENTUM).add_(gradient)

    return step


def _adamw(parameters: Sequence[torch.nn.Parameter], schedule: Schedule) -> Callable[[int, Any], None]:
    import torch

    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW([g for g in groups if g["params"]], lr=schedule.rate, betas=BETAS, eps=EPSILON)
    rise = max(1, round(WARM_UP * schedule.steps))

    def step(number: int, gradients: Sequence[torch.Tensor]) -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        cosine = 0.5 * (1 + math.cos(math.pi * number / schedule.steps))
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate * min((number + 1) / rise, cosine)
        optimiser.step()
        for parameter in parameters:
            parameter.grad = None

    return step


def label_loss(network: torch.nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the labels, in nats."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(network(inputs), labels)


def accuracy(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], data: Sequence[np.ndarray]) -> float:
    """The share of inputs whose label has the highest logit; `data` is inputs and labels."""
    import torch

    with undisturbed_torch(), torch.no_grad():
        network = load_network(tensors, config)
        inputs = torch.from_numpy(data[0])
        chosen = torch.cat([network(part).argmax(1) for part in inputs.split(500)])
        return float((chosen.numpy() == data[1]).mean())


def next_byte_loss(network: torch.nn.Module, ids: torch.Tensor, counted: torch.Tensor | None = None) -> torch.Tensor:
    """Cross-entropy of each byte given those before it; `counted` [n, L] picks the bytes that are learned."""
    from torch.nn.functional import cross_entropy

    ids = ids.long()
    logits = network(input_ids=ids, use_cache=False).logits[:, :-1]
    targets = ids[:, 1:]
    if counted is not None:
        targets = targets.masked_fill(~counted[:, 1:].bool(), -100)  # -100: cross_entropy leaves these out
    return cross_entropy(logits.transpose(1, 2), targets)


def bits_per_byte(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], ids: np.ndarray) -> float:
    """Mean -log2 p of each byte of the slices `ids` [n, L] but the first, given those before it."""
    import torch

    with undisturbed_torch(), torch.no_grad():
        network = load_network(tensors, config)
        losses = [(float(next_byte_loss(network, part)), len(part)) for part in torch.from_numpy(ids).split(32)]
        return sum(loss * count for loss, count in losses) / len(ids) / math.log(2)


def arrays_of(network: torch.nn.Module, like: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The network's tensors of the names in `like`, as arrays."""
    state = network.state_dict()
    return {name: state[name].detach().numpy().copy() for name in like}


def generator(key: str) -> torch.Generator:
    """Random numbers of their own for each key: no model depends on which were trained before it."""
    import torch

    return torch.Generator("cpu").manual_seed(int(hash_bytes(key.encode())[:8], 16))


@contextmanager
def undisturbed_torch() -> Iterator[None]:
    """One thread, so that sums are taken in one order; the CPU; gradients on. The caller's settings come back."""
    import torch

    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
