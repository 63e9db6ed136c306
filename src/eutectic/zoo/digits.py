"""The digits family: one base and five experts, each fine-tuned on one view of scikit-learn's handwritten digits.

    build_digits(out)  ->  out/base/                {config.json, model.safetensors}
                           out/experts/<view>/      the same, one folder per view
                           out/data/<split>.safetensors   images [n, 64] in 0..1, labels [n]
                           out/family.json          what it is, how it was made, each file's digest

1797 real images of 8 x 8 pixels; the network is 64-256-256-10 with ReLU, its ten outputs shared by all views.
Regime "in-basin": the base has seen a few images of every view, so that the experts stay close enough to be
merged. The numbers below were chosen by validation accuracy with seeds 10 to 14.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eutectic.errors import (
    FormatError,
    OutputError,
    RecipeError,
    SourceError,
    VerificationError,
    nearest,
)
from eutectic.evaluation.classification import Scores, View, measure_views
from eutectic.weights.checkpoint import open_checkpoint, read_json
from eutectic.weights.digest import hash_bytes
from eutectic.weights.exchange import exchange_folders
from eutectic.weights.safetensors import write_safetensors
from eutectic.zoo.digit_views import CLASSES, PIXELS, SPLITS, VIEWS, Split, load_splits
from eutectic.zoo.perceptron import initial_perceptron, train_perceptron

__all__ = ["Family", "build_digits", "load_family"]

VERSION = 1  # of the construction: any change to the weights that a seed gives
HIDDEN = (256, 256)
BASE_STEPS, BASE_RATE, BASE_SHARE = 100, 1e-2, 3  # the base sees every third training image
EXPERT_STEPS, EXPERT_RATE = 200, 3e-3


@dataclass(frozen=True)
class Family:
    """A finished family on disk. `experts` and `views` have the same keys; `description` is family.json."""

    path: Path
    seed: int
    base: Path
    experts: Mapping[str, Path]
    views: Mapping[str, View]
    description: Mapping[str, Any]

    def split(self, name: str) -> Split:
        """The images and labels of ``"train"``, ``"validation"`` or ``"test"``."""
        if name not in SPLITS:
            raise SourceError(f"no split {name!r}; there are {', '.join(SPLITS)}{nearest(name, SPLITS)}")
        stored = open_checkpoint(self.path / "data" / f"{name}.safetensors")
        return Split(stored["images"].to_numpy(), stored["labels"].to_numpy())

    def measure(self, checkpoint: Mapping[str, Any], split: str = "test") -> Scores:
        """Accuracy of a checkpoint (or any mapping of its tensors) on every view of a split."""
        return measure_views(checkpoint, *self.split(split), self.views)


def build_digits(
    out: str | Path, *, seed: int = 0, force: bool = False, report: Callable[[str], None] | None = None
) -> Family:
    """Train the family and write it to the folder `out`, in about two seconds on one core; offline.

    The same seed gives the same bytes on one machine with one version of torch (which family.json records).
    A finished family of this seed is returned as it is.

    Args:
        out: the folder to make; parents are made too.
        seed: starts the weights and the order of the images; 0 to 2**63 - 1. The splits do not depend on it.
        force: replace what lies at `out`, provided that it holds nothing but a family's own files.
        report: called with one line of text for each model trained.

    Raises:
        OutputError: `out` exists and is not this family, or cannot be written.
        MissingDependencyError: scikit-learn is not installed.

    >>> import tempfile
    >>> family = build_digits(tempfile.mkdtemp() + "/digits")
    >>> sorted(family.experts)
    ['checker', 'flip', 'invert', 'shift', 'upright']
    >>> base = family.measure(open_checkpoint(family.base))
    >>> expert = family.measure(open_checkpoint(family.experts["flip"]))
    >>> expert.views["flip"].value > base.views["flip"].value
    True
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise RecipeError(f"seed {seed!r} is not an integer from 0 to 2**63 - 1")
    out = Path(out).resolve()
    finished = _reuse(out, seed, force)
    if finished is not None:
        return finished
    splits = load_splits()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{out.name}.partial-", dir=out.parent) as staging:
            new = Path(staging) / out.name
            _write_family(new, seed, splits, report or (lambda line: None))
            if force and out.exists():
                exchange_folders(new, out)
            else:
                new.rename(out)  # fails, as it should, if another build was faster
    except OSError as error:
        raise OutputError(f"{out}: the family cannot be written: {error.strerror or error}") from None
    return load_family(out)


