"""RegMean: the layer whose outputs are nearest to those of every source on that source's own inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from eutectic.errors import MethodError
from eutectic.methods.method import PerSource, Range, Setting, each, merge_method
from eutectic.ops.spectrum import inverse

if TYPE_CHECKING:
    import torch

__all__ = ["regmean"]

RANK = 1e-6  # of the largest eigenvalue: below it, float32 statistics know nothing


def _work_bytes(setting: Setting) -> int:
    width = math.prod(setting.shape[1:])
    return 8 * (8 * width * width + (setting.sources + 4) * math.prod(setting.shape))


@merge_method(
    summary="least squares over the inputs of each linear layer",
    reference="Jin et al., Dataless Knowledge Fusion by Merging Weights of Language Models, 2023 (arXiv 2212.09849)",
    scope="tensor",
    needs="gram",
    work_bytes=_work_bytes,
)
def regmean(
    tensors: Sequence[torch.Tensor],
    *,
    statistics: Sequence[torch.Tensor | None],
    weight: Annotated[PerSource[float], Range(0), "share of each source"] = each(1.0),
    ratio: Annotated[float, Range(0, 1), "what the off-diagonal entries of the Gram matrices are scaled by"] = 0.9,
) -> torch.Tensor:
    """RegMean: W' = M' + (Σ w_k G_k)^+ Σ w_k G_k (W_k - M)', M = (Σ w_k W_k) / Σ w_k, G_k the inputs' Gram matrix.

    With ratio 1 it minimises Σ w_k ‖X_k (W - W_k)'‖² over W. Where Σ w_k G_k has full rank that is
    (Σ w_k G_k)^-1 Σ w_k G_k W_k', as in the paper; along directions that no source's inputs reach (eigenvalues below
    1e-6 of the largest) the mean M stays.

    A tensor without a Gram matrix (biases, norms, embeddings) becomes M. A convolution's is [outputs, rest].

    Args:
        tensors: the sources W_k, [out, in]. statistics: G_k, [in, in].
        weight: w_k, one number or one per source.
        ratio: G_k's entries off the diagonal are multiplied by it.

    >>> import torch
    >>> a, b = torch.tensor([[1.0, 1.0]]), torch.tensor([[3.0, 3.0]])
    >>> regmean([a, b], statistics=[torch.diag(torch.tensor([3.0, 0.0])), torch.diag(torch.tensor([1.0, 0.0]))])
    tensor([[1.5000, 2.0000]])
    """
    import torch

    whole = sum(weight)
    if whole <= 0:
        raise MethodError("weight: the weights of all sources are 0")
    terms = [tensor * (w / whole) for tensor, w in zip(tensors, weight, strict=True)]
    mean = sum(terms[1:], terms[0])
    if statistics[0] is None or not mean.numel():
        return mean
    centre = mean.double().flatten(1)
    total = torch.zeros(centre.shape[1], centre.shape[1], dtype=torch.float64, device=mean.device)
    pull = torch.zeros_like(centre.T)
    for tensor, found, w in zip(tensors, statistics, weight, strict=True):
        assert found is not None
        gram = found.double() * (w / whole)
        gram = gram * ratio + torch.diag(gram.diagonal() * (1 - ratio))
        total += gram
        pull = pull + gram @ (tensor.double().flatten(1) - centre).T
    change = inverse(total, RANK) @ pull
    return (centre + change.T).to(mean.dtype).reshape(mean.shape)
