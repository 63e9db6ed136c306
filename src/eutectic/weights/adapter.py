"""A model with a LoRA adapter of PEFT's format, read as the dense model that it stands for; nothing dense is held.

W' = W + s B A with s = alpha / r (Hu et al. 2021, arXiv 2106.09685, eq. 3), or alpha / sqrt(r) for rsLoRA
(Kalajdzievski 2023, arXiv 2312.03732). DoRA: W' = m (W + s B A) / |W + s B A| by output row (Liu et al. 2024, arXiv
2402.09353, eq. 5). Elements are made when they are read, in float32, each by the same sum in the same order whatever is
read around it.
"""

from __future__ import annotations

import math
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eutectic.errors import FormatError, SourceError
from eutectic.weights.checkpoint import Checkpoint, open_checkpoint, read_json
from eutectic.weights.codec import widen
from eutectic.weights.dtypes import BY_NAME, DType
from eutectic.weights.files import Place, open_file
from eutectic.weights.tensor_ref import StoredTensor, TensorRef

__all__ = ["ADAPTER_CONFIG", "AdaptedTensor", "is_adapter", "open_adapted"]

ADAPTER_CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."
HELD = 4  # pairs of factors kept in memory, for the tensors under way
_FACTOR = re.compile(r"(.*)\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)(?:\.default)?(\.weight|\.bias|)\Z")
# Ways to start training that also change the base weights: an adapter on the published base is then another model.
_MOVED = ("pissa", "olora", "corda", "loftq", "lora_ga")
_UNKNOWN = ("layer_replication", "target_parameters", "megatron_config", "use_qalora", "arrow_config")


def is_adapter(folder: Place) -> bool:
    """Whether a folder holds an adapter rather than a model."""
    return (folder / ADAPTER_CONFIG).is_file()


def open_adapted(base: Checkpoint, folder: Place) -> Checkpoint:
    """`base` with the adapter in `folder` applied: the same names, lazily; headers only are read.

    Tensors that the adapter saved whole (modules_to_save, biases) take the place of the base's.

    Raises:
        SourceError: no adapter there, one of another base, or of a kind whose dense form is not known here.
        FormatError: a file breaks its format.
    """
    config = _read_config(folder)
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise SourceError(f"{folder}: holds no {' or '.join(WEIGHTS)}")
    stored = open_checkpoint(weights)
    parts: dict[str, dict[str, TensorRef]] = {}
    tensors = dict(base.items())
    for key, ref in stored.items():
        name = key.removeprefix(PREFIX).replace(".base_layer.", ".")  # an embedding that was saved beside its factors
        found = _FACTOR.match(name)
        if found is None:
            target = _find(name, tensors) or name
            if target in tensors and tensors[target].shape != ref.shape:
                raise _mismatch(folder, key, ref.shape, target, tensors[target].shape)
            tensors[target] = replace(ref, name=target) if isinstance(ref, StoredTensor) else ref
        elif found[3] == ".bias":
            raise SourceError(
                f"{folder}: {key!r} is a bias of a factor (lora_bias), whose dense form is not known here"
            )
        else:
            parts.setdefault(found[1], {})[found[2]] = ref
    if not parts:
        raise SourceError(f"{folder}: {weights.name} holds no lora_A; is it an adapter of PEFT's format?")
    factors = _Factors()
    for module, refs in parts.items():
        target = _find(f"{module}.weight", base)
        if target is None:
            raise SourceError(
                f"{folder}: adapts {module}, which the base {base.path} has not; was it trained on another model?"
            )
        tensors[target] = _adapted(folder, config, module, refs, tensors[target], factors)
    file = open_file(folder / ADAPTER_CONFIG)
    headers = {**base.headers, **stored.headers, file: file.read(0, file.size)}
    largest = max(4 * sum(ref.numel for ref in refs.values()) for refs in parts.values())
    return Checkpoint(
        tensors,
        path=base.path,
        config=base.config,
        headers=headers,
        held_bytes=base.held_bytes + stored.held_bytes + HELD * largest,
    )


def _read_config(folder: Place) -> dict[str, Any]:
    if not is_adapter(folder):
        raise SourceError(f"{folder}: holds no {ADAPTER_CONFIG}; an adapter of PEFT's format has one")
    config = read_json(folder / ADAPTER_CONFIG)
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise SourceError(f"{folder}: an adapter of the kind {kind!r}; LoRA, rsLoRA and DoRA are understood")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_MOVED):
        raise SourceError(
            f"{folder}: its training began by changing the base ({start}), so it does not fit the published one; "
            "convert it first (PEFT: path_initial_model_for_weight_conversion)"
        )
    for key in _UNKNOWN:
        if config.get(key):
            raise SourceError(f"{folder}: {key} is set, whose dense form is not known here; merge it with PEFT first")
    return config


def _mismatch(folder: Place, key: str, shape: Any, target: str, wanted: Any) -> SourceError:
    return SourceError(f"{folder}: {key!r} {list(shape)} does not fit {target} {list(wanted)} of the base")


def _find(name: str, tensors: Mapping[str, TensorRef]) -> str | None:
    """The base's name for a tensor: the same, or the only one that differs by a prefix."""
    if name in tensors:
        return name
    near = [known for known in tensors if known.endswith(f".{name}") or name.endswith(f".{known}")]
    return near[0] if len(near) == 1 else None


