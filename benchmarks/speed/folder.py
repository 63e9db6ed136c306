"""Read safetensors folders: headers and places of tensors, with the standard library only."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Place:
    """Where one tensor lies."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def weight_files(folder: Path) -> list[Path]:
    """Every safetensors file of a checkpoint folder, sorted by name."""
    return sorted(folder.glob("*.safetensors"))


def weight_bytes(folder: Path) -> int:
    """Size of all weight files of a folder."""
    return sum(path.stat().st_size for path in weight_files(folder))


def places(folder: Path) -> dict[str, Place]:
    """Tensor name -> place, from the headers of all shards."""
    found: dict[str, Place] = {}
    for path in weight_files(folder):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                start = 8 + length
                shape = tuple(entry["shape"])
                found[name] = Place(path, entry["dtype"], shape, start + begin, start + end)
    return found
