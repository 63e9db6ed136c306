"""A local Ray cluster of two nodes: the same bytes as here, also when a worker or a whole node dies on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

import eutectic
from eutectic.errors import MissingDependencyError, OutputError, SourceError
from eutectic.recipes.executors import ray as executor
from eutectic.recipes.plan import Plan

EUTECTIC = str(Path(sys.executable).with_name("eutectic"))
NODE = {"num_cpus": 1, "memory": 2 << 30, "object_store_memory": 80 << 20}
Contents = Callable[[Path], dict[str, bytes]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one processor each, as processes of this machine."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        made.add_node(**NODE)
        made.wait_for_nodes()
        yield made
        made.shutdown()


@pytest.fixture
def recipe(make_model: Callable[..., Path], write_recipe: Callable[..., Path]) -> Path:
    """A dare_ties of models with enough tensors that torch needs seconds for them."""
    random = numpy.random.default_rng(11)

    def tensors() -> dict[str, numpy.ndarray]:
        weights = {f"layers.{at}.weight": random.standard_normal((512, 600), dtype=numpy.float32) for at in range(14)}
        return weights | {"steps": numpy.arange(3), "empty": numpy.zeros((0, 2), numpy.float32)}

    base, a, b = (make_model(name, tensors(), {"model_type": "tiny"}) for name in ("base", "a", "b"))
    return write_recipe("dare_ties", [a, b], base, weight=0.5, density=0.4)


SHARDS = ("--out-shard-size", "1300KB", "--semantics-only")  # one tensor a file; slow enough to be hit


def _merge(recipe: Path, out: Path, cluster: Any, *more: str) -> subprocess.Popen[str]:
    words = [EUTECTIC, "merge", str(recipe), str(out), "--executor", "ray", "--address", cluster.address, *more]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _busy_workers() -> list[int]:
    """The processes of workers that merge a file right now."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes()
            except OSError:  # it has ended meanwhile
                continue
            if words.startswith(b"ray::_merge_shard"):
                found.append(int(folder.name))
    return found