def _setting(pattern: Any, module: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of a module's name, as PEFT chooses it."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})\Z", module):
            return value
    return default


def _adapted(
    folder: Place,
    config: Mapping[str, Any],
    module: str,
    refs: Mapping[str, TensorRef],
    base: TensorRef,
    held: _Factors,
) -> AdaptedTensor:
    embeds = "embedding_A" in refs
    names = ("embedding_A", "embedding_B") if embeds else ("A", "B")
    if not all(name in refs for name in names):
        raise FormatError(f"{folder}: {module} has lora_{' and lora_'.join(sorted(refs))} only; the pair is not whole")
    a, b = (refs[name] for name in names)
    rank = a.shape[0] if a.shape else 0
    alpha = _setting(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    if not rank or not isinstance(alpha, (int, float)):
        raise FormatError(f"{folder}: {module} has rank {rank} and lora_alpha {alpha!r}")
    turned = embeds or bool(config.get("fan_in_fan_out"))
    rows = (a.numel if turned else b.numel) // rank
    width = (b.numel if turned else a.numel) // rank
    if len(base.shape) < 2 or base.shape[0] != rows or math.prod(base.shape[1:]) != width or not base.dtype.floating:
        raise _mismatch(folder, f"{module}.lora_A, lora_B", (rows, width), base.name, base.shape)
    magnitude = refs.get("magnitude_vector")
    if magnitude is not None and (turned or len(base.shape) != 2 or magnitude.numel != rows):
        raise SourceError(f"{folder}: {module}: DoRA of other layers than plain linear ones is not known here")
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    left, right = (a, b) if turned else (b, a)
    return AdaptedTensor(base, _Pair(left, right, rank, turned, magnitude), scale, held)


@dataclass(frozen=True, eq=False)
class _Pair:
    """The two factors of one tensor, as stored: delta = L R with L [rows, rank] and R [rank, width]."""

    left: TensorRef
    right: TensorRef
    rank: int
    turned: bool
    magnitude: TensorRef | None

    def read(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """L, R and (DoRA) the magnitudes in float32."""
        left, right = (_float32(ref.to_numpy()) for ref in (self.left, self.right))
        if self.turned:  # stored as [rank, rows] and [width, rank]
            left, right = left.reshape(self.rank, -1).T, right.reshape(-1, self.rank).T
        left = np.ascontiguousarray(left.reshape(-1, self.rank))
        right = np.ascontiguousarray(right.reshape(self.rank, -1))
        return left, right, None if self.magnitude is None else _float32(self.magnitude.to_numpy()).reshape(-1)


class _Factors:
    """The factors last used, at most `HELD` pairs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Any] = OrderedDict()

    def of(self, pair: _Pair) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        with self._lock:
            if id(pair) not in self._kept:
                self._kept[id(pair)] = pair.read()
                if len(self._kept) > HELD:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(id(pair))
            return self._kept[id(pair)]


class AdaptedTensor(TensorRef):
    """One tensor of a base with its part of an adapter: float32 (float64 above float64)."""

    def __init__(self, base: TensorRef, pair: _Pair, scale: float, held: _Factors) -> None:
        self.base, self.pair, self.scale, self.held = base, pair, np.float32(scale), held
        self.name, self.shape = base.name, base.shape
        self.dtype: DType = BY_NAME["F64" if base.dtype.name == "F64" else "F32"]
        self.row = math.prod(base.shape[1:])

    @property
    def native(self) -> DType:
        return self.base.dtype

    @property
    def lies_in(self) -> TensorRef:
        return self.base.lies_in

    def work_bytes(self, elements: int) -> int:
        scaled = self.pair.magnitude is not None  # by rows, which are made whole
        whole = elements + 2 * self.row if scaled else elements
        return whole * (self.base.dtype.size + (2 if scaled else 1) * self.dtype.size) + self.base.work_bytes(whole)

    def rehearse(self) -> None:
        from eutectic.weights.adapter_kernels import add_product, rescale

        self.base.rehearse()
        one, values = np.ones((1, 1), dtype=np.float32), np.ones(1, dtype=self._numpy)
        add_product(np.empty(0, dtype=np.uint16), values, one, one, self.scale, 0)
        if self.pair.magnitude is not None:
            rescale(values.reshape(1, 1), one[0])

    def read_into(self, buffer: memoryview, start: int, stop: int) -> None:
        left, right, magnitude = self.held.of(self.pair)
        if magnitude is None:
            self._adapt(np.frombuffer(buffer, dtype=self._numpy, count=stop - start), left, right, start)
            return
        from eutectic.weights.adapter_kernels import rescale

        first, last = start // self.row, -(-stop // self.row)  # a row's length is that of the whole row
        values = np.empty((last - first) * self.row, dtype=self._numpy)
        self._adapt(values, left, right, first * self.row)
        rescale(values.reshape(-1, self.row), magnitude[first:last])
        values = values[start - first * self.row : stop - first * self.row]
        buffer[: values.nbytes] = values.view(np.uint8).data

    @property
    def _numpy(self) -> type[np.floating]:
        return np.float64 if self.dtype.name == "F64" else np.float32

    def _adapt(self, values: np.ndarray, left: np.ndarray, right: np.ndarray, start: int) -> None:
        """Fill `values` from element `start`: a sum over the rank in its order, never a matrix product, whose order of
        summation depends on how many rows are asked for."""
        from eutectic.weights.adapter_kernels import add_product

        stop, halves = start + len(values), np.empty(0, dtype=np.uint16)
        if self.base.dtype is self.dtype:
            self.base.read_into(values.view(np.uint8).data, start, stop)
        elif self.base.dtype.name == "BF16":
            halves = np.empty(len(values), dtype=np.uint16)
            self.base.read_into(halves.view(np.uint8).data, start, stop)
        else:
            raw = np.empty(len(values) * self.base.dtype.size, dtype=np.uint8)
            self.base.read_into(raw.data, start, stop)
            values[:] = widen(raw, self.base.dtype.name)
        add_product(halves, values, left, right, self.scale, start)


def _float32(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32, copy=False)
