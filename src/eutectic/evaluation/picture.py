"""One picture of many measurements: a row for each model, a column for each task, the mean with its error bar."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eutectic.errors import MissingDependencyError, OutputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Row", "draw_scores", "table"]

FORMATS = (".png", ".svg")
# The colours stay apart under the common colour blindnesses; blues run from pale (worst) to dark (best).
INK, SOFT, RULE, DOT, ACCENT, COLOURS = "#1f2328", "#59636e", "#d1d9e0", "#0b4f8a", "#c2410c", "Blues"
ROW, COLUMN, GAP = 0.34, 0.72, 0.3  # inches: a row's height, a column's width; rows: the space between groups
PANEL, SPACE, PAD = 2.6, 0.3, 0.2  # inches: the width of the means' panel, the space before it, the margin
SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same picture on every machine
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "xtick.color": SOFT,
    "svg.hashsalt": "eutectic",
}
HEADING: dict[str, Any] = {"size": 12.5, "weight": "bold"}
SMALL: dict[str, Any] = {"size": 8, "color": SOFT}


@dataclass(frozen=True)
class Row:
    """One model measured: its label, the group it belongs to, a value for each column, and their mean.

    `stderr` is the mean's standard error. A column without a finite value is left open.
    """

    label: str
    group: str
    values: Mapping[str, float]
    mean: float
    stderr: float


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str | float | None]]]:
    """The rows as plain lists, for whoever prints them: a header, and as many cells in each row (None: not measured).

    >>> table([Row("base", "before", {"flip": 0.7, "shift": 0.8}, 0.75, 0.01)])
    (['group', 'model', 'flip', 'shift', 'mean', 'stderr'], [['before', 'base', 0.7, 0.8, 0.75, 0.01]])
    """
    columns = _columns(rows)
    body = [[r.group, r.label, *(_finite(r.values.get(c)) for c in columns), r.mean, r.stderr] for r in rows]
    return ["group", "model", *columns, "mean", "stderr"], body


def draw_scores(
    rows: Sequence[Row],
    path: str | Path,
    *,
    title: str,
    note: str = "",
    reference: str | None = None,
    percent: bool = True,
) -> None:
    """Draw the rows to a PNG or SVG file: a heat map of the columns, beside it the means with their error bars.

    Rows keep their order; consecutive rows of one group stand together; a higher value is a better one, and
    the best mean is set off in bold. The same rows give the same bytes with one version of matplotlib.

    Args:
        rows: at least one, with at least one column; means and standard errors are finite.
        path: ends in .png or .svg; its folder exists. A file of that name is replaced.
        title: the heading. note: a line of small print below the picture.
        reference: the label of the row whose mean is drawn on as a dashed line (default: none).
        percent: write the values times 100, without a sign (default), or as they are.

    Raises:
        OutputError: another suffix, nothing to draw, or the file cannot be written.
        MissingDependencyError: matplotlib is not installed.

    >>> import tempfile
    >>> row = Row("base", "before", {"flip": 0.7, "shift": 0.8}, 0.75, 0.01)
    >>> draw_scores([row], tempfile.mkdtemp() + "/scores.svg", title="Accuracy (%)")
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise OutputError(f"{path}: a picture's name ends in {' or '.join(FORMATS)}")
    if not _columns(rows) or not all(math.isfinite(row.mean) and math.isfinite(row.stderr) for row in rows):
        raise OutputError(f"{path}: nothing to draw: rows need columns, and each a finite mean and standard error")
    try:
        import matplotlib
    except ImportError:
        raise MissingDependencyError("pictures need matplotlib; pip install 'eutectic[plot]'") from None
    image = io.BytesIO()
    with matplotlib.rc_context():  # neither read the user's matplotlibrc nor leave a trace in a notebook
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        figure = _draw(rows, title, note, reference, _writer(percent))
        plain: dict[str, Any] = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(image, format=path.suffix[1:], dpi=200, metadata=plain)
    try:
        path.write_bytes(image.getvalue())
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from None


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(column for row in rows for column in row.values))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _writer(percent: bool) -> Callable[[float, int], str]:
    """How a number is written, with how many digits after the point beyond the cells' own precision."""
    return lambda value, more: f"{100 * value:.{more}f}" if percent else f"{value:.{more + 2}f}"


def _heights(rows: Sequence[Row]) -> list[float]:
    """The vertical position of each row, downward in units of a row; a gap and a heading before each group."""
    heights, at = [], 0.0
    for before, row in zip([None, *rows], rows, strict=False):
        if before is None or before.group != row.group:
            at += 1.0 if before is None else 1.0 + GAP
        heights.append(at)
        at += 1
    return heights


