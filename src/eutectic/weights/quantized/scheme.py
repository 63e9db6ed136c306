"""How a checkpoint says that it is quantised: in config.json, or by the names of its tensors. Nothing is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eutectic.weights.checkpoint import Checkpoint

__all__ = ["KEYS", "READERS", "Scheme", "parts_of", "scheme_of"]

KEYS = ("quantization_config", "compression_config")  # of config.json, or of its text_config
READERS = {
    "fp8": "fp8",
    "mxfp4": "mxfp4",
    "bitsandbytes": "bitsandbytes",
    "gptq": "gptq",
    "awq": "awq",
    "compressed-tensors": "compressed_tensors",
}
"""The file of this folder that understands a method."""
BLOCKS = (128, 128)  # of fp8 where nothing is said, as transformers has it
# What only quantised checkpoints have, where config.json says nothing: the end of a name, and whose it is.
_NAMES = {
    "_scale_inv": "fp8",
    ".SCB": "bitsandbytes",
    ".absmax": "bitsandbytes",
    ".quant_map": "bitsandbytes",
    "_blocks": "mxfp4",
    ".qweight": "gptq or awq",
    ".qzeros": "gptq or awq",
    ".weight_packed": "compressed-tensors",
    ".weight_scale": "fp8 or compressed-tensors",
}


@dataclass(frozen=True)
class Scheme:
    """A way of quantising: its name, bits per weight where they are known, and the same in words."""

    method: str
    bits: int | None
    words: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    sign: str | None = None
    """The tensor that gives it away, where config.json says nothing."""


def scheme_of(checkpoint: Checkpoint) -> Scheme | None:
    """How a checkpoint is quantised, as its config.json or else its names say; None where nothing says so."""
    settings = _settings(checkpoint.config)
    if settings is None:
        return _by_names(checkpoint)
    named = settings.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in settings else "unknown")
    method = str(named).lower()[:40]
    describe = _WORDS.get(method)
    bits, words = describe(settings) if describe else (_number(settings.get("bits")), method)
    return Scheme(method, bits, words, settings)


def parts_of(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A configuration and that of its text model, if it has one."""
    text = config.get("text_config")
    return [config, text] if isinstance(text, dict) else [config]


def _settings(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for part in parts_of(config):
        for key in KEYS:
            if part.get(key):
                return part[key] if isinstance(part[key], dict) else {"quant_method": "unknown"}
    return None


def _by_names(checkpoint: Checkpoint) -> Scheme | None:
    for name, ref in checkpoint.items():
        method = next((method for end, method in _NAMES.items() if name.endswith(end)), None)
        if method == "mxfp4" and (ref.dtype.name != "U8" or name.removesuffix("_blocks") + "_scales" not in checkpoint):
            continue
        if method is not None:
            bits, words = _WORDS[method]({}) if method in _WORDS else (None, method)
            return Scheme(method, bits, words, {}, name)
    return None


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _fp8(settings: Mapping[str, Any]) -> tuple[int, str]:
    blocks = settings.get("weight_block_size", BLOCKS)
    if isinstance(blocks, (list, tuple)) and len(blocks) == 2:
        return 8, f"fp8, blocks of {blocks[0]!s:.20} x {blocks[1]!s:.20}"
    return 8, "fp8, one scale for each tensor or row"


def _mxfp4(settings: Mapping[str, Any]) -> tuple[int, str]:
    return 4, "mxfp4, blocks of 32"


def _bitsandbytes(settings: Mapping[str, Any]) -> tuple[int | None, str]:
    if settings.get("load_in_8bit") or settings.get("_load_in_8bit"):
        return 8, "bitsandbytes int8"
    kind = settings.get("bnb_4bit_quant_type")
    double = ", double quantisation" if settings.get("bnb_4bit_use_double_quant") else ""
    return (4, f"bitsandbytes {kind!s:.20}{double}") if kind else (None, "bitsandbytes")


def _grouped(settings: Mapping[str, Any], name: str) -> tuple[int | None, str]:
    bits = _number(settings.get("bits", settings.get("w_bit", settings.get("num_bits"))))
    group = _number(settings.get("group_size", settings.get("q_group_size")))
    said = [name, *([f"{bits} bits"] if bits else [])]
    return bits, ", ".join([*said, *([f"groups of {group}"] if group and group > 0 else [])])


def _gptq(settings: Mapping[str, Any]) -> tuple[int | None, str]:
    return _grouped(settings, "gptq")


def _awq(settings: Mapping[str, Any]) -> tuple[int | None, str]:
    return _grouped(settings, "awq")


def _compressed_tensors(settings: Mapping[str, Any]) -> tuple[int | None, str]:
    name = f"compressed-tensors {str(settings.get('format') or '')[:40]}".strip()
    groups = settings.get("config_groups")
    weights = [g.get("weights") for g in groups.values() if isinstance(g, dict)] if isinstance(groups, dict) else []
    said = {_grouped(each, name) for each in weights if isinstance(each, dict)}
    return said.pop() if len(said) == 1 else (None, name)


_WORDS = {
    "fp8": _fp8,
    "mxfp4": _mxfp4,
    "bitsandbytes": _bitsandbytes,
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed_tensors,
}
