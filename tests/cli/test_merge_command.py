"""`eutectic merge`, as a person types it: what it prints, what it makes, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from click.testing import Result
from safetensors.numpy import save_file

import eutectic
from eutectic.recipes.profile import PHASES, STAGES
from eutectic.weights.sink import JOURNAL

Cli = Callable[..., Result]
COMPILING = "Compiling the merge kernels for this machine; this happens once.\n"  # on a first or a slow start


@pytest.fixture
def recipe(family: dict[str, Path], write_recipe: Callable[..., Path]) -> Path:
    return write_recipe("linear", [family["a"], family["b"]], weight=0.5)


def test_it_says_what_it_made(tmp_path: Path, recipe: Path, cli: Cli) -> None:
    done = cli("merge", recipe, tmp_path / "deep" / "out")
    assert done.exit_code == 0 and done.stderr.replace(COMPILING, "") == ""
    assert done.stdout.startswith(f"{tmp_path / 'deep' / 'out'}: 5 tensors, ") and done.stdout.count("\n") == 1
    again = cli("merge", recipe, tmp_path / "deep" / "out", "--resume")
    assert again.exit_code == 0 and "is this merge already, finished" in again.stdout


def test_quiet_verbose_and_json(tmp_path: Path, recipe: Path, cli: Cli) -> None:
    quiet = cli("merge", recipe, tmp_path / "quiet", "-q")
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, "", "")
    verbose = cli("merge", recipe, tmp_path / "verbose", "-v")
    assert "merged: 4 tensors" in verbose.stderr and "5 tensors" in verbose.stdout
    planned, *_, told = events(cli("merge", recipe, tmp_path / "json", "--json"))
    assert (planned["event"], told["event"], planned["plan"]) == ("planned", "finished", told["plan"])
    assert (told["command"], told["out"], told["already_finished"]) == ("merge", str(tmp_path / "json"), False)
    assert told["plan"]["tensors"] == 5
    [again] = events(cli("merge", recipe, tmp_path / "json", "--json", "--resume"))
    assert again["already_finished"] is True and "plan" not in again


def events(done: Result) -> list[dict[str, Any]]:
    """What `--json` printed, one object a line, each in the envelope of this version."""
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert all((e["eutectic"], e["schema"], e["command"]) == (eutectic.__version__, 1, "merge") for e in found)
    return found


def test_events_of_progress_and_error(tmp_path: Path, recipe: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eutectic.cli.merge_watchers.INTERVAL", 0.0)
    found = events(cli("merge", recipe, tmp_path / "out", "--json", "--threads", 2))
    assert [e["event"] for e in found if e["event"] not in ("progress", "compiling")] == ["planned", "finished"]
    moved = [(e["done"], e["total"]) for e in found if e["event"] == "progress"]
    assert moved == sorted(moved) and moved[-1][0] == moved[-1][1] and len({total for _, total in moved}) == 1
    assert all(e["rate"] >= 0 for e in found if e["event"] == "progress")
    refused = cli("merge", recipe, tmp_path / "out", "--json")
    [last] = events(refused)
    assert last["event"] == "error" and last["error"]["exit_code"] == refused.exit_code == 5
    assert last["error"]["type"] == "OutputError" and "--force replaces it" in last["error"]["message"]


def test_progress_comes_at_most_ten_times_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    from eutectic.cli.merge_watchers import Events

    watcher, begun = Events(), time.perf_counter()
    watcher.moved(0)
    while time.perf_counter() < begun + 0.35:
        watcher.moved(1)
    assert 1 <= len(capsys.readouterr().out.splitlines()) <= 4


def test_a_dry_run_makes_nothing(tmp_path: Path, recipe: Path, cli: Cli) -> None:
    before = sorted(tmp_path.rglob("*"))
    dry = cli("merge", recipe, tmp_path / "out", "--dry-run")
    assert dry.exit_code == 0 and dry.stdout == cli("plan", recipe).stdout
    told = json.loads(cli("merge", recipe, tmp_path / "out", "--dry-run", "--json").stdout)
    planned = json.loads(cli("plan", recipe, "--json").stdout)
    assert told == {**planned, "command": "merge", "dry_run": True} and told["tensors"] == 5
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_stops_where_the_merge_would(
    tmp_path: Path, recipe: Path, cli: Cli, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    def same(*flags: str) -> int:
        """Both runs' exit code and message; the dry one first, as the other may change things."""
        before = contents(tmp_path)
        dry = cli("merge", recipe, tmp_path / "out", "--dry-run", *flags)
        assert contents(tmp_path) == before
        wet = cli("merge", recipe, tmp_path / "out", *flags)
        assert (dry.exit_code, dry.stderr) == (wet.exit_code, wet.stderr)
        return dry.exit_code

    assert same() == 0
    assert same() == 5  # it exists
    assert same("--resume") == 0 and same("--force") == 0
    (tmp_path / "out").rename(tmp_path / "out.partial")
    assert same() == 5  # no journal: none of ours
    (tmp_path / "out.partial").rename(tmp_path / "elsewhere")
    (tmp_path / "out.partial").mkdir()
    journal = tmp_path / "out.partial" / JOURNAL
    journal.write_text('{"fingerprint": "another"}\n')
    assert same() == 5 and same("--resume") == 5
    journal.write_text('{"fingerpr')
    assert same("--resume") == 0
    assert cli("merge", recipe, "/proc/out", "--dry-run").exit_code in (5, 6)  # no room there, or no right


