"""`Suite`: the tasks that models are measured on, read strictly from a file or from a family's folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from eutectic.errors import RecipeError, SourceError, nearest
from eutectic.evaluation.tasks.bits_per_byte import BitsPerByte
from eutectic.evaluation.tasks.classification import Classification
from eutectic.evaluation.tasks.command import Command
from eutectic.evaluation.tasks.function import Function
from eutectic.evaluation.tasks.generation import Generation
from eutectic.evaluation.tasks.lm_eval import LmEval
from eutectic.evaluation.tasks.retrieval import Retrieval
from eutectic.evaluation.tasks.task import Task
from eutectic.recipes.document import Document, load_document

__all__ = ["Suite", "load_suite"]

VERSION = 1
FILES = ("suite.json", "suite.yaml")
_KINDS: dict[str, type[Task]] = {
    "classification": Classification, "bits_per_byte": BitsPerByte, "generation": Generation, "retrieval": Retrieval,
    "command": Command, "python": Function, "lm_eval": LmEval,
}  # fmt: skip
AnyTask = Annotated[
    Classification | BitsPerByte | Generation | Retrieval | Command | Function | LmEval, Field(discriminator="kind")
]
_TASK: TypeAdapter[Any] = TypeAdapter(AnyTask)


@dataclass(frozen=True)
class Suite:
    """Tasks by name, in order."""

    name: str
    tasks: Mapping[str, Task]

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks.values())

    def only(self, names: Sequence[str]) -> Suite:
        """The suite with these tasks alone.

        Raises:
            RecipeError: it has no such task.
        """
        for name in names:
            if name not in self.tasks:
                hint = nearest(name, self.tasks) or f"; it has {', '.join(self.tasks)}"
                raise RecipeError(f"suite {self.name}: no task {name!r}{hint}")
        return Suite(self.name, {name: self.tasks[name] for name in names})


def load_suite(source: str | os.PathLike[str] | Mapping[str, Any]) -> Suite:
    """Read a suite from a YAML or JSON file, from a folder that holds suite.json, or from a mapping.

    Raises:
        SourceError: there is none. RecipeError: it has faults; all of them are listed with their places.

    >>> tasks = [{"name": "size", "kind": "python", "function": "package:measure"}]
    >>> list(load_suite({"name": "own", "tasks": tasks}).tasks)
    ['size']
    """
    folder: Path | None = None
    if not isinstance(source, Mapping):
        path = Path(source)
        if path.is_dir():
            path = next((path / name for name in FILES if (path / name).is_file()), path / FILES[0])
        if not path.is_file():
            raise SourceError(f"{path}: no suite there; a suite is a YAML or JSON file, or a folder with {FILES[0]}")
        folder, source = path.parent, path
    document = load_document(source)
    tasks, problems = _read(document, folder)
    if problems:
        raise RecipeError(f"{document.name} has {len(problems)} problem{'s'[: len(problems) != 1]}:", problems)
    name = document.data.get("name")
    return Suite(name if isinstance(name, str) else document.name, {task.name: task for task in tasks})


def _read(document: Document, folder: Path | None) -> tuple[list[Task], list[str]]:
    data, problems = document.data, []
    if not isinstance(data, dict) or not isinstance(data.get("tasks"), list) or not data["tasks"]:
        return [], [f"{document.place(())}: a suite needs 'tasks', a list of {{name, kind, ...}}"]
    for key in data:
        if key not in ("suite", "name", "tasks"):
            hint = nearest(key, ("suite", "name", "tasks")) or "; known here: suite, name, tasks"
            problems.append(f"{document.place((key,))}: unknown key {key!r}{hint}")
    if data.get("suite", VERSION) != VERSION:
        problems.append(f"{document.place(('suite',))}: a suite of version {data['suite']!r}; this reads {VERSION}")
    tasks: list[Task] = []
    for at, entry in enumerate(data["tasks"]):
        try:
            tasks.append(_TASK.validate_python(entry, context={"folder": folder}))
        except ValidationError as error:
            problems += [_sentence(document, at, entry, fault) for fault in error.errors(include_url=False)]
    names = [task.name for task in tasks]
    problems += [f"{document.name}: two tasks are called {name!r}" for name in dict.fromkeys(names) if
                 names.count(name) > 1]  # fmt: skip
    return tasks, problems


def _sentence(document: Document, at: int, entry: Any, fault: Mapping[str, Any]) -> str:
    kind = entry.get("kind") if isinstance(entry, dict) else None
    inner = tuple(step for step in fault["loc"] if step != kind)
    place = document.place(("tasks", at, *inner))
    what = str(inner[-1]) if inner else "the task"
    match fault["type"]:
        case "union_tag_invalid" | "union_tag_not_found":
            hint = nearest(str(kind), _KINDS) if kind else ""
            return f"{place}: kind must be one of {', '.join(_KINDS)}; found {kind!r}{hint}"
        case "extra_forbidden":
            fields = _KINDS[str(kind)].model_fields
            known = [field.alias or name for name, field in fields.items()]
            return f"{place}: unknown key {what!r}{nearest(what, known) or '; known here: ' + ', '.join(known)}"
        case "missing":
            return f"{place}: needs the key {what!r}"
        case _:
            return f"{place}: {what}: {fault['msg'][0].lower()}{fault['msg'][1:]}; found {fault['input']!r:.60}"
