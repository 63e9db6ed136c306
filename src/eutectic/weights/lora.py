"""A LoRA adapter of PEFT's format: its configuration, its pairs of factors, and what it saved whole. Headers only.

What a pair adds to a weight is s B A with s = alpha / r (Hu et al. 2021, arXiv 2106.09685, eq. 3), or alpha / sqrt(r)
for rsLoRA (Kalajdzievski 2023, arXiv 2312.03732).
"""

from __future__ import annotations

import math
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from eutectic.errors import FormatError, SourceError
from eutectic.weights.checkpoint import INDEX_FILES, SINGLE_FILES, Checkpoint, open_checkpoint, read_json
from eutectic.weights.files import Place, SourceFile, is_folder, open_file
from eutectic.weights.tensor_ref import TensorRef

__all__ = [
    "ADAPTER_CONFIG", "ADAPTER_FILES", "ADAPTER_WEIGHTS", "PREFIX", "Adapter", "HeldFactors", "Pair", "is_adapter",
    "is_lone_adapter", "read_adapter",
]  # fmt: skip

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
WEIGHTS = (ADAPTER_WEIGHTS, "adapter_model.bin")
ADAPTER_FILES = (ADAPTER_CONFIG, *WEIGHTS)
PREFIX = "base_model.model."
HELD = 4  # pairs of factors kept in memory, for the tensors under way
_FACTOR = re.compile(r"(.*)\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)(?:\.default)?(\.weight|\.bias|)\Z")
# Ways to start training that also change the base weights: an adapter on the published base is then another model.
_MOVED = ("pissa", "olora", "corda", "loftq", "lora_ga")
# What may stand in adapter_config.json, where it is not null.
_FORM = {
    "lora_alpha": ((int, float), "a number"),
    "alpha_pattern": (dict, "an object"),
    "modules_to_save": (list, "a list"),
    "target_modules": ((str, list), "a text or a list"),
    "base_model_name_or_path": (str, "a text"),
    "bias": (str, "a text"),
}
_UNKNOWN = ("layer_replication", "target_parameters", "megatron_config", "use_qalora", "arrow_config")


def is_adapter(folder: Place) -> bool:
    """Whether a folder holds an adapter."""
    return (folder / ADAPTER_CONFIG).is_file()


def is_lone_adapter(place: Place) -> bool:
    """Whether a place is a folder with an adapter and without the weights of a model."""
    if not is_folder(place) or not is_adapter(place):
        return False
    return not any((place / name).is_file() for name in (*SINGLE_FILES, *INDEX_FILES))


