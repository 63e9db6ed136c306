"""Quantised tensors made code by code in plain Python and float64, with the dense tensor that each stands for.

Every function returns (tensors, quantization_config, dense by name). Nothing of the code under test is used.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

Made = tuple[dict[str, np.ndarray], dict[str, Any], dict[str, np.ndarray]]
FP4 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
FP4 += [-value for value in FP4]
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """int32 words [rows, ceil(columns bits / 32)] of codes [rows, columns], one after another in one large number."""
    words = -(-codes.shape[1] * bits // 32)
    found = np.zeros((len(codes), words), dtype=np.uint32)
    for row, line in enumerate(codes):
        number = sum(int(code) << bits * at for at, code in enumerate(line))
        found[row] = [number >> 32 * word & 0xFFFFFFFF for word in range(words)]
    return found.view(np.int32)


def e4m3(code: int) -> float:
    """The value of an E4M3 code, as the specification writes it."""
    sign, exponent, mantissa = -1.0 if code & 128 else 1.0, int(code) >> 3 & 15, int(code) & 7
    return sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


def fp8_codes(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Codes without NaN, and their values."""
    codes = rng.integers(0, 127, shape) + 128 * rng.integers(0, 2, shape)
    return codes.astype(np.uint8), np.vectorize(e4m3, otypes=[float])(codes)


