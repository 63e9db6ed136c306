"""results.json: what is written is what is read; everything else is refused with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eutectic.errors import FormatError, OutputError, SourceError
from eutectic.evaluation.results import RESULTS, Deltas, Hole, Interval, Results, Row, Score, Task


def study() -> Results:
    return Results(
        study="mergebench",
        title="Two models",
        tasks=(Task(name="fr", unit="bits/byte", higher=False), Task(name="general", role="base")),
        rows=(
            Row(id="base", label="Base", group="baseline", scores={"fr": Score(value=2.5, stderr=0.1, n=200)}),
            Row(id="ties", label="TIES", group="merged", scores={"fr": Hole(error="the endpoint timed out")},
                mean=Interval(value=0.9, low=0.8, high=0.95), recipe={"merge_method": "ties", "dtype": None}),
        ),
        deltas=Deltas(
            experts=("a",), layers=("h.0", "h.1"), norms=((1.0, 2.0),), cosine=((1.0,),), sign_conflict=((None,),)
        ),
    )  # fmt: skip


def minimal() -> dict[str, Any]:
    row = {"id": "a", "label": "A", "group": "expert"}
    return {"results": 1, "study": "s", "title": "t", "tasks": [{"name": "fr"}], "rows": [row]}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / RESULTS
    path.write_text(json.dumps({**minimal(), **changes}))
    return path


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    study().save(tmp_path / RESULTS)
    assert Results.load(tmp_path) == Results.load(tmp_path / RESULTS) == study()
    first = (tmp_path / RESULTS).read_bytes()
    Results.load(tmp_path).save(tmp_path / RESULTS)
    assert (tmp_path / RESULTS).read_bytes() == first and len(list(tmp_path.iterdir())) == 1


def test_most_keys_may_be_absent(tmp_path: Path) -> None:
    found = Results.load(written(tmp_path))
    assert (found.split, found.rows[0].needs, found.deltas) == ("test", "nothing", None)
    assert Results.load(written(tmp_path, family={"name": "bytes", "seed": 3})).family[0].seed == 3
    assert len(Results.load(written(tmp_path, family=[{"name": "bytes"}, {"name": "digits"}])).family) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"results": 2}, "results of version 2; this release reads version 1"),
        ({"results": None}, "results of no version"),
        ({"results": True}, "results of version true"),
        ({"rows": [{"id": "a", "label": "A", "group": "experts"}]}, "rows[0] (a).group: input should be 'baseline'"),
        ({"rows": [minimal()["rows"][0]] * 2}, "two rows are called 'a'"),
        ({"tasks": [{"name": "fr"}] * 2}, "two tasks are called 'fr'"),
        ({"title": None}, "title: input should be a valid string"),
        ({"tilte": "x"}, "tilte: a key that is not known here"),
        ({"pairs": [{"a": "a", "b": "z", "difference": 0}]}, "a pair names 'z', which is none of the rows"),
        ({"curves": [{"label": "l", "x": [1, 2], "y": [1]}]}, "x, y, low and high must be of one length"),
        ({"deltas": {"experts": ["a"], "layers": ["l"], "norms": [[1, 2]], "cosine": [[1]], "sign_conflict": [[0]]}},
         "norms must have 1 rows of 1 numbers"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(FormatError) as error:
        Results.load(path)
    assert str(error.value).startswith(str(path)) and words in str(error.value)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"scores": {"de": {"value": 1}}}, "row 'a' has a score of 'de', which is none of the tasks"),
        ({"scores": {"fr": {"value": "high"}}}, "rows[0] (a).scores.fr.value: input should be a valid number"),
        ({"scores": {"fr": {"stderr": 1}}}, "rows[0] (a).scores.fr.value: is missing"),
        ({"scores": {"fr": {"error": 5}}}, "rows[0] (a).scores.fr.error: input should be a valid string, not 5"),
        ({"scores": {"fr": 0.5}}, "rows[0] (a).scores.fr"),
        ({"mean": {"value": 1, "low": 2, "high": 1}}, "low 2 is above high 1"),
        ({"seconds": {"merge": -1}}, "rows[0] (a).seconds.merge: input should be greater than or equal to 0"),
    ],
)
def test_what_is_wrong_with_a_row_is_named(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    path = written(tmp_path, rows=[{**minimal()["rows"][0], **row}])
    with pytest.raises(FormatError) as error:
        Results.load(path)
    assert words in str(error.value)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(tmp_path: Path, value: str) -> None:
    path = written(tmp_path)
    row = f'{{"id": "a", "label": "A", "group": "expert", "scores": {{"fr": {{"value": {value}}}}}}}'
    path.write_text(path.read_text().replace(json.dumps(minimal()["rows"][0]), row))
    with pytest.raises(FormatError, match="finite number"):
        Results.load(path)


def test_many_faults_are_cut_with_a_word(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"and 22 more"):
        Results.load(written(tmp_path, rows=[{"id": str(i)} for i in range(15)]))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"results": 1', "\udcff"])
def test_what_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / RESULTS).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(FormatError):
        Results.load(tmp_path)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no results.json in this folder; a study writes it"):
        Results.load(tmp_path)
    with pytest.raises(SourceError, match="no such file"):
        Results.load(tmp_path / "none.json")
    with pytest.raises(OutputError, match="cannot be written"):
        study().save(tmp_path / "none" / RESULTS)
