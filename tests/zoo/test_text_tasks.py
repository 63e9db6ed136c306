"""Texts and labels of the minilm family: each label is true of its text, and no text is in two splits."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from eutectic.zoo.text_tasks import Texts, load_pairs, load_texts

COUNTS = {"train": 160, "validation": 40, "test": 40}
Tasks = dict[str, tuple[list[str], Texts]]


@pytest.fixture(scope="module")
def tasks(man: Path) -> Tasks:
    return load_texts(man, COUNTS)


def rows(tasks: Tasks, name: str) -> list[tuple[str, str]]:
    labels, texts = tasks[name]
    return [(text, labels[label]) for split in texts.values() for text, label in split]


def test_splits_are_balanced_and_disjoint(tasks: Tasks) -> None:
    assert list(tasks) == ["order", "typo", "article", "syntax", "value"]
    for labels, texts in tasks.values():
        assert {text for text, _ in texts["train"]}.isdisjoint(text for text, _ in texts["test"] + texts["validation"])
        assert {label for _, label in texts["train"]} == set(range(len(labels)))
        for split, found in texts.items():
            counts = [sum(label == other for _, other in found) for label in range(len(labels))]
            assert max(counts) <= COUNTS[split] // len(labels) and len({text for text, _ in found}) == len(found)


def test_python_parses_where_it_is_right_and_not_where_it_is_wrong(tasks: Tasks) -> None:
    def parses(line: str) -> bool:
        try:
            ast.parse(line + " pass" if line.endswith(":") else line)
        except SyntaxError:
            return False
        return True

    assert all(parses(text) == (label == "right") for text, label in rows(tasks, "syntax"))


def test_values_are_of_their_kind(tasks: Tasks) -> None:
    for text, label in rows(tasks, "value"):
        statement = ast.parse(text).body[0]
        assert isinstance(statement, (ast.Assign, ast.Return)) and type(statement.value).__name__ == label


def test_one_article_is_missing(tasks: Tasks) -> None:
    """The pages of these tests have every article once in a sentence."""
    for text, label in rows(tasks, "article"):
        assert text.split().count("[MASK]") == 1
        assert set(tasks["article"][0]) - set(text.rstrip(".").split()) == {label}


def test_pairs(man: Path) -> None:
    pairs = load_pairs(COUNTS)
    assert {split: len(found) for split, found in pairs.items()} == COUNTS
    assert {first for first, _ in pairs["train"]}.isdisjoint(first for first, _ in pairs["test"])
