"""The merge of adapters into an adapter: factors module by module, then one file, its configuration and its card."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cached_property
from typing import TYPE_CHECKING, Any

from eutectic.errors import SourceError
from eutectic.recipes.adapter_checks import base_of
from eutectic.recipes.adapter_plan import AdapterPlan, Planned, factor_tensors, shard_of, stored_name
from eutectic.recipes.adapter_sums import pairs_of
from eutectic.recipes.factorise import factorise
from eutectic.recipes.lora_output import Factored, lora_config, unreached
from eutectic.recipes.match import Step
from eutectic.recipes.provenance import adapter_files, public_base
from eutectic.recipes.semantics import pool_of
from eutectic.weights.digest import combine_pieces, hash_pieces, hash_range, hash_tensor
from eutectic.weights.lora import ADAPTER_CONFIG
from eutectic.weights.sink import Shard, Sink
from eutectic.weights.tensor_ref import TensorRef

if TYPE_CHECKING:
    import torch

    from eutectic.recipes.factorise import Made

__all__ = ["AdapterRun"]

RUN = 1 << 20  # elements of a whole tensor at a time: whole pieces of its digest
# Settings of the first source that hold for the result, too; the targets only if all sources share them.
CARRIED = ("revision", "auto_mapping")
TARGETS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


class AdapterRun:
    """One execution of an `AdapterPlan`: `prepare` finds the factors, `run` writes what is there."""

    def __init__(self, plan: AdapterPlan, progress: Callable[[int], None]) -> None:
        self.plan, self.progress = plan, progress
        self.report: tuple[Factored, ...] = ()
        self._factors: list[Planned] = []
        self._made: dict[str, torch.Tensor] = {}

    @property
    def needs_kernels(self) -> bool:
        """Whether anything is merged entry by entry."""
        return not self.plan.unchanged and (not self.plan.exact or bool(self.plan.whole))

    def prepare(self) -> None:
        """Find the factors of every module, before anything is staged.

        Raises:
            SourceError: NaN, an error that the rank does not reach, or copies of the base that differ.
        """
        plan = self.plan
        self._check_copies()
        if plan.unchanged:
            return
        modules: list[Factored] = []
        with pool_of(plan.workers) as pool, closing(self._each(pool)) as made:
            for step, (found, b, a) in made:
                modules.append(found)
                names = factor_tensors(step, found.rank, plan.factor_dtype(step))
                for planned, matrix in zip(names, (a, b), strict=True):
                    self._factors.append(planned)
                    self._made[planned.name] = _typed(matrix, planned)
        self.report = tuple(modules)
        rank, most = plan.form.rank, plan.form.max_error
        if most is not None and rank is not None and (lines := unreached(modules, most, rank)):
            raise SourceError("\n".join([*lines, "raise or remove adapter.rank, or raise adapter.max_error"]))

    def _each(self, pool: ThreadPoolExecutor) -> Generator[tuple[Step, Made], None, None]:
        steps = self.plan.changes
        for step, made in zip(steps, pool.map(lambda step: factorise(self.plan, step), steps), strict=True):
            self.progress(sum(pair.a.nbytes + pair.b.nbytes for pair in pairs_of(step).values()))
            yield step, made

    def _check_copies(self) -> None:
        """Refuse adapters that stored different tensors of what should be one base."""
        for name, ((first, origin), *others) in self.plan.copies.items():
            for label, ref in others:
                if ref.shape != origin.shape or hash_tensor(ref) != hash_tensor(origin):
                    raise SourceError(
                        f"{label}: its copy of the base's {name} is not that of {first}, so their bases differ (in "
                        "added tokens, perhaps); write each with its own base, as ./base+./adapter"
                    )

    # ------------------------------------------------------------------ writing

    @property
    def tensors(self) -> list[Planned]:
        """What the file holds."""
        return self.plan.tensors if self.plan.unchanged else [*self._factors, *self.plan.kept]

    @cached_property
    def shards(self) -> list[Shard]:
        """The weight file."""
        return [shard_of(self.tensors)]

    def run(self, sink: Sink) -> None:
        """Write every tensor that the sink does not hold yet."""
        for planned in self.tensors:
            if planned.name in sink.digests:
                continue
            if planned.name in self._made:
                data = self._made[planned.name].reshape(-1).view(_bytes()).numpy().data
                sink.write(planned.name, 0, data)
                sink.complete(planned.name, combine_pieces(hash_pieces(data)))
                self.progress(data.nbytes)
            else:
                self._stream(planned, sink)

    def _stream(self, planned: Planned, sink: Sink) -> None:
        ref = self._whole[planned.name]
        for start in range(0, ref.numel, RUN):
            data = memoryview(ref.read(start, min(ref.numel, start + RUN)))
            sink.write(planned.name, start * ref.dtype.size, data)
            self.progress(data.nbytes)
        sink.complete(planned.name, hash_range(sink.runs(planned.name)))

    @cached_property
    def _whole(self) -> dict[str, TensorRef]:
        """What is no factor made here, by its name in the file: lazily merged, or a source's own."""
        plan = self.plan
        if plan.unchanged:
            return dict(plan.adapters[0][1].adapter.stored)
        merged = {stored_name(step): plan[step.name] for step in plan.whole}
        return {**merged, **{found[0][1].name: found[0][1] for found in plan.copies.values()}}

    # ------------------------------------------------------------------ the files beside the weights

    def files(self, recipe_text: str) -> dict[str, bytes]:
        """The configuration, the card, the recipe, and what lies beside the first adapter."""
        base = self._base
        files = adapter_files(self.plan, recipe_text, None if base is None else public_base(base), self._words())
        return {**files, ADAPTER_CONFIG: self._config()}

    @property
    def _base(self) -> str | None:
        return next((name for _, changes in self.plan.adapters if (name := base_of(changes))), None)

    def _config(self) -> bytes:
        plan = self.plan
        origin = plan.adapters[0][1].adapter
        if plan.unchanged:
            file = next(file for file in origin.headers if file.path.name == ADAPTER_CONFIG)
            return origin.headers[file]
        configs = [changes.adapter.config for _, changes in plan.adapters]
        if plan.form.space == "factors":
            targets = {} if origin.config.get("target_modules") else self._targets(configs)
            found: dict[str, Any] = {**origin.config, **targets, "inference_mode": True}
        else:
            saved = dict.fromkeys(name for config in configs for name in config.get("modules_to_save") or ())
            biases = [config["bias"] for config in configs if config.get("bias", "none") != "none"]
            found = lora_config(
                {found.module: found.rank for found in self.report},
                task_type=configs[0].get("task_type"),
                base_model_name_or_path=self._base,
                fan_in_fan_out=bool(configs[0].get("fan_in_fan_out")),
                **self._targets(configs),
                **{key: configs[0][key] for key in CARRIED if key in configs[0]},
                modules_to_save=list(saved) or None,
                bias=biases[0] if biases else "none",
            )
        return (json.dumps(found, indent=2) + "\n").encode()

    def _targets(self, configs: Sequence[Any]) -> dict[str, Any]:
        """The sources' own description of the adapted modules if they share it; else every module by its name."""
        named = bool(configs[0].get("target_modules"))
        same = named and all(config.get(key) == configs[0].get(key) for config in configs for key in TARGETS)
        modules = {found.module for found in self.report}
        if same and all(changes.adapter.pairs.keys() == modules for _, changes in self.plan.adapters):
            return {key: configs[0].get(key) for key in TARGETS if key in configs[0]}
        return {"target_modules": [found.module for found in self.report]}

    def _words(self) -> list[str]:
        """Lines of the card about ranks and errors."""
        if not self.report:
            return []
        ranks, worst = sorted({m.rank for m in self.report}), max(self.report, key=lambda m: m.error)
        shown = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
        lost = f"the largest relative error of a change is {worst.error:.2g} ({worst.module})" if worst.error else ""
        return [f"{len(self.report)} modules, {shown}; {lost or 'no change lost anything but rounding'}."]

    def close(self) -> None:
        """Nothing is held between runs."""


def _typed(matrix: torch.Tensor, planned: Planned) -> torch.Tensor:
    import torch

    return matrix.to(getattr(torch, planned.dtype.torch)).reshape(planned.shape).contiguous()


def _bytes() -> torch.dtype:
    import torch

    return torch.uint8
