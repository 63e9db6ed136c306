"""torch's zip checkpoints (`.bin`, `.pt`, `.pth`), read without torch and without running anything.

The archive holds ``<name>/data.pkl``, a pickle that describes the tensors (`pickle_reader` says how it is read),
and one uncompressed entry ``<name>/data/<key>`` per storage.
Source: torch/serialization.py, versions 1.6 to 2.13.
"""

from __future__ import annotations

import os
import struct
import zipfile
from typing import Any

from eutectic.errors import FormatError, SourceError
from eutectic.weights.claims import MOST_DIMENSIONS, is_size, shown
from eutectic.weights.dtypes import BY_TORCH
from eutectic.weights.files import SourceFile
from eutectic.weights.pickle_reader import CURE, PickledMapping, PickledTensor, read_pickle
from eutectic.weights.tensor_ref import StoredTensor

__all__ = ["read_pickle_zip"]

MOST_PICKLE_BYTES = 64_000_000
MOST_DIRECTORY_BYTES = 32_000_000
WRAPPERS = ("state_dict", "model", "module")


def read_pickle_zip(file: SourceFile) -> dict[str, StoredTensor]:
    """The tensors of a torch zip checkpoint, by name, each with its place in the file; their bytes stay unread.

    The content is a mapping from names to tensors, or one such mapping under "state_dict", "model" or
    "module" (what trainers write); values that are not tensors are ignored. Tied tensors share a place.

    Returns:
        name -> handle, in the mapping's order.

    Raises:
        FormatError: not a torch zip file; a damaged, compressed or encrypted archive; a pickle that asks for
            anything beyond tensors; no tensors, or several mappings of them; a tensor that is not contiguous,
            reaches outside its storage, or has a dtype that safetensors lacks.

    Example:
        >>> import tempfile, torch
        >>> path = tempfile.mkdtemp() + "/model.bin"
        >>> torch.save({"weight": torch.zeros(2, 3), "step": 7}, path)
        >>> read_pickle_zip(SourceFile(path))
        {'weight': StoredTensor('weight', [2, 3], float32)}
    """
    archive = _Archive(file)
    data = archive.read("data.pkl", MOST_PICKLE_BYTES)
    if "byteorder" in archive.entries and (order := archive.read("byteorder", 16)) != b"little":
        raise FormatError(f"{file.path}: byte order {order!r}; load and save it on a little-endian machine")
    content = read_pickle(file.path, data)
    return {name: _locate(archive, name, tensor) for name, tensor in _find_tensors(file, content).items()}


# --- the archive ----------------------------------------------------------------------------------------------


class _Stream:
    """What zipfile asks of a file, answered by positioned reads of bounded size."""

    def __init__(self, file: SourceFile) -> None:
        self._file, self._position = file, 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        position = offset + (0, self._position, self._file.size)[whence]
        if position < 0:
            raise OSError("before the start of the file")
        self._position = position
        return position

    def tell(self) -> int:
        return self._position

    def read(self, count: int = -1) -> bytes:
        rest = max(0, self._file.size - self._position)
        count = rest if count < 0 else min(count, rest)
        if count > MOST_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"{count} bytes")
        data = self._file.read(self._position, count)
        self._position += count
        return data


