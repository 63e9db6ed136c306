"""Finding the checkpoints of a run: by step, whole, of one kind, and nothing but models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from eutectic.errors import SourceError
from eutectic.recipes.training_run import find_checkpoints

Make = Callable[..., Path]


def test_a_run_is_ordered_by_step(make_run: Make) -> None:
    run = make_run("run", {100: 1.0, 20: 0.5, 3: 0.7})
    (run / "runs").mkdir()
    (run / "checkpoint-best").mkdir()
    (run / "tmp-checkpoint-200").mkdir()
    (run / "checkpoint-7").write_text("a file")
    found = find_checkpoints(run)
    assert [(entry.name, entry.step) for entry in found] == [(f"checkpoint-{step}", step) for step in (3, 20, 100)]
    assert find_checkpoints([entry.path for entry in reversed(found)]) == found
    assert not found[0].adapter


def test_a_list_has_steps_from_names_and_states(make_run: Make, make_model: Make, tmp_path: Path) -> None:
    run = make_run("run", {10: 1.0, 20: 0.5})
    (run / "checkpoint-20").rename(run / "late")
    assert [entry.step for entry in find_checkpoints([run / "late", run / "checkpoint-10"])] == [10, 20]
    other = make_model("other", {"w": np.zeros(2, "f4")})
    unknown = find_checkpoints([run / "late", other, run / "checkpoint-10"])
    assert [entry.step for entry in unknown] == [20, None, 10]  # the order given: the order of time is not known
    (tmp_path / "epoch_step-7.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    assert find_checkpoints([tmp_path / "epoch_step-7.safetensors", other])[0].step == 7


def test_what_is_no_run(make_run: Make, make_model: Make, tmp_path: Path) -> None:
    run = make_run("run", {10: 1.0, 20: 0.5})
    (tmp_path / "empty").mkdir()
    for sources, why in (
        (tmp_path / "empty", "empty: holds no folder checkpoint-<step>.*name a run's folder"),
        (run / "checkpoint-10", "holds no folder checkpoint-<step>.*it is a checkpoint itself"),
        (run / "checkpoint-10" / "model.safetensors", "is one file"),
        (tmp_path / "gone", "gone: no such file or folder"),
        ([], "no checkpoint is named"),
        ([run / "checkpoint-10", tmp_path / "empty"], "empty: holds no weights of a model or adapter"),
        ([run / "checkpoint-10", make_model("x/checkpoint-10", {"w": np.zeros(2, "f4")})], "both of step 10"),
    ):
        with pytest.raises(SourceError, match=why):
            find_checkpoints(sources)
    (run / "checkpoint-20" / "model.safetensors").unlink()  # what is left are states of the training
    with pytest.raises(SourceError, match="checkpoint-20: holds no weights"):
        find_checkpoints(run)
    (run / "checkpoint-010").mkdir()
    (run / "checkpoint-20").rename(tmp_path / "aside")
    (run / "checkpoint-010" / "model.safetensors").write_bytes(b"")
    with pytest.raises(SourceError, match="both of step 10"):
        find_checkpoints(run)


def test_a_folder_that_cannot_be_read(make_run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run("run", {10: 1.0})

    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(SourceError, match=r"run: cannot be read: Permission denied"):
        find_checkpoints(run)


def test_adapters(make_run: Make, tmp_path: Path) -> None:
    for step, rank in ((1, 4), (2, 8)):
        folder = tmp_path / f"lora/checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text(json.dumps({"r": rank, "rank_pattern": {"q": 2}}))
        save_file({"a": np.zeros(2, "f4")}, folder / "adapter_model.safetensors")
        (folder / "optimizer.pt").write_bytes(b"")
    found = find_checkpoints(tmp_path / "lora")
    assert all(entry.adapter for entry in found) and found[0].rank != found[1].rank
    run = make_run("run", {10: 1.0})
    with pytest.raises(SourceError, match=r"checkpoint-2 is an adapter and .*checkpoint-10 a model"):
        find_checkpoints([*(entry.path for entry in found), run / "checkpoint-10"])
