"""Ask what a merge would do before doing it: tensors, bytes, memory, time. Only headers are read.

python examples/plan.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

import eutectic
from eutectic.zoo.digits import build_digits

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
family = build_digits(folder / "digits")
recipe = {
    "merge_method": "dare_ties",
    "base_model": family.base,
    "models": [{"model": path} for path in family.experts.values()],
    "parameters": {"weight": 0.2, "density": 0.5},
}

plan = eutectic.plan(recipe, max_memory=64 << 20)
facts = plan.to_json()
print(f"{facts['tensors']} tensors, {facts['parameters']:,} parameters")
print(f"reads {facts['bytes_read']:,} bytes, writes {facts['bytes_written']:,}")
print(f"buffers {facts['memory']['buffers']:,} of {facts['memory']['budget']:,} bytes")

# A plan is a checkpoint too: a tensor is merged when it is read.
print(plan["layers.2.bias"].to_torch())

# What would stop the merge stops the plan, before anything exists on disk.
try:
    eutectic.plan(recipe, max_memory=1 << 16)
except eutectic.EutecticError as error:
    print(f"{type(error).__name__} (exit code {error.exit_code}): {error}")