def load_family(path: str | Path) -> Family:
    """Open a family that `build_digits` finished, checking that every file still has its recorded bytes.

    Raises:
        SourceError: there is none, or it is of another version.
        FormatError: family.json is not one.
        VerificationError: a file is missing or was changed.
    """
    path = Path(path)
    if not (path / "family.json").is_file():
        raise SourceError(f"{path}: holds no family.json; build a family there first")
    description = read_json(path / "family.json")
    found = description.get("name"), description.get("version")
    if found != ("digits", VERSION):
        raise SourceError(f"{path}: is family {found[0]!r} version {found[1]!r}, not digits version {VERSION}")
    try:
        seed = int(description["seed"])
        views = {view: VIEWS[view] for view in description["views"]}
        digests = {file: str(facts["blake3"]) for file, facts in description["files"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{path / 'family.json'}: does not describe a digits family ({error!r:.80})") from None
    experts = {view: path / "experts" / view for view in views}
    for file in _own_files(views):
        if not (path / file).is_file():
            raise VerificationError(f"{path / file}: is missing from a finished family; build it again")
        if hash_bytes((path / file).read_bytes()) != digests.get(file):
            raise VerificationError(f"{path / file}: was changed since the family was built; build it again")
    return Family(path, seed, path / "base", experts, views, description)


def _own_files(views: Mapping[str, View] = VIEWS) -> list[str]:
    """Every file of a family but family.json itself, relative to its folder."""
    models = ["base", *(f"experts/{view}" for view in views)]
    weights = [f"{model}/{file}" for model in models for file in ("config.json", "model.safetensors")]
    return weights + [f"data/{split}.safetensors" for split in SPLITS]


def _reuse(out: Path, seed: int, force: bool) -> Family | None:
    """The finished family at `out`, or None if the way is free to build one; otherwise an error."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not out.is_dir():
        raise OutputError(f"{out}: exists and is not a folder")
    if force:
        own = {"family.json", *_own_files()}
        entries = (entry for entry in out.rglob("*") if entry.is_symlink() or not entry.is_dir())
        foreign = next((name for e in entries if (name := e.relative_to(out).as_posix()) not in own), None)
        if foreign:  # a merge stored inside the family, or a mistaken path: not ours to delete
            raise OutputError(f"{out}: holds {foreign}, which is no part of a digits family; move it away first")
        return None
    if not (out / "family.json").is_file():
        raise OutputError(f"{out}: is not empty and holds no family; choose another folder")
    try:
        family = load_family(out)
    except (SourceError, VerificationError) as error:
        raise OutputError(f"{error}. Choose another folder, or build anew with --force.") from None
    if family.seed != seed:
        raise OutputError(
            f"{out}: holds the family of seed {family.seed}, not {seed}; "
            "choose another folder, or replace it with --force"
        )
    return family


def _write_family(new: Path, seed: int, splits: Mapping[str, Split], report: Callable[[str], None]) -> None:
    (new / "data").mkdir(parents=True)
    for name, split in splits.items():
        write_safetensors(new / "data" / f"{name}.safetensors", split._asdict(), {"format": "pt"})
    train, few = splits["train"], Split(*(part[::BASE_SHARE] for part in splits["train"]))
    shown = Split(np.concatenate([view(few.images) for view in VIEWS.values()]), np.tile(few.labels, len(VIEWS)))
    start = initial_perceptron((PIXELS, *HIDDEN, CLASSES), key=f"{seed} initial")
    base = train_perceptron(start, *shown, steps=BASE_STEPS, rate=BASE_RATE, key=f"{seed} base")
    _write_model(new / "base", base, seed, None)
    report(f"base: {BASE_STEPS} steps on {len(few.labels)} images in {len(VIEWS)} views")
    accuracy: dict[str, float] = {}
    for name, view in VIEWS.items():
        expert = train_perceptron(
            base, view(train.images), train.labels, steps=EXPERT_STEPS, rate=EXPERT_RATE, key=f"{seed} {name}"
        )
        _write_model(new / "experts" / name, expert, seed, name)
        accuracy[name] = measure_views(expert, *splits["validation"], {name: view}).mean.value
        report(f"expert {name}: {EXPERT_STEPS} steps, validation accuracy {accuracy[name]:.1%} on its view")
    description = _describe(new, seed, splits, accuracy)
    (new / "family.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def _write_model(folder: Path, tensors: Mapping[str, np.ndarray], seed: int, view: str | None) -> None:
    """One model folder, laid out as transformers lays it out."""
    folder.mkdir(parents=True)
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    config = {
        "model_type": "eutectic-digits-mlp",
        "architectures": ["EutecticDigitsMLP"],
        "input_size": PIXELS,
        "hidden_sizes": list(HIDDEN),
        "hidden_act": "relu",
        "num_labels": CLASSES,
        "dtype": "float32",
        "seed": seed,
        "view": view,  # null: the base, which saw a little of every view
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _describe(new: Path, seed: int, splits: Mapping[str, Split], accuracy: Mapping[str, float]) -> dict[str, Any]:
    from importlib.metadata import version

    content = {file: (new / file).read_bytes() for file in _own_files()}
    return {
        "name": "digits",
        "version": VERSION,
        "seed": seed,
        "regime": "in-basin",
        "views": list(VIEWS),
        "base": "base",
        "experts": {view: f"experts/{view}" for view in VIEWS},
        "data": {name: f"data/{name}.safetensors" for name in SPLITS},
        "sizes": {name: len(split.labels) for name, split in splits.items()},
        "validation_accuracy": dict(accuracy),  # each expert on its own view
        "made_with": {package: version(package) for package in ("torch", "scikit-learn")},
        "files": {file: {"bytes": len(data), "blake3": hash_bytes(data)} for file, data in content.items()},
    }
