"""A family on disk: read as it was written, and refused where it is not one or was changed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from eutectic.errors import FormatError, SourceError, VerificationError
from eutectic.evaluation.family import load_family
from eutectic.zoo.family import build_family

IDENTITY = {"name": "toy", "variant": "one", "version": 1, "seed": 3, "regime": "far"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    def write(writer) -> None:
        one = {"w": np.ones(2, dtype="float32")}
        for place in ("base", "experts/a", "joint", "mixtures/half"):
            writer.add_model(place, one, {"model_type": "toy"})
        writer.add_adapter("a", {"base_model.model.w.lora_A.weight": np.ones((1, 2), "f4")}, {"peft_type": "LORA"})
        writer.add_task("a", "classification", dict.fromkeys(("train", "validation", "test"), one), expert="a")

    return build_family(tmp_path / "toy", IDENTITY, lambda: write).path


def test_what_was_written_is_read(folder: Path) -> None:
    family = load_family(folder)
    assert (family.name, family.variant, family.version, family.seed, family.regime) == tuple(IDENTITY.values())
    assert family.base == folder / "base" and family.joint == folder / "joint"
    assert family.experts == {"a": folder / "experts/a"} and family.adapters == {"a": folder / "adapters/a"}
    assert family.mixtures == {"half": folder / "mixtures/half"} and family.unlabelled == {}
    (task,) = json.loads(family.suite.read_text())["tasks"]
    assert (task["name"], task["kind"], task["role"], task["expert"]) == ("a", "classification", "task", "a")
    assert all((folder / place).is_file() for place in task["data"].values())


@pytest.mark.parametrize("file", ["suite.json", "base/config.json", "adapters/a/adapter_model.safetensors"])
def test_a_changed_file_is_named(folder: Path, file: str) -> None:
    (folder / file).write_bytes(b"{}")
    with pytest.raises(VerificationError, match=f"{file}: was changed"):
        load_family(folder)
    assert load_family(folder, verify=False).path == folder
    (folder / file).unlink()
    with pytest.raises(VerificationError, match=f"{file}: is missing"):
        load_family(folder)


def test_what_is_no_family_is_refused(folder: Path) -> None:
    with pytest.raises(SourceError, match=r"no family\.json"):
        load_family(folder / "base")
    description = json.loads((folder / "family.json").read_text())
    for change in (
        {"experts": {}}, {"experts": []}, {"base": "/etc"}, {"suite": "../s"}, {"files": None}, {"seed": "x"},
    ):  # fmt: skip
        (folder / "family.json").write_text(json.dumps(description | change))
        with pytest.raises(FormatError, match="does not describe a family"):
            load_family(folder)
