"""Interrupt a merge and continue it. Until a merge is whole, its folder does not exist.

python examples/resume.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

import eutectic
from eutectic.zoo.digits import build_digits

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
family = build_digits(folder / "digits")
recipe = {
    "merge_method": "dare_linear",
    "base_model": family.base,
    "models": [{"model": path} for path in family.experts.values()],
    "parameters": {"weight": 0.2, "density": 0.5},
    "seed": 7,
}


class Impatient(eutectic.Watcher):
    """Stops the merge after three tiles, as Ctrl-C or a power cut might."""

    tiles = 0

    def moved(self, nbytes: int) -> None:
        self.tiles += 1
        if self.tiles > 3:
            raise KeyboardInterrupt


out, unfinished = folder / "resumed", folder / "resumed.partial"
try:
    eutectic.merge(recipe, out, threads=1, watcher=Impatient())
except KeyboardInterrupt:
    print(f"interrupted: {out.name} exists: {out.exists()}, {unfinished.name} exists: {unfinished.exists()}")

try:
    eutectic.merge(recipe, out)
except eutectic.EutecticError as error:
    print(str(error).rpartition("/")[2])

eutectic.merge(recipe, out, resume=True)  # finished tensors are checked against their digests and kept
print(f"resumed: sound: {eutectic.verify(out).sound}, {unfinished.name} exists: {unfinished.exists()}")
