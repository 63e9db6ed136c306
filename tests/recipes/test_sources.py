"""Merges of sources on other machines: the bytes of a local merge, and a record that names no path of this one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
import yaml
from click.testing import Result

from eutectic import merge, plan, verify
from eutectic.errors import OutputError, RecipeError, ResourceError, SourceError
from eutectic.recipes.publish import check_push, public_files
from eutectic.recipes.schema import load_recipe
from eutectic.recipes.tree import expand
from eutectic.weights.checkpoint import open_checkpoint

COMMIT = "a" * 40
CARD = "---\nlicense: mit\n---\n"


@pytest.fixture
def models(make_model: Callable[..., Path]) -> dict[str, Path]:
    """``base``, ``a`` and ``b``, the base with a tokenizer."""
    random = numpy.random.default_rng(3)
    made = {}
    for name in ("base", "a", "b"):
        tensors = {f"w{at}": random.normal(size=(128, 512)).astype("float32") for at in range(3)}
        made[name] = make_model(f"files/{name}", tensors, config={"model_type": "x"}, card=CARD)
    (made["base"] / "tokenizer.json").write_text('{"version": "1.0"}')
    return made


def recipe(base: object, *sources: object, method: str = "ties") -> dict[str, Any]:
    return {
        "merge_method": method,
        "base_model": str(base),
        "models": [{"model": str(source), "parameters": {"weight": 0.5, "density": 0.5}} for source in sources],
    }


def tensors(folder: Path) -> dict[str, bytes]:
    return {name: bytes(ref.read()) for name, ref in open_checkpoint(folder).items()}


@pytest.fixture
def everywhere(serve: Callable[..., Any], serve_hub: Callable[..., Any], models: dict[str, Path]) -> Any:
    """A recipe whose base lies on the hub, one source behind a URL, one here; the servers; the same recipe all here."""
    hub = serve_hub({"org/base": models["base"], "org/a": models["a"]})
    web = serve(models["b"].parent)
    remote = recipe("org/base", f"{web.url}/b", models["a"])
    return remote, hub, web, recipe(models["base"], models["b"], models["a"])


def test_the_bytes_of_a_local_merge(everywhere: Any, tmp_path: Path) -> None:
    remote, hub, web, local = everywhere
    merge(remote, tmp_path / "out")
    merge(local, tmp_path / "local")
    assert tensors(tmp_path / "out") == tensors(tmp_path / "local")
    assert (tmp_path / "out/tokenizer.json").read_text() == '{"version": "1.0"}'
    assert (tmp_path / "out/config.json").read_bytes() == (tmp_path / "local/config.json").read_bytes()
    assert verify(tmp_path / "out").sound
    assert not list(hub.cache.rglob("*"))  # PEERS 4 no. 24: no download folder, nothing stored
    assert hub.sent + web.sent < 3 * sum(map(len, tensors(tmp_path / "local").values()))


def test_what_is_recorded(everywhere: Any, tmp_path: Path, models: dict[str, Path]) -> None:
    remote, _, web, _ = everywhere
    merge(remote, tmp_path / "out")
    lock = json.loads((tmp_path / "out/recipe.lock.json").read_text())
    assert lock["recipe"]["base_model"] == f"org/base@{COMMIT}"
    found = {source["path"]: source for source in lock["sources"]}
    assert set(found) == {f"org/base@{COMMIT}", f"{web.url}/b", str(models["a"])}
    assert (found[f"org/base@{COMMIT}"]["name"], found[f"org/base@{COMMIT}"]["revision"]) == ("org/base", COMMIT)
    assert found[f"{web.url}/b"]["files"][0]["etag"]
    card = (tmp_path / "out/README.md").read_text()
    assert f"| org/base | {COMMIT} | mit |" in card
    assert f"| {web.url}/b |  | mit |" in card


def test_a_lock_file_rebuilds_from_the_same_commit(everywhere: Any, tmp_path: Path) -> None:
    remote, hub, *_ = everywhere
    merge(remote, tmp_path / "out")
    hub.log.clear()
    merge(tmp_path / "out/recipe.lock.json", tmp_path / "again")
    assert tensors(tmp_path / "out") == tensors(tmp_path / "again")
    assert f"/api/models/org/base/revision/{COMMIT}" in [path for path, _ in hub.log]


def test_resume_takes_the_finished_merge(everywhere: Any, tmp_path: Path) -> None:
    remote, hub, *_ = everywhere
    merge(remote, tmp_path / "out")
    assert merge(remote, tmp_path / "out", resume=True) == tmp_path / "out"
    hub.commit = "b" * 40
    with pytest.raises(OutputError, match="exists"):
        merge(remote, tmp_path / "out", resume=True)


def test_a_source_that_changes_during_the_merge(everywhere: Any, tmp_path: Path) -> None:
    remote, _, web, _ = everywhere
    served = web.fault

    def change(handler: Any) -> bool:
        if handler.path.endswith("model.safetensors") and not handler.headers["Range"].startswith("bytes=0-"):
            web.etags["/b/model.safetensors"] = '"another"'
        return served(handler)

    web.fault = change
    with pytest.raises(SourceError, match=r"b/model\.safetensors was changed on its server"):
        merge(remote, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_server_that_fails_and_comes_back(everywhere: Any, tmp_path: Path) -> None:
    remote, _, web, local = everywhere
    web.fault = lambda handler: bool(handler.headers["Range"] != "bytes=0-262143" and (handler.reply(500), True))
    with pytest.raises(SourceError, match=r"the server answers 500, 5 times.*--resume"):
        merge(remote, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    web.fault = lambda handler: False
    merge(remote, tmp_path / "out", resume=True)
    merge(local, tmp_path / "local")
    assert tensors(tmp_path / "out") == tensors(tmp_path / "local")


def test_errors_come_before_weights(everywhere: Any, models: dict[str, Path], make_model: Callable[..., Path]) -> None:
    """PEERS 4 no. 10: a typo was told after 20 minutes of downloading."""
    remote, hub, web, _ = everywhere
    with pytest.raises(RecipeError, match="did you mean 'ties'"):
        plan({**remote, "merge_method": "tise"})
    assert not hub.log and not web.log  # not even a header
    make_model("files/other", {"w0": numpy.ones((4, 4), dtype="float32")}, config={})
    with pytest.raises(SourceError, match=r"w0"):
        plan(recipe("org/base", f"{web.url}/other"))
    assert hub.sent < 270_000 + 2_000  # the first bytes of each file
    with pytest.raises(SourceError, match="org/gone: no such folder or file here, and the hub has no such model"):
        plan(recipe("org/base", "org/gone"))


def test_no_source_is_stored(everywhere: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEERS 4 no. 24: sources larger than the free disk, of which only what the result needs is asked."""
    remote, hub, web, _ = everywhere
    sources = [{"model": f"{web.url}/{name}", "parameters": {"weight": 0.2}} for name in ("a", "b", "base")]
    wanted = {**remote, "merge_method": "linear", "base_model": None, "models": [{**s} for s in sources]}
    wanted["models"].append({"model": "org/base", "parameters": {"weight": 0.4}})
    size = plan({k: v for k, v in wanted.items() if v is not None}).disk
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    free = size + (17 << 20)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": free})())
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    merge({k: v for k, v in wanted.items() if v is not None}, tmp_path / "out")
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert new and all(path.parent == tmp_path / "out" for path in new)
    assert sum(path.stat().st_size for path in new) < size + 20_000
    assert not list(hub.cache.rglob("*"))


