"""The laws of merge methods, for authors of methods: which ones must hold follows from the declared facts.

    from eutectic.testing import check_method

    def test_mine():
        check_method(mine, weight=[0.5, 0.25], density=0.5)

`check_method` searches for a counter-example to every law that the method's facts promise, with hypothesis
(``pip install hypothesis``), always the same way. `LAWS` holds the laws by name; each can be run alone.
`Case` is what a law is tried on; `tensors` and `cases` are the strategies that it is drawn from.
"""

from eutectic.testing import laws as _laws  # noqa: F401  fills LAWS
from eutectic.testing.cases import Case, cases, tensors
from eutectic.testing.law import LAWS, Law, check_method, laws_of

__all__ = ["LAWS", "Case", "Law", "cases", "check_method", "laws_of", "tensors"]
