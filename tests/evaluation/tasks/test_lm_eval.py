"""lm-eval through us gives the numbers of lm-eval's own command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eutectic.evaluation.evaluator import Evaluator, evaluate
from eutectic.evaluation.scores import Failure, Scores
from eutectic.evaluation.tasks import lm_eval

pytestmark = pytest.mark.filterwarnings("ignore")

TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["yes", "no"]
doc_to_target: "{{{{answer}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
QUESTIONS = ["the cat sat", "on the mat", "a b c", "x y z", "the mat sat on the cat", "cat", "mat", "sat on"]


@pytest.fixture
def include(tmp_path: Path, write_lines: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    data = write_lines("q.jsonl", [{"question": q, "answer": at % 2} for at, q in enumerate(QUESTIONS)])
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(TASK.format(data=data))
    return folder


def entry(include: Path, **settings: Any) -> dict[str, Any]:
    return {"name": "t", "kind": "lm_eval", "task": "tiny_choice", "include": str(include), "batch_size": 1, **settings}


def test_the_same_numbers_as_its_own_command(token_model: Path, include: Path, tmp_path: Path) -> None:
    arguments = ["--model", "hf", "--model_args", f"pretrained={token_model},dtype=float32", "--device", "cpu",
                 "--tasks", "tiny_choice", "--include_path", str(include), "--output_path", str(tmp_path / "o.json"),
                 "--batch_size", "1"]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-m", "lm_eval", *arguments], check=True, env=environment, capture_output=True)
    (written,) = tmp_path.glob("o*.json")
    theirs = json.loads(written.read_text())["results"]["tiny_choice"]
    for metric in ("acc,none", "acc_norm,none"):
        found = evaluate(token_model, {"tasks": [entry(include, metric=metric)]})["t"]
        assert isinstance(found, Scores), found
        assert found.value == theirs[metric]
        assert found.stderr == pytest.approx(theirs[metric.replace(",", "_stderr,")])
        assert found.n == len(QUESTIONS)


def test_wrong_names(token_model: Path, byte_model: Callable[..., Path], include: Path) -> None:
    for change, words in (
        ({"metric": "acc_nrom,none"}, "no metric 'acc_nrom,none'; did you mean 'acc_norm,none'"),
        ({"task": "tiny_choise"}, "knows no task 'tiny_choise'; did you mean 'tiny_choice'"),
    ):
        found = evaluate(token_model, {"tasks": [entry(include, **change)]})["t"]
        assert isinstance(found, Failure) and words in found.reason
    found = evaluate(byte_model(), {"tasks": [entry(include)]})["t"]
    assert isinstance(found, Failure) and "lm-eval needs a tokenizer" in found.reason
    with Evaluator({"tasks": [entry(include)]}) as evaluator:
        found = evaluator.measure(token_model, split="validation")["t"]
    assert isinstance(found, Failure) and "has the split test" in found.reason


def test_data_that_is_not_here(token_model: Path, include: Path) -> None:
    (include / "tiny.yaml").write_text(TASK.format(data="/no/such/file.jsonl"))
    found = evaluate(token_model, {"tasks": [entry(include)]})["t"]
    assert isinstance(found, Failure) and "could not run tiny_choice" in found.reason


def test_without_lm_eval(token_model: Path, include: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise ImportError(name)

    monkeypatch.setattr(lm_eval, "version", absent)
    found = evaluate(token_model, {"tasks": [entry(include)]})["t"]
    assert isinstance(found, Failure) and "pip install 'eutectic[lm-eval]'" in found.reason
