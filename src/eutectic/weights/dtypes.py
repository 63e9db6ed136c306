"""Element types: safetensors' names, torch's names, sizes, and the codes that the kernels understand."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BY_CODE", "BY_NAME", "BY_TORCH", "PACKED", "DType", "dtype_of"]


@dataclass(frozen=True)
class DType:
    """One element type.

    ``name`` is safetensors' (``"BF16"``), ``torch`` is torch's (``"bfloat16"``), ``size`` is in bytes,
    ``code`` is the small integer by which the kernels know it, ``numpy`` a dtype of the same width whose
    values are the true ones where numpy knows the type, otherwise the bits.
    """

    name: str
    torch: str
    size: int
    code: int
    floating: bool
    numpy: str

    def __str__(self) -> str:
        return self.torch


_TABLE = (
    DType("BF16", "bfloat16", 2, 0, True, "<u2"),
    DType("F16", "float16", 2, 1, True, "<f2"),
    DType("F32", "float32", 4, 2, True, "<f4"),
    DType("F64", "float64", 8, 3, True, "<f8"),
    DType("F8_E4M3", "float8_e4m3fn", 1, 4, True, "|u1"),
    DType("F8_E5M2", "float8_e5m2", 1, 5, True, "|u1"),
    DType("BOOL", "bool", 1, 16, False, "|b1"),
    DType("U8", "uint8", 1, 17, False, "|u1"),
    DType("I8", "int8", 1, 18, False, "|i1"),
    DType("U16", "uint16", 2, 19, False, "<u2"),
    DType("I16", "int16", 2, 20, False, "<i2"),
    DType("U32", "uint32", 4, 21, False, "<u4"),
    DType("I32", "int32", 4, 22, False, "<i4"),
    DType("U64", "uint64", 8, 23, False, "<u8"),
    DType("I64", "int64", 8, 24, False, "<i8"),
    DType("C64", "complex64", 8, 25, False, "<c8"),
    # Known to the format, carried as bytes: they can be inspected, copied and compared, not merged.
    DType("F8_E8M0", "float8_e8m0fnu", 1, 26, False, "|u1"),
    DType("F8_E4M3FNUZ", "float8_e4m3fnuz", 1, 27, False, "|u1"),
    DType("F8_E5M2FNUZ", "float8_e5m2fnuz", 1, 28, False, "|u1"),
)

# Known to the format, and unsupported: several numbers share a byte, so that no element has an address.
PACKED = frozenset({"F4", "F6_E2M3", "F6_E3M2"})

BY_NAME: dict[str, DType] = {d.name: d for d in _TABLE}
BY_TORCH: dict[str, DType] = {d.torch: d for d in _TABLE}
BY_CODE: dict[int, DType] = {d.code: d for d in _TABLE}

_HABIT = {"float": "float32", "half": "float16", "double": "float64", "bf16": "bfloat16", "fp16": "float16"}
_HABIT |= {"fp32": "float32", "fp64": "float64", "float8_e4m3": "float8_e4m3fn"}


def dtype_of(name: str) -> DType | None:
    """The type that a user means by ``bfloat16``, ``torch.bfloat16``, ``bf16`` or ``BF16``; None if unknown."""
    plain = name.removeprefix("torch.")
    return BY_TORCH.get(_HABIT.get(plain, plain)) or BY_NAME.get(plain)
