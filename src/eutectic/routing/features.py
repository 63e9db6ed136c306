"""What a router sees of an input: one vector for each sample, from the last hidden states of a network.

Of a text the mean of the last hidden states over the tokens that count, before any head; of an image the input of the
network's last layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eutectic.errors import SourceError

if TYPE_CHECKING:
    import torch

__all__ = ["answer_and_features", "features"]


def features(network: torch.nn.Module, inputs: Sequence[torch.Tensor], named: Mapping[str, Any]) -> torch.Tensor:
    """[n, d] for a batch of n samples, given as the network's own arguments; heads are not run.

    Raises:
        SourceError: the network has no hidden states that are known here.
    """
    if hasattr(network, "base_model"):
        texts = {name: named[name] for name in ("input_ids", "attention_mask") if named.get(name) is not None}
        body: Any = network.base_model
        return _pooled(body(*inputs, **texts), texts)
    return answer_and_features(network, inputs, named)[1]


def answer_and_features(
    network: torch.nn.Module, inputs: Sequence[torch.Tensor], named: Mapping[str, Any]
) -> tuple[Any, torch.Tensor]:
    """What the network answers, and the features of the same pass."""
    found: list[torch.Tensor] = []
    if hasattr(network, "base_model"):
        body: Any = network.base_model
        handle = body.register_forward_hook(lambda module, args, answer: found.append(_pooled(answer, named)))
    elif getattr(network, "layers", None):
        last: Any = network.layers
        handle = last[-1].register_forward_pre_hook(lambda module, args: found.append(args[0]))
    else:
        raise SourceError(f"a {type(network).__name__} has no hidden states that a router knows how to read")
    try:
        answer = network(*inputs, **named)
    finally:
        handle.remove()
    return answer, found[0]


def _pooled(answer: Any, named: Mapping[str, Any]) -> torch.Tensor:
    """The mean of the last hidden states [n, L, d] over the tokens that `attention_mask` counts."""
    import torch

    hidden = getattr(answer, "last_hidden_state", None)
    if not isinstance(hidden, torch.Tensor):
        raise SourceError(f"a {type(answer).__name__} holds no last hidden states, which a router reads")
    mask = named.get("attention_mask")
    if mask is None or mask.shape != hidden.shape[:2]:
        return hidden.mean(1)
    counts = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * counts).sum(1) / counts.sum(1).clamp(min=1)
