"""What a folder is, from its files alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eutectic.errors import FormatError
from eutectic.evaluation.folder import declared_base, kind_of, look
from eutectic.weights.checkpoint import Checkpoint, open_checkpoint

Make = Callable[..., Path]
W = {"w": np.zeros(2, np.float32)}


def test_a_family_lists_its_models(make_model: Make, tmp_path: Path) -> None:
    for name in ("f/base", "f/experts/fr", "f/adapters/fr", "f/joint"):
        make_model(name, W)
    description = {
        "name": "bytes", "variant": "domains", "seed": 3, "base": "base", "experts": {"fr": "experts/fr"},
        "adapters": {"fr": "adapters/fr"}, "joint": "joint",
    }  # fmt: skip
    (tmp_path / "f" / "family.json").write_text(json.dumps(description))
    (tmp_path / "f" / "suite.json").write_text(json.dumps({"tasks": [{"name": "fr"}, {"name": "general"}]}))
    found = look(tmp_path / "f")
    assert found is not None and (found.kind, found.title) == ("family", "family of experts (bytes)")
    assert list(found.members) == ["base", "expert fr", "adapter fr", "joint"]
    assert found.facts == {"variant": "domains", "seed": 3, "tasks": ["fr", "general"]}


def test_a_family_that_names_no_path_has_the_usual_folders(make_model: Make, tmp_path: Path) -> None:
    for name in ("f/base", "f/experts/b", "f/experts/a"):
        make_model(name, W)
    (tmp_path / "f" / "family.json").write_text('{"name": "digits", "base": {"steps": 3}}')
    found = look(tmp_path / "f")
    assert found is not None and list(found.members) == ["expert a", "expert b"]


def test_a_family_does_not_lead_outside(make_model: Make, tmp_path: Path) -> None:
    make_model("f/base", W)
    (tmp_path / "f" / "family.json").write_text('{"experts": {"x": "../../etc"}}')
    with pytest.raises(FormatError, match=r"expert x points to '\.\./\.\./etc', outside the folder"):
        look(tmp_path / "f")


def test_an_adapter(make_model: Make, tmp_path: Path) -> None:
    folder = make_model("a", W)
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "use_dora": False, "base_model_name_or_path": "org/base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    found = look(folder)
    assert found is not None and found.weights == folder / "adapter_model.safetensors"
    assert found.facts == {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "base": "org/base"}


def test_models_and_their_declared_bases(make_model: Make) -> None:
    plain = make_model("plain", W)
    assert look(plain) is None and kind_of(open_checkpoint(plain)) == "weights"
    card = "---\nbase_model: org/base\n---\n"
    model = make_model("model", W, {"_name_or_path": "org/other"}, card)
    opened = open_checkpoint(model)
    assert kind_of(opened) == "model" and kind_of(Checkpoint(opened)) == "planned"
    assert declared_base(opened) == [("org/base", "README.md"), ("org/other", "config.json")]
    (model / "recipe.lock.json").write_text(json.dumps({"sources": [{"name": "org/base"}, {"name": "b"}, 5]}))
    opened = open_checkpoint(model)
    assert kind_of(opened) == "merged"
    assert [name for name, _ in declared_base(opened)] == ["org/base", "b", "org/other"]
    assert declared_base(Checkpoint(opened)) == []
