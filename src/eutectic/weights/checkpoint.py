"""`Checkpoint`: a lazy, read-only mapping from tensor names to handles. Opening one reads headers only."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eutectic.errors import FormatError, SourceError
from eutectic.registry import MEMBERS
from eutectic.weights.files import Place, RemotePath, SourceFile, is_folder, open_file
from eutectic.weights.locate import locate
from eutectic.weights.member import MemberPath
from eutectic.weights.safetensors import read_header
from eutectic.weights.tensor_ref import StoredTensor, TensorRef

if TYPE_CHECKING:
    import torch

__all__ = ["Checkpoint", "open_checkpoint"]

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
MODEL, DIFFUSION = "model", "diffusion_pytorch_model"  # what transformers and diffusers call their weight files
SINGLE_FILES = (f"{MODEL}.safetensors", "pytorch_model.bin", f"{DIFFUSION}.safetensors", f"{DIFFUSION}.bin")
INDEX_FILES = tuple(f"{name}.index.json" for name in SINGLE_FILES)
PIPELINE = "model_index.json"
MOST_JSON_BYTES = 64_000_000
_NUMBERED = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.(safetensors|bin)")


class Checkpoint(Mapping[str, TensorRef]):
    """Tensors by name, in file order. `path` is the folder or file (None for a planned recipe).

    `headers` maps each weight file's name to the bytes that describe it, for provenance;
    `config` is config.json as a dict ({} where there is none); `held_bytes` is what reading it keeps in memory.
    Of a pipeline of several models, `components` maps the folder of each to the name of its weight files; its tensors
    are called ``folder/name``. Of one model it is ``{"": name}``.
    """

    def __init__(
        self,
        tensors: Mapping[str, TensorRef],
        *,
        path: Place | None = None,
        config: Mapping[str, Any] | None = None,
        headers: Mapping[SourceFile, bytes] | None = None,
        held_bytes: int = 0,
        components: Mapping[str, str] | None = None,
    ) -> None:
        self._tensors = dict(tensors)
        self.components = dict(components or {"": MODEL})
        self.held_bytes = held_bytes
        self.path = path
        self.config = dict(config or {})
        self.headers = dict(headers or {})

    def __getitem__(self, name: str) -> TensorRef:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}, {len(self)} tensors, {self.nbytes} bytes)"

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.values())

    @property
    def numel(self) -> int:
        """Elements of all tensors (the parameter count, tied tensors counted as stored)."""
        return sum(tensor.numel for tensor in self.values())

    def name_of(self, file: SourceFile) -> str:
        """A weight file's name, below the folder of a pipeline."""
        inside = "" not in self.components and isinstance(file.path, Path)
        return "/".join(file.path.parts[-2:]) if inside and isinstance(file.path, Path) else file.path.name

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Every tensor, read into torch: what `module.load_state_dict` takes."""
        return {name: tensor.to_torch() for name, tensor in self.items()}


def open_checkpoint(path: str | os.PathLike[str] | RemotePath) -> Checkpoint:
    """Open a model folder or one weight file, here or elsewhere, reading headers only.

    A folder is read as transformers reads it: model.safetensors, else its index, else pytorch_model.bin, else its
    index; failing these, the one weight file (or complete series of shards) that lies there. A folder with
    model_index.json is a pipeline of diffusers: all of its models, their tensors called ``unet/name``. torch zip files
    (.bin, .pt, .pth, .ckpt) go through a restricted reader that runs no code. A text may also be a URL or a hub id
    (`locate` says which), or name a pool's member; a path never is.

    Raises:
        SourceError: nothing there, no weights, a missing shard.
        FormatError: a file breaks its format.
    """
    place = locate(path)
    if isinstance(place, RemotePath):
        place = place.pinned()
    if isinstance(place, MemberPath):
        return place.open_member()
    if is_folder(place):
        return _open_folder(place)
    if place.suffix == ".json" and place.name in INDEX_FILES:
        return _open_folder(place.parent)
    tensors, headers = _read_files([open_file(place)])
    config = _read_config(place.parent)
    return Checkpoint(tensors, path=place, config=config, headers=headers, held_bytes=_held(place))


def _held(place: Place) -> int:
    return place.held_bytes if isinstance(place, RemotePath) else 0


def _open_folder(folder: Place) -> Checkpoint:
    config = _read_config(folder)
    for single, index in zip(SINGLE_FILES, INDEX_FILES, strict=True):
        if (folder / single).is_file():
            tensors, headers = _read_files([open_file(folder / single)])
            break
        if (folder / index).is_file():
            tensors, headers = _read_indexed(folder, folder / index)
            break
    else:
        if (folder / PIPELINE).is_file():
            return _open_pipeline(folder)
        tensors, headers = _read_files([open_file(path) for path in _find_unindexed(folder)])
    return Checkpoint(
        tensors, path=folder, config=config, headers=headers, held_bytes=_held(folder),
        components={"": _stem_of(headers)},
    )  # fmt: skip


def _stem_of(headers: Mapping[SourceFile, bytes]) -> str:
    """What the weight files of a result are called after those of its reference."""
    return DIFFUSION if next(iter(headers)).path.name.startswith(DIFFUSION) else MODEL


def _open_pipeline(folder: Place) -> Checkpoint:
    """All models of a diffusers folder: the subfolders that model_index.json names and that hold weights."""
    if isinstance(folder, RemotePath):
        raise SourceError(f"{folder}: a pipeline of several models is read from a folder here; fetch it first")
    index = read_json(folder / PIPELINE)
    tensors: dict[str, StoredTensor] = {}
    headers: dict[SourceFile, bytes] = {}
    components: dict[str, str] = {}
    for name, entry in index.items():
        place = folder / name
        plain = isinstance(entry, list) and re.fullmatch(r"\w[\w.-]*", name) is not None
        if not plain or not place.is_dir():
            continue
        if not any(file.suffix in (".safetensors", *PICKLE_SUFFIXES) for file in place.iterdir()):
            continue  # a scheduler, a tokenizer
        if (place / PIPELINE).is_file():
            raise FormatError(f"{place}: a pipeline inside a pipeline")
        part = _open_folder(place)
        for key, tensor in part.items():
            assert isinstance(tensor, StoredTensor)
            tensors[f"{name}/{key}"] = replace(tensor, name=f"{name}/{key}")
        headers |= part.headers
        components[name] = part.components[""]
    if not tensors:
        raise SourceError(f"{folder}: {PIPELINE} names no folder with weights; was the download complete?")
    return Checkpoint(tensors, path=folder, config=index, headers=headers, components=components)


def _find_unindexed(folder: Place) -> list[Place]:
    """The weight files of a folder that has neither an index nor the usual single file."""
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    if any(marker in names for marker in MEMBERS):
        raise SourceError(f"{folder}: a pool of several models, not one; name one of them: {folder}#NAME")
    weights = [n for n in names if n.endswith(".safetensors")] or [n for n in names if n.endswith(PICKLE_SUFFIXES)]
    if len(weights) == 1 and not _NUMBERED.fullmatch(weights[0]):
        return [folder / weights[0]]
    if not weights:
        adapter = " It holds an adapter, not a model." if "adapter_config.json" in names else ""
        raise SourceError(
            f"{folder}: no weights found; a model folder holds {SINGLE_FILES[0]}, {INDEX_FILES[0]} or one "
            f"weight file.{adapter}"
        )
    series = [match for name in weights if (match := _NUMBERED.fullmatch(name))]
    if len(series) == len(weights) and len({(m[1], m[3]) for m in series}) == 1:
        present = {int(match[2]) for match in series}
        missing = sorted(set(range(1, int(series[0][3]) + 1)) - present)
        if not missing:
            return [folder / name for name in weights]
        raise SourceError(f"{folder}: shard {missing[0]} of {int(series[0][3])} is missing; fetch it again")
    raise SourceError(
        f"{folder}: {len(weights)} weight files and no index: {', '.join(weights[:4])}; name the one you mean"
    )


def _read_indexed(folder: Place, index: Place) -> tuple[dict[str, StoredTensor], dict[SourceFile, bytes]]:
    document = read_json(index)
    weight_map = document.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise FormatError(f"{index}: weight_map must map tensor names to file names")
    if not weight_map:
        raise FormatError(f"{index}: weight_map is empty")
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if shard in ("", ".", "..") or "/" in shard or "\\" in shard or "\0" in shard:
            raise FormatError(f"{index}: points to {shard!r}, outside its own folder")
        try:
            there = (folder / shard).is_file()
        except OSError as error:  # a name that is too long, say
            raise FormatError(f"{index}: points to {shard[:60]!r}: {error.strerror}") from None
        if not there:
            raise SourceError(f"{folder}: shard {shard} is named by {index.name} but missing; fetch it again")
    tensors, headers = _read_files([open_file(folder / shard) for shard in shards])
    stored = {name: tensor.file.path.name for name, tensor in tensors.items()}
    absent = [name for name in weight_map if name not in stored]
    if absent:
        raise FormatError(
            f"{index}: names {absent[0]!r} in {weight_map[absent[0]]}, which does not hold it"
            + (f" (and {len(absent) - 1} more)" if len(absent) > 1 else "")
        )
    for name, shard in stored.items():
        if weight_map.get(name) != shard:
            said = f"says it is in {weight_map[name]}" if name in weight_map else "does not name it"
            raise FormatError(f"{folder}: {name!r} is stored in {shard}, but {index.name} {said}")
    return tensors, headers


def _read_files(files: list[SourceFile]) -> tuple[dict[str, StoredTensor], dict[SourceFile, bytes]]:
    tensors: dict[str, StoredTensor] = {}
    headers: dict[SourceFile, bytes] = {}
    for file in files:
        found, headers[file] = _read_file(file)
        for name, tensor in sorted(found.items(), key=lambda item: item[1].offset):
            if name in tensors:
                raise FormatError(f"{file.path}: {name!r} is also stored in {tensors[name].file.path.name}")
            tensors[name] = tensor
    if not tensors:
        raise FormatError(f"{files[0].path}: holds no tensor")
    return tensors, headers


def _read_file(file: SourceFile) -> tuple[dict[str, StoredTensor], bytes]:
    suffix = file.path.suffix
    if suffix == ".safetensors":
        header = read_header(file)
        return header.tensors, header.raw
    if suffix in PICKLE_SUFFIXES:
        from eutectic.weights.pickle_zip import read_pickle_zip

        found = read_pickle_zip(file)
        layout = [(n, t.dtype.name, t.shape, t.offset) for n, t in found.items()]
        return found, json.dumps(layout).encode()
    raise SourceError(f"{file.path}: {suffix or 'a file without suffix'} is not a weight format known here")


def read_json(path: Place) -> dict[str, Any]:
    """A JSON object from a file of bounded size."""
    file = open_file(path)
    if file.size > MOST_JSON_BYTES:
        raise FormatError(f"{path}: {file.size} bytes is too much for a description (limit {MOST_JSON_BYTES})")
    try:
        document = json.loads(file.read(0, file.size).decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not valid JSON: {str(error)[:120]}") from None
    if not isinstance(document, dict):
        raise FormatError(f"{path}: a JSON {type(document).__name__}, not an object")
    return document


def _read_config(folder: Place) -> dict[str, Any]:
    path = folder / "config.json"
    return read_json(path) if path.is_file() else {}
