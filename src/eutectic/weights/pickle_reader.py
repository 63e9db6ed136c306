"""What a pickle that torch.save wrote describes, as plain data and records of ours; nothing in it is run.

A pickle is a program, so it is not given to `pickle.Unpickler`, which a nested key crashes and one memo opcode
makes allocate 16 GB even where `find_class` refuses every name. A small interpreter knows only the opcodes that
build plain data: a global is a mere label from a fixed list, "calling" one makes a record, no key is hashed, and
no container is copied or walked recursively.
Source: torch/serialization.py and torch/_utils.py, versions 1.6 to 2.13.
"""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass
from typing import Any

from eutectic.errors import FormatError
from eutectic.weights.claims import is_size
from eutectic.weights.dtypes import BY_TORCH
from eutectic.weights.files import Place

__all__ = ["CURE", "PickledMapping", "PickledTensor", "read_pickle"]

MOST_OPCODES = 3_000_000  # a tensor takes about 30; one hostile byte can make an object of a hundred
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
    *("collections.OrderedDict", "collections.defaultdict", "torch.Size", "torch.Tensor"),
    *("torch._tensor._rebuild_from_type_v2", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"),
    *(_REBUILD, _REBUILD + "_v2", _REBUILD + "_v3", _REBUILD_PARAMETER, _REBUILD_PARAMETER + "_with_state"),
    *("torch.storage.UntypedStorage", "torch.storage.TypedStorage"),
    *(f"torch.{name}" for name in (*_STORAGES, *BY_TORCH, "complex32", "complex128")),
    *(f"torch.per_{kind}_{scheme}" for kind in ("tensor", "channel") for scheme in ("affine", "symmetric")),
    *_UNUSABLE,
    *_IGNORED,
}


@dataclass(frozen=True, eq=False)
class PickledName:
    """A global that the pickle mentions: a label, never the thing."""

    label: str


@dataclass(frozen=True, eq=False)
class PickledStorage:
    """Where a tensor's bytes lie: the archive's entry ``data/<key>``, and how many elements it should hold."""

    dtype: str
    key: str
    elements: int


@dataclass(frozen=True, eq=False)
class PickledTensor:
    """The arguments of a rebuild, unchecked; `fault` says why the tensor cannot be used, if it is asked for."""

    storage: PickledStorage | None = None
    offset: Any = 0
    shape: Any = ()
    strides: Any = ()
    dtype: str = ""
    fault: str = ""


class PickledMapping:
    """A dict as pairs, so that hostile keys are never hashed."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Any, Any]] = []

    def has_tensors(self) -> bool:
        """Whether a value (at this level) is a tensor."""
        return any(isinstance(value, PickledTensor) for _, value in self.pairs)


class PickledObject:
    """A value that no tensor needs."""


def read_pickle(path: Place, data: bytes) -> Any:
    """The value that the pickle `data` (of the archive at `path`) describes: text, numbers, lists, tuples, records.

    Time and memory grow with the length of `data` only. A value that no tensor needs is an empty record.

    Raises:
        FormatError: a name or an opcode beyond what a state dict needs, too many opcodes, or a damaged program.
    """
    try:
        return _interpret(path, data)
    except FormatError:
        raise
    except Exception as error:  # a damaged program fails in any way, and every way means the same
        raise FormatError(
            f"{path}: data.pkl is damaged or was not written by torch.save "
            f"({type(error).__name__}); fetch the file again"
        ) from None


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


def _interpret(path: Place, data: bytes) -> Any:
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
                stack.append(_name(path, module.decode(), name.decode()))
            case pickle.STACK_GLOBAL:
                name, module = stack.pop(), stack.pop()
                stack.append(_name(path, module, name))
            case pickle.EMPTY_DICT:
                stack.append(PickledMapping())
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
                    f"{path}: data.pkl has opcode {opcode!r} at byte {position - 1}, which torch.save "
                    "does not write; the file is damaged or hostile"
                )
    raise FormatError(f"{path}: data.pkl takes more than {MOST_OPCODES} steps; no state dict needs as many")


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, PickledMapping):
        target.pairs.extend(zip(items[::2], items[1::2], strict=True))
    elif isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, PickledObject):
        raise TypeError


def _name(path: Place, module: Any, name: Any) -> PickledName:
    label = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "a nameless global"
    if label not in _ALLOWED:
        raise FormatError(
            f"{path}: data.pkl asks for {label[:120]!r}, which no state dict needs and which is not run "
            f"here. If you trust the file, save its tensors as safetensors: {CURE}"
        )
    return PickledName(label)


def _call(target: Any, arguments: Any) -> Any:
    """The record for ``target(*arguments)``, where `target` is a label."""
    if not isinstance(target, PickledName) or not isinstance(arguments, tuple):
        raise TypeError
    label = target.label
    if label.startswith(_REBUILD):
        return _rebuild(label, *arguments)
    if label.startswith(_REBUILD_PARAMETER):
        return arguments[0]
    if label == "collections.defaultdict" or (label == "collections.OrderedDict" and not arguments):
        return PickledMapping()
    if label == "torch.Size" and isinstance(arguments[0], tuple):
        return arguments[0]
    if label == "torch._tensor._rebuild_from_type_v2":  # (function, type, arguments, attributes)
        return _call(arguments[0], arguments[2])
    if label in _UNUSABLE:
        return PickledTensor(fault=_UNUSABLE[label])
    if label in _IGNORED:
        return PickledObject()
    raise TypeError


def _rebuild(label: str, storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> PickledTensor:
    """`_v2` adds (requires_grad, hooks, metadata) to the plain form, `_v3` a dtype before the metadata."""
    if not isinstance(storage, PickledStorage):
        raise TypeError
    dtype, metadata = storage.dtype, rest[2:3]
    if label.endswith("_v3"):
        dtype, metadata = rest[2].label.removeprefix("torch."), rest[3:4]
    lazy = bool(metadata and metadata[0] is not None and metadata[0].pairs)
    fault = "is a lazily conjugated or negated view; save its .resolve_conj().resolve_neg()" if lazy else ""
    return PickledTensor(storage, offset, shape, strides, dtype, fault)


def _refer(reference: Any) -> PickledStorage:
    """A persistent id: ("storage", type, key, device, elements)."""
    kind, name, key, _, elements = reference
    if kind != "storage" or not isinstance(key, str) or not is_size(elements):
        raise TypeError
    return PickledStorage(_STORAGES[name.label.rpartition(".")[2]], key, elements)
