"""Opening quantised folders: what is consumed, what stays, and of which type the result is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import encoders
import numpy as np
import pytest
import torch
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from eutectic.weights.checkpoint import Checkpoint, open_checkpoint
from eutectic.weights.quantized.dequantise import open_dequantised

RNG = np.random.default_rng
FP8 = {"w.weight": "F8_E4M3"}
Dense = Callable[..., Checkpoint]


def test_what_is_not_quantised_stays_as_it_is(write: Callable[..., Path]) -> None:
    opened = open_checkpoint(write({"w.weight": np.ones(4, np.float32), "logit_scale": np.ones((), np.float32)}, None))
    assert open_dequantised(opened) is opened


def test_a_configuration_left_over_beside_dense_weights(dense: Dense) -> None:
    """As some tools save a model that was quantised while it was trained."""
    found = dense({"w.weight": np.ones((4, 4), np.float32)}, {"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert list(found) == ["w.weight"] and "quantization_config" not in found.config


def test_order_is_kept_and_what_belongs_to_activations_is_left_out(dense: Dense) -> None:
    tensors, settings, _ = encoders.gptq(RNG(0), (32, 64))
    one = np.ones(1, np.float32)
    beside = {"a.k_scale": one, "w.input_scale": one, "b.weight": one, "w.bias": np.ones(32, np.float32)}
    found = dense({"a.weight": one, **tensors, **beside}, settings)
    assert list(found) == ["a.weight", "w.weight", "b.weight", "w.bias"]


NATIVE: list[tuple[dict[str, Any], str]] = [
    ({"dtype": "float16"}, "float16"),
    ({"torch_dtype": "bfloat16"}, "bfloat16"),
    ({"text_config": {"dtype": "float32"}}, "float32"),
    ({"dtype": "float8_e4m3fn"}, "float16"),
    ({}, "float16"),
]


@pytest.mark.parametrize(("config", "native"), NATIVE)
def test_the_type_of_the_result(dense: Dense, config: dict[str, Any], native: str) -> None:
    tensors, settings, _ = encoders.fp8(RNG(0), (8, 8))
    found = dense({**tensors, "norm.weight": np.ones(8, np.float16)}, settings, FP8, **config)
    assert str(found["w.weight"].native) == native and str(found["norm.weight"].dtype) == "float16"


def test_fp8_as_transformers_dequantises_it(dense: Dense) -> None:
    tensors, settings, _ = encoders.fp8(RNG(0), (256, 384))
    codes = torch.from_numpy(tensors["w.weight"]).view(torch.float8_e4m3fn)
    scale = torch.from_numpy(tensors["w.weight_scale_inv"])
    expected = Fp8Dequantize(None).convert({"weight": codes, "weight_scale_inv": scale})["weight"]
    assert torch.equal(torch.from_numpy(dense(tensors, settings, FP8)["w.weight"].to_numpy()), expected)


def test_mxfp4_as_transformers_dequantises_it(dense: Dense) -> None:
    tensors, settings, _ = encoders.mxfp4(RNG(0), 2, 24, 3)
    blocks, scales = (torch.from_numpy(tensors[name]) for name in ("w_blocks", "w_scales"))
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    assert torch.equal(torch.from_numpy(dense(tensors, settings)["w"].to_numpy()), expected)


@pytest.mark.parametrize("kind", ["scalar", "one", "row", "column", "bfloat16", "exponents"])
def test_scales_of_other_shapes_and_types(dense: Dense, kind: str) -> None:
    codes, values = encoders.fp8_codes(RNG(0), (8, 6))
    types, end = dict(FP8), "_scale"
    scale = np.linspace(0.5, 1, 8, dtype=np.float32)
    if kind in ("scalar", "one"):
        scale = np.float32(0.25).reshape(() if kind == "scalar" else 1)
    if kind == "column":
        scale = scale[:, None]
    if kind == "bfloat16":
        scale, types["w.weight_scale"] = scale.view(np.uint32) >> 16, "BF16"
        scale = scale.astype(np.uint16)
    expected = values * np.broadcast_to(scale.reshape(-1, 1) if scale.ndim else scale, (8, 6)).astype(float)
    if kind == "bfloat16":
        expected = values * (scale.astype(np.uint32) << 16).view(np.float32)[:, None]
    if kind == "exponents":
        end, scale = "_scale_inv", np.array([[120, 130]], dtype=np.uint8)
        expected = values * np.repeat([2.0**-7, 2.0**3], 3)
    settings = {"quant_method": "fp8", "weight_block_size": [8, 3] if kind == "exponents" else None}
    found = dense({"w.weight": codes, f"w.weight{end}": scale}, settings, types)["w.weight"]
    np.testing.assert_allclose(found.to_numpy(), expected, rtol=1e-7)


@pytest.mark.parametrize("name", ["fp8", "mxfp4", "nf4"])
def test_formats_that_names_alone_tell(dense: Dense, name: str) -> None:
    makers = {"fp8": encoders.fp8(RNG(0), (8, 8)), "mxfp4": encoders.mxfp4(RNG(0), 1, 8, 1)}
    tensors, _, expected = makers.get(name) or encoders.bitsandbytes4(RNG(0), (8, 8))
    found = dense(tensors, None, FP8 if name == "fp8" else {})
    for key, value in expected.items():
        np.testing.assert_allclose(found[key].to_numpy(), value, rtol=3e-7)


def test_codes_stored_as_a_wider_type(dense: Dense) -> None:
    """bnb_4bit_quant_storage: the same bytes, called bfloat16."""
    tensors, settings, expected = encoders.bitsandbytes4(RNG(0), (16, 8))
    wide = {**tensors, "w.weight": tensors["w.weight"].reshape(-1).view(np.uint16).reshape(-1, 1)}
    found = dense(wide, settings, {"w.weight": "BF16"})["w.weight"]
    np.testing.assert_allclose(found.to_numpy(), expected["w.weight"], rtol=3e-7)
    assert bytes(found.read(64, 128)) == bytes(found.read())[256:512]


def test_groups_of_compressed_tensors_are_found_by_name_pattern_and_class(dense: Dense) -> None:
    four, settings, a = encoders.packed(RNG(0), (8, 64))
    eight, other, b = encoders.packed(RNG(1), (8, 64), bits=8, group=None)
    tensors = {**{f"a.{k}": v for k, v in four.items()}, **{f"b.{k}": v for k, v in eight.items()}}
    groups = {
        "x": {**settings["config_groups"]["group_0"], "targets": ["Linear"]},
        "y": {**other["config_groups"]["group_0"], "targets": ["re:.*b[.]w$"]},
    }
    found = dense(tensors, {**settings, "config_groups": groups})
    np.testing.assert_allclose(found["a.w.weight"].to_numpy(), a["w.weight"], rtol=3e-7)
    np.testing.assert_allclose(found["b.w.weight"].to_numpy(), b["w.weight"], rtol=3e-7)
