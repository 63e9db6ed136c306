"""Every script of examples/ runs, is short, and prints what it should."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from eutectic.zoo.digits import build_digits

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SAYS = {
    "average.py": ("by accuracy, p 50    test accuracy", "average: README.md, model.safetensors, recipe.lock.json"),
    "collect_statistics.py": (
        "invert: fisher, gram of 300 samples",
        "regmean  flip",
        "regmean: README.md, config.json",
    ),
    "inspect_and_diff.py": ("base: 6 tensors, 85,002 parameters, 340,008 bytes", "base against itself: identical"),
    "keep_experts.py": ("5 experts in 32% of the bytes of six models", "invert: rebuilt", "left: upright, flip, shift"),
    "measure_without_writing.py": ("lambda 0.2  validation", "best lambda"),
    "merge.py": ("merged: README.md, config.json, model.safetensors, recipe.lock.json", "accuracy on flip: base"),
    "merge_adapters.py": (
        "merged: the changes of 3 modules, exactly, as factors of rank 16 or less",
        "both-lora: README.md, adapter_config.json, adapter_model.safetensors, recipe.lock.json, recipe.yaml",
        "small-lora: upright",
    ),
    "nested.py": ("6 tensors; nested and in two steps: the same bytes",),
    "plan.py": ("6 tensors, 85,002 parameters", "ResourceError (exit code 6)"),
    "resume.py": (
        "interrupted: resumed exists: False, resumed.partial exists: True",
        "holds an unfinished merge: --resume continues it",
        "resumed: sound: True, resumed.partial exists: False",
    ),
    "state_dicts.py": ("<All keys matched successfully>", "tensor([ 2., -4.,  6.])"),
    "verify.py": ("as written: True", "the same bytes", "layers.2.bias: its bytes differ from what was written"),
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family, built once for all scripts."""
    return build_digits(tmp_path_factory.mktemp("zoo") / "digits").path


def test_every_example_is_known() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SAYS)


@pytest.mark.parametrize("name", SAYS)
def test_example_runs(name: str, digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits, tmp_path / "digits")
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    assert [text for text in SAYS[name] if text not in ran.stdout] == [], ran.stdout


@pytest.mark.parametrize("name", SAYS)
def test_example_is_short(name: str) -> None:
    assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) < 60
