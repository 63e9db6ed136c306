"""Groups: the sources of a recipe that are merged with one another, and the parameters that apply to them.

A recipe of models is one group; every slice is one, and every module that lists models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from eutectic.errors import RecipeError
from eutectic.methods.method import Method, Parameter
from eutectic.recipes.adapter_sources import are_adapters, lacks_base
from eutectic.recipes.document import Location
from eutectic.recipes.references import Reference
from eutectic.recipes.schema import Module, Recipe, SliceSource, Source
from eutectic.recipes.settings import Settings, scalars_of
from eutectic.recipes.values import Parameters
from eutectic.weights.statistics_folder import collect_command

__all__ = ["Group", "bind", "faults_of", "groups_of", "place_of", "settings_of"]


@dataclass(frozen=True, eq=False)
class Group:
    """Sources merged with one another. `levels`: where parameters for all of them stand, the nearest first."""

    recipe: Recipe
    location: Location
    """Of the recipe, the slice or the module that lists the sources."""
    key: str
    sources: tuple[Source, ...]
    base: Reference | None
    levels: tuple[tuple[Location, Parameters], ...]
    module: str | None = None

    @property
    def sliced(self) -> bool:
        """Whether its sources are layers of models rather than whole ones."""
        return self.key == "sources"


def groups_of(recipe: Recipe, location: Location = ()) -> Iterator[Group]:
    """Every group of a recipe, in order; nested recipes have their own."""
    whole: tuple[Location, Parameters] = ((*location, "parameters"), _values(recipe))
    yield from _groups(recipe, recipe, location, (whole,), None)
    for name, module in recipe.modules.items():
        where = (*location, "modules", name)
        yield from _groups(recipe, module, where, (((*where, "parameters"), _values(module)), whole), name)


def _groups(
    recipe: Recipe,
    owner: Recipe | Module,
    location: Location,
    levels: tuple[tuple[Location, Parameters], ...],
    module: str | None,
) -> Iterator[Group]:
    if owner.models:
        yield Group(recipe, location, "models", owner.models, recipe.base_model, levels, module)
    for at, part in enumerate(owner.slices):
        where = (*location, "slices", at)
        base = recipe.base_model if part.base_model is None else part.base_model
        own = ((*where, "parameters"), _values(part))
        yield Group(recipe, where, "sources", part.sources, base, (own, *levels), module)


def _values(owner: Any) -> Parameters:
    return owner.parameters


def place_of(location: Location) -> str:
    """A location in words.

    >>> place_of(("slices", 1, "sources", 0, "layer_range"))
    'slices[1].sources[0].layer_range'
    """
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location).lstrip(".")


def bind(group: Group, method: Method) -> tuple[Source | None, list[Source]]:
    """The base, and the sources that the method merges. A model that is the base adds no delta of its own.

    Raises:
        RecipeError: layers of a base that no source says which they are.
    """
    sources, base = list(group.sources), group.base
    if base is None or method.base == "unused":
        return None, sources
    listed = next((source for source in sources if source.model == base), None)
    others = [source for source in sources if source.model != base]
    if method.base in ("required", "optional"):
        return listed or _unlisted(group, base), others
    return None, [listed or _unlisted(group, base), *others]


def _unlisted(group: Group, base: Reference) -> Source:
    """The base where it is none of the sources: its layers are theirs, if they agree."""
    if not group.sliced:
        return Source(model=base)
    ranges = {source.layer_range for source in group.sources if isinstance(source, SliceSource)}
    if len(ranges) > 1:
        raise RecipeError(
            f"{place_of(group.location)}: the sources' layer ranges differ, and base_model has none: list it under "
            "sources with its layer_range"
        )
    return SliceSource(model=base, layer_range=ranges.pop())


def settings_of(group: Group, method: Method, inputs: list[Source]) -> Settings:
    """The parameters of a group, for the sources that `bind` chose."""
    own = tuple(source.parameters for source in inputs)
    shared = tuple(values for _, values in group.levels)
    return Settings(method, group.recipe.semantics, own, shared, place_of(group.location))


def faults_of(group: Group, method: Method) -> list[tuple[Location, str]]:
    """What is wrong with a group's sources and parameters, each with its place."""
    problems: list[tuple[Location, str]] = []
    listing = (*group.location, group.key)
    if method.base == "required" and group.base is None and not are_adapters(group.recipe):
        problems.append(((*_recipe_location(group), "merge_method"), lacks_base(group.recipe, method.name)))
    if method.base == "unused" and group.base is not None and all(s.model != group.base for s in group.sources):
        own_base = group.sliced and group.base is not group.recipe.base_model
        where = group.location if own_base else _recipe_location(group)
        problems.append((
            (*where, "base_model"),
            f"{method.name} has no base. List it under {group.key} (with its weight) if it should take part, as "
            "mergekit would make it, or leave it out",
        ))  # fmt: skip
    lengths = {s.layer_range[1] - s.layer_range[0] for s in group.sources if isinstance(s, SliceSource)}
    if len(lengths) > 1:
        shown = ", ".join(str(list(s.layer_range)) for s in group.sources if isinstance(s, SliceSource))
        return [*problems, (listing, f"the sources of a slice need as many layers each; found {shown}")]
    try:
        base, inputs = bind(group, method)
    except RecipeError as error:
        return [*problems, (listing, str(error).partition(": ")[2])]
    fewest, most = method.sources
    if len(inputs) < fewest or (most is not None and len(inputs) > most):
        besides = " besides the base" if base is not None else ""
        besides = " (base_model counts as the first)" if method.base == "first" else besides
        problems.append((listing, f"{method.name} merges {method.count_in_words()}{besides}, not {len(inputs)}"))
    return problems + _statistics_faults(group, method, inputs) + _parameter_faults(group, method, inputs)


