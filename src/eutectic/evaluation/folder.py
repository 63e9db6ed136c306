"""What a folder is, from its files' names and descriptions: no tensor is read, and no numpy loaded.

family     family.json: a base, its experts, their data        adapter   adapter_config.json: LoRA and the like
pipeline   model_index.json: the parts of a diffusion model    merged    recipe.lock.json beside a model
model      weights with a config.json                          weights   weights alone
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eutectic.errors import FormatError
from eutectic.recipes.card import CARD, LOCK, locked_names, stated_base
from eutectic.weights.checkpoint import Checkpoint, read_json

__all__ = ["Folder", "declared_base", "kind_of", "look"]

FAMILY, ADAPTER, PIPELINE = "family.json", "adapter_config.json", "model_index.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_ADAPTER_FACTS = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "target_modules", "modules_to_save")
_FAMILY_FACTS = ("variant", "seed", "regime", "version")


@dataclass(frozen=True)
class Folder:
    """A folder that is no model by itself. `facts` describe it; `members` are the models in it by name.

    `weights` is the file to look into (an adapter's).
    """

    kind: str
    title: str
    facts: Mapping[str, Any]
    members: Mapping[str, Path] = field(default_factory=dict)
    weights: Path | None = None


def look(folder: Path) -> Folder | None:
    """What a local folder is, if it is a family or an adapter; None where it may be a model.

    Raises:
        FormatError: the file that describes it is malformed.
    """
    if (folder / FAMILY).is_file():
        return _family(folder)
    weights = next((folder / name for name in ADAPTER_FILES if (folder / name).is_file()), None)
    if (folder / ADAPTER).is_file() and weights is not None:
        found = read_json(folder / ADAPTER)
        facts = {key: found[key] for key in _ADAPTER_FACTS if found.get(key) not in (None, False)}
        facts["base"] = found.get("base_model_name_or_path")
        return Folder("adapter", f"adapter ({found.get('peft_type', 'LORA')})", facts, weights=weights)
    return None


def kind_of(checkpoint: Checkpoint) -> str:
    """``merged``, ``pipeline``, ``model``, ``weights`` (no config.json) or ``planned`` (a recipe)."""
    if checkpoint.path is None:
        return "planned"
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    if checkpoint.path.is_dir() and (folder / LOCK).is_file():
        return "merged"
    if checkpoint.path.is_dir() and (folder / PIPELINE).is_file():
        return "pipeline"
    return "model" if checkpoint.config else "weights"


def declared_base(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """The models that the files beside a checkpoint name as its base or sources, each with the file."""
    if checkpoint.path is None:
        return []
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    names = [(name, CARD) for name in stated_base(folder / CARD)]
    if (folder / LOCK).is_file():
        names += [(name, LOCK) for name in locked_names(folder / LOCK)]
    origin = checkpoint.config.get("_name_or_path")
    if isinstance(origin, str) and origin:
        names.append((origin, "config.json"))
    found: dict[str, str] = {}
    for name, file in names:
        found.setdefault(name, file)
    return list(found.items())


def _family(folder: Path) -> Folder:
    found = read_json(folder / FAMILY)
    members: dict[str, Path] = {}
    for label, relative in _member_paths(found, folder):
        path = (folder / relative).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise FormatError(f"{folder / FAMILY}: {label} points to {relative!r}, outside the folder")
        members[label] = folder / relative
    facts = {key: found[key] for key in _FAMILY_FACTS if found.get(key) is not None}
    suite = folder / "suite.json"
    if suite.is_file():
        tasks = read_json(suite).get("tasks")
        listed = tasks if isinstance(tasks, list) else []
        facts["tasks"] = [str(task.get("name")) for task in listed if isinstance(task, dict)]
    return Folder("family", f"family of experts ({found.get('name', 'without a name')})", facts, members)


def _member_paths(found: Mapping[str, Any], folder: Path) -> Iterator[tuple[str, str]]:
    """What family.json names; a family that names no path has base/ and experts/, as its folders lie."""
    base = found.get("base", "base")
    if isinstance(base, str) and (folder / base).is_dir():
        yield "base", base
    for key, label in (("experts", "expert"), ("adapters", "adapter"), ("mixtures", "mixture")):
        listed = found.get(key)
        if isinstance(listed, Mapping):
            yield from ((f"{label} {name}", path) for name, path in listed.items() if isinstance(path, str))
        elif key == "experts" and (folder / key).is_dir():
            yield from ((f"{label} {path.name}", f"{key}/{path.name}") for path in sorted((folder / key).iterdir()))
    if isinstance(found.get("joint"), str):
        yield "joint", found["joint"]
