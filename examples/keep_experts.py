"""Keep five experts in a third of their bytes, get one back, take one out again.

python examples/keep_experts.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

import eutectic
from eutectic.recipes.pool_changes import remove
from eutectic.zoo.digits import build_digits

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
family = build_digits(folder / "digits")

pool = eutectic.pack(family.base, family.experts, folder / "experts", scheme="twin")
kept = sum(file.stat().st_size for file in (folder / "experts").rglob("*.safetensors"))
raw = sum(eutectic.open(path).nbytes for path in (family.base, *family.experts.values()))
print(f"{len(pool)} experts in {kept / raw:.0%} of the bytes of six models")


def accuracy(checkpoint: eutectic.Checkpoint, view: str) -> float:
    """Validation accuracy on one view."""
    return family.measure(checkpoint, "validation").views[view].value


for name, path in family.experts.items():
    rebuilt = eutectic.open(f"{folder / 'experts'}#{name}")
    print(f"{name}: rebuilt {accuracy(rebuilt, name):.1%}, original {accuracy(eutectic.open(path), name):.1%}")

print("left:", ", ".join(remove(folder / "experts", ["invert"])))
