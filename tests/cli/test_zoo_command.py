"""`eutectic zoo`: families are listed and built, and nothing of the user's is ever replaced."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import eutectic
from eutectic.cli.main import main
from eutectic.zoo import FAMILIES

Cli = Callable[..., Result]
Contents = Callable[[Path], dict[str, bytes]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A family in a folder with an awkward name, and what its building printed."""
    folder = tmp_path_factory.mktemp("zoo") / "a família\nof 5"
    return folder, CliRunner().invoke(main, ["zoo", "build", "digits", str(folder), "--seed", "1"])


def test_the_list(cli: Cli) -> None:
    shown = cli("zoo", "list").stdout
    document = json.loads(cli("zoo", "list", "--json").stdout)
    assert all(name in shown and entry.summary in shown for name, entry in FAMILIES.items())
    assert (document["eutectic"], document["schema"], document["command"]) == (eutectic.__version__, 1, "zoo list")
    assert document["families"] == {name: entry.summary for name, entry in FAMILIES.items()}


def test_building_talks_on_stderr_and_ends_in_one_line(built: tuple[Path, Result]) -> None:
    folder, done = built
    assert done.exit_code == 0, done.stderr
    assert len(done.stderr.splitlines()) == 7 and "expert flip" in done.stderr
    assert "base and 5 experts (upright, flip, shift, invert, checker)" in done.stdout
    assert (folder / "experts" / "flip" / "model.safetensors").is_file()


def test_a_finished_family_is_found_again_and_unchanged(
    cli: Cli, contents: Contents, built: tuple[Path, Result]
) -> None:
    folder, _ = built
    before = contents(folder)
    done = cli("zoo", "build", "digits", folder, "--seed", 1, "--json")
    document = json.loads(done.stdout)
    assert (done.exit_code, done.stderr, document["command"], document["seed"]) == (0, "", "zoo build", 1)
    assert document["folder"] == str(folder) and document["base"] == str(folder / "base")
    assert all(Path(path).is_dir() for path in document["experts"].values()) and len(document["experts"]) == 5
    assert contents(folder) == before


def test_quiet_prints_nothing(cli: Cli, built: tuple[Path, Result]) -> None:
    done = cli("zoo", "build", "digits", built[0], "--seed", 1, "--quiet")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")


def test_another_seed_is_refused_and_force_replaces(
    cli: Cli, contents: Contents, built: tuple[Path, Result], tmp_path: Path
) -> None:
    assert cli("zoo", "build", "digits", tmp_path / "f", "--quiet").exit_code == 0
    refused = cli("zoo", "build", "digits", tmp_path / "f", "--seed", 1)
    assert refused.exit_code == 5 and "family of seed 0, not 1" in refused.stderr and "--force" in refused.stderr
    assert cli("zoo", "build", "digits", tmp_path / "f", "--seed", 1, "--force", "-q").exit_code == 0
    assert contents(tmp_path / "f") == contents(built[0])


@pytest.mark.parametrize("flags", [[], ["--force"]])
def test_what_is_in_the_way_stays(cli: Cli, tmp_path: Path, flags: list[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    (tmp_path / "file").write_text("x")
    for target in ("mine", "file", "file/below"):
        done = cli("zoo", "build", "digits", tmp_path / target, *flags)
        assert done.exit_code == 5 and str(tmp_path / "file" if "/" in target else tmp_path / target) in done.stderr
        assert "internal" not in done.stderr
        if target == "mine" and not flags:
            assert "is not empty and holds no family; choose another folder" in done.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "mine", "thesis.txt"]


def test_an_unknown_family_gets_the_nearest(cli: Cli, tmp_path: Path) -> None:
    done = cli("zoo", "build", "digit", tmp_path / "f", "--json")
    assert done.exit_code == json.loads(done.stdout)["error"]["exit_code"] == 3
    assert done.stderr.endswith("; did you mean 'digits'?\n")
    assert "`eutectic zoo list`" in cli("zoo", "build", "zzzzz", tmp_path / "f").stderr
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("words", [[], ["lsit"], ["build", "digits"], ["build", "digits", "f", "--seed", "-1"]])
def test_a_wrong_command_line_is_a_usage_error(cli: Cli, words: list[str]) -> None:
    assert cli("zoo", *words).exit_code == 2


def test_without_scikit_learn_the_pip_command_is_named(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    done = cli("zoo", "build", "digits", tmp_path / "f", "--json")
    assert done.exit_code == json.loads(done.stdout)["error"]["exit_code"] == 8
    assert "pip install 'eutectic[zoo]'" in done.stderr and not (tmp_path / "f").exists()
    assert cli("zoo", "list").exit_code == 0
