"""The digits family: deterministic, disjoint, reused, never half-finished, and worth merging."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from eutectic.errors import (
    FormatError,
    MissingDependencyError,
    OutputError,
    RecipeError,
    SourceError,
    VerificationError,
)
from eutectic.weights.checkpoint import open_checkpoint
from eutectic.zoo import FAMILIES, digits
from eutectic.zoo.digit_views import VIEWS, load_splits
from eutectic.zoo.digits import build_digits, load_family


@pytest.fixture(scope="session")
def family(tmp_path_factory):
    return build_digits(tmp_path_factory.mktemp("zoo") / "digits")


@pytest.fixture
def copy(family, tmp_path):
    return shutil.copytree(family.path, tmp_path / "digits")


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def arrays(path):
    return {name: tensor.to_numpy() for name, tensor in open_checkpoint(path).items()}


def test_same_seed_same_bytes_whatever_the_callers_torch_is_set_to(family, tmp_path):
    threads = torch.get_num_threads()
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    try:
        with torch.no_grad():
            again = build_digits(tmp_path / "again")
        assert torch.get_num_threads() == 2 and torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(threads)
    assert contents(again.path) == contents(family.path)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_another_seed_gives_other_weights_on_the_same_splits(family, tmp_path):
    other = contents(build_digits(tmp_path / "other", seed=1).path)
    for name, data in contents(family.path).items():
        assert (data == other[name]) == name.startswith(("data/", "suite.json")), name


def test_splits_are_disjoint_complete_and_stratified(family):
    splits = {name: family.split(name) for name in ("train", "validation", "test")}
    rows = [(row.tobytes(), label) for s in splits.values() for row, label in zip(s.images, s.labels, strict=True)]
    assert len(rows) == len(set(rows)) == 1797  # all images differ, so an image in two splits would show
    for name, share in (("train", 0.5), ("validation", 0.25), ("test", 0.25)):
        images, labels = splits[name]
        assert images.dtype == np.float32 and labels.dtype == np.int64 and images.shape == (len(labels), 64)
        assert images.min() == 0 and images.max() == 1
        for digit in range(10):
            whole = sum(np.count_nonzero(s.labels == digit) for s in splits.values())
            assert abs(np.count_nonzero(labels == digit) - share * whole) <= 1
        assert family.description["sizes"][name] == len(labels)


def test_views_are_distinct_reversible_and_stay_in_range(family):
    images = family.split("test").images
    seen = {name: view(images) for name, view in VIEWS.items()}
    for name, shown in seen.items():
        assert shown.shape == images.shape and shown.dtype == np.float32
        assert shown.min() == 0 and shown.max() == 1
        others = [other for key, other in seen.items() if key != name]
        assert not any(np.array_equal(shown, other) for other in others)
    for name in ("flip", "invert", "checker"):
        assert np.array_equal(VIEWS[name](seen[name]), images)
    assert np.array_equal(VIEWS["shift"](VIEWS["shift"](VIEWS["shift"](seen["shift"]))), images)


def test_folders_are_laid_out_as_transformers_lays_them_out(family):
    from safetensors.numpy import load_file

    assert set(family.experts) == set(family.views) and len(family.views) >= 5
    for view, path in {None: family.base, **family.experts}.items():
        config = json.loads((path / "config.json").read_text())
        assert config["model_type"] == "eutectic-digits-mlp" and config["dtype"] == "float32"
        assert (config["seed"], config["view"]) == (0, view)
        checkpoint = open_checkpoint(path)
        sizes = [config["input_size"], *config["hidden_sizes"], config["num_labels"]]
        shapes = {f"layers.{i}.weight": (sizes[i + 1], sizes[i]) for i in range(3)}
        shapes |= {f"layers.{i}.bias": (sizes[i + 1],) for i in range(3)}
        assert {name: tensor.shape for name, tensor in checkpoint.items()} == shapes
        reference = load_file(path / "model.safetensors")
        assert all(np.array_equal(tensor.to_numpy(), reference[name]) for name, tensor in checkpoint.items())


def test_experts_are_experts_and_the_average_beats_them_all_on_the_mean(family):
    base, experts = arrays(family.base), {view: arrays(path) for view, path in family.experts.items()}
    merged = {name: np.mean([expert[name] for expert in experts.values()], axis=0) for name in base}
    of_base, of_merged = family.measure(base), family.measure(merged)
    assert 0.3 < of_base.mean.value < 0.9  # has learned something, and left something to learn
    for view, expert in experts.items():
        scores = family.measure(expert)
        assert scores.views[view].value > 0.9 > 0.05 + of_base.views[view].value
        assert scores.mean.value + 3 * scores.mean.stderr < of_merged.mean.value
        own = family.measure(expert, "validation").views[view].value
        assert family.description["validation"][view]["expert"] == pytest.approx(own)
        assert own > family.description["validation"][view]["base"]
    assert of_merged.mean.value > of_base.mean.value + 3 * of_merged.mean.stderr


def test_a_finished_family_is_reused_and_loads(copy, monkeypatch):
    monkeypatch.setattr(digits, "load_splits", lambda: pytest.fail("trained again"))
    reused = build_digits(copy)
    loaded = load_family(copy)
    assert reused.experts == loaded.experts and reused.seed == loaded.seed == 0
    with pytest.raises(SourceError, match="did you mean 'test'"):
        loaded.split("tests")


def test_another_folder_is_refused_unless_forced(copy, tmp_path):
    before = contents(copy)
    with pytest.raises(OutputError, match="seed 0, not 5"):
        build_digits(copy, seed=5)
    (copy / "base" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(OutputError, match="was changed"):
        build_digits(copy)
    (copy / "family.json").unlink()
    with pytest.raises(OutputError, match=r"holds no family"):
        build_digits(copy)
    (copy / "merged.safetensors").write_bytes(b"precious")
    with pytest.raises(OutputError, match=r"merged\.safetensors"):
        build_digits(copy, force=True)
    (copy / "merged.safetensors").unlink()
    assert contents(build_digits(copy, force=True).path) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["digits"]
    file = tmp_path / "file"
    file.write_text("text")
    with pytest.raises(OutputError, match="not a folder"):
        build_digits(file, force=True)


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_build_that_breaks_off_leaves_nothing(tmp_path, failure):
    def break_off(line):
        if line.startswith("expert"):
            raise failure

    with pytest.raises((KeyboardInterrupt, OutputError)):
        build_digits(tmp_path / "digits", report=break_off)
    assert not list(tmp_path.iterdir())


def test_a_killed_build_leaves_nothing_that_looks_finished(tmp_path):
    code = (
        "import os, signal, sys; from eutectic.zoo.digits import build_digits\n"
        "build_digits(sys.argv[1], report=lambda line: line.startswith('expert') and os.kill(os.getpid(), 9))"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "digits"], check=False).returncode == -9
    assert not (tmp_path / "digits").exists()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith("digits.partial-") and not list(tmp_path.rglob("family.json"))


def test_a_changed_or_strange_family_does_not_load(copy):
    description = json.loads((copy / "family.json").read_text())
    with pytest.raises(SourceError, match=r"no family\.json"):
        load_family(copy / "base")
    for change, error in (
        ({"version": 0}, SourceError),
        ({"views": ["sideways"]}, FormatError),
        ({"files": None}, FormatError),
        ({"files": {}}, VerificationError),
        ({"base": "../base"}, FormatError),
    ):
        (copy / "family.json").write_text(json.dumps(description | change))
        with pytest.raises(error, match="digits"):
            load_family(copy)
    (copy / "family.json").write_text(json.dumps(description))
    (copy / "data" / "flip.test.safetensors").unlink()
    with pytest.raises(VerificationError, match=r"flip\.test.safetensors: is missing"):
        load_family(copy)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True, "0"])
def test_a_seed_that_is_none_is_refused(tmp_path, seed):
    with pytest.raises(RecipeError, match="seed"):
        build_digits(tmp_path / "digits", seed=seed)


def test_missing_scikit_learn_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'eutectic\[zoo\]'"):
        build_digits(tmp_path / "new" / "digits")
    assert not list(tmp_path.iterdir())
    with pytest.raises(MissingDependencyError):
        load_splits()


def test_listing_families_loads_nothing_heavy():
    module, function = FAMILIES["digits"].builder.split(":")
    assert getattr(sys.modules[module], function) is build_digits
    code = "import sys, eutectic.zoo; print([m for m in ('torch', 'sklearn', 'numpy') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
    code = "import sys, eutectic.zoo.digits; print([m for m in ('torch', 'sklearn') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
