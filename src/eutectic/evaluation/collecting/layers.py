"""A network's linear layers by the names of their weights, and what comes into them, as rows.

A layer is a torch.nn.Linear, or a torch.nn.Conv2d in one group with zero padding, whose rows are its patches. One
whose weight another module shares is left out: what comes in is not all that the weight is used for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eutectic.evaluation.collecting.samples import Samples

if TYPE_CHECKING:
    import torch

__all__ = ["linear_layers", "watch_inputs", "width_of"]

Watch = Callable[[str, "torch.Tensor"], None]


def linear_layers(network: torch.nn.Module) -> Mapping[str, torch.nn.Module]:
    """The layers, by the names of their weights."""
    from torch import nn

    uses = Counter(id(parameter) for _, parameter in network.named_parameters(remove_duplicate=False))
    found: dict[str, nn.Module] = {}
    for name, module in network.named_modules():
        plain = isinstance(module, nn.Linear) or (
            isinstance(module, nn.Conv2d)
            and module.groups == 1
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
        )
        if plain and uses[id(module.weight)] == 1:
            found[f"{name}.weight" if name else "weight"] = module
    return found


def width_of(layer: Any) -> int:
    """How many inputs an output of a layer has."""
    return layer.weight[0].numel()


def watch_inputs(network: torch.nn.Module, names: Sequence[str], samples: Samples, watch: Watch) -> None:
    """Run the network on all samples; `watch(name, rows)` sees what comes into each layer, [rows, in], in float64."""
    import torch

    layers = linear_layers(network)

    def hook(name: str) -> Callable[[Any, Any], None]:
        return lambda layer, inputs: watch(name, _rows(layer, inputs[0]).double())

    handles = [layers[name].register_forward_pre_hook(hook(name)) for name in names]
    try:
        with torch.no_grad():
            for batch in samples.batches():
                samples.log_likelihood(network, batch)
    finally:
        for handle in handles:
            handle.remove()


def _rows(layer: Any, inputs: torch.Tensor) -> torch.Tensor:
    from torch import nn

    if isinstance(layer, nn.Conv2d):
        assert not isinstance(layer.padding, str)  # `linear_layers` leaves such layers out
        patches = nn.functional.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        inputs = patches.transpose(1, 2)
    return inputs.reshape(-1, inputs.shape[-1])