def test_the_profile_says_where_the_time_went(tmp_path: Path, recipe: Path, cli: Cli) -> None:
    shown = cli("merge", recipe, tmp_path / "text", "--profile", "--threads", 2)
    assert shown.exit_code == 0, shown.stderr
    words = [line.split()[0] for line in shown.stdout.splitlines() if line.startswith("  ")]
    assert words == ["stage", *STAGES, "in", "phase", *PHASES] and "summed over 2 threads" in shown.stdout
    assert cli("merge", recipe, tmp_path / "quiet", "--profile", "-q").stdout == ""
    found = events(cli("merge", recipe, tmp_path / "json", "--profile", "--json", "--threads", 2))[-1]["profile"]
    assert list(found["stages"]) == list(STAGES) and list(found["phases"]) == list(PHASES)
    assert found["wall"] == pytest.approx(sum(found["stages"].values()), abs=1e-4)
    assert sum(phase["share"] for phase in found["phases"].values()) == pytest.approx(1, abs=1e-3)
    for phase, sums in found["phases"].items():
        assert sums["seconds"] == pytest.approx(sum(thread[phase] for thread in found["threads"]), abs=1e-4)
        assert sums["seconds"] > 0 or phase == "wait"
    assert len(found["threads"]) == 2
    assert all(sum(thread.values()) <= found["stages"]["tiles"] for thread in found["threads"])
    finished = events(cli("merge", recipe, tmp_path / "json", "--profile", "--json", "--resume"))[-1]["profile"]
    assert finished["threads"] == [] and finished["stages"]["tiles"] == 0 < finished["stages"]["plan"]
    assert cli("merge", recipe, tmp_path / "json", "--profile", "--resume").exit_code == 0


def test_options_reach_the_merge(
    tmp_path: Path, family: dict[str, Path], write_recipe: Callable[..., Path], cli: Cli
) -> None:
    recipe = write_recipe("dare_linear", [family["a"]], family["base"], weight=1, density=0.5)
    options = ["--seed", 7, "--out-shard-size", "600", "--threads", 1, "--max-memory", "64MiB", "--no-fsync"]
    assert cli("merge", recipe, tmp_path / "out", "--hash-sources", *options).exit_code == 0
    lock = json.loads((tmp_path / "out" / "recipe.lock.json").read_text())
    assert (lock["options"]["seed"], lock["options"]["shard_bytes"]) == (7, 600)
    assert all("blake3" in file for source in lock["sources"] for file in source["files"])
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    other = cli("merge", recipe, tmp_path / "other", "--random-seed", 8, "-j", 2)
    assert other.exit_code == 0
    first, second = eutectic.open(tmp_path / "out"), eutectic.open(tmp_path / "other")
    assert any(first[name].read() != second[name].read() for name in first)


def test_torch_gives_what_the_kernels_give(tmp_path: Path, recipe: Path, cli: Cli) -> None:
    for name, options in {"kernels": [], "torch": ["--semantics-only"]}.items():
        assert cli("merge", recipe, tmp_path / name, *options).exit_code == 0
    kernels, by_torch = eutectic.open(tmp_path / "kernels"), eutectic.open(tmp_path / "torch")
    assert all(kernels[name].read() == by_torch[name].read() for name in kernels)


