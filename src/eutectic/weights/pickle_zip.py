"""torch's zip checkpoints (`.bin`, `.pt`, `.pth`), read without torch and without running anything.

The archive holds ``<name>/data.pkl``, a pickle that describes the tensors, and one uncompressed entry
``<name>/data/<key>`` per storage. A pickle is a program, so it is not given to `pickle.Unpickler`, which a
nested key crashes and one memo opcode makes allocate 16 GB even where `find_class` refuses every name. A
small interpreter knows only the opcodes that build plain data: a global is a mere label from a fixed list,
"calling" one makes a record of ours, no key is hashed, and no container is copied or walked recursively.
Source: torch/serialization.py and torch/_utils.py, versions 1.6 to 2.13.
"""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from dataclasses import dataclass
from typing import Any

from eutectic.errors import FormatError, SourceError
from eutectic.weights.dtypes import BY_TORCH
from eutectic.weights.files import SourceFile
from eutectic.weights.tensor_ref import StoredTensor

__all__ = ["read_pickle_zip"]

MOST_PICKLE_BYTES = 64_000_000
MOST_OPCODES = 3_000_000  # a tensor takes about 30; one hostile byte can make an object of a hundred
MOST_DIRECTORY_BYTES = 32_000_000
MOST_DIMENSIONS = 64
WRAPPERS = ("state_dict", "model", "module")
CURE = 'safetensors.torch.save_file(torch.load(path, weights_only=True), "model.safetensors")'

_STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16",
    "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool", "UntypedStorage": "uint8",
    "ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128", "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8", "QInt32Storage": "qint32", "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
}  # fmt: skip
_REBUILD = "torch._utils._rebuild_tensor"
_REBUILD_PARAMETER = "torch._utils._rebuild_parameter"
_UNUSABLE = {
    "torch._utils._rebuild_sparse_tensor": "is sparse; save its .to_dense()",
    "torch._utils._rebuild_qtensor": "is quantised; save its .dequantize()",
    "torch._utils._rebuild_meta_tensor_no_storage": "is a meta tensor without values; save the loaded model",
    "torch._utils._rebuild_nested_tensor": "is a nested tensor; save its parts",
}
_BUILTIN = ("builtins", "__builtin__")  # Python 3's and 2's spelling; torch writes the second
# What trainers write beside the tensors; calling one of these gives a value without content.
_IGNORED = {
    *("collections.Counter", "torch.device", "torch.serialization._get_layout"),
    *("_codecs.encode", "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
    *(f"{module}.{name}" for module in _BUILTIN for name in ("set", "complex", "list", "dict", "int")),
}
_ALLOWED = {
    *(
        "collections.OrderedDict",
        "collections.defaultdict",
        "torch.Size",
        "torch.Tensor",
        "torch._tensor._rebuild_from_type_v2",
    ),
    *("torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"),
    *(_REBUILD, _REBUILD + "_v2", _REBUILD + "_v3", _REBUILD_PARAMETER, _REBUILD_PARAMETER + "_with_state"),
    *("torch.storage.UntypedStorage", "torch.storage.TypedStorage"),
    *(f"torch.{name}" for name in (*_STORAGES, *BY_TORCH, "complex32", "complex128")),
    *(f"torch.per_{kind}_{scheme}" for kind in ("tensor", "channel") for scheme in ("affine", "symmetric")),
    *_UNUSABLE,
    *_IGNORED,
}


@dataclass(frozen=True, eq=False)
class _Name:
    """A global that the pickle mentions: a label, never the thing."""

    label: str


@dataclass(frozen=True, eq=False)
class _Storage:
    dtype: str
    key: str
    elements: int


@dataclass(frozen=True, eq=False)
class _Tensor:
    """The arguments of a rebuild, unchecked; `fault` says why the tensor cannot be used, if it is asked for."""

    storage: _Storage | None = None
    offset: Any = 0
    shape: Any = ()
    strides: Any = ()
    dtype: str = ""
    fault: str = ""


class _Mapping:
    """A dict as pairs, so that hostile keys are never hashed."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Any, Any]] = []

    def has_tensors(self) -> bool:
        return any(isinstance(value, _Tensor) for _, value in self.pairs)


class _Object:
    """A value that no tensor needs."""


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
    try:
        content = _interpret(file, data)
    except FormatError:
        raise
    except Exception as error:  # a damaged program fails in any way, and every way means the same
        raise FormatError(
            f"{file.path}: data.pkl is damaged or was not written by torch.save "
            f"({type(error).__name__}); fetch the file again"
        ) from None
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
        where = f"{self.file.path}: zip entry {_shown(name)}"
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
            raise FormatError(f"{where} is called {_shown(local_name)} in its own header; fetch it again")
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


# --- the pickle -----------------------------------------------------------------------------------------------

_OPERANDS = {
    pickle.BININT1: "<B", pickle.BININT2: "<H", pickle.BININT: "<i", pickle.BINFLOAT: ">d",
    pickle.BINGET: "<B", pickle.LONG_BINGET: "<I", pickle.BINPUT: "<B", pickle.LONG_BINPUT: "<I",
    pickle.PROTO: "<B", pickle.FRAME: "<Q", pickle.BINUNICODE: "<I", pickle.SHORT_BINUNICODE: "<B",
    pickle.BINUNICODE8: "<Q", pickle.SHORT_BINBYTES: "<B", pickle.BINBYTES: "<I", pickle.LONG1: "<B",
}  # fmt: skip
_LAYOUTS = {opcode: struct.Struct(layout) for opcode, layout in _OPERANDS.items()}
_COUNTED = frozenset(list(_OPERANDS)[-6:])  # their operand is a length, that many bytes follow
_CONSTANTS = {pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False, pickle.EMPTY_TUPLE: ()}
_TUPLES = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}


def _interpret(file: SourceFile, data: bytes) -> Any:
    """What a pickle describes, in plain data and the records above; cost grows with its length only."""
    stack: list[Any] = []
    marks: list[list[Any]] = []
    memo: dict[int, Any] = {}
    position = 0
    for _ in range(MOST_OPCODES):
        opcode = data[position : position + 1]
        position += 1
        operand: Any = None
        if layout := _LAYOUTS.get(opcode):
            (operand,) = layout.unpack_from(data, position)
            position += layout.size
            if opcode in _COUNTED:
                if operand > len(data) - position:
                    raise EOFError
                operand = data[position : (position := position + operand)]
        match opcode:
            case pickle.BINPUT | pickle.LONG_BINPUT:
                memo[operand] = stack[-1]
            case pickle.BINGET | pickle.LONG_BINGET:
                stack.append(memo[operand])
            case pickle.BININT1 | pickle.BININT2 | pickle.BININT | pickle.BINFLOAT:
                stack.append(operand)
            case pickle.BINUNICODE | pickle.SHORT_BINUNICODE | pickle.BINUNICODE8:
                stack.append(operand.decode())
            case pickle.TUPLE1 | pickle.TUPLE2 | pickle.TUPLE3:
                stack[-_TUPLES[opcode] :] = [tuple(stack[-_TUPLES[opcode] :])]
            case pickle.MARK:
                marks.append(stack)
                stack = []
            case pickle.TUPLE:
                items, stack = tuple(stack), marks.pop()
                stack.append(items)
            case pickle.NONE | pickle.NEWTRUE | pickle.NEWFALSE | pickle.EMPTY_TUPLE:
                stack.append(_CONSTANTS[opcode])
            case pickle.REDUCE | pickle.NEWOBJ:
                arguments = stack.pop()
                stack[-1] = _call(stack[-1], arguments)
            case pickle.BINPERSID:
                stack[-1] = _refer(stack[-1])
            case pickle.GLOBAL:
                module, name, _ = data[position : position + 400].split(b"\n", 2)
                position += len(module) + len(name) + 2
                stack.append(_name(file, module.decode(), name.decode()))
            case pickle.STACK_GLOBAL:
                name, module = stack.pop(), stack.pop()
                stack.append(_name(file, module, name))
            case pickle.EMPTY_DICT:
                stack.append(_Mapping())
            case pickle.EMPTY_LIST | pickle.EMPTY_SET:
                stack.append([])
            case pickle.SETITEM:
                value, key = stack.pop(), stack.pop()
                _extend(stack[-1], [key, value])
            case pickle.APPEND:
                item = stack.pop()
                _extend(stack[-1], [item])
            case pickle.SETITEMS | pickle.APPENDS | pickle.ADDITEMS:
                items, stack = stack, marks.pop()
                _extend(stack[-1], items)
            case pickle.BUILD:
                stack.pop()  # attributes, such as a state dict's _metadata: our records take none
            case pickle.LONG1:
                stack.append(int.from_bytes(operand, "little", signed=True))
            case pickle.SHORT_BINBYTES | pickle.BINBYTES:
                stack.append(operand)
            case pickle.MEMOIZE:
                memo[len(memo)] = stack[-1]
            case pickle.PROTO | pickle.FRAME:
                continue  # they tell nothing that the other opcodes do not
            case pickle.STOP:
                return stack.pop()
            case b"":
                raise EOFError
            case _:
                raise FormatError(
                    f"{file.path}: data.pkl has opcode {opcode!r} at byte {position - 1}, which torch.save "
                    "does not write; the file is damaged or hostile"
                )
    raise FormatError(f"{file.path}: data.pkl takes more than {MOST_OPCODES} steps; no state dict needs as many")


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, _Mapping):
        target.pairs.extend(zip(items[::2], items[1::2], strict=True))
    elif isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, _Object):
        raise TypeError


def _name(file: SourceFile, module: Any, name: Any) -> _Name:
    label = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "a nameless global"
    if label not in _ALLOWED:
        raise FormatError(
            f"{file.path}: data.pkl asks for {label[:120]!r}, which no state dict needs and which is not run "
            f"here. If you trust the file, save its tensors as safetensors: {CURE}"
        )
    return _Name(label)


def _call(target: Any, arguments: Any) -> Any:
    """The record for ``target(*arguments)``, where `target` is a label."""
    if not isinstance(target, _Name) or not isinstance(arguments, tuple):
        raise TypeError
    label = target.label
    if label.startswith(_REBUILD):
        return _rebuild(label, *arguments)
    if label.startswith(_REBUILD_PARAMETER):
        return arguments[0]
    if label == "collections.defaultdict" or (label == "collections.OrderedDict" and not arguments):
        return _Mapping()
    if label == "torch.Size" and isinstance(arguments[0], tuple):
        return arguments[0]
    if label == "torch._tensor._rebuild_from_type_v2":  # (function, type, arguments, attributes)
        return _call(arguments[0], arguments[2])
    if label in _UNUSABLE:
        return _Tensor(fault=_UNUSABLE[label])
    if label in _IGNORED:
        return _Object()
    raise TypeError


def _rebuild(label: str, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> _Tensor:
    """`_v2` adds (requires_grad, hooks, metadata) to the plain form, `_v3` a dtype before the metadata."""
    if not isinstance(storage, _Storage):
        raise TypeError
    dtype, metadata = storage.dtype, rest[2:3]
    if label.endswith("_v3"):
        dtype, metadata = rest[2].label.removeprefix("torch."), rest[3:4]
    lazy = bool(metadata and metadata[0] is not None and metadata[0].pairs)
    fault = "is a lazily conjugated or negated view; save its .resolve_conj().resolve_neg()" if lazy else ""
    return _Tensor(storage, offset, shape, strides, dtype, fault)


def _refer(reference: Any) -> _Storage:
    """A persistent id: ("storage", type, key, device, elements)."""
    kind, name, key, _, elements = reference
    if kind != "storage" or not isinstance(key, str) or not _natural(elements):
        raise TypeError
    return _Storage(_STORAGES[name.label.rpartition(".")[2]], key, elements)


# --- the tensors ----------------------------------------------------------------------------------------------


def _find_tensors(file: SourceFile, content: Any) -> dict[str, _Tensor]:
    """The one mapping of names to tensors: the content itself, or what lies under one of WRAPPERS."""
    if not isinstance(content, _Mapping):
        kind = type(content).__name__.lstrip("_").lower()
        raise FormatError(f"{file.path}: holds one {kind}, not a mapping from names to tensors; save a state dict")
    inside = ""
    if not content.has_tensors():
        wrapped = [
            (key, value)
            for key, value in content.pairs
            if isinstance(key, str) and key in WRAPPERS and isinstance(value, _Mapping) and value.has_tensors()
        ]
        if len(wrapped) > 1:
            keys = " and ".join(repr(key) for key, _ in wrapped)
            raise FormatError(f"{file.path}: holds tensors under {keys}; save the one you mean alone")
        if wrapped:
            inside, content = f" under {wrapped[0][0]!r}", wrapped[0][1]
    tensors: dict[str, _Tensor] = {}
    others: list[tuple[Any, Any]] = []
    for key, value in content.pairs:
        if not isinstance(value, _Tensor):
            others.append((key, value))
        elif not isinstance(key, str):
            raise FormatError(f"{file.path}: a tensor{inside} is named by {type(key).__name__}, not by text")
        elif key in tensors:
            raise FormatError(f"{file.path}: {_shown(key)} is there twice{inside}; fetch the file again")
        else:
            tensors[key] = value
    keys = [_shown(key) if isinstance(key, str) else f"a {type(key).__name__}" for key, _ in others[:8]]
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
        if isinstance(value, _Tensor):
            return True
        if id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, _Mapping):
                pending.extend(child for _, child in value.pairs)
            elif isinstance(value, (list, tuple)):
                pending.extend(value)
    return False


def _locate(archive: _Archive, name: str, tensor: _Tensor) -> StoredTensor:
    where = f"{archive.file.path}: {_shown(name)}"
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


def _count_elements(where: str, tensor: _Tensor, most: int) -> int:
    """The elements of a contiguous row-major tensor (counted no further than beyond `most`)."""
    shape, strides = tensor.shape, tensor.strides
    sizes = (*shape, *strides, tensor.offset) if isinstance(shape, tuple) and isinstance(strides, tuple) else (-1,)
    if not all(map(_natural, sizes)) or len(shape) != len(strides) or len(shape) > MOST_DIMENSIONS:
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


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _shown(name: str) -> str:
    return repr(name if len(name) <= 120 else name[:117] + "...")
