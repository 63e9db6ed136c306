"""A recipe as a source of another: the inner merge is computed tile by tile and never written.

python examples/nested.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

import eutectic
from eutectic.zoo.digits import build_digits

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
family = build_digits(folder / "digits")

inner = {
    "merge_method": "ties",
    "base_model": family.base,
    "models": [{"model": family.experts[view]} for view in ("flip", "shift", "checker")],
    "parameters": {"weight": 1.0, "density": 0.5},
}
outer = {
    "merge_method": "linear",
    "models": [
        {"model": family.experts["upright"], "parameters": {"weight": 0.25}},
        {"model": inner, "parameters": {"weight": 0.75}},  # a path to a recipe file would do as well
    ],
}
merged = eutectic.merge(outer, folder / "nested", force=True)

# The same in two steps, with the inner result on disk in between.
eutectic.merge(inner, folder / "inner", force=True)
steps = eutectic.plan({**outer, "models": [outer["models"][0], {**outer["models"][1], "model": folder / "inner"}]})
same = all(tensor.read() == steps[name].read() for name, tensor in eutectic.open(merged).items())
print(f"{len(steps)} tensors; nested and in two steps: {'the same bytes' if same else 'different bytes'}")
