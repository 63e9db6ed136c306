"""Look into a checkpoint, and compare two of them tensor by tensor.

python examples/inspect_and_diff.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

import eutectic
from eutectic.evaluation.compare import compare
from eutectic.zoo.digits import build_digits

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
family = build_digits(folder / "digits")

# Opening reads headers only; a handle knows its shape and type, and reads any range of elements.
base = eutectic.open(family.base)
print(f"{base.path.name}: {len(base)} tensors, {base.numel:,} parameters, {base.nbytes:,} bytes")
for name, tensor in base.items():
    print(f"  {name:16} {list(tensor.shape)!s:11} {tensor.dtype}")
print(f"four bytes of {tensor.name}: {bytes(tensor.read(0, 1)).hex()}")

# What `eutectic diff` prints, as data. Either side may be a plan: nothing is written to compare with it.
average = eutectic.plan({
    "merge_method": "linear",
    "models": [{"model": path} for path in family.experts.values()],
    "parameters": {"weight": 1.0},
})  # fmt: skip
for label, other in (("flip", eutectic.open(family.experts["flip"])), ("average", average)):
    found = compare(base, other)
    print(f"base against {label}: relative L2 {found.overall.relative_l2:.3f}, cosine {found.overall.cosine:.4f}")
print(f"base against itself: {'identical' if compare(base, base).identical else 'different'}")
