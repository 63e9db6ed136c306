"""A merge as its torch function, on any device: inputs checked and shaped, the result rounded once."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from eutectic.errors import EutecticError, MethodError, NonFiniteError
from eutectic.ops.random import Draws
from eutectic.recipes.match import Step
from eutectic.recipes.source_statistics import read_statistics
from eutectic.recipes.tree import Leaf, Merge, Node

if TYPE_CHECKING:
    import torch

__all__ = ["check_inputs", "merge_in_torch", "nonfinite", "one_thread", "pool_of"]


def nonfinite(step: Step, node: Node, value: Any, at: int) -> NonFiniteError:
    """The error for a non-finite input of a merge: source, tensor, value, and position by flat index."""
    index = [int(i) for i in np.unravel_index(at, step.shape or (1,))]
    name = node.label if isinstance(node, Leaf) else f"the inner {node.method.name}"
    return NonFiniteError(
        f"{name}: {step.name!r} holds {value} at {index}. "
        "Repair that source, or merge it as it is with --allow-nonfinite."
    )


def check_inputs(merge: Merge, step: Step, tensors: Sequence[torch.Tensor], first: int) -> None:
    """Refuse non-finite inputs (flat tensors of any float type, from element `first` of the step)."""
    import torch

    wide = [tensor if tensor.dtype == torch.float64 else tensor.float() for tensor in tensors]
    fine = torch.stack([torch.isfinite(tensor).all() for tensor in wide]).tolist()  # one answer from the device
    for node, tensor, good in zip(merge.inputs, wide, fine, strict=True):
        if not good:
            place = int((~torch.isfinite(tensor)).nonzero()[0])
            raise nonfinite(step, node, tensor[place].item(), first + place)


def merge_in_torch(
    merge: Merge, step: Step, tensors: Sequence[torch.Tensor], first: int, dtype: torch.dtype, *, check: bool
) -> torch.Tensor:
    """The merge of flat inputs (base first where there is one), flat and in `dtype`.

    Raises:
        MethodError: the method fails or returns another shape. NonFiniteError: `check`, and it made NaN or infinity.
    """
    import torch

    from eutectic.ops.rounding import round_once

    n = tensors[0].numel()
    shape = (n,)
    if step.shape and merge.method.scope != "element":
        shape = (n // max(1, step.numel // step.shape[0]), *step.shape[1:])
    torch.set_num_threads(torch.get_num_threads())  # LAPACK minds it only in threads that have set it themselves
    shaped = [tensor.reshape(shape) for tensor in tensors]
    base = shaped.pop(0) if merge.base is not None else None
    with torch.no_grad():
        statistics = read_statistics(merge, step, tensors[0].device) if merge.statistics else None
        where = f"{step.name!r} {list(step.shape)}"
        merged = _apply(merge, shaped, base, Draws(merge.seed, step.name, first), statistics, where)
        if not isinstance(merged, torch.Tensor) or tuple(merged.shape) != shape:
            got = f"shape {list(merged.shape)}" if isinstance(merged, torch.Tensor) else type(merged).__name__
            raise MethodError(f"{merge.method.name} returned {got} for {step.name!r}, not shape {list(shape)}")
        if check and not torch.isfinite(merged).all():
            raise NonFiniteError(
                f"{step.name!r}: {merge.method.name} made NaN or infinity of finite sources; "
                "--allow-nonfinite accepts it"
            )
        return round_once(merged, dtype).contiguous().reshape(-1)


def _apply(merge: Merge, tensors: list[torch.Tensor], base: Any, draws: Draws, statistics: Any, where: str) -> Any:
    """The method's function; what it raises names the method and the tensor, for it may be a plug-in's fault."""
    import torch

    try:
        return merge.method.apply(tensors, base, merge.parameters, draws, statistics)
    except MethodError as error:
        raise MethodError(f"{where}: {error}") from error
    except (EutecticError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise MethodError(f"{merge.method.name} failed on {where}: {type(error).__name__}: {error}") from error


class _Crowd:
    """Who runs torch on one thread now, and how many threads it had before."""

    lock, inside, before = threading.Lock(), 0, 1


@contextmanager
def one_thread(uses_torch: bool) -> Iterator[None]:
    """torch's own threads off: the tiles are the parallelism, and no result depends on the number of threads.

    Entered side by side, the first one in turns them off and the last one out turns them on again.
    """
    if not uses_torch:
        yield
        return
    import torch

    with _Crowd.lock:
        if not _Crowd.inside:
            _Crowd.before = torch.get_num_threads()
            torch.set_num_threads(1)
        _Crowd.inside += 1
    try:
        yield
    finally:
        with _Crowd.lock:
            _Crowd.inside -= 1
            if not _Crowd.inside:
                torch.set_num_threads(_Crowd.before)


@contextmanager
def pool_of(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads for torch under `one_thread`; for LAPACK that holds only in threads that have set it themselves."""
    import torch

    with one_thread(True), ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield pool
