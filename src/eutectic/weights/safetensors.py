"""The safetensors format: a strict header reader and a header writer, without torch.

A file is 8 bytes (little-endian length N), N bytes of JSON, then the tensors' bytes:
``{"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [begin, end]}, ..., "__metadata__": {str: str}}``.
Offsets count from the end of the header; ranges must tile the rest of the file exactly.
Source: the format's specification (safetensors 0.8), whose limits are kept: a header has at most 100 MB.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eutectic.errors import FormatError, SourceError, nearest
from eutectic.weights.claims import MOST_DIMENSIONS, is_size, shown
from eutectic.weights.dtypes import BY_NAME, PACKED, DType
from eutectic.weights.files import SourceFile
from eutectic.weights.tensor_ref import StoredTensor

if TYPE_CHECKING:
    import numpy

__all__ = ["Header", "build_header", "read_header", "write_safetensors"]

MOST_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class Header:
    """What a file says about itself: its tensors, its free text, and the exact header bytes (for hashing)."""

    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]
    raw: bytes


def read_header(file: SourceFile) -> Header:
    """Read and check the header of one safetensors file; no tensor byte is read.

    Raises:
        FormatError: anything that the format forbids: a header beyond the file, duplicate names, an unknown
            dtype, offsets that overlap, leave holes, or reach outside the file.
        SourceError: a dtype that the format knows and this version does not read.
    """
    raw = _read_raw(file)
    entries = _parse_json(file, raw)
    metadata = _check_metadata(file, entries.pop("__metadata__", {}))
    start, data_bytes = 8 + len(raw), file.size - 8 - len(raw)
    tensors: dict[str, StoredTensor] = {}
    ranges: list[tuple[int, int, str]] = []
    for name, entry in entries.items():
        dtype, shape, begin, end = _check_entry(file, name, entry)
        tensors[name] = StoredTensor(name, dtype, shape, file, start + begin)
        ranges.append((begin, end, name))
    _check_tiling(file, ranges, data_bytes)
    return Header(tensors, metadata, raw)


def _read_raw(file: SourceFile) -> bytes:
    if file.size < 8:
        raise FormatError(f"{file.path}: {file.size} bytes are too few for a safetensors file. Is it truncated?")
    length = int.from_bytes(file.read(0, 8), "little")
    if length > MOST_HEADER_BYTES:
        raise FormatError(
            f"{file.path}: the header claims {length} bytes; the format allows {MOST_HEADER_BYTES}. "
            "Is this a safetensors file?"
        )
    if length > file.size - 8:
        raise FormatError(
            f"{file.path}: the header claims {length} bytes, the file has {file.size - 8} after its first 8. "
            "The file is truncated or not safetensors; fetch it again."
        )
    return file.read(8, length)


def _parse_json(file: SourceFile, raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise FormatError(f"{file.path}: the header names {twice!r} twice")
        return found

    try:
        parsed = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        kind = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:120]
        raise FormatError(f"{file.path}: the header is not valid JSON: {kind}") from None
    if not isinstance(parsed, dict):
        raise FormatError(f"{file.path}: the header is a JSON {type(parsed).__name__}, not an object")
    return parsed


def _check_metadata(file: SourceFile, metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(f"{file.path}: __metadata__ must map text to text")
    return metadata


def _check_entry(file: SourceFile, name: str, entry: Any) -> tuple[DType, tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{file.path}: {shown(name)}: an entry has exactly dtype, shape and data_offsets")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise FormatError(f"{file.path}: {shown(name)} is not text that can be written; rename it") from None
    label, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = BY_NAME.get(label) if isinstance(label, str) else None
    if isinstance(label, str) and label in PACKED:
        raise SourceError(
            f"{file.path}: {shown(name)}: dtype {label} packs several numbers into a byte, which this version "
            "does not read; use the checkpoint from before quantisation"
        )
    if dtype is None:
        hint = nearest(label, BY_NAME) if isinstance(label, str) else ""
        raise FormatError(f"{file.path}: {shown(name)}: unknown dtype {label!r:.80}{hint}")
    if not isinstance(shape, list) or len(shape) > MOST_DIMENSIONS or not all(map(is_size, shape)):
        raise FormatError(f"{file.path}: {shown(name)}: shape {shape!r:.80} is not a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_size, offsets)):
        raise FormatError(f"{file.path}: {shown(name)}: data_offsets {offsets!r:.80} are not two positions")
    begin, end = offsets
    expected = dtype.size
    for size in shape:
        expected *= size
        if expected > file.size and 0 not in shape:
            raise FormatError(
                f"{file.path}: {shown(name)}: shape {shape!r:.80} of {dtype} needs more bytes than the file has"
            )
    if end - begin != expected:
        raise FormatError(
            f"{file.path}: {shown(name)}: shape {shape} of {dtype} takes {expected} bytes, "
            f"data_offsets {offsets} span {end - begin}"
        )
    return dtype, tuple(shape), begin, end


def _check_tiling(file: SourceFile, ranges: list[tuple[int, int, str]], data_bytes: int) -> None:
    ranges.sort()
    position = 0
    for begin, end, name in ranges:
        if end > data_bytes:
            raise FormatError(
                f"{file.path}: {shown(name)} ends at byte {end} of the data, the file holds {data_bytes}. "
                "The file is truncated; fetch it again."
            )
        if begin != position:
            fault = "overlaps the tensor before it" if begin < position else "leaves a hole before it"
            raise FormatError(f"{file.path}: {shown(name)} at {begin} {fault} (expected {position})")
        position = end
    if position != data_bytes:
        raise FormatError(f"{file.path}: {data_bytes - position} bytes after the last tensor belong to nothing")


def build_header(
    entries: Mapping[str, tuple[DType, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, int]]:
    """The first bytes of a file that holds `entries`, and each tensor's absolute offset.

    Tensors are laid out widest element first (as the reference writer does), so that each one is aligned;
    the header is padded with spaces to a multiple of 8.
    """
    offsets: dict[str, int] = {}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, (dtype, shape) in sorted(entries.items(), key=lambda item: -item[1][0].size):
        nbytes = dtype.size
        for size in shape:
            nbytes *= size
        offsets[name] = position
        header[name] = {
            "dtype": dtype.name,
            "shape": list(shape),
            "data_offsets": [position, position + nbytes],
        }
        position += nbytes
    body = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    body += b" " * (-len(body) % 8)
    start = 8 + len(body)
    return len(body).to_bytes(8, "little") + body, {name: start + at for name, at in offsets.items()}


def write_safetensors(
    path: str | Path, tensors: Mapping[str, numpy.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write small in-memory arrays as one safetensors file (merges stream through `weights/sink.py` instead).

    >>> import numpy, tempfile
    >>> from eutectic.weights.checkpoint import open_checkpoint
    >>> file = tempfile.mkdtemp() + "/model.safetensors"
    >>> write_safetensors(file, {"a": numpy.arange(3, dtype="float32")})
    >>> open_checkpoint(file)["a"].to_numpy()
    array([0., 1., 2.], dtype=float32)
    """
    import numpy as np

    by_numpy = {np.dtype(d.numpy): d for d in reversed(list(BY_NAME.values())) if d.numpy[1:] != "u1"}
    by_numpy |= {np.dtype("|u1"): BY_NAME["U8"], np.dtype("<u2"): BY_NAME["U16"]}
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    for name, array in arrays.items():
        if array.dtype not in by_numpy:
            raise FormatError(f"{path}: {name!r}: numpy's {array.dtype} has no safetensors name")
    start, offsets = build_header({n: (by_numpy[a.dtype], a.shape) for n, a in arrays.items()}, metadata)
    with open(path, "wb") as stream:
        stream.write(start)
        for name in sorted(arrays, key=offsets.__getitem__):
            stream.write(arrays[name].tobytes())