@dataclass(frozen=True, eq=False)
class Pair:
    """The factors of one weight as stored, A [r, inputs] and B [outputs, r]: its change is s B A.

    `turned`: the weight lies with its inputs first (an embedding, or fan_in_fan_out), so its change is (s B A)'.
    """

    a: TensorRef
    b: TensorRef
    scale: float
    turned: bool
    embeds: bool
    magnitude: TensorRef | None = None

    @property
    def rank(self) -> int:
        """r."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape."""
        rows, width = self.b.numel // self.rank, self.a.numel // self.rank
        return (width, rows) if self.turned else (rows, *self.a.shape[1:])

    def read(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """L [rows, r] and R [r, width] with change = s L R, and (DoRA) the magnitudes; in float32."""
        a, b = (_float32(ref.to_numpy()) for ref in (self.a, self.b))
        a, b = a.reshape(self.rank, -1), b.reshape(-1, self.rank)
        left, right = (a.T, b.T) if self.turned else (b, a)
        magnitude = None if self.magnitude is None else _float32(self.magnitude.to_numpy()).reshape(-1)
        return np.ascontiguousarray(left), np.ascontiguousarray(right), magnitude


@dataclass(frozen=True, eq=False)
class Adapter:
    """An opened adapter: `pairs` by module, `whole` tensors by the name that the base has for them.

    A whole tensor's handle has the name under which the adapter stores it.
    """

    folder: Place
    config: Mapping[str, Any]
    stored: Checkpoint
    pairs: Mapping[str, Pair]
    whole: Mapping[str, TensorRef]

    @cached_property
    def headers(self) -> dict[SourceFile, bytes]:
        """What describes it, for provenance: the header of its weights, its configuration."""
        file = open_file(self.folder / ADAPTER_CONFIG)
        return {**self.stored.headers, file: file.read(0, file.size)}

    @property
    def held_bytes(self) -> int:
        """What reading its changes keeps in memory."""
        return self.stored.held_bytes + HELD * max(4 * (pair.a.numel + pair.b.numel) for pair in self.pairs.values())


def read_adapter(folder: Place) -> Adapter:
    """Open the adapter in a folder.

    Raises:
        SourceError: no adapter there, or one of a kind whose dense form is not known here.
        FormatError: a file breaks its format.
    """
    config = _read_config(folder)
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise SourceError(f"{folder}: holds no {' or '.join(WEIGHTS)}")
    stored = open_checkpoint(weights)
    parts: dict[str, dict[str, TensorRef]] = {}
    whole: dict[str, TensorRef] = {}
    for key, ref in stored.items():
        name = key.removeprefix(PREFIX).replace(".base_layer.", ".")  # an embedding that was saved beside its factors
        found = _FACTOR.match(name)
        if found is None:
            whole[name] = ref
        elif found[3] == ".bias":
            raise SourceError(
                f"{folder}: {key!r} is a bias of a factor (lora_bias), whose dense form is not known here"
            )
        else:
            parts.setdefault(found[1], {})[found[2]] = ref
    if not parts:
        raise SourceError(f"{folder}: {weights.name} holds no lora_A; is it an adapter of PEFT's format?")
    pairs = {module: _pair(folder, config, module, refs) for module, refs in parts.items()}
    return Adapter(folder, config, stored, pairs, whole)


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
    for key, (kind, words) in _FORM.items():
        value = config.get(key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise FormatError(f"{folder / ADAPTER_CONFIG}: {key} is {value!r}, not {words}")
    _check_pattern(folder / ADAPTER_CONFIG, config.get("alpha_pattern") or {})
    for key in _UNKNOWN:
        if config.get(key):
            raise SourceError(f"{folder}: {key} is set, whose dense form is not known here; merge it with PEFT first")
    return config


def _check_pattern(file: Place, pattern: Mapping[str, Any]) -> None:
    for key in pattern:
        try:
            re.compile(key)
        except re.error as error:
            raise FormatError(f"{file}: alpha_pattern: {key!r} is no regular expression: {error}") from None


def _setting(pattern: Any, module: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of a module's name, as PEFT chooses it."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})\Z", module):
            return value
    return default


def _pair(folder: Place, config: Mapping[str, Any], module: str, refs: Mapping[str, TensorRef]) -> Pair:
    embeds = "embedding_A" in refs
    names = ("embedding_A", "embedding_B") if embeds else ("A", "B")
    if not all(name in refs for name in names):
        raise FormatError(f"{folder}: {module} has lora_{' and lora_'.join(sorted(refs))} only; the pair is not whole")
    a, b = (refs[name] for name in names)
    rank = a.shape[0] if a.shape else 0
    alpha = _setting(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    if not rank or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise FormatError(f"{folder}: {module} has rank {rank} and lora_alpha {alpha!r}")
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    turned = embeds or bool(config.get("fan_in_fan_out"))
    return Pair(a, b, scale, turned, embeds, refs.get("magnitude_vector"))


class HeldFactors:
    """The factors last used, at most `HELD` pairs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Any] = OrderedDict()

    def of(self, pair: Pair) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """`pair.read()`."""
        with self._lock:
            if id(pair) not in self._kept:
                self._kept[id(pair)] = pair.read()
                if len(self._kept) > HELD:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(id(pair))
            return self._kept[id(pair)]


def _float32(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32, copy=False)
