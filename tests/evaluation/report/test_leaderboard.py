"""The order of the rows, the CSV, and the file that is written: the same bytes, nothing a stranger could inject."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from samples import HOSTILE, SAMPLES, mergebench, single, with_holes

from eutectic.errors import OutputError
from eutectic.evaluation.report import csv_text, render_report, sections, write_report
from eutectic.evaluation.report.leaderboard import fingerprint
from eutectic.evaluation.results import Results
from eutectic.recipes.schema import load_recipe


def test_sections_rank_by_what_methods_need() -> None:
    found = {section.title: section for section in sections(mergebench())}
    assert list(found) == [
        "Merged without data", "Merged with unlabelled data", "Merged with labelled data", "Baselines",
        "Single experts",
    ]  # fmt: skip
    first, second, third, *_ = found["Merged without data"].places
    assert [(p.row.id, p.rank, p.tied) for p in (first, second, third)] == [
        ("tsv", 1, False), ("iso", 2, True), ("consensus", 3, False),
    ]  # fmt: skip
    assert [p.rank for p in found["Baselines"].places] == [None] * 5
    assert found["Baselines"].places[0].row.id == "joint"


def test_rows_without_a_score_come_last_and_have_no_rank() -> None:
    places = sections(with_holes())[0].places
    assert [p.rank for p in places] == [*range(1, 9), None, None, None, None]


def test_csv_has_every_row_and_no_number_for_a_hole() -> None:
    lines = list(csv.DictReader(io.StringIO(csv_text(with_holes()))))
    assert len(lines) == 27
    by_id = {line["id"]: line for line in lines}
    assert (by_id["tsv"]["blur"], by_id["tsv"]["score"], by_id["tsv"]["rank"]) == ("", "", "")
    assert float(by_id["iso"]["score"]) == pytest.approx(0.9041667) and by_id["iso"]["rank"] == "1"
    assert by_id["della"]["at edge"] == "true" and by_id["iso"]["fingerprint"]


def test_a_spreadsheet_calculates_nothing_of_the_csv() -> None:
    plain = single().to_json()
    plain["rows"][0]["label"] = '=HYPERLINK("http://x")'
    (line,) = csv.DictReader(io.StringIO(csv_text(Results.model_validate(plain))))
    assert line["model"].startswith("'=")


def test_fingerprints_are_the_recipes_own() -> None:
    row = next(row for row in mergebench().rows if row.id == "ties")
    assert row.recipe is not None and fingerprint(row) == load_recipe(row.recipe).fingerprint()
    assert fingerprint(row.model_copy(update={"recipe": {"members": ["a", "b"]}})) is None
    assert fingerprint(row.model_copy(update={"recipe": None})) is None


@pytest.mark.parametrize("name", SAMPLES)
def test_the_same_results_give_the_same_page(name: str) -> None:
    page = render_report(SAMPLES[name]())
    assert page == render_report(Results.model_validate(SAMPLES[name]().to_json()))
    assert page.count("<script") == 2 and page.count("</script>") == 2
    assert "http:" not in page.replace("http://www.w3.org/2000/svg", "") and "https:" not in page
    assert HOSTILE not in page and "@" not in page.split("</style>")[1].split("<script")[0]


def test_a_failing_write_leaves_the_old_page(tmp_path: Path) -> None:
    write_report(single(), tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(OutputError, match=r"none.report\.html: cannot be written"):
        write_report(single(), tmp_path / "none" / "report.html")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        write_report(single(), tmp_path / "folder")
