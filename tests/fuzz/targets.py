"""The readers of strangers' bytes. A target returns or raises an EutecticError; all else is a finding."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy

from eutectic.errors import EutecticError
from eutectic.recipes.schema import load_recipe
from eutectic.recipes.tree import check_parameters
from eutectic.weights.checkpoint import open_checkpoint
from eutectic.weights.pickle_reader import read_pickle
from eutectic.weights.safetensors import write_safetensors

__all__ = ["TARGETS", "Target", "check"]

Target = Callable[[bytes], None]
MOST_READ = 1 << 20  # bytes of a tensor: what a header claims is not for the fuzzer's memory

_folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


def _open(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    for name in checkpoint:
        tensor = checkpoint[name]
        if tensor.nbytes <= MOST_READ:
            tensor.read()


def _file(name: str, data: bytes) -> Path:
    path = _folder / name
    path.write_bytes(data)
    return path


def safetensors(data: bytes) -> None:
    """A safetensors file: length, header, data."""
    _open(_file("model.safetensors", data))


def header(data: bytes) -> None:
    """The JSON of a safetensors header, with the right length before it and 64 bytes of data after it."""
    _open(_file("header.safetensors", len(data).to_bytes(8, "little") + data + bytes(64)))


def index(data: bytes) -> None:
    """The index of a sharded checkpoint beside one good shard."""
    folder = _folder / "indexed"
    if not folder.exists():
        folder.mkdir()
        write_safetensors(folder / "model-00001-of-00001.safetensors", {"w": numpy.zeros((2, 2), dtype="float32")})
    (folder / "model.safetensors.index.json").write_bytes(data)
    _open(folder)


def torch_zip(data: bytes) -> None:
    """A file that torch.save is said to have written."""
    _open(_file("model.pt", data))


def pickle(data: bytes) -> None:
    """The pickle inside such a file."""
    read_pickle(Path("data.pkl"), data)


def recipe(data: bytes) -> None:
    """A recipe, up to the point where sources are opened."""
    load_recipe(_file("recipe.yaml", data), check=check_parameters)


TARGETS: dict[str, Target] = {
    "safetensors": safetensors,
    "header": header,
    "index": index,
    "torch_zip": torch_zip,
    "pickle": pickle,
    "recipe": recipe,
}


def check(target: Target, data: bytes) -> None:
    """One input; a sentence is the right answer to a bad one."""
    try:
        target(data)
    except EutecticError as error:
        assert str(error), "an error without words"