def fp8(rng: np.random.Generator, shape: tuple[int, ...], block: tuple[int, int] = (128, 128)) -> Made:
    """Blocks, the last ones smaller. The codes are uint8 here: `as_fp8` gives them their type."""
    codes, values = fp8_codes(rng, shape)
    m, n = block
    scale = rng.uniform(1e-4, 1e-2, (*shape[:-2], -(-shape[-2] // m), -(-shape[-1] // n))).astype(np.float32)
    dense = np.empty(shape)
    for at in np.ndindex(*shape):
        dense[at] = values[at] * float(scale[(*at[:-2], at[-2] // m, at[-1] // n)])
    config = {"quant_method": "fp8", "weight_block_size": [m, n], "activation_scheme": "dynamic"}
    return {"w.weight": codes, "w.weight_scale_inv": scale}, config, {"w.weight": dense}


def mxfp4(rng: np.random.Generator, experts: int, n: int, blocks: int) -> Made:
    packed = rng.integers(0, 256, (experts, n, blocks, 16)).astype(np.uint8)
    scales = rng.integers(110, 135, (experts, n, blocks)).astype(np.uint8)
    dense = np.empty((experts, blocks * 32, n))
    for e, row, h in np.ndindex(experts, n, blocks * 32):
        byte = int(packed[e, row, h // 32, h % 32 // 2])
        dense[e, h, row] = FP4[byte >> 4 if h % 2 else byte & 15] * 2.0 ** (int(scales[e, row, h // 32]) - 127)
    return {"w_blocks": packed, "w_scales": scales}, {"quant_method": "mxfp4"}, {"w": dense}


def bitsandbytes4(
    rng: np.random.Generator, shape: tuple[int, ...], *, kind: str = "nf4", blocksize: int = 64, nested: bool = False
) -> Made:
    table = np.array(NF4 if kind == "nf4" else [v / 12 for v in (0, 0.0625, 8, 12, 4, 6, 2, 3)] * 2, dtype=np.float32)
    if kind == "fp4":
        table[8:] *= -1
    n = int(np.prod(shape))
    codes = rng.integers(0, 16, n)
    even = np.append(codes, 0) if n % 2 else codes
    packed = (even[::2] * 16 + even[1::2]).astype(np.uint8).reshape(-1, 1)
    blocks = -(-n // blocksize)
    state: dict[str, Any] = {"quant_type": kind, "blocksize": blocksize, "dtype": "bfloat16", "shape": list(shape)}
    tensors = {"w.weight": packed, "w.weight.quant_map": table}
    if nested:
        scale = rng.integers(0, 256, blocks).astype(np.uint8)
        outer = rng.uniform(0.01, 0.1, -(-blocks // 256)).astype(np.float32)
        code = np.sort(rng.uniform(-1, 1, 256)).astype(np.float32)
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.0625}
        tensors |= {"w.weight.absmax": scale, "w.weight.nested_absmax": outer, "w.weight.nested_quant_map": code}
        sizes = [float(code[scale[k]]) * float(outer[k // 256]) + 0.0625 for k in range(blocks)]
    else:
        tensors["w.weight.absmax"] = absmax = rng.uniform(0.01, 0.1, blocks).astype(np.float32)
        sizes = [float(size) for size in absmax]
    text = np.frombuffer(json.dumps(state).encode(), dtype=np.uint8)
    tensors[f"w.weight.quant_state.bitsandbytes__{kind}"] = text
    dense = np.array([float(table[code]) * sizes[i // blocksize] for i, code in enumerate(codes)]).reshape(shape)
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    return tensors, config, {"w.weight": dense}


def bitsandbytes8(rng: np.random.Generator, shape: tuple[int, int]) -> Made:
    codes = rng.integers(-127, 128, shape).astype(np.int8)
    scale = rng.uniform(0.01, 0.1, shape[0]).astype(np.float32)
    tensors = {"w.weight": codes, "w.SCB": scale, "w.weight_format": np.array(0, dtype=np.uint8)}
    dense = codes.astype(float) * scale[:, None].astype(float) / 127
    return tensors, {"quant_method": "bitsandbytes", "load_in_8bit": True}, {"w.weight": dense}


def gptq(
    rng: np.random.Generator, shape: tuple[int, int], *, bits: int = 4, group: int = 32, order: bool = False,
    version: str = "gptq",
) -> Made:  # fmt: skip
    outputs, inputs = shape
    size = inputs if group == -1 else group
    groups = -(-inputs // size)
    q = rng.integers(0, 1 << bits, (inputs, outputs))
    z = rng.integers(1, 1 << bits, (groups, outputs))
    s = rng.uniform(1e-3, 1e-2, (groups, outputs)).astype(np.float16)
    g = np.arange(inputs) // size
    if order:
        g = rng.permutation(g)
    stored = z - (version == "gptq")
    tensors = {
        "w.qweight": np.ascontiguousarray(pack(q.T, bits).T), "w.qzeros": pack(stored, bits), "w.scales": s,
        "w.g_idx": g.astype(np.int32),
    }  # fmt: skip
    dense = (q - z[g]).astype(float) * s[g].astype(float)
    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": order}
    return tensors, {**config, "checkpoint_format": version}, {"w.weight": dense.T}


def awq(rng: np.random.Generator, shape: tuple[int, int], *, group: int = 32) -> Made:
    outputs, inputs = shape
    groups = -(-inputs // group)
    q, z = rng.integers(0, 16, (inputs, outputs)), rng.integers(0, 16, (groups, outputs))
    s = rng.uniform(1e-3, 1e-2, (groups, outputs)).astype(np.float16)

    def words(codes: np.ndarray) -> np.ndarray:
        turned = codes.reshape(len(codes), -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]]
        return pack(turned.reshape(len(codes), -1), 4)

    g = np.arange(inputs) // group
    dense = (q - z[g]).astype(float) * s[g].astype(float)
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True}
    return {"w.qweight": words(q), "w.qzeros": words(z), "w.scales": s}, config, {"w.weight": dense.T}


def _groups(form: str, weights: dict[str, Any]) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}, "ignore": ["lm_head"],
    }  # fmt: skip


def packed(
    rng: np.random.Generator, shape: tuple[int, int], *, bits: int = 4, group: int | None = 32, zero: str = "none",
    order: bool = False,
) -> Made:  # fmt: skip
    """compressed-tensors, pack-quantized; `zero` is none, plain (int8) or packed."""
    rows, columns = shape
    half, groups = 1 << bits - 1, 1 if group is None else columns // group
    q = rng.integers(-half, half, shape)
    z = rng.integers(-half, half, (rows, groups)) if zero != "none" else np.zeros((rows, groups), int)
    s = rng.uniform(1e-3, 1e-2, (rows, groups)).astype(np.float32)
    g = np.zeros(columns, int) if group is None else np.arange(columns) // group
    if order:
        g = rng.permutation(g)
    tensors = {
        "w.weight_packed": pack(q + half, bits), "w.weight_scale": s,
        "w.weight_shape": np.array(shape, dtype=np.int64),
    }  # fmt: skip
    if order:
        tensors["w.weight_g_idx"] = g.astype(np.int32)
    if zero == "plain":
        tensors["w.weight_zero_point"] = z.astype(np.int8)
    if zero == "packed":
        tensors["w.weight_zero_point"] = np.ascontiguousarray(pack((z + half).T, bits).T)
    dense = (q - z[:, g]) * s[:, g].astype(float)
    strategy = {"strategy": "channel"} if group is None else {"strategy": "group", "group_size": group}
    weights = {"num_bits": bits, "type": "int", "symmetric": zero == "none", **strategy}
    return tensors, _groups("pack-quantized", weights), {"w.weight": dense}


def plain(rng: np.random.Generator, shape: tuple[int, int], *, scale: str, kind: str = "int") -> Made:
    """compressed-tensors, int-quantized (with zero points) or float-quantized; a scale by tensor, channel, block."""
    rows, columns = shape
    block = {"tensor": (rows, columns), "channel": (1, columns), "block": (16, 24)}[scale]
    down, across = -(-rows // block[0]), -(-columns // block[1])
    s = rng.uniform(1e-3, 1e-2, (down, across)).astype(np.float32)
    z = rng.integers(-9, 9, (down, across)) if kind == "int" else np.zeros((down, across), int)
    if kind == "int":
        codes = rng.integers(-128, 128, shape).astype(np.int8)
        values = codes.astype(float)
    else:
        codes, values = fp8_codes(rng, shape)
    i, j = np.arange(rows)[:, None] // block[0], np.arange(columns)[None] // block[1]
    tensors: dict[str, np.ndarray] = {"w.weight": codes, "w.weight_scale": s[0] if scale == "tensor" else s}
    if kind == "int":
        tensors["w.weight_zero_point"] = (z[0] if scale == "tensor" else z).astype(np.int8)
    weights = {"num_bits": 8, "type": kind, "symmetric": kind != "int", "strategy": scale}
    weights |= {"block_structure": list(block)} if scale == "block" else {}
    dense = (values - z[i, j]) * s[i, j].astype(float)
    return tensors, _groups(f"{kind}-quantized", weights), {"w.weight": dense}


def fp4(rng: np.random.Generator, shape: tuple[int, int], *, group: int) -> Made:
    """compressed-tensors, nvfp4 (groups of 16) or mxfp4 (of 32)."""
    rows, columns = shape
    bytes_ = rng.integers(0, 256, (rows, columns // 2)).astype(np.uint8)
    values = np.array([[FP4[b >> 4 if c else b & 15] for b in line for c in (0, 1)] for line in bytes_.tolist()])
    tensors: dict[str, np.ndarray] = {"w.weight_packed": bytes_}
    if group == 16:
        codes = rng.integers(1, 127, (rows, columns // 16)).astype(np.uint8)
        whole = np.float32(300.0)
        s = np.vectorize(e4m3)(codes) / float(whole)
        tensors |= {"w.weight_scale": codes, "w.weight_global_scale": np.array([whole], dtype=np.float32)}
    else:
        codes = rng.integers(100, 140, (rows, columns // 32)).astype(np.uint8)
        s = 2.0 ** (codes.astype(float) - 127)
        tensors["w.weight_scale"] = codes
    weights = {"num_bits": 4, "type": "float", "symmetric": True, "group_size": group, "strategy": "group"}
    name = "nvfp4" if group == 16 else "mxfp4"
    return tensors, _groups(f"{name}-pack-quantized", weights), {"w.weight": values * np.repeat(s, group, axis=1)}
