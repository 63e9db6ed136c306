"""Gram matrices of every source through the merged model: RegMean++ is the method regmean with these statistics.

Stage by stage in the order of the forward pass, a stage being a block of numbered layers or a module outside of them:

    G_k of stage s: inputs of source k's own stage s, behind the stages 1..s-1 of the merged model, on the data of k
    stage s merged: regmean over the sources with these G_k

Nguyen et al. 2025, RegMean++ (arXiv 2508.03121), section 3.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import eutectic
from eutectic.errors import NonFiniteError, OutputError, RecipeError
from eutectic.evaluation.collecting.gram import GRAM
from eutectic.evaluation.collecting.samples import Samples
from eutectic.evaluation.model import Model
from eutectic.evaluation.suite import Suite, load_suite
from eutectic.evaluation.tasks.task import Task
from eutectic.methods import get_method
from eutectic.recipes.merge import plan
from eutectic.recipes.plan import Plan
from eutectic.recipes.references import resolve_model
from eutectic.recipes.schema import Recipe, load_recipe
from eutectic.recipes.semantics import one_thread
from eutectic.recipes.settings import Settings
from eutectic.weights.checkpoint import open_checkpoint
from eutectic.weights.digest import hash_bytes
from eutectic.weights.layers import layer_of, position_of, stacks_of
from eutectic.weights.statistics_folder import FILE, KindFile, identity_of, open_statistics, staged, write_facts

if TYPE_CHECKING:
    import torch

    from eutectic.evaluation.collecting.collect import Report

__all__ = ["collect_through_merged", "stages_of"]


def collect_through_merged(
    recipe: Recipe | Mapping[str, Any] | str | os.PathLike[str],
    data: Suite | str | os.PathLike[str] | Mapping[str, Any],
    out: Path,
    *,
    tasks: Sequence[str] | None = None,
    split: str = "train",
    limit: int | None = None,
    report: Report | None = None,
) -> list[Path]:
    """Collect the Gram matrices of a regmean recipe's sources into folders below `out`, which are returned in order.

    Args:
        recipe: of method regmean over stored models; its `weight` and `ratio` merge the stages, `statistics` need
            not be there yet.
        tasks: whose data each source sees, in their order; by default the task whose expert has the source's name.
        split, limit: which of the tasks' data, and at most how many samples.

    Folders that hold these statistics already are kept.

    Raises:
        RecipeError: another method, sources that are no stored models, tasks that are missing or have no likelihood.
        OutputError: a folder holds something else. NonFiniteError: NaN or infinity; nothing is written.
    """
    talk = report or (lambda line: None)
    found = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if found.merge_method != "regmean" or not found.models:
        raise RecipeError(f"{found.merge_method}: Gram matrices through the merged model are for regmean over models")
    suite = data if isinstance(data, Suite) else load_suite(data)
    planned = _inputs(found)
    models = [_stored(str(source.model), found) for source in found.models]
    chosen = _tasks(suite, [Path(model.label).name for model in models], tasks)
    samples = [
        Samples.of(task, split, model, limit=limit, labels="data") for task, model in zip(chosen, models, strict=True)
    ]
    folders = _folders(out, models)
    through = hash_bytes(f"{found.merge_method} {_settings_text(found)} {_data_text(models, samples)}".encode())
    prints = [hash_bytes(f"{_fingerprint(one)} through {through}".encode()) for one in samples]
    if all(_has(folder, model, own) for folder, model, own in zip(folders, models, prints, strict=True)):
        talk(f"{out}: has the Gram matrices of these sources and data already")
        return folders
    with ExitStack() as stack, one_thread(True):
        staging = [stack.enter_context(staged(folder)) for folder in folders]
        shapes = GRAM.shapes(models[0].network)
        files = [stack.enter_context(KindFile(folder, "gram", shapes)) for folder in staging]
        _collect(found, planned, models, samples, files, talk)
        for folder, model, one, own in zip(staging, models, samples, prints, strict=True):
            write_facts(folder, {
                "eutectic": eutectic.__version__,
                "model": {"name": model.label, "fingerprint": identity_of(model.checkpoint)},
                "data": {
                    "task": one.task.name, "split": split, "samples": len(one), "inputs": "through the merged model",
                    "fingerprint": own,
                },
                "kinds": ["gram"],
            })  # fmt: skip
    return folders


def _collect(
    recipe: Recipe, planned: Plan, models: Sequence[Model], samples: Sequence[Samples], files: Sequence[KindFile],
    talk: Report,
) -> None:  # fmt: skip
    """Stage by stage: the Gram matrices of each source, written; then the stage's merged tensors, kept."""
    import torch

    from eutectic.evaluation.networks import load_network

    regmean = get_method("regmean")
    own = tuple(source.parameters for source in recipe.models)
    settings = Settings(regmean, recipe.semantics, own, (recipe.parameters,))
    depths = stacks_of(planned)
    grams = GRAM.shapes(models[0].network)
    stages = stages_of(models[0].network, list(planned), samples[0])
    merged: dict[str, torch.Tensor] = {}
    steps = {step.name: step for step in planned.steps}
    for number, names in enumerate(stages, 1):
        layers = [name for name in names if name in grams]
        talk(f"stage {number} of {len(stages)}: {', '.join(layers) or 'no linear layer'}"[:120])
        statistics: list[dict[str, torch.Tensor]] = [{} for _ in models]
        for at, (model, one) in enumerate(zip(models, samples, strict=True) if layers else ()):
            network = load_network({**model.checkpoint, **merged}, model.checkpoint.config)
            found = GRAM.collect(network, layers, one)
            for name, total in found.items():
                if not bool(torch.isfinite(total).all()):
                    raise NonFiniteError(f"{model.label}: the gram of {name} is NaN or infinite on this data")
            statistics[at] = {name: total.float() for name, total in found.items()}
            files[at].write({name: total.numpy() for name, total in statistics[at].items()})
        for name in names:
            step = steps[name]
            if step.action != "merge":
                merged[name] = planned[name].to_torch()
                continue
            layer = layer_of(name)
            t = 0.0 if layer is None else position_of(layer.number, depths[layer.stack])
            merged[name] = regmean(
                [model.checkpoint[name].to_torch() for model in models],
                statistics=[known.get(name) for known in statistics], **settings.at(name, t),
            ).to(getattr(torch, step.dtype.torch))  # fmt: skip


