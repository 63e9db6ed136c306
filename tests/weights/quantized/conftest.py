"""Quantised folders on disk, and the checkpoint that a merge reads of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eutectic.weights.checkpoint import Checkpoint, open_checkpoint
from eutectic.weights.quantized.dequantise import open_dequantised

NUMPY = {"float32": "F32", "float64": "F64", "float16": "F16", "uint8": "U8", "int8": "I8", "int32": "I32"}
NUMPY |= {"int64": "I64", "uint16": "U16"}


def write_file(path: Path, tensors: Mapping[str, np.ndarray], types: Mapping[str, str]) -> None:
    """A safetensors file by hand, as numpy knows neither bfloat16 nor fp8: `types` names what arrays of bits are."""
    header, body = {}, b""
    for name, value in tensors.items():
        data = np.ascontiguousarray(value).tobytes()
        dtype = types.get(name, NUMPY[str(value.dtype)])
        header[name] = {
            "dtype": dtype, "shape": list(value.shape), "data_offsets": [len(body), len(body) + len(data)],
        }  # fmt: skip
        body += data
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """``write(tensors, quantization_config, types={}, name="m", **config)`` writes a folder."""

    def make(
        tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any] | None, types: Mapping[str, str] | None = None,
        name: str = "m", **config: Any,
    ) -> Path:  # fmt: skip
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        write_file(folder / "model.safetensors", tensors, types or {})
        said = {"quantization_config": dict(settings)} if settings is not None else {}
        (folder / "config.json").write_text(json.dumps({"model_type": "tiny", **config, **said}))
        return folder

    return make


@pytest.fixture
def dense(write: Callable[..., Path]) -> Callable[..., Checkpoint]:
    """``dense(...)``, with the arguments of `write`: the checkpoint that a merge reads."""
    return lambda *arguments, **named: open_dequantised(open_checkpoint(write(*arguments, **named)))
