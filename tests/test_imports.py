"""What is loaded when: torch and transformers stay out until tensors are asked for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HEAVY = {"torch", "transformers", "sklearn", "matplotlib", "scipy"}


def loaded_by(code: str) -> set[str]:
    """Top-level modules in a fresh process after `code`; what `code` prints is dropped."""
    script = f"{code}\nimport sys\nprint('|'.join(sorted(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stderr.rstrip().splitlines()[-1].split("|")}


def command(*arguments: object, code: int = 0) -> str:
    words = [str(argument) for argument in arguments]
    return (
        "from eutectic.cli.main import main\n"
        f"try: main({words!r})\nexcept SystemExit as end: assert end.code in (0, None, {code}), end.code"
    )


def test_importing_the_package_loads_nearly_nothing() -> None:
    assert not loaded_by("import eutectic; dir(eutectic)") & {*HEAVY, "numpy", "numba", "yaml", "pydantic", "click"}


def test_looking_loads_no_framework(family: dict[str, Path], write_recipe: Callable[..., Path]) -> None:
    recipe = write_recipe("ties", [family["a"], family["b"]], family["base"], weight=1, density=0.5)
    a, b = family["a"], family["b"]
    for arguments in (
        ["--help"], ["merge", "--help"], ["plan", "--help"], ["inspect", a], ["inspect", a, "--json"],
        ["plan", recipe], ["plan", recipe, "--json"], ["diff", a, b, "--headers-only"],
        ["trace", a, "--among", a, b],
        ["list", "methods"], ["list", "methods", "--json"],
    ):  # fmt: skip
        assert not loaded_by(command(*arguments, code=1)) & HEAVY, arguments


def test_weighing_loads_no_framework(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run("run", {10: 1.0, 20: 0.5})
    for arguments in (
        ["average", "--help"],
        ["average", run, tmp_path / "out", "--dry-run"],
        ["average", run, tmp_path],
    ):
        assert not loaded_by(command(*arguments, code=5)) & HEAVY, arguments


def test_inspecting_and_planning_load_no_kernels(family: dict[str, Path], write_recipe: Callable[..., Path]) -> None:
    recipe = write_recipe("linear", [family["a"], family["b"]], weight=1)
    assert not loaded_by(command("inspect", family["a"])) & {"numpy", "numba"}
    assert "numba" not in loaded_by(command("plan", recipe))


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_merging_and_verifying_load_no_framework(
    tmp_path: Path, family: dict[str, Path], write_recipe: Callable[..., Path], method: str
) -> None:
    base = family["base"] if method == "ties" else None
    recipe = write_recipe(method, [family["a"], family["b"]], base, weight=1)
    assert not loaded_by(command("merge", recipe, tmp_path / "out")) & {"torch", "transformers"}
    assert not loaded_by(command("verify", tmp_path / "out")) & HEAVY


def test_every_module_imports_on_its_own() -> None:
    import eutectic

    root = Path(eutectic.__file__).parent
    names = [
        ".".join(("eutectic", *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
        for path in sorted(root.rglob("*.py"))
    ]
    code = "import importlib\n" + "\n".join(
        f"importlib.import_module({name!r})" for name in names if not name.endswith("__main__")
    )
    assert not loaded_by(code) & {"torch", "transformers"}
