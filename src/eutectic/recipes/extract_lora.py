"""From a fine-tune and its base to a LoRA adapter of PEFT's format: the low-rank part of what training changed."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eutectic.errors import OutputError, SourceError
from eutectic.ops.lowrank import factors, rank_for, truncated_svd
from eutectic.recipes.lora_output import Factored, lora_config, unreached
from eutectic.recipes.provenance import public_name
from eutectic.recipes.semantics import pool_of
from eutectic.weights.checkpoint import Checkpoint
from eutectic.weights.dtypes import DType
from eutectic.weights.layers import layer_of
from eutectic.weights.layout import TURNED
from eutectic.weights.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PREFIX
from eutectic.weights.tensor_ref import TensorRef

if TYPE_CHECKING:
    import torch

__all__ = ["Extraction", "extract_lora"]

TABLES = ("relative_attention_bias",)  # lookups inside layers, no matrices that multiply


@dataclass(frozen=True)
class Extraction:
    """What an adapter holds and what it loses.

    `lost` are tensors that changed but are no linear weights of layers, with the norms of their changes.
    """

    modules: tuple[Factored, ...]
    unchanged: int
    lost: tuple[tuple[str, float], ...]

    @property
    def error(self) -> float:
        """Relative Frobenius error of the whole model's change, what is lost included."""
        missed = sum((m.error * m.change) ** 2 for m in self.modules) + sum(norm**2 for _, norm in self.lost)
        total = sum(m.change**2 for m in self.modules) + sum(norm**2 for _, norm in self.lost)
        return math.sqrt(missed / total) if total else 0.0


