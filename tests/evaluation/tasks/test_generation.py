"""Generation: greedy answers, equal to transformers' own, checked by verifiers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import eutectic
from eutectic.evaluation.ensemble import Ensemble
from eutectic.evaluation.evaluator import Evaluator, evaluate
from eutectic.evaluation.model import Model
from eutectic.evaluation.scores import Failure, Scores
from eutectic.evaluation.tasks.verifiers import VERIFIERS
from eutectic.weights.checkpoint import open_checkpoint
from eutectic.weights.safetensors import write_safetensors

PROMPTS = ["1+1=", "the", "a longer prompt than the others", "2+2="]


def test_answers_are_transformers_own(byte_model: Callable[..., Path]) -> None:
    folder = byte_model()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    expected = []
    for prompt in PROMPTS:
        ids = torch.tensor([list(prompt.encode())])
        new = model.generate(ids, do_sample=False, max_new_tokens=12, pad_token_id=0, eos_token_id=10)[
            0, ids.shape[1] :
        ]
        expected.append(bytes(new.tolist()).decode("utf-8", "replace").partition("\n")[0])
    one = Model(eutectic.open(folder))
    assert one.complete(PROMPTS, 12) == expected
    assert Ensemble([one, one]).complete(PROMPTS, 12) == expected


def test_tokens(token_model: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(token_model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(token_model)
    ids = tokenizer("the cat", return_tensors="pt")["input_ids"]
    new = model.generate(ids, do_sample=False, max_new_tokens=6, pad_token_id=1)[0, ids.shape[1] :]
    assert Model(eutectic.open(token_model)).complete(["the cat"], 6) == [
        tokenizer.decode(new, skip_special_tokens=True)
    ]


def test_the_share_of_right_answers(byte_model: Callable[..., Path], write_lines: Callable[..., Path]) -> None:
    folder = byte_model()
    answers = Model(eutectic.open(folder)).complete(PROMPTS, 4)
    entries = [{"prompt": p, "answer": a.strip() or "x"} for p, a in zip(PROMPTS, answers, strict=True)]
    entries[1]["answer"] = "certainly not this"
    task = {"name": "t", "kind": "generation", "data": {"test": str(write_lines("q.jsonl", entries))}, "most_tokens": 4}
    found = evaluate(folder, {"tasks": [task]})["t"]
    assert isinstance(found, Scores) and found.samples.tolist() == [
        float(a.strip() == e["answer"]) for a, e in zip(answers, entries, strict=True)
    ]


def test_a_model_that_answers_nan_is_a_hole(byte_model: Callable[..., Path], write_lines: Callable[..., Path]) -> None:
    """The most likely of 256 NaNs is byte 0: a wrong answer that means nothing."""
    folder = byte_model()
    tensors = {name: tensor.to_numpy() for name, tensor in open_checkpoint(folder).items()}
    tensors["model.norm.weight"] = np.full_like(tensors["model.norm.weight"], np.nan)
    write_safetensors(folder / "model.safetensors", tensors)
    data = write_lines("q.jsonl", [{"prompt": "a", "answer": "b"}])
    found = evaluate(folder, {"tasks": [{"name": "t", "kind": "generation", "data": {"test": str(data)}}]})["t"]
    assert isinstance(found, Failure) and "NaN or infinity" in found.reason


def test_bad_lines(byte_model: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    task = {"name": "t", "kind": "generation", "data": {"test": str(path)}}
    for text, words in (
        ('{"prompt": "a", "answer": "b"}\n{"prompt": 3}\n', ":2: must be"),
        ("nonsense\n", ":1: not JSON"),
        ('{"prompt": "", "answer": "b"}\n', ":1: must be"),
        ("", "no samples"),
    ):
        path.write_text(text)
        with Evaluator({"tasks": [task]}) as evaluator:
            found = evaluator.measure(byte_model())["t"]
        assert isinstance(found, Failure) and words in found.reason


@pytest.mark.parametrize(
    ("name", "answer", "expected", "right"),
    [
        ("exact", " 7\n", "7", True), ("exact", "77", "7", False), ("prefix", "No way", "No", True),
        ("contains", "it is PARIS", "Paris", True), ("number", "so 1,000.0", "1000", True),
        ("number", "7 of 8", "7", False),
    ],
)  # fmt: skip
def test_verifiers(name: str, answer: str, expected: str, right: bool) -> None:
    assert VERIFIERS[name](answer, expected) is right