class _Archive:
    """The entries of one zip file, by their names after ``<archive>/``."""

    def __init__(self, file: SourceFile) -> None:
        self.file = file
        _check_start(file)
        try:
            with zipfile.ZipFile(_Stream(file)) as opened:
                infos = opened.infolist()
        except SourceError:
            raise
        except Exception as error:  # zipfile lets struct.error, ValueError and others through, too
            raise FormatError(
                f"{file.path}: the zip directory cannot be read ({str(error)[:80]}); "
                "the file is truncated or damaged, fetch it again"
            ) from None
        entries = {info.filename: info for info in infos}
        if len(entries) != len(infos):
            raise FormatError(f"{file.path}: two zip entries have the same name; fetch the file again")
        roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
        roots = [root for root in roots if root.count("/") == 1]
        if len(roots) != 1:
            raise FormatError(
                f"{file.path}: {len(roots)} zip entries named <archive>/data.pkl where torch.save writes one; "
                "this is another kind of file"
            )
        root = len(roots[0])
        self.entries = {name[root:]: info for name, info in entries.items() if name.startswith(roots[0])}
        if any(name == "constants.pkl" or name.startswith("code/") for name in self.entries):
            raise FormatError(
                f"{file.path}: a TorchScript archive, which holds code; save the weights alone: "
                'torch.save(torch.jit.load(path).state_dict(), "pytorch_model.bin")'
            )

    def read(self, name: str, most: int) -> bytes:
        start, size = self.find(name)
        if size > most:
            raise FormatError(f"{self.file.path}: {name} has {size} bytes (limit {most})")
        return self.file.read(start, size)

    def find(self, name: str) -> tuple[int, int]:
        """Where an entry's bytes start in the file, and how many there are."""
        where = f"{self.file.path}: zip entry {shown(name)}"
        info = self.entries.get(name)
        if info is None:
            raise FormatError(f"{where} is missing; the file is incomplete, fetch it again")
        at, end = info.header_offset, self.file.size
        if not 0 <= at <= end - 30:
            raise FormatError(f"{where} lies outside the file; fetch it again")
        # Name and extra field have other lengths here than in the directory, which cannot say where data is.
        signature, flags, method, name_bytes, extra_bytes = struct.unpack("<4s2xHH16xHH", self.file.read(at, 30))
        if signature != b"PK\3\4" or at + 30 + name_bytes + extra_bytes > end:
            raise FormatError(f"{where} has no header where the directory says; fetch it again")
        local_name = self.file.read(at + 30, name_bytes).decode("utf-8" if flags & 0x800 else "cp437", "replace")
        if local_name != info.orig_filename:
            raise FormatError(f"{where} is called {shown(local_name)} in its own header; fetch it again")
        if (flags | info.flag_bits) & 1:
            raise FormatError(f"{where} is encrypted; decrypt the archive first")
        if method or info.compress_type or info.compress_size != info.file_size:
            raise FormatError(f"{where} is compressed, which torch.save never does; load and save it in torch")
        start, size = at + 30 + name_bytes + extra_bytes, info.file_size
        if start + size > end:
            raise FormatError(f"{where} ({size} bytes at {start}) ends outside the file; fetch it again")
        return start, size


def _check_start(file: SourceFile) -> None:
    start = file.read(0, min(file.size, 4))
    if start[:2] == b"PK":
        return
    if start[:1] == b"\x80":
        fault = (
            "a bare pickle, as torch wrote before 1.6 (or with _use_new_zipfile_serialization=False); "
            f"save it anew: {CURE}"
        )
    elif start == b"vers":
        fault = "not a zip file; is it a Git LFS pointer? Fetch the file itself (git lfs pull)"
    else:
        fault = "not a zip file, which torch.save has written since 1.6; fetch it again or rename it"
    raise FormatError(f"{file.path}: {fault}")


# --- the tensors ----------------------------------------------------------------------------------------------