def _statistics_faults(group: Group, method: Method, inputs: list[Source]) -> list[tuple[Location, str]]:
    """Sources without the statistics that the method needs, and statistics that it does not need."""
    problems: list[tuple[Location, str]] = []
    for at, source in enumerate(group.sources):
        where = (*group.location, group.key, at)
        if method.needs is None and source.statistics is not None:
            problems.append(((*where, "statistics"), f"{method.name} needs no statistics; leave this key out"))
        elif method.needs is not None and source.statistics is None and any(source is taken for taken in inputs):
            model = source.model if isinstance(source.model, str) else "MODEL"
            command = collect_command(model, method.needs)
            needs = f"{method.name} needs the {method.needs} of this model"
            problems.append((where, f"{needs}: `{command}` makes a folder, which goes here as 'statistics'"))
    return problems


def _recipe_location(group: Group) -> Location:
    """Where the recipe of a group stands."""
    return group.levels[-1][0][:-1]


def _parameter_faults(group: Group, method: Method, inputs: list[Source]) -> list[tuple[Location, str]]:
    problems: list[tuple[Location, str]] = []
    for at, source in enumerate(group.sources):
        where = (*group.location, group.key, at, "parameters")
        problems += _faults_at(source.parameters, where, method, of_source=True)
    for where, values in group.levels:
        problems += _faults_at(values, where, method, of_source=False)
    shared = [values for _, values in group.levels]
    for parameter in method.parameters.values():
        if not parameter.required or any(parameter.name in values for values in shared):
            continue
        lacking = [source for source in inputs if not parameter.per_source or parameter.name not in source.parameters]
        why = parameter.meaning or parameter.expected
        if len(lacking) == len(inputs):
            problems.append((
                (*_recipe_location(group), "merge_method"),
                f"{method.name} needs the parameter {parameter.name}: {why}",
            ))  # fmt: skip
            continue
        for source in lacking:
            at = next((at for at, known in enumerate(group.sources) if known is source), None)
            where = (*group.location, group.key, at) if at is not None else (*_recipe_location(group), "base_model")
            problems.append((where, f"this source needs the parameter {parameter.name}: {why}"))
    return problems


def _faults_at(values: Parameters, where: Location, method: Method, *, of_source: bool) -> list[tuple[Location, str]]:
    problems: list[tuple[Location, str]] = []
    for name, value in values.items():
        parameter = method.parameters.get(name)
        if parameter is None:
            problems += [((*where, name), why) for _, why in method.unknown(name)]
        elif of_source and not parameter.per_source:
            problems.append(
                ((*where, name), f"{name} is one value for the whole merge: put it under the top parameters")
            )
        else:
            problems += [((*where, name), why) for why in dict.fromkeys(_faults(parameter, value)) if why]
    return problems


def _faults(parameter: Parameter, value: Any) -> Iterator[str]:
    for scalar in scalars_of(value):
        yield parameter.fault(scalar)