def test_a_lock_file_is_a_recipe(tmp_path: Path, recipe: Path, cli: Cli) -> None:
    cli("merge", recipe, tmp_path / "out")
    done = cli("merge", tmp_path / "out" / "recipe.lock.json", tmp_path / "again")
    assert done.exit_code == 0, done.stderr
    assert cli("diff", tmp_path / "out", tmp_path / "again").exit_code == 0
    assert cli("plan", tmp_path / "out" / "recipe.lock.json").exit_code == 0


def test_a_lock_file_refuses_flags_that_contradict_it(tmp_path: Path, recipe: Path, cli: Cli) -> None:
    cli("merge", recipe, tmp_path / "out", "--seed", 3)
    lock = tmp_path / "out" / "recipe.lock.json"
    flags = ["--seed", 4, "--out-shard-size", "1MB", "--allow-mismatch", "--allow-nonfinite", "--semantics-only"]
    refused = cli("merge", lock, tmp_path / "again", *flags)
    assert refused.exit_code == 3 and all(flag in refused.stderr for flag in flags if str(flag).startswith("--"))
    assert "--seed: seed was 3 when the lock file was made, not 4" in refused.stderr
    assert cli("plan", lock, "--allow-mismatch").exit_code == 3 and not (tmp_path / "again").exists()
    assert cli("merge", lock, tmp_path / "again", "--seed", 3, "--threads", 1).exit_code == 0


@pytest.mark.parametrize(
    "habit",
    [["--lazy-unpickle"], ["--no-lazy-unpickle"], ["--copy-tokenizer"], ["--allow-crimes"], ["--trust-remote-code"],
     ["--low-cpu-memory"], ["--write-threads", "4"], ["--device", "cpu"], ["--device", "auto"],
     ["--lora-merge-cache", "/tmp/x"]],
    ids=" ".join,
)  # fmt: skip
def test_mergekits_flags_are_accepted(tmp_path: Path, recipe: Path, cli: Cli, habit: list[str]) -> None:
    done = cli("merge", recipe, tmp_path / "out", "--dry-run", *habit)
    assert done.exit_code == 0, done.stderr