def extract_lora(
    finetuned: Checkpoint,
    base: Checkpoint,
    out: str | os.PathLike[str],
    *,
    rank: int = 64,
    max_error: float | None = None,
    exclude: Sequence[str] = (),
    dtype: DType | None = None,
    threads: int | None = None,
    report: Callable[[int], None] = lambda nbytes: None,
) -> Extraction:
    """Write a PEFT folder whose adapter, applied to `base`, comes as near to `finetuned` as its rank allows.

    Every two-dimensional weight of the layers that changed becomes a pair B [m, r], A [r, n]; nothing else does.

    Args:
        finetuned, base: checkpoints of one architecture.
        out: the folder to make.
        rank: of every module, at most.
        max_error: the relative Frobenius error of each module's change; takes the smallest rank that reaches it.
        exclude: parts of names of tensors to leave out.
        dtype: of the factors. Default: that of the fine-tune's tensor.
        threads: modules at a time. Default: the processors.
        report: told the bytes that were read.

    Raises:
        SourceError: tensors missing or of another shape, nothing changed, or an error that the rank does not reach.
        OutputError: `out` exists.
    """
    import torch
    from safetensors.torch import save_file

    out = Path(out)
    staging = out.with_name(out.name + ".partial")
    for folder in (out, staging):
        if folder.exists():
            raise OutputError(f"{folder} exists; choose another target or remove it")
    _check_pair(finetuned, base)
    turned = base.config.get("model_type") in TURNED
    chosen = [name for name in base if _is_linear(name, base[name], exclude)]
    others = [name for name in base if name not in set(chosen) and base[name].dtype.floating]

    def one(name: str) -> tuple[Factored | None, dict[str, torch.Tensor]]:
        delta = finetuned[name].to_torch().float() - base[name].to_torch().float()
        report(finetuned[name].nbytes + base[name].nbytes)
        square = float(delta.double().square().sum())
        if not square:
            return None, {}
        if not math.isfinite(square):
            raise SourceError(
                f"{name}: the change from {_named(base, 'the base')} to {_named(finetuned)} holds NaN or infinity"
            )
        u, s, v = truncated_svd(delta.T.contiguous() if turned else delta, rank, name=name)
        kept = len(s) if max_error is None else rank_for(s, square, max_error)
        count = len(s) if kept is None else kept
        error = math.sqrt(max(0.0, 1 - float((s[:count].double() ** 2).sum()) / square))
        b, a = factors(u[:, :count], s[:count], v[:, :count])
        kind = getattr(torch, (dtype or finetuned[name].native).torch)
        module = name.removesuffix(".weight")
        found = Factored(module, base[name].shape, count, error, math.sqrt(square))
        made = {f"{PREFIX}{module}.lora_{side}.weight": m.to(kind).contiguous() for side, m in (("A", a), ("B", b))}
        return found, made

    modules: list[Factored] = []
    tensors: dict[str, torch.Tensor] = {}
    with pool_of(threads or len(os.sched_getaffinity(0))) as pool:
        for found, made in pool.map(one, chosen):
            if found is not None:
                modules.append(found)
                tensors |= made
        norms = pool.map(_norm(finetuned, base, report), others)
        lost = [(name, norm) for name, norm in zip(others, norms, strict=True) if norm]
    _check_found(modules, finetuned, base, rank, max_error)
    whole = Counter(name.removesuffix(".weight").rpartition(".")[2] for name in base if name.endswith(".weight"))
    try:
        staging.mkdir(parents=True)
        save_file(tensors, staging / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        config = _config(modules, base, whole, rank, turned)
        (staging / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        staging.replace(out)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise OutputError(f"{out} cannot be made: {error.strerror}") from None
    return Extraction(tuple(modules), len(chosen) - len(modules), tuple(lost))


def _check_pair(finetuned: Checkpoint, base: Checkpoint) -> None:
    absent = [name for name in base if name not in finetuned]
    if absent:
        raise SourceError(
            f"{_named(finetuned)}: lacks {absent[0]} of the base ({len(absent)} tensors); are they of one kind?"
        )
    shapes = [name for name in base if base[name].shape != finetuned[name].shape and layer_of(name) is not None]
    if shapes:
        mine, yours = list(finetuned[shapes[0]].shape), list(base[shapes[0]].shape)
        raise SourceError(
            f"{_named(finetuned)}: {shapes[0]} {mine} is {yours} in the base ({len(shapes)} tensors differ)"
        )


def _is_linear(name: str, ref: TensorRef, exclude: Sequence[str]) -> bool:
    return (
        len(ref.shape) == 2 and min(ref.shape) > 1 and ref.dtype.floating and name.endswith(".weight")
        and layer_of(name) is not None and not any(part in name for part in (*exclude, *TABLES))
    )  # fmt: skip


def _norm(finetuned: Checkpoint, base: Checkpoint, report: Callable[[int], None]) -> Callable[[str], float]:
    """The norm of a tensor's change, streamed; infinity where its shape changed (a vocabulary that grew)."""
    import numpy as np

    from eutectic.weights.codec import widen

    def pieces(ref: TensorRef) -> Iterator[Any]:
        for at in range(0, ref.numel, 1 << 20):
            raw = np.frombuffer(ref.read(at, min(ref.numel, at + (1 << 20))), dtype=np.uint8)
            yield widen(raw, ref.dtype.name).astype(np.float64)

    def norm(name: str) -> float:
        a, b = finetuned[name], base[name]
        if a.shape != b.shape:
            return math.inf
        report(a.nbytes + b.nbytes)
        return math.sqrt(sum(float(((x - y) ** 2).sum()) for x, y in zip(pieces(a), pieces(b), strict=True)))

    return norm


def _check_found(
    modules: Sequence[Factored], finetuned: Checkpoint, base: Checkpoint, rank: int, max_error: float | None
) -> None:
    if not modules:
        raise SourceError(
            f"no linear weight of a layer differs between {_named(finetuned)} and {_named(base, 'the base')}"
        )
    if max_error is not None and (lines := unreached(modules, max_error, rank)):
        raise SourceError("\n".join([*lines, "raise --rank, or --max-error, or leave them out with --exclude"]))


def _config(
    modules: Sequence[Factored], base: Checkpoint, whole: Counter[str], rank: int, turned: bool
) -> dict[str, Any]:
    """adapter_config.json: the ends of the modules' names as targets, where they mean no other module."""
    ends = Counter(m.module.rpartition(".")[2] for m in modules)
    short = all(whole[end] == count for end, count in ends.items())
    architectures = base.config.get("architectures") or [""]
    causal = str(architectures[0]).endswith(("ForCausalLM", "LMHeadModel"))
    return lora_config(
        {m.module: m.rank for m in modules},
        target_modules=sorted(ends) if short else [m.module for m in modules],
        task_type="CAUSAL_LM" if causal else None,
        base_model_name_or_path=None if base.path is None else _name(base),
        fan_in_fan_out=turned,
    )


def _named(checkpoint: Checkpoint, what: str = "the fine-tune") -> str:
    """Its path; the merge of a recipe has none."""
    return what if checkpoint.path is None else str(checkpoint.path)


def _name(base: Checkpoint) -> str:
    assert base.path is not None
    name, revision = public_name(base.path)
    return name if revision is not None else str(base.path)
