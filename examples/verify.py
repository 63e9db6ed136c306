"""Check a merged folder against its lock file, damage one bit, and rebuild the same bytes from the lock file.

python examples/verify.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

import eutectic
from eutectic.zoo.digits import build_digits

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
family = build_digits(folder / "digits")
recipe = {
    "merge_method": "slerp",
    "models": [{"model": family.experts["upright"]}, {"model": family.experts["flip"]}],
    "parameters": {"t": 0.5},
}
merged = eutectic.merge(recipe, folder / "kept", force=True)
print(f"as written: {eutectic.verify(merged).sound}")

rebuilt = eutectic.merge(merged / "recipe.lock.json", folder / "rebuilt", force=True)
same = all((rebuilt / path.name).read_bytes() == path.read_bytes() for path in merged.glob("*.safetensors"))
print(f"rebuilt from the lock file: {'the same bytes' if same else 'different bytes'}")

weights = rebuilt / "model.safetensors"
damaged = bytearray(weights.read_bytes())
damaged[-1] ^= 1
weights.write_bytes(damaged)
for problem in eutectic.verify(rebuilt).problems:
    print(f"after flipping one bit: {problem}")
