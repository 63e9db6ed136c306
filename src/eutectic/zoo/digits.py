"""The digits family: one base and five experts on scikit-learn's handwritten digits, 1797 real images of 8 x 8 pixels.

    mlp   64-256-256-10 with ReLU        cnn   two convolutions of 16 and 32 channels with group norms, then 64-10

The numbers for the perceptron and views were chosen by validation accuracy with seeds 10 to 14; the others follow them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from eutectic.errors import FormatError, SourceError, nearest
from eutectic.evaluation import family as families
from eutectic.evaluation.views import View, ViewScores, measure_views
from eutectic.weights.checkpoint import open_checkpoint, read_json
from eutectic.zoo.digit_views import CLASSES, PIXELS, SIDE, VIEWS, load_splits
from eutectic.zoo.family import SPLITS, FamilyWriter, Report, build_family
from eutectic.zoo.image_family import ImageSettings, Split, choose, network_config, write_images
from eutectic.zoo.training import Schedule

__all__ = ["Family", "build_digits", "load_family"]

VERSION = 2  # of the construction: any change to the files that a seed gives
VARIANTS, REGIMES, ARCHITECTURES = ("views", "groups"), ("in-basin", "far"), ("mlp", "cnn")
MLP = {
    "model_type": "eutectic-digits-mlp", "architectures": ["EutecticDigitsMLP"], "input_size": PIXELS,
    "hidden_sizes": [256, 256], "hidden_act": "relu", "num_labels": CLASSES, "dtype": "float32",
}  # fmt: skip


@dataclass(frozen=True)
class Family(families.Family):
    """A finished digits family. `views` are what the experts of the variant ``views`` are for."""

    views: Mapping[str, View]

    def split(self, name: str) -> Split:
        """The upright images and labels of ``"train"``, ``"validation"`` or ``"test"``."""
        if name not in SPLITS:
            raise SourceError(f"no split {name!r}; there are {', '.join(SPLITS)}{nearest(name, SPLITS)}")
        tasks = ["upright"] if self.variant == "views" else list(self.experts)
        stored = [open_checkpoint(self.path / "data" / f"{task}.{name}.safetensors") for task in tasks]
        return Split.joined([Split(part["inputs"].to_numpy(), part["labels"].to_numpy()) for part in stored])

    def measure(self, checkpoint: Mapping[str, Any], split: str = "test") -> ViewScores:
        """Accuracy of a perceptron (any mapping of its tensors) on every view of a split."""
        return measure_views(checkpoint, *self.split(split), self.views)


def build_digits(
    out: str | Path,
    *,
    seed: int = 0,
    variant: str | None = None,
    regime: str | None = None,
    architecture: str | None = None,
    force: bool = False,
    report: Report | None = None,
) -> Family:
    """Train the family and write it to the folder `out`, in a few seconds on one core; offline.

    The same seed gives the same bytes on one machine with one version of torch (which family.json records).
    A finished family of this seed and these settings is returned as it is.

    Args:
        out: the folder to make; parents are made too.
        seed: starts the weights and the order of the images; 0 to 2**63 - 1. The splits do not depend on it.
        variant: ``"views"`` (default) or ``"groups"``. regime: ``"in-basin"`` (default) or ``"far"``.
        architecture: ``"mlp"`` (default) or ``"cnn"``.
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
    variant, regime = choose("variant", variant, VARIANTS), choose("regime", regime, REGIMES)
    architecture = choose("architecture", architecture, ARCHITECTURES)
    config = MLP if architecture == "mlp" else network_config(SIDE, architecture, CLASSES, (16, 32))

    def prepare() -> Callable[[FamilyWriter], None]:
        splits = load_splits()

        def write(writer: FamilyWriter) -> None:
            writer.facts["views"] = list(VIEWS)
            writer.facts["sizes"] = {name: len(split.labels) for name, split in splits.items()}
            settings = _settings(variant, regime, architecture)
            write_images(
                writer, splits, views=VIEWS, config=config, variant=variant, regime=regime, seed=seed, settings=settings
            )

        return write

    identity = {
        "name": "digits", "variant": variant, "version": VERSION, "seed": seed, "regime": regime,
        "architecture": architecture,
    }  # fmt: skip
    built = build_family(out, identity, prepare, packages=("torch", "scikit-learn"), force=force, report=report)
    return load_family(built.path)


def _settings(variant: str, regime: str, architecture: str) -> ImageSettings:
    momentum = architecture == "mlp"
    rate = (lambda value: value) if momentum else (lambda value: value / 3)  # AdamW takes smaller steps
    optimiser = "momentum" if momentum else "adamw"
    base_steps = 20 if (variant, regime) == ("groups", "far") else 100
    return ImageSettings(
        base=Schedule(base_steps, rate(1e-2), 64, optimiser),
        expert=Schedule(200, rate(3e-3), 64, optimiser),
        base_share=3,
    )


def load_family(path: str | Path) -> Family:
    """Open a family that `build_digits` finished, checking that every file still has its recorded bytes.

    Raises:
        SourceError: there is none, or it is another family or of another version.
        FormatError: family.json is not one.
        VerificationError: a file is missing or was changed.
    """
    path = Path(path)
    if (path / "family.json").is_file():
        description = read_json(path / "family.json")
        found = description.get("name"), description.get("version")
        if found != ("digits", VERSION):
            raise SourceError(f"{path}: is family {found[0]!r} version {found[1]!r}, not digits version {VERSION}")
    family = families.load_family(path)
    try:
        views = {view: VIEWS[view] for view in family.description["views"]}
    except (KeyError, TypeError) as error:
        raise FormatError(f"{path / 'family.json'}: does not describe a digits family ({error!r:.80})") from None
    return Family(**{field.name: getattr(family, field.name) for field in fields(family)}, views=views)
