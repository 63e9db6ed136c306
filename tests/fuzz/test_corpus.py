"""Every input of the fuzzing corpus, without the fuzzer: seeds are read, former findings are refused in a sentence."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from targets import TARGETS, check

CORPUS = Path(__file__).with_name("corpus")
INPUTS = sorted(CORPUS.glob("*/*"))


def test_every_target_has_a_seed_that_is_read() -> None:
    assert {path.parent.name for path in INPUTS} == set(TARGETS)
    for name, target in TARGETS.items():
        target((CORPUS / name / "seed").read_bytes())


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_inputs_are_read_or_refused(path: Path) -> None:
    check(TARGETS[path.parent.name], path.read_bytes())
