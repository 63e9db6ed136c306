"""The picture: valid files that hold every label, none cut off, the same bytes each time."""

from __future__ import annotations

import itertools
import re
import struct
import subprocess
import sys

import pytest

from eutectic.errors import MissingDependencyError, OutputError
from eutectic.evaluation import picture
from eutectic.evaluation.picture import Row, draw_scores, table

ROWS = [
    Row("base", "before", {"flip": 0.71, "a view with a long name": 0.62}, 0.665, 0.012),
    Row("an expert whose name is rather long", "experts", {"flip": 0.97}, 0.53, 0.010),
    Row("average", "merges", {"flip": 0.89, "a view with a long name": float("nan")}, 0.81, 0.011),
]


def svg_texts(path):
    """What the SVG's drawn texts say: matplotlib keeps each as a comment beside its outlines."""
    return {text.strip() for text in re.findall(r"<!--(.*?)-->", path.read_text(encoding="utf-8"), re.S)}


def test_table_is_plain_data():
    header, body = table(ROWS)
    assert header == ["group", "model", "flip", "a view with a long name", "mean", "stderr"]
    assert body[0] == ["before", "base", 0.71, 0.62, 0.665, 0.012]
    assert body[1][3] is None and body[2][3] is None
    assert table([]) == (["group", "model", "mean", "stderr"], [])


def test_png_is_valid_and_the_same_each_time(tmp_path):
    for name in ("a.png", "b.png"):
        draw_scores(ROWS, tmp_path / name, title="Accuracy (%)", note="small print", reference="base")
    data = (tmp_path / "a.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and data.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", data[16:24])
    assert width > 800 and height > 400
    assert data == (tmp_path / "b.png").read_bytes()


def test_svg_holds_every_label_and_is_the_same_each_time(tmp_path):
    for name in ("a.svg", "b.svg"):
        draw_scores(ROWS, tmp_path / name, title="Accuracy (%)", note="small print")
    texts = svg_texts(tmp_path / "a.svg")
    for row in ROWS:
        assert {row.label, row.group} <= texts
    assert {"Accuracy (%)", "small print", "flip", "a view with a long name", "97", "–", "81.0 ± 1.1"} <= texts
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_values_that_are_no_shares_are_written_as_they_are(tmp_path):
    rows = [Row("m", "g", {"loss": 1.234}, 1.234, 0.5), Row("n", "g", {"loss": 2.0}, 2.0, 0.25)]
    draw_scores(rows, tmp_path / "loss.svg", title="t", percent=False)
    assert {"1.23", "1.234 ± 0.500"} <= svg_texts(tmp_path / "loss.svg")


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], [Row("m", "a group with a long name", {"x": 0.5}, 0.5, 0.0)]])
def test_no_text_is_cut_off_and_no_column_name_overlaps_the_next(rows):
    title = "A title that is a good deal longer than the picture is wide, and so decides how wide it must be " * 2
    figure = picture._draw(rows, title, "note", None, picture._writer(True))
    figure.draw_without_rendering()
    page = figure.bbox
    texts = [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]
    for text in texts:
        box = text.get_window_extent()
        assert page.x0 <= box.x0 and box.x1 <= page.x1, text.get_text()
        assert page.y0 <= box.y0 and box.y1 <= page.y1, text.get_text()
    named = [text.get_window_extent() for text in texts if text.get_text() in rows[0].values]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(named))


def test_the_users_own_plot_settings_neither_matter_nor_change(tmp_path):
    import matplotlib

    draw_scores(ROWS, tmp_path / "a.png", title="t")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        draw_scores(ROWS, tmp_path / "b.png", title="t")
        assert matplotlib.rcParams["font.size"] == 30
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_bad_requests_leave_no_file(tmp_path):
    with pytest.raises(OutputError, match=r"\.png or \.svg"):
        draw_scores(ROWS, tmp_path / "a.jpg", title="t")
    with pytest.raises(OutputError, match="nothing to draw"):
        draw_scores([], tmp_path / "a.png", title="t")
    with pytest.raises(OutputError, match="nothing to draw"):
        draw_scores([Row("m", "g", {}, 0.5, 0.0)], tmp_path / "a.png", title="t")
    with pytest.raises(OutputError, match="nothing to draw"):
        draw_scores([Row("m", "g", {}, float("nan"), 0.0)], tmp_path / "a.png", title="t")
    with pytest.raises(OutputError, match="cannot be written"):
        draw_scores(ROWS, tmp_path / "none" / "a.png", title="t")
    assert not list(tmp_path.iterdir())


def test_missing_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'eutectic\[plot\]'"):
        draw_scores(ROWS, tmp_path / "a.png", title="t")


def test_importing_the_module_loads_no_matplotlib():
    code = "import sys, eutectic.evaluation.picture; print('matplotlib' in sys.modules, 'numpy' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "False"]
