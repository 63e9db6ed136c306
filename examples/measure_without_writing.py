"""Tune a parameter on validation data without writing a model for each value; then write the best one.

python examples/measure_without_writing.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

import eutectic
from eutectic.zoo.digits import build_digits

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
family = build_digits(folder / "digits")


def recipe(scale: float) -> dict:
    """Task arithmetic over all five experts."""
    return {
        "merge_method": "task_arithmetic",
        "base_model": family.base,
        "models": [{"model": path} for path in family.experts.values()],
        "parameters": {"weight": 1.0, "lambda": scale},
    }


def accuracy(checkpoint: eutectic.Checkpoint, split: str) -> float:
    """Mean accuracy over the five views."""
    return family.measure({name: tensor.to_numpy() for name, tensor in checkpoint.items()}, split).mean.value


scores = {scale: accuracy(eutectic.plan(recipe(scale)), "validation") for scale in (0.0, 0.1, 0.2, 0.3, 0.5, 1.0)}
for scale, score in scores.items():
    print(f"lambda {scale:<4} validation {score:.1%}")
best = max(scores, key=scores.__getitem__)
merged = eutectic.merge(recipe(best), folder / "best", force=True)
print(f"best lambda {best}: test {accuracy(eutectic.open(merged), 'test'):.1%}", end=", ")
print(f"base {accuracy(eutectic.open(family.base), 'test'):.1%}")
