"""The entry point: lazy imports, errors as messages and exit codes, help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

import eutectic
from eutectic.cli.main import COMMANDS, main
from eutectic.cli.output import json_option
from eutectic.errors import RecipeError, SourceError
from eutectic.weights.safetensors import write_safetensors

HEAVY = ("numpy", "numba", "yaml", "pydantic", "rich", "torch", "transformers")


def run(*args: str, check_modules: str = "") -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own; `check_modules` prints which of HEAVY were loaded, on stderr."""
    code = "import sys; from eutectic.cli.main import main\ntry: main(prog_name='eutectic')\nfinally: " + (
        f"print(sorted(set(sys.modules) & set({HEAVY!r})), file=sys.stderr)" if check_modules else "pass"
    )
    env = os.environ | {"PYTHONPATH": str(Path(eutectic.__file__).parents[1])}
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, env=env, check=False)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch):
    """Installs a command `break` that raises what the test wants; returns a function that runs it."""

    def invoke(error: BaseException, *args: str) -> Result:
        @click.command()
        @json_option
        def command(as_json: bool) -> None:
            raise error

        monkeypatch.setitem(sys.modules, "broken_command", types.SimpleNamespace(command=command))
        monkeypatch.setitem(COMMANDS, "break", ("broken_command:command", "Raise."))
        return CliRunner().invoke(main, ["break", *args])

    return invoke


@pytest.mark.parametrize("args", [["--help"], ["--version"], []])
def test_help_and_version_load_nothing_heavy(args: list[str]) -> None:
    done = run(*args, check_modules="yes")
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", ["inspect", "diff"])
def test_help_of_a_command_loads_nothing_heavy(command: str) -> None:
    done = run(command, "--help", check_modules="yes")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "[]")


def test_inspect_loads_neither_numpy_nor_torch(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "m.safetensors", {"w": np.zeros(3, np.float32)})
    done = run("inspect", str(tmp_path / "m.safetensors"), check_modules="yes")
    assert (done.returncode, done.stderr.strip()) == (0, "[]")


def test_diff_loads_no_torch(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "m.safetensors", {"w": np.zeros(3, np.float32)})
    done = run("diff", str(tmp_path / "m.safetensors"), str(tmp_path / "m.safetensors"), check_modules="yes")
    assert (done.returncode, done.stderr.strip()) == (0, "['numpy']")


def test_help_lists_every_command_and_exit_code() -> None:
    shown = CliRunner().invoke(main, ["--help"]).output
    assert all(f"  {name} " in shown for name in COMMANDS)
    assert "Exit codes:\n" in shown and "130  interrupted" in shown


def test_version() -> None:
    assert CliRunner().invoke(main, ["--version"]).output == f"eutectic {eutectic.__version__}\n"


def test_unknown_command_names_the_nearest() -> None:
    result = CliRunner().invoke(main, ["insepct", "x"])
    assert result.exit_code == 2 and "did you mean 'inspect'?" in result.stderr


def test_unknown_command_far_from_all_lists_them() -> None:
    result = CliRunner().invoke(main, ["zzzzzz"])
    assert result.exit_code == 2 and "merge, plan, inspect, diff" in result.stderr


def test_an_error_is_one_block_on_stderr_with_its_exit_code(broken) -> None:
    result = broken(SourceError("/models/x: no such file"))
    assert (result.exit_code, result.stdout, result.stderr) == (4, "", "error: /models/x: no such file\n")


def test_an_error_message_cannot_drive_the_terminal(broken) -> None:
    result = broken(SourceError("bad \x1b[2Jname\nsecond line"))
    assert result.stderr == "error: bad \\x1b[2Jname\nsecond line\n"


def test_an_error_with_json_is_an_envelope_too(broken) -> None:
    result = broken(RecipeError("recipe.yaml is wrong", ["unknown key 'dtpye'"]), "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == 3 and result.stderr.startswith("error: recipe.yaml is wrong\n  - unknown key")
    assert (document["schema"], document["command"]) == (1, "break")
    assert document["error"]["type"] == "RecipeError" and document["error"]["exit_code"] == 3
    assert document["error"]["problems"] == ["unknown key 'dtpye'"]


def test_an_unforeseen_exception_is_one_line_and_a_hint(broken) -> None:
    result = broken(ZeroDivisionError("division\nby zero"))
    first, second = result.stderr.splitlines()
    assert (result.exit_code, first) == (70, "internal error: ZeroDivisionError: division by zero")
    assert "EUTECTIC_TRACEBACK=1" in second


def test_the_traceback_is_shown_on_request(broken, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EUTECTIC_TRACEBACK", "1")
    assert "Traceback (most recent call last)" in broken(KeyError("x")).stderr


def test_an_interruption(broken) -> None:
    result = broken(KeyboardInterrupt())
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "interrupted\n")


def test_an_exit_code_of_a_command_passes_through(broken) -> None:
    assert broken(SystemExit(7)).exit_code == 7


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    tensors = {f"layers.{i}.{'long_name' * 8}": np.zeros(1, np.float32) for i in range(3000)}
    write_safetensors(tmp_path / "m.safetensors", tensors)
    env = os.environ | {"PYTHONPATH": str(Path(eutectic.__file__).parents[1])}
    command = [sys.executable, "-m", "eutectic.cli.main", "inspect", "--tensors", str(tmp_path / "m.safetensors")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env) as process:
        assert process.stdout and process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
