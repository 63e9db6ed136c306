"""Licences of parents against that of their child: what may conflict, by the identifiers that model cards use.

A reader's checklist, not legal advice: a conflict is told where a parent's terms are commonly read as not allowing
what the child's say, and where terms are unknown or a licence's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["Terms", "conflicts", "terms_of"]

_PERMISSIVE = re.compile(r"apache-2\.0|mit|bsd(-.*)?|isc|unlicense|wtfpl|cc0-1\.0|zlib|afl-3\.0|ecl-2\.0|ms-pl|cc-by-\d.*|0bsd|pddl|odc-by|cdla-permissive.*")  # fmt: skip  # noqa: E501
_COPYLEFT = re.compile(r"(agpl|gpl|lgpl|mpl|epl|eupl|osl|cecill)(-.*)?|cc-by-(nc-)?sa(-.*)?|odbl|cdla-sharing.*")
_NO_COMMERCE = re.compile(r"(.*[-_])?(nc|non-?commercial|research(-only)?)([-_].*)?")
_NO_DERIVATIVES = re.compile(r"(.*-)?nd(-.*)?")


class Terms:
    """What is known of a licence by its identifier; all False for terms of its own (llama3, gemma, other)."""

    def __init__(self, licence: str) -> None:
        self.name = licence.strip().lower()
        self.no_commerce = bool(_NO_COMMERCE.fullmatch(self.name))
        self.no_derivatives = bool(_NO_DERIVATIVES.fullmatch(self.name))
        self.share_alike = bool(_COPYLEFT.fullmatch(self.name))
        self.permissive = bool(_PERMISSIVE.fullmatch(self.name))

    @property
    def own(self) -> bool:
        """Whether its terms are its own, to be read."""
        return not (self.no_commerce or self.no_derivatives or self.share_alike or self.permissive)


def terms_of(licence: str) -> Terms:
    """The terms behind an identifier.

    >>> terms_of("cc-by-nc-4.0").no_commerce, terms_of("agpl-3.0").share_alike, terms_of("llama3").own
    (True, True, True)
    """
    return Terms(licence)


def conflicts(child: str | None, parents: Mapping[str, str | None]) -> list[str]:
    """Sentences about what may conflict between the parents' licences and the child's; None: none is stated.

    >>> conflicts("apache-2.0", {"a": "cc-by-nc-4.0", "b": "mit"})
    ['a is cc-by-nc-4.0 (no commercial use), the checkpoint apache-2.0: may conflict: check']
    """
    found = []
    stated = "states no licence" if child is None else child
    mine = None if child is None else terms_of(child)
    for name, licence in parents.items():
        if licence is None:
            found.append(f"{name} states no licence: check")
            continue
        theirs = terms_of(licence)
        reasons = []
        if theirs.no_derivatives:
            reasons.append("no derivatives")
        same = mine is not None and mine.name == theirs.name
        if theirs.no_commerce and not (mine and mine.no_commerce):
            reasons.append("no commercial use")
        if theirs.share_alike and not same:
            reasons.append("the same terms for what is made of it")
        if theirs.own and not same:
            reasons.append("terms of its own")
        if reasons:
            found.append(f"{name} is {licence} ({', '.join(reasons)}), the checkpoint {stated}: may conflict: check")
    alike = {name: licence for name, licence in parents.items() if licence and terms_of(licence).share_alike}
    if len({terms_of(licence).name for licence in alike.values()}) > 1:
        shown = ", ".join(f"{name} ({licence})" for name, licence in alike.items())
        found.append(f"{shown} each ask for their own terms for what is made of them: may conflict: check")
    return found
