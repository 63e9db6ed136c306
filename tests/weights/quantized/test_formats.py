"""Every format: the values of the float64 decoder, and the same bits for any range."""

from __future__ import annotations

from collections.abc import Callable

import encoders
import numpy as np
import pytest

from eutectic.weights.checkpoint import Checkpoint
from eutectic.weights.quantized import mxfp4, tensor, turned

RNG = np.random.default_rng
FP8 = {"w.weight": "F8_E4M3"}
CASES: dict[str, tuple[encoders.Made, dict[str, str]]] = {
    "fp8 blocks": (encoders.fp8(RNG(1), (256, 384)), FP8),
    "fp8 ragged": (encoders.fp8(RNG(2), (37, 53), (16, 24)), FP8),
    "fp8 one row": (encoders.fp8(RNG(3), (1, 130)), FP8),
    "fp8 experts": (encoders.fp8(RNG(4), (3, 20, 30), (16, 16)), FP8),
    "mxfp4": (encoders.mxfp4(RNG(5), 2, 12, 3), {}),
    "nf4": (encoders.bitsandbytes4(RNG(6), (9, 64)), {}),
    "nf4 ragged": (encoders.bitsandbytes4(RNG(7), (7, 13)), {}),
    "nf4 nested": (encoders.bitsandbytes4(RNG(8), (300, 70), nested=True), {}),
    "fp4": (encoders.bitsandbytes4(RNG(9), (5, 3, 7), kind="fp4", blocksize=32), {}),
    "int8": (encoders.bitsandbytes8(RNG(10), (11, 17)), {}),
    "gptq": (encoders.gptq(RNG(11), (64, 96)), {}),
    "gptq v2": (encoders.gptq(RNG(12), (64, 96), version="gptq_v2"), {}),
    "gptq 2 bits": (encoders.gptq(RNG(13), (32, 64), bits=2), {}),
    "gptq 3 bits": (encoders.gptq(RNG(14), (96, 64), bits=3), {}),
    "gptq 8 bits": (encoders.gptq(RNG(15), (40, 64), bits=8), {}),
    "gptq one group": (encoders.gptq(RNG(16), (32, 64), group=-1), {}),
    "gptq last group smaller": (encoders.gptq(RNG(17), (40, 80)), {}),
    "gptq desc_act": (encoders.gptq(RNG(18), (64, 96), order=True), {}),
    "awq": (encoders.awq(RNG(19), (80, 96)), {}),
    "awq last group smaller": (encoders.awq(RNG(20), (32, 70)), {}),
    "packed": (encoders.packed(RNG(21), (37, 96)), {}),
    "packed channel": (encoders.packed(RNG(22), (37, 53), group=None), {}),
    "packed 3 bits": (encoders.packed(RNG(23), (37, 96), bits=3, zero="packed"), {}),
    "packed 8 bits": (encoders.packed(RNG(24), (33, 64), bits=8, zero="packed"), {}),
    "packed 5 bits": (encoders.packed(RNG(25), (7, 64), bits=5, zero="plain"), {}),
    "packed order": (encoders.packed(RNG(26), (37, 96), zero="packed", order=True), {}),
    "int8 tensor": (encoders.plain(RNG(27), (12, 20), scale="tensor"), {}),
    "int8 channel": (encoders.plain(RNG(28), (12, 20), scale="channel"), {}),
    "int8 block": (encoders.plain(RNG(29), (40, 50), scale="block"), {}),
    "float8 channel": (encoders.plain(RNG(30), (12, 20), scale="channel", kind="float"), FP8),
    "float8 block": (encoders.plain(RNG(31), (40, 50), scale="block", kind="float"), FP8),
    "nvfp4": (encoders.fp4(RNG(32), (9, 64), group=16), {"w.weight_scale": "F8_E4M3"}),
    "mxfp4 packed": (encoders.fp4(RNG(33), (9, 64), group=32), {}),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def opened(case: str, dense: Callable[..., Checkpoint]) -> Checkpoint:
    (tensors, settings, _), types = CASES[case]
    norm = np.array([0x3F80, 0x4000], dtype=np.uint16)
    return dense({**tensors, "norm.weight": norm}, settings, {**types, "norm.weight": "BF16"})


def test_values_are_those_of_the_decoder_in_float64(case: str, opened: Checkpoint) -> None:
    (_, _, expected), _ = CASES[case]
    assert list(opened) == [*expected, "norm.weight"]
    for name, value in expected.items():
        ref = opened[name]
        assert ref.shape == value.shape and str(ref.dtype) == "float32" and str(ref.native) == "bfloat16"
        found = ref.to_numpy().astype(float)
        # Two roundings at most; a double quantised scale is a sum, whose terms may cancel.
        np.testing.assert_allclose(found, value, rtol=3e-7, atol=1e-7 * np.abs(value).max())
        assert np.abs(value).max() > 0
    assert "quantization_config" not in opened.config


def test_any_range_has_the_same_bits(case: str, opened: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """For pieces of any size on the way, too."""
    ref = next(iter(opened.values()))
    whole = bytes(ref.read())
    n, row = ref.numel, ref.shape[-1]
    ranges = [(0, 1), (n - 1, n), (5, 40), (row, 2 * row), (row - 1, row + 1), (3, n - 2), (n // 2, n)]
    for chunk in (1, 100, 1 << 16):
        monkeypatch.setattr(tensor, "CHUNK", chunk)
        for start, stop in ranges:
            start, stop = max(0, start), min(n, max(start, stop))
            assert bytes(ref.read(start, stop)) == whole[start * 4 : stop * 4], (chunk, start, stop)


@pytest.mark.parametrize("name", ["gptq", "gptq 3 bits", "gptq desc_act", "awq", "mxfp4", "gptq last group smaller"])
def test_strips_of_any_size_give_the_same_bits(
    name: str, dense: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tensors, settings, expected), types = CASES[name]
    key = next(iter(expected))
    whole = bytes(dense(tensors, settings, types)[key].read())
    for module in (turned, mxfp4):
        monkeypatch.setattr(module, "STRIP", 1)
    small = dense(tensors, settings, types)
    assert bytes(small[key].read()) == whole
    assert bytes(small[key].read(7, 1000)) == whole[28:4000]
    assert 0 < small.held_bytes < 10 * len(whole)