def test_memory_of_remote_sources_is_in_the_plan(everywhere: Any) -> None:
    remote, _, _, local = everywhere
    assert plan(remote).peak > plan(local).peak
    with pytest.raises(ResourceError, match="below the floor"):
        plan(remote, max_memory=16 << 20)


def test_revisions_as_mergekit_writes_them(serve_hub: Callable[..., Any], models: dict[str, Path]) -> None:
    serve_hub({"org/base": models["base"]})
    source = {"model": {"model": {"path": "org/base", "revision": COMMIT}}}
    found = load_recipe({"merge_method": "passthrough", "models": [source]})
    assert found.models[0].model == f"org/base@{COMMIT}"
    assert expand(found)["models"][0]["model"] == f"org/base@{COMMIT}"
    assert plan(found).tree.reference.checkpoint.path.identity == ("org/base", COMMIT)
    absent = {"model": {"path": str(models["a"]), "revision": "main"}}
    with pytest.raises(SourceError, match="no such folder"):
        plan({"merge_method": "passthrough", "models": [absent]})


def test_an_adapter_of_the_hub(serve_hub: Callable[..., Any], models: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    folder = tmp_path / "files/lora"
    folder.mkdir()
    random = numpy.random.default_rng(1)
    factors = {"A": random.normal(size=(4, 512)), "B": random.normal(size=(128, 4))}
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    save_file(
        {f"base_model.model.w.lora_{key}.weight": value.astype("float32") for key, value in factors.items()},
        folder / "adapter_model.safetensors",
    )
    base = tmp_path / "files/plain"
    base.mkdir()
    save_file({"w.weight": random.normal(size=(128, 512)).astype("float32")}, base / "model.safetensors")
    serve_hub({"org/lora": folder, "org/plain": base})
    found = plan({"merge_method": "passthrough", "models": [{"model": f"org/plain@{COMMIT}+org/lora"}]})
    local = plan({"merge_method": "passthrough", "models": [{"model": f"{base}+{folder}"}]})
    assert found["w.weight"].read() == local["w.weight"].read()
    assert found.expanded["models"][0]["model"] == f"org/plain@{COMMIT}+org/lora@{COMMIT}"


# ---------------------------------------------------------------- pushing


@pytest.fixture
def logged_in(serve_hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")


@pytest.mark.usefixtures("logged_in")
def test_push(everywhere: Any, tmp_path: Path, cli: Callable[..., Result], models: dict[str, Path]) -> None:
    remote, hub, *_ = everywhere
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(remote))
    result = cli("merge", str(path), str(tmp_path / "out"), "--push-to-hub", "org/merged")
    assert result.exit_code == 0, result.output
    assert f"pushed to {hub.url}/org/merged" in result.output
    made = hub.made[0]
    assert made["name"] == "merged" and (made.get("private") is True or made.get("visibility") == "private")
    assert set(hub.pushed) == {entry.name for entry in (tmp_path / "out").iterdir()}
    for name in ("README.md", "recipe.yaml", "recipe.lock.json"):
        text = hub.pushed[name].decode()
        assert f"org/base@{COMMIT}" in text and str(tmp_path) not in text
    assert yaml.safe_load(hub.pushed["recipe.yaml"])["models"][1]["model"] == "a"  # of a local model only the name
    assert str(models["a"]) in (tmp_path / "out/recipe.lock.json").read_text()  # which this machine needs
    download = tmp_path / "download"
    download.mkdir()
    for name, content in hub.pushed.items():
        (download / name).write_bytes(content)
    assert verify(download).sound


@pytest.mark.usefixtures("logged_in")
def test_push_again_after_a_failure(everywhere: Any, tmp_path: Path, cli: Callable[..., Result]) -> None:
    remote, hub, *_ = everywhere
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(remote))
    receive, hub.receive = hub.receive, lambda request: request.reply(403)
    result = cli("merge", str(path), str(tmp_path / "out"), "--push-to-hub", "org/merged")
    assert result.exit_code == 5
    assert "is merged and whole, but pushing it to org/merged failed: it answers 403" in result.output
    hub.receive = receive
    result = cli("merge", str(path), str(tmp_path / "out"), "--push-to-hub", "org/merged", "--resume")
    assert result.exit_code == 0 and "model.safetensors" in hub.pushed


