"""A law, the register of all laws, and the search for counter-examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eutectic.methods.method import Method
from eutectic.testing.cases import Case, cases, load_hypothesis

__all__ = ["LAWS", "Law", "check_method", "law", "laws_of"]

EXAMPLES = 20


@dataclass(frozen=True)
class Law:
    """A statement, the methods that promise it, and the check: `check(method, case)` asserts that it holds.

    Called as ``law(method, **parameters)`` it looks for a counter-example, whether or not the method promises it.
    """

    name: str
    statement: str
    promised: Callable[[Method], bool]
    check: Callable[[Method, Case], None]
    rough: bool = False

    def __call__(self, method: Method, /, **parameters: Any) -> None:
        """Raise AssertionError that names the law and the smallest counter-example found."""
        hypothesis, _ = load_hypothesis()

        def holds(case: Case) -> None:
            found, cause = "", None
            try:
                self.check(method, case)
            except AssertionError as broken:
                found = str(broken)
            except Exception as error:
                found, cause = f"it raises {type(error).__name__}: {error}", error
            if found:
                head = f"{method.name} breaks the law {self.name!r} ({self.statement})"
                raise AssertionError(f"{head}:\n  {found}\n  on {case}") from cause

        options = hypothesis.settings(
            max_examples=EXAMPLES,
            phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
            deadline=None,
            database=None,
            derandomize=True,
            report_multiple_bugs=False,
        )
        options(hypothesis.given(cases(method, parameters, rough=self.rough))(holds))()


LAWS: dict[str, Law] = {}


def check_method(method: Method, /, **parameters: Any) -> tuple[str, ...]:
    """Check every law that a method's facts promise; returns their names.

    Args:
        method: what `merge_method` made.
        parameters: as in a call of the method. Lists fix the number of sources; required parameters that are left
            out are drawn. Give a stochastic method parameters under which it draws (such as ``density=0.5``).

    Raises:
        AssertionError: a law is broken; the message names it and the smallest counter-example found.
        MissingDependencyError: hypothesis is not installed.
    """
    names = laws_of(method)
    for name in names:
        LAWS[name](method, **parameters)
    return names


def laws_of(method: Method) -> tuple[str, ...]:
    """Names of the laws that a method's facts promise."""
    return tuple(name for name, law in LAWS.items() if law.promised(method))


def law(
    statement: str, promised: Callable[[Method], bool] = lambda method: True, *, rough: bool = False
) -> Callable[[Callable[[Method, Case], None]], Law]:
    """Register the decorated check in `LAWS`, under its name."""

    def wrap(check: Callable[[Method, Case], None]) -> Law:
        name = check.__name__.lstrip("_")
        LAWS[name] = Law(name, statement, promised, check, rough)
        return LAWS[name]

    return wrap
