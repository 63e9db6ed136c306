"""Pickles made by hand: what torch.save would write, with any argument replaced by a lie."""

from __future__ import annotations

import collections
import io
import pickle
from typing import Any

import torch
import torch._utils


class StorageReference:
    def __init__(self, elements: Any = 6, key: Any = "0", kind: Any = torch.FloatStorage) -> None:
        self.parts = ("storage", kind, key, "cpu", elements)


class Reduced:
    """Pickles as a call of anything."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.parts = (function, arguments)

    def __reduce__(self) -> Any:
        return self.parts


class HandPickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.parts if isinstance(obj, StorageReference) else None


def hand_pickle(content: Any) -> bytes:
    stream = io.BytesIO()
    HandPickler(stream, protocol=2).dump(content)
    return stream.getvalue()


def rebuilt(
    offset: Any = 0, shape: Any = (2, 3), strides: Any = (3, 1), storage: Any = None, metadata: Any = None
) -> Reduced:
    storage = storage or StorageReference()
    return Reduced(
        torch._utils._rebuild_tensor_v2,
        *(storage, offset, shape, strides, False, collections.OrderedDict(), metadata),
    )
