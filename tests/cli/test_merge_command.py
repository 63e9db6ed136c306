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
from click.testing import Result
from safetensors.numpy import save_file

import eutectic

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
    told = json.loads(cli("merge", recipe, tmp_path / "json", "--json").stdout)
    assert (told["command"], told["out"], told["already_finished"]) == ("merge", str(tmp_path / "json"), False)
    assert told["plan"]["tensors"] == 5
    again = json.loads(cli("merge", recipe, tmp_path / "json", "--json", "--resume").stdout)
    assert again["already_finished"] is True


def test_a_dry_run_makes_nothing(tmp_path: Path, recipe: Path, cli: Cli) -> None:
    before = sorted(tmp_path.rglob("*"))
    dry = cli("merge", recipe, tmp_path / "out", "--dry-run")
    assert dry.exit_code == 0 and dry.stdout == cli("plan", recipe).stdout
    told = json.loads(cli("merge", recipe, tmp_path / "out", "--dry-run", "--json").stdout)
    assert told["dry_run"] is True and told["tensors"] == 5
    assert sorted(tmp_path.rglob("*")) == before


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


@pytest.mark.parametrize(
    "habit",
    [["--lazy-unpickle"], ["--no-lazy-unpickle"], ["--copy-tokenizer"], ["--allow-crimes"], ["--trust-remote-code"],
     ["--low-cpu-memory"], ["--write-threads", "4"], ["--device", "cpu"], ["--lora-merge-cache", "/tmp/x"]],
    ids=" ".join,
)  # fmt: skip
def test_mergekits_flags_are_accepted(tmp_path: Path, recipe: Path, cli: Cli, habit: list[str]) -> None:
    done = cli("merge", recipe, tmp_path / "out", "--dry-run", *habit)
    assert done.exit_code == 0, done.stderr


@pytest.mark.parametrize("flag", [["--cuda"], ["--multi-gpu"], ["--read-to-gpu"], ["--device", "cuda:0"]], ids=" ".join)
def test_flags_that_would_change_where_it_runs_are_refused(
    tmp_path: Path, recipe: Path, cli: Cli, flag: list[str]
) -> None:
    done = cli("merge", recipe, tmp_path / "out", *flag)
    assert done.exit_code == 2 and "merges on the CPU only" in done.stderr
    assert not (tmp_path / "out").exists()


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
    return [sys.executable, "-m", "eutectic.cli.main", "merge", recipe, tmp_path / "out", "--threads", "1"]


def test_control_c_says_so_and_can_be_resumed(
    tmp_path: Path, family: dict[str, Path], write_recipe: Callable[..., Path]
) -> None:
    command = slow_merge(tmp_path, family, write_recipe)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    shard = tmp_path / "out.partial" / "model.safetensors"
    while process.poll() is None and not shard.exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    if process.returncode not in (0, -signal.SIGINT):  # it may have been faster, or on its way out already
        assert process.returncode == 130 and errors.strip() == "interrupted"
        assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out").exists() or eutectic.verify(tmp_path / "out").sound  # absent or whole, never between
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
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
