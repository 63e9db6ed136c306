"""The text of `eutectic diff`: a summary, then one table per kind of difference, worst first."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import click

from eutectic.cli.output import format_bytes, format_share, print_fields, print_table, printable
from eutectic.cli.patterns import Pattern, collapse
from eutectic.cli.sizes import plural
from eutectic.evaluation.compare import ABSENT, Comparison, LayerDistance, Pair
from eutectic.evaluation.distance import Distance
from eutectic.weights.checkpoint import Checkpoint

__all__ = ["print_comparison", "print_layers"]

WORST = 5  # single tensors listed under the patterns
MOST_ROWS = 30  # of each table, unless every tensor is asked for
WIDEST_VALUE = 36  # characters of a value of config.json
BAR = 24  # characters of the longest bar


def print_comparison(a: Checkpoint, b: Checkpoint, found: Comparison, *, every_tensor: bool = False) -> None:
    """Print what `compare` found. `every_tensor` lists each tensor instead of patterns and the worst few."""
    _print_summary(a, b, found)
    _print_config(found)
    _print_lonely("Only in A", a, found.only_a, every_tensor)
    _print_lonely("Only in B", b, found.only_b, every_tensor)
    _print_mismatched(found, every_tensor)
    _print_values(found, every_tensor)


def _print_summary(a: Checkpoint, b: Checkpoint, found: Comparison) -> None:
    for label, side in (("A", a), ("B", b)):
        path = click.style(printable(str(side.path or "planned checkpoint")), bold=True)
        click.echo(f"{label}  {path}  {plural(len(side), 'tensor')}, {format_bytes(side.nbytes)}")
    names = [f"{found.common:,} in both"]
    names += [f"{len(only):,} only in {side}" for side, only in (("A", found.only_a), ("B", found.only_b)) if only]
    shapes = sum(pair.a.shape != pair.b.shape for pair in found.mismatched)
    types = sum(pair.a.dtype != pair.b.dtype for pair in found.mismatched)
    click.echo()
    print_fields(
        [
            ("names", ", ".join(names)),
            ("shapes", _differ(shapes)),
            ("types", _differ(types)),
            ("config", _config_words(found)),
            *(("" if position else "values", words) for position, words in enumerate(_value_words(found))),
            ("result", _verdict(found)),
        ]
    )


def _differ(count: int, noun: str = "tensor") -> str:
    return f"{plural(count, noun)} {'differs' if count == 1 else 'differ'}" if count else "equal"


def _config_words(found: Comparison) -> str:
    if found.config_in == (True, True):
        return _differ(len(found.config), "key")
    holder = {(True, False): "only A has", (False, True): "only B has", (False, False): "neither has"}
    return f"not compared, {holder[found.config_in]} a config.json"


def _value_words(found: Comparison) -> list[str]:
    if not found.values:
        return ["not compared (--headers-only)"]
    if not found.changed:
        words = [f"equal in {plural(found.equal, 'tensor')}" if found.equal else "nothing to compare"]
    else:
        distance = found.overall
        words = [f"{_differ(len(found.changed))}, {found.equal:,} equal; over what differs:"]
        words.append(
            f"relative L2 {_number(distance.relative_l2)}, cosine {_cosine(distance.cosine)}, "
            f"{format_share(distance.different_share)} of elements differ, "
            f"{format_share(distance.opposite_share)} have opposite signs"
        )
        if distance.nonfinite:
            words.append(f"{plural(distance.nonfinite, 'element')} with NaN or infinity in A or B, not measured")
    if found.incomparable:
        words.append(f"{len(found.incomparable):,} not compared: their types have no common values")
    return words


def _verdict(found: Comparison) -> str:
    if not found.identical:
        return "different"
    return "identical" if found.values else "identical, as far as headers tell"


# ---------------------------------------------------------------- tables


def _print_config(found: Comparison) -> None:
    rows = [[entry.key, _shown(entry.a), _shown(entry.b)] for entry in found.config]
    _print_rows("config.json", ["key", "A", "B"], rows)


def _print_lonely(title: str, side: Checkpoint, names: Sequence[str], every: bool) -> None:
    patterns = _patterns(names, lambda name: (side[name].shape, side[name].dtype), every)
    rows = [
        [pattern.text, pattern.count, str(list(tensor.shape)), str(tensor.dtype)]
        for pattern in patterns
        for tensor in [side[pattern.names[0]]]
    ]
    _print_rows(title, ["tensors", ">count", "shape", "type"], rows, every)


def _print_mismatched(found: Comparison, every: bool) -> None:
    pairs = {pair.name: pair for pair in found.mismatched}

    def kind(name: str) -> Hashable:
        return tuple((t.shape, t.dtype) for t in (pairs[name].a, pairs[name].b))

    rows = []
    for pattern in _patterns(pairs, kind, every):
        pair = pairs[pattern.names[0]]
        sides = [f"{list(tensor.shape)} {tensor.dtype}" for tensor in (pair.a, pair.b)]
        rows.append([pattern.text, pattern.count, *sides])
    _print_rows("Shapes or types that differ", ["tensors", ">count", "A", "B"], rows, every)


def _print_values(found: Comparison, every: bool) -> None:
    measures = [">differ", ">max |A-B|", ">rel. L2", ">cosine", ">signs"]
    single = [[pair.name, *_measures(pair.distance)] for pair in found.changed]
    if every:
        _print_rows("Values that differ, by tensor", ["tensor", *measures], single, every)
        return
    pairs = {pair.name: pair for pair in found.changed}
    patterns = collapse(pairs, lambda name: (pairs[name].a.shape, pairs[name].a.dtype))
    pooled = [(pattern, _pool(pairs[name] for name in pattern.names)) for pattern in patterns]
    pooled.sort(key=lambda item: -item[1].severity)
    rows = [[pattern.text, pattern.count, *_measures(distance)] for pattern, distance in pooled]
    _print_rows("Values that differ, by pattern", ["tensors", ">count", *measures], rows)
    if len(single) > len(rows):
        _print_rows("Most different tensors", ["tensor", *measures], single[:WORST])


def print_layers(layers: Sequence[LayerDistance]) -> None:
    """Print every layer with its distance and a bar, the longest for the largest relative L2."""
    most = max((layer.distance.relative_l2 or 0.0 for layer in layers), default=0.0)
    rows = [
        [
            layer.name,
            f"{layer.different} of {layer.tensors}",
            _number(layer.distance.relative_l2) if layer.different else "0",
            _cosine(layer.distance.cosine) if layer.different else "-",
            format_share(layer.distance.opposite_share) if layer.different else "-",
            _bar((layer.distance.relative_l2 or 0.0) / most if most else 0.0),
        ]
        for layer in layers
    ]
    print_table(["layer", ">differ", ">rel. L2", ">cosine", ">signs", ""], rows, title="By layer")


def _bar(share: float) -> str:
    """A bar of eighths of a character, or of # where the terminal has no blocks."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    eighths = round(share * BAR * 8)
    text = "█" * (eighths // 8) + (" ▏▎▍▌▋▊▉"[eighths % 8] if eighths % 8 else "")
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return "#" * round(share * BAR)
    return text


def _patterns(names: Iterable[str], key: Callable[[str], Hashable], every: bool) -> list[Pattern]:
    return [Pattern(name, (name,), 1) for name in names] if every else collapse(names, key)


def _pool(pairs: Iterable[Pair]) -> Distance:
    return sum((pair.distance for pair in pairs), Distance())


def _print_rows(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], every: bool = False) -> None:
    if not rows:
        return
    shown = rows if every else rows[:MOST_ROWS]
    print_table(columns, shown, title=title)
    if len(rows) > len(shown):
        click.echo(f"  ... and {len(rows) - len(shown):,} more; --json has all")


# ---------------------------------------------------------------- cells


def _measures(distance: Distance) -> list[str]:
    return [
        format_share(distance.different_share),
        "NaN/inf" if distance.nonfinite else _number(distance.max_abs),
        _number(distance.relative_l2),
        _cosine(distance.cosine),
        format_share(distance.opposite_share),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:#.3g}"


def _cosine(value: float | None) -> str:
    return "-" if value is None else f"{value:.6f}"


def _shown(value: Any) -> str:
    if value is ABSENT:
        return "(absent)"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= WIDEST_VALUE else f"{text[: WIDEST_VALUE - 3]}..."
