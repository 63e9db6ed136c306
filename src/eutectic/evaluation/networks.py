"""From tensors and a config.json to a network that runs: nothing is written, no file is needed.

The structure is built once for each configuration, without memory for its parameters; the tensors are then put in
place. So a planned recipe is measured as it is, and fifty candidates build one structure.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from eutectic.errors import MissingDependencyError, SourceError, nearest

if TYPE_CHECKING:
    import torch

__all__ = ["load_network", "pooled", "structure"]

OWN = {
    "eutectic-digits-mlp": "perceptron",
    "eutectic-mlp": "perceptron",
    "eutectic-cnn": "convolutional_network",
}
KEPT_STRUCTURES = 16
CAUSAL, CLASSIFIER = ("ForCausalLM", "LMHeadModel"), ("ForSequenceClassification",)


def load_network(checkpoint: Mapping[str, Any], config: Mapping[str, Any]) -> torch.nn.Module:
    """The network that `config` (a config.json) describes with the tensors of `checkpoint`: CPU, float32, eval mode.

    Args:
        checkpoint: names to tensors: a `Checkpoint`, a planned recipe, numpy arrays or torch tensors. Arrays of
            float32 are shared with the network, not copied.
        config: `model_type` eutectic-digits-mlp, eutectic-mlp or eutectic-cnn is a network of ours: inputs [n, ...]
            -> logits [n, C]. Any other is transformers': AutoModelForCausalLM, AutoModelForSequenceClassification or
            AutoModel by the end of the name in `architectures`.

    Raises:
        SourceError: the configuration describes no network, or the tensors are not the network's.
        MissingDependencyError: transformers is needed and is not installed.

    >>> import numpy as np, torch
    >>> config = {"model_type": "eutectic-mlp", "input_size": 2, "hidden_sizes": [], "num_labels": 2}
    >>> network = load_network({"layers.0.weight": np.eye(2), "layers.0.bias": np.zeros(2)}, config)
    >>> network(torch.tensor([[0.25, 0.5]])).tolist()
    [[0.25, 0.5]]
    """
    kind = str(config.get("model_type"))
    network = structure(config)
    slots = network.state_dict()
    tensors = {name: _tensor(value) for name, value in checkpoint.items()}
    for name, tensor in tensors.items():
        if name in slots and slots[name].shape != tensor.shape:
            raise SourceError(
                f"{name}: is {list(tensor.shape)}, the {kind} of config.json has {list(slots[name].shape)} there"
            )
    found = network.load_state_dict(tensors, strict=False, assign=True)
    unexpected = [name for name in found.unexpected_keys if not _is_old_buffer(name)]
    if unexpected:
        hint = nearest(unexpected[0], slots)
        raise SourceError(f"{unexpected[0]}: is no tensor of the {kind} that config.json describes{hint}")
    tie = getattr(network, "tie_weights", None)
    if callable(tie):
        tie()
    state = network.state_dict(keep_vars=True)
    filled = {id(tensor) for name, tensor in state.items() if name not in found.missing_keys}
    missing = [name for name in found.missing_keys if id(state[name]) not in filled]
    if missing:
        more = f" (and {len(missing) - 1} more)" if missing[1:] else ""
        raise SourceError(f"{missing[0]}: is missing{more}; the {kind} of config.json has such a tensor")
    for name, tensor in network.named_buffers():
        if tensor.device.type == "meta":
            raise SourceError(f"{name}: a {kind} computes it on creation, which is not possible here")
    return network.eval()


def structure(config: Mapping[str, Any]) -> torch.nn.Module:
    """The network of a configuration without its tensors: parameters have names and shapes, and no memory."""
    return copy.deepcopy(_structure(json.dumps(dict(config), sort_keys=True, default=str)))


def pooled(network: torch.nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """One vector a text from an encoder: the mean of its last hidden states over the tokens that count.

    input_ids, attention_mask [n, L] (any integer type) -> [n, width]. Sentence encoders of the MiniLM kind are
    trained with this mean; a task's head is linear on top of it.
    """
    hidden = network(input_ids=input_ids.long(), attention_mask=attention_mask.long()).last_hidden_state
    counts = attention_mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * counts).sum(1) / counts.sum(1).clamp(min=1)


def _tensor(value: Any) -> torch.Tensor:
    """A torch tensor on the CPU; every floating type becomes float32."""
    import numpy as np
    import torch

    if hasattr(value, "to_torch"):
        value = value.to_torch()
    elif not isinstance(value, torch.Tensor):
        array = np.asarray(value)
        value = torch.from_numpy(array if array.flags.writeable else array.copy())
    value = value.detach().cpu()
    return value.float() if value.is_floating_point() else value


def _is_old_buffer(name: str) -> bool:
    """Buffers that older versions of transformers stored and newer ones compute."""
    return name.rpartition(".")[2] in ("position_ids", "inv_freq", "masked_bias")


@lru_cache(maxsize=KEPT_STRUCTURES)
def _structure(document: str) -> torch.nn.Module:
    """The network of a configuration, its parameters without memory."""
    import torch

    config = json.loads(document)
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise SourceError("config.json names no model_type, so it is not known which network the tensors make")
    with _parameters_without_memory(), torch.device("cpu"):
        return _own(kind, config) if kind in OWN else _transformers(kind, config)


def _own(kind: str, config: dict[str, Any]) -> torch.nn.Module:
    from eutectic.evaluation import image_networks

    try:
        return getattr(image_networks, OWN[kind])(config)
    except (KeyError, TypeError) as error:
        raise SourceError(f"config.json does not describe a {kind}: {error!r:.80}") from None


def _transformers(kind: str, config: dict[str, Any]) -> torch.nn.Module:
    try:
        import transformers
    except ImportError:
        raise MissingDependencyError(f"running a {kind} needs transformers; pip install transformers") from None
    names = config.get("architectures") or [""]
    auto = transformers.AutoModel
    if str(names[0]).endswith(CAUSAL):
        auto = transformers.AutoModelForCausalLM
    elif str(names[0]).endswith(CLASSIFIER):
        auto = transformers.AutoModelForSequenceClassification
    settings = {key: value for key, value in config.items() if key not in ("model_type", "dtype", "torch_dtype")}
    try:
        described = transformers.AutoConfig.for_model(kind, **settings)
        return auto.from_config(described)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"transformers cannot build the {kind} of config.json: {str(error)[:200]}") from None


@contextmanager
def _parameters_without_memory() -> Iterator[None]:
    """`torch.empty`, with which layers make their parameters, makes tensors of shape only; buffers stay real."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Empty(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            if func is torch.empty:
                kwargs |= {"device": "meta", "dtype": torch.float32}
            return func(*args, **kwargs)

    with Empty():
        yield
