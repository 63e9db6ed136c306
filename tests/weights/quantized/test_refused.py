"""Quantised folders that are refused: by name, or with the file and the tensor that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import encoders
import numpy as np
import pytest

from eutectic.errors import FormatError, SourceError
from eutectic.weights.checkpoint import Checkpoint, open_checkpoint
from eutectic.weights.quantized.dequantise import open_dequantised

RNG = np.random.default_rng
FP8 = {"w.weight": "F8_E4M3"}
Dense = Callable[..., Checkpoint]

UNKNOWN = [
    "aqlm", "hqq", "eetq", "quanto", "quip", "vptq", "spqr", "higgs", "fbgemm_fp8", "torchao", "bitnet", "gguf",
    "auto-round", "modelopt", "quark", "exl2",
]  # fmt: skip


@pytest.mark.parametrize("method", UNKNOWN)
def test_other_ways_are_refused_by_name(dense: Dense, method: str) -> None:
    with pytest.raises(SourceError, match=rf"quantised \({method}\).*averaged as numbers.*before quantisation"):
        dense({"w.weight": np.ones(4, np.float32)}, {"quant_method": method})


def _without(tensors: dict[str, np.ndarray], *names: str) -> dict[str, np.ndarray]:
    return {name: value for name, value in tensors.items() if name not in names}


def _cases() -> dict[str, tuple[Any, Any, dict[str, str], list[str]]]:
    fp8, fp8_config, _ = encoders.fp8(RNG(0), (8, 8))
    gptq, gptq_config, _ = encoders.gptq(RNG(0), (32, 64), order=True)
    awq, awq_config, _ = encoders.awq(RNG(0), (32, 64))
    nf4, nf4_config, _ = encoders.bitsandbytes4(RNG(0), (8, 8))
    nested, _, _ = encoders.bitsandbytes4(RNG(0), (8, 8), nested=True)
    int8, int8_config, _ = encoders.bitsandbytes8(RNG(0), (8, 8))
    packed, packed_config, _ = encoders.packed(RNG(0), (8, 64))
    mxfp4, mxfp4_config, _ = encoders.mxfp4(RNG(0), 1, 8, 1)
    nvfp4, nvfp4_config, _ = encoders.fp4(RNG(0), (8, 64), group=16)
    state = "w.weight.quant_state.bitsandbytes__nf4"

    def said(**changes: Any) -> dict[str, np.ndarray]:
        text = json.dumps({**json.loads(nf4[state].tobytes()), **changes}).encode()
        return {**nf4, state: np.frombuffer(text, dtype=np.uint8)}

    no: dict[str, str] = {}
    one = np.ones(1, np.float32)
    return {
        "no scale": (_without(fp8, "w.weight_scale_inv"), fp8_config, FP8, ["'w.weight_scale_inv' is missing"]),
        "wrong grid": (
            {**fp8, "w.weight_scale_inv": np.ones((2, 2), np.float32)},
            fp8_config,
            FP8,
            ["[2, 2]", "128 x 128"],
        ),
        "blocks that are none": (
            fp8,
            {**fp8_config, "weight_block_size": [0, "a"]},
            FP8,
            ["weight_block_size [0, 'a']"],
        ),
        "a scale of integers": (
            {**fp8, "w.weight_scale_inv": np.ones((1, 1), np.int32)},
            fp8_config,
            FP8,
            ["is int32"],
        ),
        "a scale of plain weights": (
            {**fp8, "w.weight": np.ones((8, 8), np.float32)},
            fp8_config,
            no,
            ["'w.weight_scale_inv'", "averaged as numbers"],
        ),
        "fused fp4 experts": (
            {"gate_up_proj": np.ones((2, 8, 8), np.int8), "gate_up_proj_scale_inv": np.ones((2, 8, 1), np.float32)},
            fp8_config,
            no,
            ["'gate_up_proj' (int8 [2, 8, 8])", "averaged as numbers"],
        ),
        "fp8 of another kind": (fp8, fp8_config, {"w.weight": "F8_E4M3FNUZ"}, ["float8_e4m3fnuz"]),
        "packed fp4 experts": ({**fp8, "w.weight": np.ones((8, 8), np.int8)}, fp8_config, no, ["'w.weight' (int8"]),
        "gptq without zeros": (_without(gptq, "w.qzeros"), gptq_config, no, ["'w.qzeros' is missing"]),
        "gptq without scales": (_without(gptq, "w.scales"), gptq_config, no, ["'w.scales' is missing"]),
        "gptq of other bits": (gptq, {**gptq_config, "bits": 8}, no, ["w.qzeros", "gptq, 8 bits, groups of 32"]),
        "gptq of 5 bits": (gptq, {**gptq_config, "bits": 5}, no, ["bits 5", "(2, 3, 4, 8)"]),
        "gptq without bits": (gptq, {"quant_method": "gptq"}, no, ["bits None"]),
        "gptq of other groups": (gptq, {**gptq_config, "group_size": 64}, no, ["'w.qzeros' is [2, 4]", "[1, 4]"]),
        "gptq of no group": (gptq, {**gptq_config, "group_size": 0}, no, ["group_size 0"]),
        "gptq for marlin": (gptq, {**gptq_config, "checkpoint_format": "marlin"}, no, ["'marlin'"]),
        "gptq codes alone": (gptq, None, no, ["gptq or awq", "averaged as numbers"]),
        "gptq of floats": (
            {**gptq, "w.qweight": np.ones((8, 32), np.float32)},
            gptq_config,
            no,
            ["is float32 [8, 32]"],
        ),
        "gptq beside dense": ({**gptq, "w.weight": one}, gptq_config, no, ["'w.weight', which is stored, too"]),
        "awq for gemv": (awq, {**awq_config, "version": "gemv"}, no, ["'gemv'"]),
        "awq of 8 bits": (awq, {**awq_config, "bits": 8}, no, ["bits 8"]),
        "awq without zeros": (_without(awq, "w.qzeros"), awq_config, no, ["'w.qzeros' is missing"]),
        "nf4 without map": (_without(nf4, "w.weight.quant_map"), nf4_config, no, ["'w.weight.quant_map' is missing"]),
        "nf4 without state": (_without(nf4, state), nf4_config, no, ["'w.weight' (uint8"]),
        "nf4 without codes": (_without(nf4, "w.weight"), nf4_config, no, ["belongs to 'w.weight', which is missing"]),
        "nf4 of another shape": (said(shape=[8, 9]), nf4_config, no, ["has 32 bytes", "takes 36"]),
        "nf4 of a huge shape": (said(shape=[2**40, 2**40]), nf4_config, no, ["takes"]),
        "nf4 of no shape": (said(shape=None), nf4_config, no, ["states no shape"]),
        "nf4 of odd blocks": (said(blocksize=63), nf4_config, no, ["states blocks of 63"]),
        "nf4 of text": (said(nested_offset="x"), nf4_config, no, ["nested_offset 'x'"]),
        "nf4 state of noise": ({**nf4, state: np.array([255, 0], np.uint8)}, nf4_config, no, ["is not valid JSON"]),
        "nf4 nested without map": (_without(nested, "w.weight.nested_quant_map"), nf4_config, no, ["nested_quant_map"]),
        "int8 for one GPU": (
            {**int8, "w.weight_format": np.array(2, np.uint8)},
            int8_config,
            no,
            ["layout of one GPU"],
        ),
        "int8 without scale": (_without(int8, "w.SCB"), int8_config, no, ["'w.weight' (int8"]),
        "packed without shape": (
            _without(packed, "w.weight_shape"),
            packed_config,
            no,
            ["'w.weight_shape' is missing"],
        ),
        "packed of another shape": (
            {**packed, "w.weight_shape": np.array([8, 99])},
            packed_config,
            no,
            ["[8, 99] in 4 bits"],
        ),
        "packed of no group": (packed, {**packed_config, "config_groups": {}}, no, ["no config_groups"]),
        "packed and sparse": (
            packed,
            {**packed_config, "sparsity_config": {"format": "sparse-bitmask"}},
            no,
            ["sparse-bitmask"],
        ),
        "packed in a new way": (packed, {**packed_config, "format": "marlin-24"}, no, ["'marlin-24'"]),
        "packed without scale": (
            _without(packed, "w.weight_scale"),
            packed_config,
            no,
            ["'w.weight_scale' is missing"],
        ),
        "nvfp4 without its scale": (
            _without(nvfp4, "w.weight_global_scale"),
            nvfp4_config,
            {"w.weight_scale": "F8_E4M3"},
            ["'w.weight_global_scale' is missing"],
        ),
        "mxfp4 without scales": (_without(mxfp4, "w_scales"), mxfp4_config, no, ["'w_scales' is missing"]),
        "mxfp4 of another shape": (
            {**mxfp4, "w_blocks": np.ones((1, 8, 16), np.uint8)},
            mxfp4_config,
            no,
            ["[experts, n, blocks, 16]"],
        ),
        "a configuration that is none": (fp8, "fp8", FP8, ["quantised (unknown)"]),
    }


CASES = _cases()


@pytest.mark.parametrize("name", CASES)
def test_what_does_not_fit_is_told_with_file_and_tensor(write: Callable[..., Path], name: str) -> None:
    tensors, settings, types, words = CASES[name]
    folder = write(tensors, settings if isinstance(settings, dict) else None, types)
    if isinstance(settings, str):
        (folder / "config.json").write_text(json.dumps({"quantization_config": settings}))
    with pytest.raises(SourceError) as caught:
        open_dequantised(open_checkpoint(folder))
    for word in (str(folder), *words):
        assert word in str(caught.value), str(caught.value)


def test_a_group_that_does_not_exist_is_found_when_it_is_read(dense: Dense) -> None:
    tensors, settings, _ = encoders.gptq(RNG(0), (32, 64), order=True)
    tensors["w.g_idx"][5] = 2
    with pytest.raises(FormatError, match=r"'w\.g_idx' names group 2"):
        dense(tensors, settings)["w.weight"].read(0, 4)


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes"])
def test_layers_that_are_stored_turned(dense: Dense, method: str) -> None:
    with pytest.raises(SourceError, match="gpt2 stores its linear layers turned"):
        dense({"w.weight": np.ones(4, np.float32)}, {"quant_method": method}, model_type="gpt2")
