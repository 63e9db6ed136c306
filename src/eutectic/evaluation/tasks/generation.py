"""Generation with a verifier: the share of prompts whose most likely continuation is right."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from eutectic.errors import FormatError, SourceError
from eutectic.evaluation.subject import Subject
from eutectic.evaluation.tasks.task import DataTask
from eutectic.evaluation.tasks.verifiers import VERIFIERS

__all__ = ["Generation"]


class _Question(NamedTuple):
    prompt: str
    answer: str


class Generation(DataTask, frozen=True):
    """Questions with answers that a verifier checks.

    A split is a JSON-lines file of ``{"prompt": text, "answer": text}``, or a safetensors file with bytes: `prompts`
    [n, P], their `lengths` [n], and `answers` [n, A], padded with 0. The answer is generated greedily, up to a line
    break or `most_tokens`.
    """

    kind: Literal["generation"]
    verifier: Literal["exact", "prefix", "contains", "number"] = "exact"
    most_tokens: int = Field(32, ge=1, le=4096)

    @property
    def unit(self) -> str:
        return "accuracy"

    def count(self, split: str) -> int:
        return len(self._questions(split))

    def _questions(self, split: str) -> list[_Question]:
        path = self.file(split)
        if path.suffix == ".safetensors":
            prompts, lengths, answers = (self.column(split, name) for name in ("prompts", "lengths", "answers"))
            return [
                _Question(_text(prompt[:length]), _text(answer)) for prompt, length, answer in
                zip(prompts, lengths, answers, strict=True)
            ]  # fmt: skip
        facts = path.stat()
        return _read(path, facts.st_size, facts.st_mtime_ns)

    def measure(self, subject: Subject, split: str, rows: np.ndarray) -> np.ndarray:
        questions = self._questions(split)
        asked = [questions[row] for row in rows]
        answers = subject.complete([question.prompt for question in asked], self.most_tokens)
        if len(answers) != len(asked):
            raise SourceError(f"{subject.label}: gave {len(answers)} answers to {len(asked)} prompts")
        check = VERIFIERS[self.verifier]
        return np.array([check(a, question.answer) for a, question in zip(answers, asked, strict=True)], dtype=float)


def _text(raw: np.ndarray) -> str:
    return bytes(raw.astype(np.uint8)).rstrip(b"\0").decode("utf-8", "replace")


@lru_cache(maxsize=32)
def _read(path: Path, _size: int, _modified: int) -> list[_Question]:
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry: Any = json.loads(line)
        except ValueError as error:
            raise FormatError(f"{path}:{number}: not JSON ({error})") from None
        if not isinstance(entry, dict) or not all(
            isinstance(entry.get(k), str) and entry[k] for k in ("prompt", "answer")
        ):
            raise FormatError(f'{path}:{number}: must be {{"prompt": "...", "answer": "..."}}; found {line[:60]}')
        found.append(_Question(entry["prompt"], entry["answer"]))
    return found
