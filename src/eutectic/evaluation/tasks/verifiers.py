"""Verifiers: whether an answer is right. Each takes the answer and what was expected, as texts."""

from __future__ import annotations

import re
from collections.abc import Callable

__all__ = ["VERIFIERS", "Verifier"]

Verifier = Callable[[str, str], bool]
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def exact(answer: str, expected: str) -> bool:
    """Equal but for white space at the ends.

    >>> exact(" 42\\n", "42")
    True
    """
    return answer.strip() == expected.strip()


def prefix(answer: str, expected: str) -> bool:
    """Begins with what was expected.

    >>> prefix("I cannot help with that.", "I cannot")
    True
    """
    return answer.strip().startswith(expected.strip())


def contains(answer: str, expected: str) -> bool:
    """Holds what was expected, in any case.

    >>> contains("The answer is Paris.", "paris")
    True
    """
    return expected.strip().lower() in answer.lower()


def number(answer: str, expected: str) -> bool:
    """The last number in the answer is the expected one.

    >>> number("3 + 4 = 7, so 7.0", "7"), number("none", "7")
    (True, False)
    """
    found = _NUMBER.findall(answer)
    return bool(found) and float(found[-1].replace(",", "")) == float(expected.replace(",", ""))


VERIFIERS: dict[str, Verifier] = {"exact": exact, "prefix": prefix, "contains": contains, "number": number}
