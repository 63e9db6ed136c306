"""Merge two LoRA adapters into one, without their base; then measure it on the base.

python examples/merge_adapters.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

import eutectic
from eutectic.recipes.extract_lora import extract_lora
from eutectic.zoo.digits import build_digits

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
family = build_digits(folder / "digits")
base = eutectic.open(family.base)
for name in ("upright", "flip"):
    if not (folder / f"{name}-lora").exists():
        extract_lora(eutectic.open(family.experts[name]), base, folder / f"{name}-lora", rank=8)

# Sources that are all adapters make an adapter. No base is named: it is not read.
recipe = {
    "merge_method": "task_arithmetic",
    "models": [
        {"model": folder / "upright-lora", "parameters": {"weight": 0.6}},
        {"model": folder / "flip-lora", "parameters": {"weight": 0.6}},
    ],
}
plan = eutectic.plan(recipe)
print("\n".join(plan.account.lines))
merged = eutectic.merge(recipe, folder / "both-lora", force=True)
print(f"{merged.name}: {', '.join(sorted(path.name for path in merged.iterdir()))}")

# Fewer ranks, with an error that is told; and the adapter on its base, as every recipe reads it.
small = eutectic.merge({**recipe, "adapter": {"rank": 4}}, folder / "small-lora", force=True)
for adapter in (merged, small):
    model = eutectic.plan({"merge_method": "passthrough", "models": [{"model": f"{family.base}+{adapter}"}]})
    scores = family.measure(model)
    print(f"{adapter.name}: " + ", ".join(f"{view} {scores.views[view].value:.1%}" for view in ("upright", "flip")))