@pytest.mark.parametrize(
    ("flag", "code", "words"),
    [
        (["--multi-gpu"], 2, "a merge takes one GPU"),
        (["--read-to-gpu"], 2, "a merge takes one GPU"),
        (["--cuda"], 6, "--device cuda: torch"),
        (["--device", "cuda:63"], 6, "--device cuda:63: torch"),
        (["--device", "tpu"], 6, "no device 'tpu'"),
        (["--executor", "dask"], 6, "no executor 'dask'"),
        (["--executor", "ray", "--profile"], 2, "--profile measures this process"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_run_here_is_refused(
    tmp_path: Path, recipe: Path, cli: Cli, flag: list[str], code: int, words: str
) -> None:
    if flag == ["--cuda"] and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = cli("merge", recipe, tmp_path / "out", *flag)
    assert done.exit_code == code and words in done.stderr
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    "options",
    [["--max-memory", "lots"], ["--max-memory", "-1"], ["--max-memory", "0"], ["--threads", "0"], ["--seed", "-1"],
     ["--out-shard-size", "0"], ["--out-shard-size", "5XB"], ["--densty", "1"]],
    ids=" ".join,
)  # fmt: skip
def test_options_that_make_no_sense(tmp_path: Path, recipe: Path, cli: Cli, options: list[str]) -> None:
    done = cli("merge", recipe, tmp_path / "out", *options)
    assert done.exit_code in (2, 6), done.stderr
    assert "Traceback" not in done.stderr and options[0] in done.stderr
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def slow_merge(tmp_path: Path, family: dict[str, Path], write_recipe: Callable[..., Path]) -> list[Any]:
    for name in ("a", "b"):
        tensors = {f"w{at}": numpy.ones(250_000, "f4") for at in range(60)}
        save_file(tensors, family[name] / "model.safetensors")
    recipe = write_recipe("linear", [family["a"], family["b"]], weight=1)
    return [sys.executable, "-m", "eutectic", "merge", recipe, tmp_path / "out", "--threads", "1"]


def at(moment: str, command: list[Any]) -> subprocess.CompletedProcess[str]:
    """The command as `python -m eutectic` runs it, sending itself SIGINT when it comes to the `moment`."""
    setting = """
import atexit, os, signal, sys, time
def hit(): os.kill(os.getpid(), signal.SIGINT)
class Finder:
    def find_spec(self, name, path=None, target=None):
        name == moment and hit()
moment = sys.argv.pop(1)
sys.meta_path.insert(0, Finder())
if moment == "exit": atexit.register(hit)
if moment in ("tile", "twice"):
    import threading
    from eutectic.recipes.executors.local import Stream
    write, seen = Stream._write, []
    def slow(*arguments):
        seen.append(hit() if len(seen) in ((3,) if moment == "tile" else (3, 4)) else None)
        time.sleep(0.02)
        return write(*arguments)
    Stream._write = slow
if moment == "collector":
    import gc
    from eutectic.recipes.merge import _load_kernels as load
    class Knot:
        def __del__(self): hit()
    def tie(*arguments):
        knot = Knot(); knot.self = knot; del knot; gc.collect()
        time.sleep(0.2)
        return load(*arguments)
    import eutectic.recipes.merge
    eutectic.recipes.merge._load_kernels = tie
from eutectic.__main__ import main
main()
"""
    words = [sys.executable, "-c", setting, moment, *map(str, command)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("moment", ["click", "eutectic.recipes.plan", "numba", "collector", "tile", "twice"])
def test_control_c_says_so_and_can_be_resumed(
    tmp_path: Path, family: dict[str, Path], write_recipe: Callable[..., Path], moment: str
) -> None:
    """While the command line is imported, while the command is, while kernels load, in a callback, between tiles."""
    command = slow_merge(tmp_path, family, write_recipe)[3:]
    done = at(moment, command)
    assert (done.returncode, done.stderr.strip(), done.stdout) == (130, "interrupted", "")
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.partial").exists() == (moment in ("numba", "collector", "tile", "twice"))
    resumed = subprocess.run([sys.executable, "-m", "eutectic", *command, "--resume"], capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert eutectic.verify(tmp_path / "out").sound


def test_control_c_after_the_end_changes_nothing(
    tmp_path: Path, family: dict[str, Path], write_recipe: Callable[..., Path]
) -> None:
    done = at("exit", slow_merge(tmp_path, family, write_recipe)[3:])
    assert done.returncode == 0 and done.stderr.replace(COMPILING, "") == "" and "60 tensors" in done.stdout
    assert eutectic.verify(tmp_path / "out").sound


def test_control_c_is_the_last_event(
    tmp_path: Path, family: dict[str, Path], write_recipe: Callable[..., Path]
) -> None:
    done = at("tile", [*slow_merge(tmp_path, family, write_recipe)[3:], "--json"])
    last = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == last["error"]["exit_code"] == 130 and last["event"] == "error"


def test_control_c_from_outside(tmp_path: Path, family: dict[str, Path], write_recipe: Callable[..., Path]) -> None:
    command = slow_merge(tmp_path, family, write_recipe)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    shard = tmp_path / "out.partial" / "model.safetensors"
    while process.poll() is None and not shard.exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    if process.returncode != 0:  # it may have been faster
        assert (process.returncode, errors.strip()) == (130, "interrupted") and not (tmp_path / "out").exists()
    else:
        assert eutectic.verify(tmp_path / "out").sound


def test_two_at_once_do_not_mix(tmp_path: Path, family: dict[str, Path], write_recipe: Callable[..., Path]) -> None:
    """Whoever comes second is told so; whatever happens, OUT is one whole merge."""
    command = [*slow_merge(tmp_path, family, write_recipe), "--resume"]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    endings = [(process.communicate()[1], process.returncode) for process in processes]
    assert any(code == 0 for _, code in endings), endings
    for errors, code in endings:
        assert code in (0, 5) and "Traceback" not in errors and "internal" not in errors, errors
    assert eutectic.verify(tmp_path / "out").sound
    assert not (tmp_path / "out.partial").exists()


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path, recipe: Path) -> None:
    command = [sys.executable, "-m", "eutectic.cli.main", "plan", recipe, "--json"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert "Traceback" not in done.stderr and "Broken" not in done.stderr
