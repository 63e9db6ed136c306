"""Families of image classifiers: experts on views of the images, or on groups of the labels, from one base.

    views    one expert a view; all share the outputs
    groups   one expert a pair of labels; all share the outputs, so that experts pull the same rows apart

    in-basin   the base has learned a little of everything: experts stay close to it
    far        views: the base has seen upright images only; groups: the base has hardly been trained

The task ``general`` (role "base") is what the base was trained on: by it, forgetting is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from eutectic.errors import RecipeError, nearest
from eutectic.evaluation.views import View
from eutectic.zoo.family import SPLITS, FamilyWriter
from eutectic.zoo.training import Schedule, accuracy, initial_tensors, train

__all__ = ["ImageSettings", "Split", "choose", "network_config", "write_images"]


class Split(NamedTuple):
    """Images, float32 in 0..1 or uint8 [n, pixels], and their labels, int64 [n]."""

    images: np.ndarray
    labels: np.ndarray

    def seen(self, view: View) -> Split:
        """The same images in a view."""
        return Split(np.ascontiguousarray(view(self.images)), self.labels)

    def only(self, labels: tuple[int, ...]) -> Split:
        """The images of some labels."""
        rows = np.isin(self.labels, labels)
        return Split(self.images[rows], self.labels[rows])

    def every(self, step: int, first: int = 0) -> Split:
        """Every `step`-th image."""
        return Split(self.images[first::step], self.labels[first::step])

    @classmethod
    def joined(cls, splits: list[Split]) -> Split:
        """One after another."""
        return cls(np.concatenate([s.images for s in splits]), np.concatenate([s.labels for s in splits]))


@dataclass(frozen=True)
class ImageSettings:
    """How the models of one variant and regime are trained; `base_share`: the base sees one in so many images."""

    base: Schedule
    expert: Schedule
    base_share: int


def choose(what: str, asked: str | None, known: tuple[str, ...]) -> str:
    """The first of `known` if nothing is asked, else what is asked if it is known."""
    if asked is None:
        return known[0]
    if asked not in known:
        raise RecipeError(f"no {what} {asked!r}; there are {', '.join(known)}{nearest(asked, known)}")
    return asked


def network_config(side: int, architecture: str, classes: int, channels: tuple[int, ...]) -> dict[str, Any]:
    """A config.json of a network with norms: ``"mlp"`` or ``"cnn"``."""
    if architecture == "mlp":
        return {
            "model_type": "eutectic-mlp", "architectures": ["EutecticMLP"], "input_size": side * side,
            "hidden_sizes": [256, 256], "hidden_act": "relu", "norm": "layer", "num_labels": classes,
            "dtype": "float32",
        }  # fmt: skip
    return {
        "model_type": "eutectic-cnn", "architectures": ["EutecticCNN"], "image_size": side, "channels": list(channels),
        "hidden_sizes": [64], "hidden_act": "relu", "norm": "group", "num_labels": classes, "dtype": "float32",
    }  # fmt: skip


def write_images(
    writer: FamilyWriter,
    splits: Mapping[str, Split],
    *,
    views: Mapping[str, View],
    config: Mapping[str, Any],
    variant: str,
    regime: str,
    seed: int,
    settings: ImageSettings,
) -> None:
    """Train base, experts and the joint model, and write them with the tasks."""
    if variant == "views":
        tasks = {name: {split: splits[split].seen(view) for split in SPLITS} for name, view in views.items()}
    else:
        classes = config["num_labels"]
        groups = {f"{first}-{first + 1}": (first, first + 1) for first in range(0, classes, 2)}
        tasks = {name: {split: splits[split].only(labels) for split in SPLITS} for name, labels in groups.items()}
    upright = variant == "groups" or regime == "far"
    base_views = {"upright": views["upright"]} if upright else views
    few = splits["train"].every(settings.base_share)
    shown = Split.joined([few.seen(view) for view in base_views.values()])
    general = {split: _dealt(splits[split], base_views) for split in SPLITS}

    start = initial_tensors(config, key=f"{seed} initial")
    base = train(start, config, shown, settings.base, key=f"{seed} base")
    writer.add_model("base", base, {**config, "seed": seed, "view": None})
    found = accuracy(base, config, general["validation"])
    writer.report(f"base: {settings.base.steps} steps, validation accuracy {found:.1%} on what it was shown")
    scores: dict[str, dict[str, float]] = {}
    for name, task in tasks.items():
        expert = train(base, config, task["train"], settings.expert, key=f"{seed} {name}")
        writer.add_model(f"experts/{name}", expert, {**config, "seed": seed, "view": name})
        writer.add_task(name, "classification", {split: _stored(task[split]) for split in SPLITS}, expert=name)
        scores[name] = {
            "base": accuracy(base, config, task["validation"]), "expert": accuracy(expert, config, task["validation"])
        }  # fmt: skip
        writer.report(
            f"expert {name}: {settings.expert.steps} steps, validation accuracy {scores[name]['expert']:.1%} "
            f"on its own task (base: {scores[name]['base']:.1%})"
        )
    writer.add_task("general", "classification", {split: _stored(general[split]) for split in SPLITS}, role="base")
    together = settings.expert._replace(steps=settings.expert.steps * len(tasks))
    joint = train(base, config, Split.joined([task["train"] for task in tasks.values()]), together, key=f"{seed} joint")
    writer.add_model("joint", joint, {**config, "seed": seed, "view": "joint"})
    for name, task in tasks.items():
        scores[name]["joint"] = accuracy(joint, config, task["validation"])
    mean = sum(score["joint"] for score in scores.values()) / len(scores)
    writer.report(f"joint: {together.steps} steps on all of it, mean validation accuracy {mean:.1%}")
    writer.facts["validation"] = scores


def _dealt(split: Split, views: Mapping[str, View]) -> Split:
    """Each image in one of the views, in turn."""
    return Split.joined([split.every(len(views), turn).seen(view) for turn, view in enumerate(views.values())])


def _stored(split: Split) -> dict[str, np.ndarray]:
    return {"inputs": split.images, "labels": split.labels}
