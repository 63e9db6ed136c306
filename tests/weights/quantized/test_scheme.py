"""What config.json and names say of a way of quantising."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eutectic.weights.checkpoint import open_checkpoint
from eutectic.weights.quantized.scheme import scheme_of

ONE = np.ones(1, np.float32)
SAID: list[tuple[dict[str, Any], int | None, str]] = [
    ({"quant_method": "fp8", "weight_block_size": [64, 32]}, 8, "fp8, blocks of 64 x 32"),
    ({"quant_method": "fp8", "weight_block_size": None}, 8, "fp8, one scale for each tensor or row"),
    ({"quant_method": "mxfp4"}, 4, "mxfp4, blocks of 32"),
    ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, 4, "bitsandbytes nf4"),
    (
        {"quant_method": "bitsandbytes", "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
        4,
        "bitsandbytes fp4, double quantisation",
    ),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8, "bitsandbytes int8"),
    ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 4, "gptq, 4 bits, groups of 128"),
    ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 8, "gptq, 8 bits"),
    ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, 4, "awq, 4 bits, groups of 64"),
    (
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"a": {"weights": {"num_bits": 4, "group_size": 128}}},
        },
        4,
        "compressed-tensors pack-quantized, 4 bits, groups of 128",
    ),
    ({"quant_method": "AQLM"}, None, "aqlm"),
    ({"bits": 4}, 4, "unknown"),
]


@pytest.mark.parametrize(("settings", "bits", "words"), SAID)
@pytest.mark.parametrize("nested", [False, True])
def test_words(
    write: Callable[..., Path], settings: dict[str, Any], bits: int | None, words: str, nested: bool
) -> None:
    config = {"text_config": {"quantization_config": settings}} if nested else {"quantization_config": settings}
    found = scheme_of(open_checkpoint(write({"w": ONE}, None, **config)))
    assert found is not None and (found.bits, found.words) == (bits, words)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("w.weight_scale_inv", "fp8"),
        ("w.weight.absmax", "bitsandbytes"),
        ("w.SCB", "bitsandbytes"),
        ("w.qzeros", "gptq or awq"),
        ("w.weight_packed", "compressed-tensors"),
        ("logit_scale", None),
        ("w.scales", None),
        ("w_blocks", None),
    ],
)
def test_names(write: Callable[..., Path], name: str, method: str | None) -> None:
    found = scheme_of(open_checkpoint(write({name: ONE}, None)))
    assert (None if found is None else found.method) == method