def stages_of(network: torch.nn.Module, names: Sequence[str], samples: Samples) -> list[list[str]]:
    """The names of tensors in stages, in the order in which a forward pass first comes to them.

    A stage is all of a numbered layer, or one module outside of such; what the pass does not come to is the last.
    """
    import torch

    reached: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda module, inputs, path=path: reached.append(path))
        for path, module in network.named_modules()
        if next(iter((*module.parameters(recurse=False), *module.buffers(recurse=False))), None) is not None
    ]
    try:
        with torch.no_grad():
            samples.log_likelihood(network, next(samples.batches())[:1])
    finally:
        for handle in handles:
            handle.remove()
    owners = {name: _stage(name) for name in names}
    order = dict.fromkeys(_stage(f"{path}.weight" if path else "weight") for path in reached)
    found = [[name for name, owner in owners.items() if owner == stage] for stage in order]
    rest = [name for name, owner in owners.items() if owner not in order]
    return [stage for stage in (*found, rest) if stage]


def _stage(name: str) -> str:
    layer = layer_of(name)
    return name.rpartition(".")[0] if layer is None else f"{layer.stack}{layer.number}"


def _inputs(recipe: Recipe) -> Plan:
    """The plan of the same sources under `linear`, which needs no statistics: names, types, what is copied."""
    for source in recipe.models:
        if isinstance(source.model, Recipe):
            raise RecipeError("a source is a recipe; statistics are of stored models: merge it first")
    models = [{"model": _absolute(str(source.model), recipe)} for source in recipe.models]
    kept = {key: value for key, value in recipe.canonical().items() if key in ("dtype", "out_dtype")}
    return plan({"merge_method": "linear", "models": models, "parameters": {"weight": 1}, **kept})


def _absolute(reference: str, recipe: Recipe) -> str:
    path, adapter = resolve_model(reference, recipe)
    return str(path) if adapter is None else f"{path}+{adapter}"


def _stored(reference: str, recipe: Recipe) -> Model:
    path, adapter = resolve_model(reference, recipe)
    if adapter is not None:
        raise RecipeError(f"{reference}: statistics are of stored models; merge the adapter into its base first")
    return Model(open_checkpoint(path), str(path))


def _tasks(suite: Suite, names: Sequence[str], tasks: Sequence[str] | None) -> list[Task]:
    if tasks is not None:
        if len(tasks) != len(names):
            raise RecipeError(f"{len(tasks)} tasks for {len(names)} sources; name one for each, in their order")
        return [suite.only([name]).tasks[name] for name in tasks]
    found = [next((task for task in suite if task.expert == name), None) for name in names]
    if None in found:
        lacking = names[found.index(None)]
        raise RecipeError(f"suite {suite.name}: no task has the expert {lacking}; --task names one for each source")
    return [task for task in found if task is not None]


def _folders(out: Path, models: Sequence[Model]) -> list[Path]:
    names = [Path(model.label).name for model in models]
    return [out / (name if names.count(name) == 1 else f"{at}-{name}") for at, name in enumerate(names)]


def _settings_text(recipe: Recipe) -> str:
    bare = recipe.canonical()
    return f"{bare.get('parameters')} {[source.get('parameters') for source in bare['models']]}"


def _data_text(models: Sequence[Model], samples: Sequence[Samples]) -> str:
    return " ".join(f"{identity_of(m.checkpoint)} {_fingerprint(s)}" for m, s in zip(models, samples, strict=True))


def _fingerprint(samples: Samples) -> str:
    return f"{samples.task.fingerprint(samples.split)} {samples.split} {hash_bytes(samples.rows.tobytes())}"


def _has(folder: Path, model: Model, data: str) -> bool:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not (folder / FILE).is_file():
        raise OutputError(f"{folder} exists and holds no statistics; choose another folder")
    found = open_statistics(folder)
    if (found.model, found.data) != (identity_of(model.checkpoint), data):
        raise OutputError(f"{folder} holds statistics of another model or other data; choose another folder")
    return "gram" in found.kinds