def _find_tensors(file: SourceFile, content: Any) -> dict[str, PickledTensor]:
    """The one mapping of names to tensors: the content itself, or what lies under one of WRAPPERS."""
    if not isinstance(content, PickledMapping):
        kind = type(content).__name__.removeprefix("Pickled").lower()
        raise FormatError(f"{file.path}: holds one {kind}, not a mapping from names to tensors; save a state dict")
    inside = ""
    if not content.has_tensors():
        wrapped = [
            (key, value)
            for key, value in content.pairs
            if isinstance(key, str) and key in WRAPPERS and isinstance(value, PickledMapping) and value.has_tensors()
        ]
        if len(wrapped) > 1:
            keys = " and ".join(repr(key) for key, _ in wrapped)
            raise FormatError(f"{file.path}: holds tensors under {keys}; save the one you mean alone")
        if wrapped:
            inside, content = f" under {wrapped[0][0]!r}", wrapped[0][1]
    tensors: dict[str, PickledTensor] = {}
    others: list[tuple[Any, Any]] = []
    for key, value in content.pairs:
        if not isinstance(value, PickledTensor):
            others.append((key, value))
        elif not isinstance(key, str):
            raise FormatError(f"{file.path}: a tensor{inside} is named by {type(key).__name__}, not by text")
        elif key in tensors:
            raise FormatError(f"{file.path}: {shown(key)} is there twice{inside}; fetch the file again")
        else:
            tensors[key] = value
    keys = [shown(key) if isinstance(key, str) else f"a {type(key).__name__}" for key, _ in others[:8]]
    seen = f"keys{inside}: {', '.join(keys) or 'none'}{', ...' * (len(others) > 8)}"
    if _holds_tensor([value for _, value in others]):
        # Taking the flat tensors and leaving the nested ones would lose weights without a word.
        raise FormatError(f"{file.path}: tensors lie in nested values ({seen}); save one flat state dict")
    if not tensors:
        raise FormatError(f"{file.path}: holds no tensor ({seen}); save a state dict")
    return tensors


def _holds_tensor(value: Any) -> bool:
    """Whether a tensor lies anywhere inside; without recursion, each container once."""
    pending, seen = [value], set()
    while pending:
        value = pending.pop()
        if isinstance(value, PickledTensor):
            return True
        if id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, PickledMapping):
                pending.extend(child for _, child in value.pairs)
            elif isinstance(value, (list, tuple)):
                pending.extend(value)
    return False


def _locate(archive: _Archive, name: str, tensor: PickledTensor) -> StoredTensor:
    where = f"{archive.file.path}: {shown(name)}"
    if tensor.fault or tensor.storage is None:
        raise FormatError(f"{where} {tensor.fault}")
    dtype, stored = BY_TORCH.get(tensor.dtype), BY_TORCH.get(tensor.storage.dtype)
    if dtype is None or stored is None:
        raise FormatError(f"{where} has dtype {tensor.dtype}, which safetensors lacks; convert it in torch")
    start, size = archive.find(f"data/{tensor.storage.key}")
    storage_bytes = tensor.storage.elements * stored.size
    if storage_bytes > size:
        raise FormatError(f"{where} needs a storage of {storage_bytes} bytes, the archive holds {size}; fetch it again")
    elements = _count_elements(where, tensor, storage_bytes)
    offset = tensor.offset * dtype.size if elements else 0
    if offset + elements * dtype.size > storage_bytes:
        raise FormatError(
            f"{where}: {list(tensor.shape)} of {dtype} from element {tensor.offset} reaches outside its storage "
            f"of {storage_bytes} bytes; fetch the file again"
        )
    return StoredTensor(name, dtype, tensor.shape, archive.file, start + offset)


def _count_elements(where: str, tensor: PickledTensor, most: int) -> int:
    """The elements of a contiguous row-major tensor (counted no further than beyond `most`)."""
    shape, strides = tensor.shape, tensor.strides
    sizes = (*shape, *strides, tensor.offset) if isinstance(shape, tuple) and isinstance(strides, tuple) else (-1,)
    if not all(map(is_size, sizes)) or len(shape) != len(strides) or len(shape) > MOST_DIMENSIONS:
        raise FormatError(f"{where}: shape, strides or offset are not sizes; fetch the file again")
    if 0 in shape:
        return 0
    elements = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != elements:
            raise FormatError(
                f"{where} is a view of shape {list(shape)} with strides {list(strides)}, not contiguous; "
                "call .contiguous() on it before torch.save"
            )
        elements *= size
        if elements > most:
            break
    return elements
