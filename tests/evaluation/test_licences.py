"""Licences of parents against the child's."""

from __future__ import annotations

import pytest

from eutectic.evaluation.licences import conflicts


@pytest.mark.parametrize(
    ("child", "parent", "reason"),
    [
        ("apache-2.0", "cc-by-nc-4.0", "no commercial use"),
        ("mit", "cc-by-nc-nd-4.0", "no derivatives, no commercial use"),
        ("cc-by-nd-4.0", "cc-by-nd-4.0", "no derivatives"),
        ("mit", "gpl-3.0", "the same terms"),
        ("gpl-3.0", "agpl-3.0", "the same terms"),
        ("mit", "cc-by-sa-4.0", "the same terms"),
        ("apache-2.0", "llama3", "terms of its own"),
        (None, "cc-by-nc-4.0", "the checkpoint states no licence"),
    ],
)
def test_what_may_conflict(child: str | None, parent: str, reason: str) -> None:
    (sentence,) = conflicts(child, {"p": parent})
    assert sentence.startswith(f"p is {parent}") and reason in sentence and sentence.endswith("may conflict: check")


@pytest.mark.parametrize(
    ("child", "parent"),
    [("apache-2.0", "mit"), ("gpl-3.0", "mit"), ("agpl-3.0", "agpl-3.0"), ("llama3", "llama3"), (None, "mit"),
     ("cc-by-nc-sa-4.0", "cc-by-nc-4.0")],
)  # fmt: skip
def test_what_does_not(child: str | None, parent: str) -> None:
    assert conflicts(child, {"p": parent}) == []


def test_parents_against_one_another_and_unknown_ones() -> None:
    both = conflicts("gpl-3.0", {"a": "gpl-3.0", "b": "cc-by-sa-4.0"})
    assert len(both) == 2 and "a (gpl-3.0), b (cc-by-sa-4.0)" in both[1]
    assert conflicts("mit", {"a": None}) == ["a states no licence: check"]
