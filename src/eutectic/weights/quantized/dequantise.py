"""A quantised checkpoint as the dense one that it stands for: the original names and shapes, calculated when read.

Headers are read, and the few bytes that state shapes. Nothing dense is held.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from eutectic.errors import FormatError, SourceError
from eutectic.weights.checkpoint import Checkpoint
from eutectic.weights.dtypes import BY_NAME, DType, dtype_of
from eutectic.weights.layout import TURNED
from eutectic.weights.quantized.scheme import KEYS, READERS, Scheme, parts_of, scheme_of
from eutectic.weights.quantized.tensor import FLOATS, DequantisedTensor, Parts, place
from eutectic.weights.tensor_ref import TensorRef

__all__ = ["dense_config", "native_of", "open_dequantised"]

# Scales of activations and of the cache: what a kernel needs beside the weights, and no part of them.
BESIDE = (
    ".input_scale", ".input_zero_point", ".input_global_scale", ".activation_scale", ".output_scale",
    ".output_zero_point", ".k_scale", ".v_scale", ".q_scale", ".k_zero_point", ".v_zero_point",
)  # fmt: skip
# What must not be left over: codes, or scales of codes.
REST = (
    "_scale_inv", ".weight_scale", ".weight_packed", ".weight_shape", ".qweight", ".qzeros", ".scales", ".g_idx",
    ".absmax", ".quant_map", ".SCB",
)  # fmt: skip
CODES = ("U8", "I8", "I32", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")  # in matrices, codes
_CURE = "use the checkpoint from before quantisation, or dequantise it with the library that made it"


def open_dequantised(checkpoint: Checkpoint) -> Checkpoint:
    """The same checkpoint where it is not quantised, else the dense one, lazily; its config says nothing of codes.

    Raises:
        SourceError: quantised in a way whose dense form is not known here; the message names it.
        FormatError: codes, scales and config.json do not fit together.
    """
    scheme = scheme_of(checkpoint)
    if scheme is None:
        return checkpoint
    _refuse(checkpoint, scheme)
    native = native_of(checkpoint)
    parts = Parts(checkpoint, scheme, native)
    reader: Any = import_module(f"eutectic.weights.quantized.{READERS[scheme.method]}")
    found: dict[str, DequantisedTensor] = reader.dequantised(parts)
    tensors: dict[str, TensorRef] = {}
    for name, ref in checkpoint.items():
        if name in found:
            dense = found[name]
            if dense.name in tensors or (dense.name != name and dense.name in checkpoint):
                raise FormatError(f"{place(ref)} are codes of {dense.name!r}, which is stored, too")
            tensors[dense.name] = dense
        elif name not in parts.used and not name.endswith(BESIDE):
            if name.endswith(REST) or _are_codes(ref):
                raise FormatError(
                    f"{place(ref)} ({ref.dtype} {list(ref.shape)}) is no part of {scheme.words} as it is known here; "
                    "codes and scales cannot be averaged as numbers. Does config.json belong to these weights? Else "
                    f"{_CURE}."
                )
            tensors[name] = ref
    return Checkpoint(
        tensors,
        path=checkpoint.path,
        config=dense_config(checkpoint.config),
        headers=checkpoint.headers,
        held_bytes=checkpoint.held_bytes + parts.strips.held_bytes,
        components=checkpoint.components,
    )


def _are_codes(ref: TensorRef) -> bool:
    if ref.name.endswith(".weight"):
        return ref.dtype.name not in (*FLOATS, "F64")
    return len(ref.shape) > 1 and ref.dtype.name in CODES and not ref.name.endswith(".bias")  # masks are called so


def _refuse(checkpoint: Checkpoint, scheme: Scheme) -> None:
    if scheme.method not in READERS:
        if scheme.sign is not None:
            raise SourceError(
                f"{place(checkpoint[scheme.sign])} looks like a part of quantised weights ({scheme.method}), which "
                "cannot be averaged as numbers, and config.json has no quantization_config that says how to "
                f"dequantise them; {_CURE}."
            )
        raise SourceError(
            f"{checkpoint.path}: its config says quantised ({scheme.method}), whose dense form is not known here. "
            f"Codes cannot be averaged as numbers; {_CURE}. Understood: {', '.join(READERS)}."
        )
    # these methods turn linear layers, which headers do not tell
    if scheme.method in ("gptq", "awq", "bitsandbytes") and checkpoint.config.get("model_type") in TURNED:
        raise SourceError(
            f"{checkpoint.path}: {checkpoint.config['model_type']} stores its linear layers turned, and "
            f"{scheme.method} turns them again, which nothing in the file tells; {_CURE}."
        )


def native_of(checkpoint: Checkpoint) -> DType:
    """The type before quantisation: what config.json says, or else that of most tensors that are not quantised."""
    for part in parts_of(checkpoint.config):
        for key in ("dtype", "torch_dtype"):
            found = dtype_of(part[key]) if isinstance(part.get(key), str) else None
            if found is not None and found.name in FLOATS:
                return found
    plain = Counter(ref.native.name for name, ref in checkpoint.items() if name.endswith((".weight", ".bias")))
    return next((BY_NAME[name] for name, _ in plain.most_common() if name in FLOATS), BY_NAME["BF16"])


def dense_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json without what it says of codes."""
    found = {key: value for key, value in config.items() if key not in KEYS}
    text = found.get("text_config")
    if isinstance(text, dict):
        found["text_config"] = {key: value for key, value in text.items() if key not in KEYS}
    return found
