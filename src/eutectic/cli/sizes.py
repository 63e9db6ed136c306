"""Sizes and counts, printed for people and read from flags.

Sizes are printed in decimal units, as disks and download pages give them: 1 kB = 1000 bytes, 1 GB = 10^9.
A flag accepts both families: ``500MB`` and ``5B`` (five billion bytes, mergekit's habit) are decimal,
``2GiB`` is binary.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import click

__all__ = ["SIZE", "SizeType", "format_bytes", "format_count", "format_share", "parse_size", "plural"]

_SIZE = re.compile(
    r"(?P<number>\d{1,18}(\.\d{1,9})?) ?((?P<prefix>[kmgt])(?P<binary>i?)b?|(?P<billion>b)|bytes?)?",
    re.IGNORECASE | re.ASCII,
)


def format_bytes(count: int) -> str:
    """Bytes for people, in decimal units, three digits.

    >>> format_bytes(988_097_824), format_bytes(15_231_233_024), format_bytes(640)
    ('988 MB', '15.2 GB', '640 bytes')
    """
    if abs(count) < 1000:
        return plural(count, "byte")
    return "{} {}B".format(*_three_digits(count, "kMGTPE"))


def format_count(count: int) -> str:
    """A number of parameters or elements for people: exact below ten thousand, then three digits.

    >>> format_count(494_032_768), format_count(7_615_616_512), format_count(9_216)
    ('494 M', '7.62 B', '9,216')
    """
    if abs(count) < 10_000:
        return f"{count:,}"
    return "{} {}".format(*_three_digits(count, "kMBT"))


def plural(count: int, noun: str) -> str:
    """A count with its noun.

    >>> plural(1, "tensor"), plural(18_914, "tensor")
    ('1 tensor', '18,914 tensors')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def format_share(share: float) -> str:
    """A share of a whole in percent; what is small is not rounded to nothing, nor what is large to all.

    >>> format_share(0.27), format_share(0.00001), format_share(0.99999), format_share(1), format_share(0)
    ('27.0%', '<0.1%', '>99.9%', '100%', '0%')
    """
    if share in (0, 1):
        return f"{share:.0%}"
    return "<0.1%" if share < 0.0005 else ">99.9%" if share > 0.9995 else f"{share:.1%}"


def _three_digits(count: int, units: str) -> tuple[str, str]:
    value, step = count / 1000, 0
    while abs(value) >= 999.5 and step < len(units) - 1:
        value, step = value / 1000, step + 1
    decimals = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{decimals}f}", units[step]


def parse_size(text: str) -> int:
    """A number of bytes from what people type; K, M, G, B, T are powers of 1000, Ki, Mi, Gi, Ti of 1024.

    >>> parse_size("2GiB"), parse_size("500MB"), parse_size("5B"), parse_size("1000000")
    (2147483648, 500000000, 5000000000, 1000000)

    Raises:
        ValueError: the text is no size, or less than one byte.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a size; write bytes (1000000) or a unit: 500MB, 2GiB, 5B (5 x 10^9)")
    step = "kmgt".find((match["prefix"] or "?").lower()) + 1
    unit = 10**9 if match["billion"] else (1024 if match["binary"] else 1000) ** step
    size = int(Decimal(match["number"]) * unit)
    if size < 1:
        raise ValueError(f"{text!r} is less than one byte")
    return size


class SizeType(click.ParamType):
    """A click parameter type for `parse_size`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


SIZE = SizeType()
