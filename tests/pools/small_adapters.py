"""A small base and adapters on it, on disk, for the tests of pools."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

WEIGHTS = {"layers.0.q.weight": (24, 16), "layers.1.q.weight": (40, 16), "layers.1.up.weight": (16, 24)}
Factors = dict[str, tuple[np.ndarray, np.ndarray]]


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal numbers in float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def factors(seed: int, rank: int = 4) -> Factors:
    """A [r, inputs] and B [outputs, r] of every weight."""
    found = {}
    for at, (name, (rows, columns)) in enumerate(WEIGHTS.items()):
        a, b = drawn(rank, columns, seed=100 * seed + at), drawn(rows, rank, seed=100 * seed + 50 + at)
        found[name] = (a / np.float32(columns**0.5), np.float32(0.1) * b)
    return found


def write_base(folder: Path) -> Path:
    """Three matrices, a vector and an integer."""
    folder.mkdir()
    tensors = {name: torch.from_numpy(drawn(*shape, seed=at)) for at, (name, shape) in enumerate(WEIGHTS.items())}
    tensors |= {"layers.0.norm.weight": torch.ones(16), "steps": torch.tensor([3])}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "toy"}))
    return folder


def write_adapter(
    folder: Path, pairs: Mapping[str, Any], *, alpha: float = 8, dtype: str = "float32", **config: Any
) -> Path:
    """An adapter with the factors given, in PEFT's format."""
    folder.mkdir()
    tensors = {}
    for weight, (a, b) in pairs.items():
        module = f"base_model.model.{weight.removesuffix('.weight')}"
        tensors[f"{module}.lora_A.weight"] = torch.from_numpy(a).to(getattr(torch, dtype)).contiguous()
        tensors[f"{module}.lora_B.weight"] = torch.from_numpy(b).to(getattr(torch, dtype)).contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    rank = max(len(a) for a, _ in pairs.values())
    found = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": ["q", "up"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(found))
    return folder