@pytest.mark.parametrize(
    ("repo", "token", "message"),
    [
        ("merged", "hf_secret", r"merged: a model of the hub is named by org/name"),
        ("org/merged", None, r"nobody is logged in; run hf auth login, or set HF_TOKEN"),
        ("org/merged", "hf_wrong", r"does not take the login: it answers 401"),
        ("others/merged", "hf_secret", r"me writes to me, org, not to others"),
    ],
)
def test_push_is_refused_before_the_merge(
    everywhere: Any, repo: str, token: str | None, message: str, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path, cli: Callable[..., Result],
) -> None:  # fmt: skip
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(OutputError, match=message):
        check_push(repo)
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(everywhere[0]))
    assert cli("merge", str(path), str(tmp_path / "out"), "--push-to-hub", repo).exit_code == 5
    assert not list(tmp_path.glob("out*"))


def test_public_names_of_adapters(models: dict[str, Path], tmp_path: Path) -> None:
    merge(recipe(models["base"], models["a"]), tmp_path / "out")
    document = json.loads((tmp_path / "out/recipe.lock.json").read_text())
    document["recipe"]["models"][0]["model"] = f"/home/me/x+y/base+org/lora@{COMMIT}"
    document["recipe"]["base_model"] = f"/cache/models--org--base/snapshots/{COMMIT}+/home/me/lora"
    (tmp_path / "out/recipe.lock.json").write_text(json.dumps(document))
    found: Mapping[str, Any] = yaml.safe_load(public_files(tmp_path / "out")["recipe.yaml"])
    assert found["models"][0]["model"] == f"base+org/lora@{COMMIT}"
    assert found["base_model"] == f"org/base@{COMMIT}+lora"
