"""Merge two experts into a model folder.

python examples/merge.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

import eutectic
from eutectic.zoo.digits import build_digits

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
family = build_digits(folder / "digits")

# A recipe is a mapping, a YAML file, or the lock file of an earlier merge.
recipe = {
    "merge_method": "ties",
    "base_model": family.base,
    "models": [
        {"model": family.experts["upright"], "parameters": {"weight": 1.0, "density": 0.5}},
        {"model": family.experts["flip"], "parameters": {"weight": 1.0, "density": 0.5}},
    ],
    "dtype": "float32",
}
merged = eutectic.merge(recipe, folder / "merged", force=True)

print(f"{merged.name}: {', '.join(sorted(path.name for path in merged.iterdir()))}")
for name in ("upright", "flip"):
    before = family.measure(eutectic.open(family.base)).views[name].value
    after = family.measure(eutectic.open(merged)).views[name].value
    print(f"accuracy on {name}: base {before:.1%}, merged {after:.1%}")
