"""An adapter without its base: the checkpoint of the changes s B A that it makes, one float32 tensor for each weight.

What the adapter saved whole (modules_to_save, biases) is in it as it is stored; what PEFT stores of the base itself, an
embedding beside its factors, is no change and stands apart as `copies`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from eutectic.errors import SourceError
from eutectic.weights.checkpoint import Checkpoint
from eutectic.weights.dtypes import BY_NAME
from eutectic.weights.files import Place
from eutectic.weights.lora import Adapter, HeldFactors, Pair, read_adapter
from eutectic.weights.tensor_ref import TensorRef

__all__ = ["ChangeTensor", "Changes", "ZeroTensor", "open_changes"]

# Settings under which an adapter is more than its factors and the tensors that it saved whole.
_MORE = ("trainable_token_indices", "alora_invocation_tokens", "use_bdlora")


class Changes(Checkpoint):
    """What `adapter` changes, by the names of the weights; `trained` are those that it saved whole."""

    def __init__(self, adapter: Adapter) -> None:
        held = HeldFactors()
        changes = {f"{module}.weight": ChangeTensor(module, pair, held) for module, pair in adapter.pairs.items()}
        trained = {name: ref for name, ref in adapter.whole.items() if _is_trained(name, ref.name, adapter.config)}
        self.adapter, self.trained = adapter, frozenset(trained)
        self.copies = {name: ref for name, ref in adapter.whole.items() if name not in trained}
        super().__init__(
            {**changes, **trained}, path=adapter.folder, headers=adapter.headers, held_bytes=adapter.held_bytes
        )


def _is_trained(name: str, key: str, config: Mapping[str, Any]) -> bool:
    """Whether a whole tensor was trained; PEFT also stores embeddings of the base that were not."""
    if name.endswith(".bias") and config.get("bias", "none") != "none":
        return True
    saved = config.get("modules_to_save") or ()
    return ".base_layer." not in key and any(f".{module}." in f".{name}" for module in saved)


def open_changes(folder: Place) -> Changes:
    """The changes of the adapter in `folder`; headers only are read.

    Raises:
        SourceError: an adapter whose changes depend on its base, or of a kind that is not known here.
        FormatError: a file breaks its format.
    """
    adapter = read_adapter(folder)
    for key in _MORE:
        if adapter.config.get(key):
            raise SourceError(f"{folder}: {key} is set, whose dense form is not known here; merge it with PEFT first")
    for module, pair in adapter.pairs.items():
        if pair.magnitude is not None:
            raise SourceError(
                f"{folder}: a DoRA adapter, whose changes depend on the weights of its base; merge it with them, as "
                "./base+./adapter, and make an adapter of the result with eutectic extract-lora"
            )
        if pair.b.shape[1:2] != (pair.rank,) or math.prod(pair.b.shape[2:]) != 1:
            a, b = list(pair.a.shape), list(pair.b.shape)
            raise SourceError(
                f"{folder}: {module}: lora_A {a} and lora_B {b} have no product; convolutions in groups are not known "
                "here"
            )
    return Changes(adapter)


class ChangeTensor(TensorRef):
    """The change of one weight, made when it is read."""

    dtype = BY_NAME["F32"]

    def __init__(self, module: str, pair: Pair, held: HeldFactors) -> None:
        self.name, self.shape = f"{module}.weight", pair.shape
        self.pair, self.held = pair, held

    @property
    def lies_in(self) -> TensorRef:
        return self.pair.b

    def work_bytes(self, elements: int) -> int:
        return 0

    def rehearse(self) -> None:
        from eutectic.weights.adapter_kernels import add_product

        one = np.ones((1, 1), dtype=np.float32)
        add_product(np.empty(0, dtype=np.uint16), np.ones(1, dtype=np.float32), one, one, np.float32(1), 0)

    def read_into(self, buffer: memoryview, start: int, stop: int) -> None:
        from eutectic.weights.adapter_kernels import add_product

        left, right, _ = self.held.of(self.pair)
        values = np.frombuffer(buffer, dtype=np.float32, count=stop - start)
        values[:] = 0
        add_product(np.empty(0, dtype=np.uint16), values, left, right, np.float32(self.pair.scale), start)


class ZeroTensor(TensorRef):
    """Zeros: the change that an adapter makes where it has no factors, and the point that changes start from."""

    dtype = BY_NAME["F32"]

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape = name, shape

    def read_into(self, buffer: memoryview, start: int, stop: int) -> None:
        buffer[:] = bytes(len(buffer))
