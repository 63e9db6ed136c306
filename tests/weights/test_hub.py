"""Models of the hub, against a stand-in of its API on this machine: the cache first, then ranges, then a sentence."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy
import pytest

from eutectic.errors import MissingDependencyError, SourceError
from eutectic.weights import remote
from eutectic.weights.checkpoint import open_checkpoint
from eutectic.weights.hub import HubPath

COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture
def model(make_model: Callable[..., Path]) -> Path:
    tensors = {f"w{at}": numpy.random.default_rng(at).normal(size=(64, 64)) for at in range(4)}
    return make_model("files/model", tensors, config={"model_type": "x"}, card="---\nlicense: mit\n---\n")


@pytest.fixture
def hub(serve_hub: Callable[..., Any], model: Path) -> Any:
    return serve_hub({"org/model": model})


def cache(hub: Any, model: Path, *names: str, ref: str | None = "main") -> Path:
    folder = hub.cache / "models--org--model"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for name in names or [path.name for path in model.iterdir()]:
        shutil.copy(model / name, snapshot / name)
    if ref:
        (folder / "refs").mkdir()
        (folder / "refs" / ref).write_text(COMMIT)
    return snapshot


def equal(found: Any, folder: Path) -> None:
    there = open_checkpoint(folder)
    assert list(found) == list(there)
    assert found.config == there.config
    for name, tensor in there.items():
        assert found[name].read() == tensor.read()


@pytest.mark.parametrize("reference", ["org/model", "org/model@main", f"org/model@{COMMIT}"])
def test_streamed_at_one_commit(hub: Any, model: Path, reference: str) -> None:
    found = open_checkpoint(reference)
    equal(found, model)
    assert str(found.path) == f"org/model@{COMMIT}"
    assert found.path.identity == ("org/model", COMMIT)
    assert found.held_bytes == remote.HELD_BYTES
    assert sum(path.startswith("/api/models/") for path, _ in hub.log) == 1
    assert all(asked for path, asked in hub.log if not path.startswith("/api/"))  # by ranges only
    assert not list(hub.cache.rglob("*"))  # nothing is stored


def test_description_and_headers_come_before_weights(hub: Any) -> None:
    open_checkpoint("org/model")
    names = [path.rpartition("/")[2] for path, _ in hub.log if "/resolve/" in path]
    assert names == ["config.json", "model.safetensors"]
    assert hub.sent <= 2 * remote.START


def test_the_token_stays_with_the_hub(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    open_checkpoint("org/model")
    assert "Bearer hf_secret" in hub.authorisations["/org/"]
    assert hub.authorisations["/cdn/"] == {None}


def test_a_cached_commit_needs_no_request(hub: Any, model: Path) -> None:
    cache(hub, model, ref=None)
    found = open_checkpoint(f"org/model@{COMMIT}")
    equal(found, model)
    assert not hub.log
    assert found.held_bytes == 0
    assert found.path.identity == ("org/model", COMMIT)


def test_offline_takes_the_cache_alone(hub: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEERS 4 no. 24: work without a network, and the folder of the cache."""
    cache(hub, model)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    equal(open_checkpoint("org/model"), model)
    with pytest.raises(
        SourceError, match=r"org/other@v1: no such .* HF_HUB_OFFLINE .*: hf download org/other --revision v1"
    ):
        open_checkpoint("org/other@v1")
    assert not hub.log


def test_what_the_cache_lacks_is_streamed(hub: Any, model: Path) -> None:
    cache(hub, model, "config.json", "README.md")
    found = open_checkpoint(f"org/model@{COMMIT}")
    equal(found, model)
    assert {path.rpartition("/")[2] for path, _ in hub.log if "/resolve/" in path} == {"model.safetensors"}


def test_a_branch_that_moved_is_not_taken_from_the_cache(hub: Any, model: Path) -> None:
    snapshot = cache(hub, model)
    hub.commit = OTHER
    (snapshot / "config.json").write_text('{"model_type": "old"}')
    assert open_checkpoint("org/model").config == {"model_type": "x"}
    assert open_checkpoint(f"org/model@{COMMIT}").config == {"model_type": "old"}


def test_shards_in_the_cache_count_when_all_are_there(hub: Any, model: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    (model / "model.safetensors").unlink()
    for at in (1, 2):
        save_file({f"w{at}": numpy.ones(3)}, model / f"model-0000{at}-of-00002.safetensors")
    index = {"weight_map": {f"w{at}": f"model-0000{at}-of-00002.safetensors" for at in (1, 2)}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    snapshot = cache(hub, model)
    equal(open_checkpoint(f"org/model@{COMMIT}"), model)
    assert not hub.log
    (snapshot / "model-00002-of-00002.safetensors").unlink()
    equal(open_checkpoint(f"org/model@{COMMIT}"), model)
    streamed = [path.rpartition("/")[2] for path, _ in hub.log if "/resolve/" in path]
    assert streamed == ["model-00002-of-00002.safetensors"]


def test_a_path_of_that_name_wins(hub: Any, make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model("here/org/model", {"local": numpy.ones(2)})
    monkeypatch.chdir(folder.parent.parent)
    assert list(open_checkpoint("org/model")) == ["local"]
    with pytest.raises(SourceError, match="org/model is a folder here, which has no revisions; leave out @main"):
        open_checkpoint("org/model@main")
    assert not hub.log


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("org/gone", r"org/gone: no such folder or file here, and the hub has no such model, or not for you"),
        ("org/model@v9", r"the hub's org/model has no branch, tag or commit 'v9'"),
        ("org/gated", r"org/gated is gated: ask for access at http://127\.0\.0\.1:\d+/org/gated, then log in"),
        ("org/broken", r"cannot be asked: it answers 500"),
        ("org/a..b", r"org/a\.\.b: no such folder or file here, and no name of the hub"),
    ],
)
def test_what_the_hub_refuses(hub: Any, reference: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_checkpoint(reference)


def test_a_hub_that_is_not_there(hub: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache(hub, model)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(SourceError, match=rf"cannot be asked: .*HF_HUB_OFFLINE=1 takes commit {COMMIT} from the cache"):
        open_checkpoint("org/model")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependencyError, match=r"org/model: no such .* pip install 'eutectic\[hf\]'"):
        open_checkpoint("org/model")


def test_names() -> None:
    place = HubPath("org/model", "v1")
    assert (str(place), place.name, place.suffix, place.is_dir()) == ("org/model@v1", "model", "", True)
