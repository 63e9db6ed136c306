"""What every adapter that is written here has in common: how a module's factors came out, adapter_config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Factored", "lora_config", "unreached"]

MOST_SHOWN = 6


@dataclass(frozen=True)
class Factored:
    """One module: `error` is the relative Frobenius error of its change, `change` that change's own norm."""

    module: str
    shape: tuple[int, ...]
    rank: int
    error: float
    change: float


def unreached(modules: Sequence[Factored], max_error: float, rank: int) -> list[str]:
    """Lines that name the modules whose error is larger than `max_error`, worst first; none where there are none."""
    worse = sorted((m for m in modules if m.error > max_error), key=lambda m: -m.error)
    if not worse:
        return []
    head = f"rank {rank} does not reach an error of {max_error:g} in {len(worse)} modules:"
    return [head, *(f"  - {m.module}: {m.error:.4f}" for m in worse[:MOST_SHOWN])]


def lora_config(
    ranks: Mapping[str, int],
    *,
    target_modules: Any,
    task_type: str | None,
    base_model_name_or_path: str | None,
    fan_in_fan_out: bool,
    **more: Any,
) -> dict[str, Any]:
    """adapter_config.json as PEFT reads it: alpha equals the rank everywhere, so that the product is the change itself.

    Args:
        ranks: of every module, by its name. more: further keys, which win.
    """
    most = max(ranks.values())
    pattern = {f"^{_escaped(module)}": rank for module, rank in ranks.items() if rank != most}
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base_model_name_or_path,
        "r": most, "lora_alpha": most, "lora_dropout": 0.0, "bias": "none", "use_rslora": False, "use_dora": False,
        "fan_in_fan_out": fan_in_fan_out, "inference_mode": True, "init_lora_weights": True, "modules_to_save": None,
        "target_modules": target_modules,
        "rank_pattern": pattern,
        "alpha_pattern": dict(pattern),
        **more,
    }  # fmt: skip


def _escaped(module: str) -> str:
    return module.replace(".", r"\.")