def _await(busy: bool) -> list[int]:
    """Wait until workers merge, or until none does."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = _busy_workers()
        if bool(found) == busy:
            return found
        time.sleep(0.005)
    raise AssertionError("no worker merged anything" if busy else "a worker never stopped")


def _expect(run: subprocess.Popen[str]) -> None:
    out, err = run.communicate(timeout=120)
    assert run.returncode == 0, err + out


def test_the_bytes_are_those_of_a_local_merge(recipe: Path, tmp_path: Path, cluster: Any, contents: Contents) -> None:
    _expect(_merge(recipe, tmp_path / "far", cluster, "--out-shard-size", "5MB"))
    eutectic.merge(recipe, tmp_path / "here", shard_bytes=5_000_000)
    assert len(list((tmp_path / "far").glob("model-*.safetensors"))) > 2
    assert contents(tmp_path / "far") == contents(tmp_path / "here")  # the lock file, too: who merged does not matter
    eutectic.verify(tmp_path / "far")


def test_a_reduction_over_the_model_is_made_once(
    recipe: Path, tmp_path: Path, cluster: Any, contents: Contents, write_recipe: Callable[..., Path]
) -> None:
    models = [{"model": str(tmp_path / "a")}, {"model": str(tmp_path / "b")}]
    wide = write_recipe("ties", models, tmp_path / "base", weight=0.5, density=0.3, scope="model")
    _expect(_merge(wide, tmp_path / "far", cluster, "--out-shard-size", "5MB"))
    eutectic.merge(wide, tmp_path / "here", shard_bytes=5_000_000)
    assert contents(tmp_path / "far") == contents(tmp_path / "here")


def test_a_killed_worker_costs_nothing_but_time(recipe: Path, tmp_path: Path, cluster: Any, contents: Contents) -> None:
    run = _merge(recipe, tmp_path / "far", cluster, *SHARDS)
    for _ in range(2):
        os.kill(_await(busy=True)[0], signal.SIGKILL)
        time.sleep(0.2)
        assert run.poll() is None, "the merge was over before its worker was killed"
    _expect(run)
    eutectic.merge(recipe, tmp_path / "here", shard_bytes=1_300_000, torch_only=True)
    assert contents(tmp_path / "far") == contents(tmp_path / "here")
    eutectic.verify(tmp_path / "far")


def test_a_killed_driver_leaves_what_resumes(recipe: Path, tmp_path: Path, cluster: Any, contents: Contents) -> None:
    for how, code in ((signal.SIGKILL, -9), (signal.SIGINT, 130)):
        run = _merge(recipe, tmp_path / "far", cluster, *SHARDS, "--resume")
        _await(busy=True)
        run.send_signal(how)
        run.communicate(timeout=60)
        assert run.returncode == code
        assert not (tmp_path / "far").exists()
        _await(busy=False)  # its tasks end with it
    _expect(_merge(recipe, tmp_path / "far", cluster, *SHARDS, "--resume"))
    eutectic.merge(recipe, tmp_path / "here", shard_bytes=1_300_000, torch_only=True)
    assert contents(tmp_path / "far") == contents(tmp_path / "here")


def test_errors_say_where_they_arose(
    make_model: Callable[..., Path], write_recipe: Callable[..., Path], tmp_path: Path, cluster: Any
) -> None:
    sick = numpy.ones((4, 4), numpy.float32)
    sick[2, 1] = numpy.inf
    models = [make_model("good", {"w": numpy.ones((4, 4), numpy.float32)}), make_model("sick", {"w": sick})]
    run = _merge(write_recipe("soup", models), tmp_path / "out", cluster)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 4
    assert "model.safetensors:" in err and "sick" in err and "'w' holds inf at [2, 1]" in err
    assert "Traceback" not in err and not (tmp_path / "out").exists()


def test_a_task_that_fits_no_node_is_refused(recipe: Path, tmp_path: Path, cluster: Any) -> None:
    run = _merge(recipe, tmp_path / "out", cluster, "--threads", "64")
    _, err = run.communicate(timeout=60)
    assert run.returncode == 6
    assert "a task needs 64 processors" in err and "Lower --threads" in err
    assert not list(tmp_path.glob("out*"))


def test_a_lost_node_costs_nothing_but_time(recipe: Path, tmp_path: Path, cluster: Any, contents: Contents) -> None:
    node = cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    run = _merge(recipe, tmp_path / "far", cluster, *SHARDS)
    _await(busy=True)
    cluster.remove_node(node, allow_graceful=False)
    _expect(run)
    eutectic.merge(recipe, tmp_path / "here", shard_bytes=1_300_000, torch_only=True)
    assert contents(tmp_path / "far") == contents(tmp_path / "here")


# ---------------------------------------------------------------- without a cluster


def _order(recipe: Path) -> tuple[Plan, executor._Order]:
    import json

    from eutectic.recipes.provenance import fingerprint

    made = eutectic.plan(recipe)
    return made, executor._Order(json.dumps(made.expanded), made.options, fingerprint(made))


def test_a_node_that_sees_other_sources_is_refused(recipe: Path, tmp_path: Path) -> None:
    _, order = _order(recipe)
    executor._check_plan(order)
    executor._plan_of.cache_clear()
    os.utime(tmp_path / "a" / "model.safetensors", ns=(1, 1))
    with pytest.raises(SourceError, match="other files, or by other code"):
        executor._check_plan(order)
    (tmp_path / "a" / "model.safetensors").unlink()
    with pytest.raises(SourceError, match=r"tmp.*a"):
        executor._check_plan(order)


def test_a_node_that_does_not_see_out_is_refused(recipe: Path, tmp_path: Path) -> None:
    made, order = _order(recipe)
    with pytest.raises(OutputError, match="is not there on this node"):
        executor._merge_shard(order, str(tmp_path / "out.partial"), 0, list(made), None)


def test_a_task_that_outlived_its_run_writes_nothing(recipe: Path, tmp_path: Path) -> None:
    made, order = _order(recipe)
    staging = tmp_path / "out.partial"
    staging.mkdir()
    (staging / ".journal").write_text('{"fingerprint": "of another recipe"}\n')
    (staging / made.shards[0].name).write_bytes(made.shards[0].header)
    with pytest.raises(OutputError, match="belongs to another run"):
        executor._merge_shard(order, str(staging), 0, list(made), None)
    assert (staging / made.shards[0].name).read_bytes() == made.shards[0].header


def test_without_ray_the_extra_is_named(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'eutectic\[ray\]'"):
        eutectic.merge(recipe, tmp_path / "out", executor="ray")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999999", "ray://127.0.0.1:1", "somewhere"])
def test_no_cluster_at_an_address(address: str, recipe: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    result = cli("merge", recipe, tmp_path / "out", "--executor", "ray", "--address", address)
    assert result.exit_code == 6
    assert address in result.stderr and "Ray cluster" in result.stderr
    assert not list(tmp_path.glob("out*"))
