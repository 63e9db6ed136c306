"""Low-rank fine-tuning: W + (alpha / r) B A with W fixed, written in PEFT's format. Hu et al. 2021, LoRA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eutectic.evaluation.networks import load_network
from eutectic.zoo.training import Loss, Schedule, generator, run_steps, undisturbed_torch

__all__ = ["adapter_config", "train_adapter"]

RANK, ALPHA = 4, 8


def train_adapter(
    base: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    data: Sequence[np.ndarray],
    schedule: Schedule,
    *,
    modules: Sequence[str],
    key: str,
    loss: Loss,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Train factors for every linear layer whose name ends in one of `modules`.

    Returns:
        The adapter's tensors by PEFT's names, ``base_model.model.<module>.lora_A.weight`` [r, inputs] and
        ``.lora_B.weight`` [outputs, r]; and the dense tensors that base and adapter make together.
    """
    import torch
    from torch.nn.utils import parametrize

    class LowRank(torch.nn.Module):
        def __init__(self, a: torch.Tensor, b: torch.Tensor) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Parameter(a), torch.nn.Parameter(b)

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight.detach() + ALPHA / RANK * (self.b @ self.a)

    with undisturbed_torch():
        network = load_network({name: np.array(tensor) for name, tensor in base.items()}, config).requires_grad_(False)
        random = generator(f"{key} adapter")
        pairs: dict[str, LowRank] = {}
        for name, module in list(network.named_modules()):
            if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] in modules:
                a = torch.randn(RANK, module.in_features, generator=random) / module.in_features**0.5
                pairs[name] = LowRank(a, torch.zeros(module.out_features, RANK))
                parametrize.register_parametrization(module, "weight", pairs[name])
        factors = [factor for pair in pairs.values() for factor in (pair.a, pair.b)]
        run_steps(network, factors, data, schedule, key=key, loss=loss)
        tensors, dense = {}, {name: np.array(tensor) for name, tensor in base.items()}
        for name, pair in pairs.items():
            tensors[f"base_model.model.{name}.lora_A.weight"] = pair.a.detach().numpy()
            tensors[f"base_model.model.{name}.lora_B.weight"] = pair.b.detach().numpy()
            dense[f"{name}.weight"] += (ALPHA / RANK * (pair.b @ pair.a)).detach().numpy()
        return tensors, dense


def adapter_config(modules: Sequence[str]) -> dict[str, Any]:
    """adapter_config.json."""
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "../../base", "r": RANK,
        "lora_alpha": ALPHA, "lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False, "use_rslora": False,
        "target_modules": list(modules), "inference_mode": True,
    }  # fmt: skip