def _draw(
    rows: Sequence[Row], title: str, note: str, reference: str | None, write: Callable[[float, int], str]
) -> Figure:
    from matplotlib.figure import Figure

    columns, heights = _columns(rows), _heights(rows)
    figure = Figure(facecolor="white")
    labels = max(_width(figure, row.label, weight="bold") for row in rows) + 0.2
    wide = max([COLUMN, *(_width(figure, column) + 0.14 for column in columns)])
    numbers = max(_width(figure, _mean_text(row, write), weight="bold") for row in rows) + 0.1
    across = labels + wide * len(columns) + SPACE + PANEL + numbers
    lines = [_width(figure, title, **HEADING), _width(figure, note, **SMALL)]
    lines += [_width(figure, row.group) for row in rows]
    top, bottom = 0.8, 0.45 + (0.3 if note else 0)
    tall = (heights[-1] + 0.5) * ROW
    width, height = 2 * PAD + max(across, *lines), top + tall + bottom
    figure.set_size_inches(width, height)

    def panel(left: float, across: float) -> Axes:
        axes = figure.add_axes((left / width, bottom / height, across / width, tall / height))
        axes.set_ylim(heights[-1] + 0.5, 0)
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        return axes

    heat = panel(PAD + labels, wide * len(columns))
    means = panel(PAD + labels + wide * len(columns) + SPACE, PANEL)
    _draw_labels(heat, rows, heights, labels / wide)
    _draw_cells(heat, rows, heights, columns, write)
    _draw_means(means, rows, heights, reference, write)
    figure.text(PAD / width, 1 - 0.22 / height, title, va="top", **HEADING)
    if note:
        figure.text(PAD / width, 0.14 / height, note, va="bottom", **SMALL)
    return figure


def _width(figure: Figure, text: str, **style: Any) -> float:
    """The width of a line of text in inches, measured rather than guessed, so that no label is cut off."""
    probe = figure.text(0, 0, text, **style)
    width = probe.get_window_extent().width / figure.dpi
    probe.remove()
    return width


def _mean_text(row: Row, write: Callable[[float, int], str]) -> str:
    return f"{write(row.mean, 1)} ± {write(row.stderr, 1)}"


def _weight(row: Row, rows: Sequence[Row]) -> str:
    return "bold" if row.mean == max(other.mean for other in rows) else "normal"


def _draw_labels(axes: Axes, rows: Sequence[Row], heights: Sequence[float], left: float) -> None:
    group = None
    for row, y in zip(rows, heights, strict=True):
        if row.group != group:
            axes.text(-left, y - 0.82, row.group, color=SOFT, va="center")
            group = row.group
        axes.text(-left, y, row.label, va="center", weight=_weight(row, rows))


def _draw_cells(
    axes: Axes,
    rows: Sequence[Row],
    heights: Sequence[float],
    columns: Sequence[str],
    write: Callable[[float, int], str],
) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    axes.set_xlim(0, len(columns))
    axes.set_xticks([])
    known = [v for row in rows for c in columns if (v := _finite(row.values.get(c))) is not None]
    low, high = min(known, default=0), max(known, default=1)
    for at, column in enumerate(columns):
        axes.text(at + 0.5, -0.15, column, ha="center", va="bottom", color=SOFT)
    for row, y in zip(rows, heights, strict=True):
        for at, column in enumerate(columns):
            value = _finite(row.values.get(column))
            if value is None:
                axes.text(at + 0.5, y, "–", ha="center", va="center", color=SOFT)
                continue
            strength = (value - low) / (high - low) if high > low else 0.5
            colour = colormaps[COLOURS](0.04 + 0.82 * strength)
            axes.add_patch(Rectangle((at + 0.02, y - 0.46), 0.96, 0.92, color=colour, linewidth=0))
            ink = "white" if strength > 0.7 else INK  # each where it reads better
            axes.text(at + 0.5, y, write(value, 0), ha="center", va="center", color=ink)


def _draw_means(
    axes: Axes,
    rows: Sequence[Row],
    heights: Sequence[float],
    reference: str | None,
    write: Callable[[float, int], str],
) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    low = min(row.mean - row.stderr for row in rows)
    high = max(row.mean + row.stderr for row in rows)
    margin = 0.06 * (high - low) or 0.05
    axes.set_xlim(low - margin, high + margin)
    axes.spines["bottom"].set_visible(True)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: write(value, 0)))
    axes.tick_params(axis="x", length=3, color=RULE)
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    beside = axes.get_yaxis_transform()  # x in widths of the panel, y in rows
    axes.text(0, -0.15, "mean ± standard error", va="bottom", color=SOFT, transform=beside)
    for row in rows:
        if row.label == reference:
            axes.axvline(row.mean, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
    for row, y in zip(rows, heights, strict=True):
        weight = _weight(row, rows)
        colour = ACCENT if weight == "bold" else DOT
        axes.errorbar(row.mean, y, xerr=row.stderr, fmt="o", color=colour, markersize=5.5, elinewidth=1.6)
        axes.text(1.04, y, _mean_text(row, write), va="center", color=colour, weight=weight, transform=beside)
