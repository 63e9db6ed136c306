"""`load_document`: what YAML and JSON may hold, where each fault is, and that nothing else ever comes out."""

from __future__ import annotations

import doctest
import json
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eutectic.errors import RecipeError
from eutectic.recipes import document, yaml_text
from eutectic.recipes.document import load_document
from eutectic.recipes.yaml_text import MOST_NODES, dump_yaml

fuzz = settings(deadline=None, max_examples=150)

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), st.text(max_size=8)
)
finite = st.floats(allow_nan=False, allow_infinity=False)
printable = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=8)
plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), finite, printable),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(printable.filter("<<".__ne__), inner, max_size=3),
    max_leaves=12,
)
# Text made of what YAML cares about, so that the fuzzing gets past the first line.
SIGNS = [*"ab:[]{},|\"'#%1~@`>!é\0\t\n ", ": ", "- ", "? ", "\n  ", "&x ", "*x", "!!int ", "!!str ", "---\n", "...\n"]
yamlish = st.lists(st.sampled_from([*SIGNS, "1e9", ".inf", "<<", "\\u"]), max_size=24).map("".join)


def problems_of(source: Any, name: str | None = "r.yaml") -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_document(source, name=name)
    assert "\n" not in "".join(caught.value.problems)
    assert "Traceback" not in str(caught.value)
    assert len(str(caught.value)) < 6000
    return list(caught.value.problems)


@pytest.mark.parametrize("module", [document, yaml_text])
def test_the_examples_run(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


def test_scalars_follow_yaml_1_1_where_it_is_no_trap() -> None:
    text = """
    float: [1e-5, 1E+3, -1., .5, 1_0.5, +.inf, !!float 3]
    int: [0x10, 1_000, 0b11, -7, !!int "5"]
    bool: [yes, Off, TRUE]
    none: [~, null, ]
    text: ['1', 010, 2024-01-01, 12:30:00, 1e, e5, !!str 3, "\\ud83d\\ude00"]
    """
    infinity = float("inf")
    assert load_document(text).data == {
        "float": [1e-5, 1000.0, -1.0, 0.5, 10.5, infinity, 3.0],
        "int": [16, 1000, 3, -7, 5],
        "bool": [True, False, True],
        "none": [None, None],
        "text": ["1", "010", "2024-01-01", "12:30:00", "1e", "e5", "3", "😀"],
    }
    assert [type(value) for value in load_document("[1, 1.0, 1e0]").data] == [int, float, float]


def test_places_are_those_of_keys_and_list_items() -> None:
    text = "merge_method: ties\nmodels:\n  - model: ./a\n  - model: ./b\n    parameters:\n      densty: 0.5\n"
    doc = load_document(text, name="recipe.yaml")
    assert doc.place(("models", 1, "parameters", "densty")) == "recipe.yaml:6:7"
    assert doc.place(("models", 1)) == "recipe.yaml:4:5"
    assert doc.place(("models", 1, "absent")) == "recipe.yaml:4:5"
    assert doc.place(("models", 9)) == "recipe.yaml:2:1"
    assert doc.place(("models", "x", 1)) == "recipe.yaml:2:1"
    assert doc.place(()) == "recipe.yaml:1:1"
    assert doc.order(("merge_method",)) < doc.order(("models", 0)) < doc.order(("models", 1))


def test_an_alias_is_placed_at_its_anchor() -> None:
    doc = load_document("a: &a\n  t: 1\nb: *a\n", name="r.yaml")
    assert doc.data == {"a": {"t": 1}, "b": {"t": 1}}
    assert doc.place(("b",)) == "r.yaml:3:1"
    assert doc.place(("b", "t")) == "r.yaml:2:3"


def test_json_and_mappings_are_placed_by_path() -> None:
    text = json.dumps({"recipe": {"models": [{"model": "a"}, {"parameters": {"a.b": 1, "den-sty": 2}}]}})
    doc = load_document(text, name="recipe.lock.json")
    assert doc.place(("recipe", "models", 1, "parameters")) == "recipe.lock.json: recipe.models[1].parameters"
    part = doc.part("recipe")
    assert part.data["models"][0] == {"model": "a"}
    assert part.place(("models", 1, "parameters", "den-sty")).endswith(": recipe.models[1].parameters.den-sty")
    assert part.part("models", 1).place(("parameters", "a.b")).endswith(": recipe.models[1].parameters['a.b']")
    assert part.place(("models", 1, "absent")) == "recipe.lock.json: recipe.models[1]"
    assert part.order(("models", 0)) < part.order(("models", 1))
    assert load_document({}).place(("x",)) == "recipe"
    yaml = load_document("recipe:\n  models: [a]\n", name="r.yaml").part("recipe")
    assert yaml.place(("models", 0)) == "r.yaml:2:12"


def test_python_objects_become_plain_data() -> None:
    class Name(str):
        __slots__ = ()

    data = load_document({"a": (1, Fraction(1, 2)), "b": Path("x/y"), "c": Name("n"), "d": True}).data
    assert data == {"a": [1, 0.5], "b": "x/y", "c": "n", "d": True}
    assert type(data["c"]) is str
    assert problems_of({"a": {1: 2}, "b": [object()], "c": 1 << 99, "d": "\ud800"}, None) == [
        "recipe: a: a key must be text; found 1",
        "recipe: b[0]: a object is not plain data; use text, numbers, lists and mappings",
        "recipe: c: the integer 999999999999999999999999... does not fit in 64 bits",
        "recipe: d: '\\ud800' is not Unicode text (a lone surrogate)",
    ]
    loop: dict[str, Any] = {}
    loop["again"] = [loop, loop]
    assert "nested more than 64 deep" in problems_of(loop)[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: {c: 1, c: 2}\na: 3", ["r.yaml:2:11: key 'c' appears twice; first at r.yaml:2:5"]),
        ("a: 1\nb: {c: 1, c: 2}\na: 3", ["r.yaml:3:1: key 'a' appears twice; first at r.yaml:1:1"]),
        ("1: a\nyes: b\n? [a]\n: c", ["r.yaml:1:1: a key must be text; found '1'", "r.yaml:2:1:", "r.yaml:3:3:"]),
        ("a: !!python/object/apply:os.system [x]\nb: !x 1", ["r.yaml:1:4: the tag", "r.yaml:2:4: the tag '!x'"]),
        ("a: !!binary aGk=\nb: !!set {c}", ["r.yaml:1:4: the tag", "r.yaml:2:4: the tag"]),
        ("a: !!str [1]\nb: !!int x\nc: !!map 1", ["r.yaml:1:4:", "r.yaml:2:4: 'x' is not a int", "r.yaml:3:4:"]),
        ("x: &x {a: 1}\n<<: *x", ["r.yaml:2:1: merge keys ('<<') are not supported"]),
        ("a: 1\nb:\n\tc: 2", ["r.yaml:3:1: a tab cannot indent YAML; use spaces"]),
        ("a: 1\nb: c: d", ["r.yaml:2:5: ': ' is not expected here"]),
        ("a: 1\nb\nc: 2", ["r.yaml:2:1: this line is not 'key: value'; a colon is missing"]),
        ("a:\n    b: 2\n  c: 3", ["r.yaml:3:3: this line does not fit the indentation"]),
        ("a: [1, 2\nb: 3", ["r.yaml:2:2: a '[' or '{' is not closed"]),
        ('a: "x\nb: 2', ["r.yaml:2:5: not valid YAML: found unexpected end of stream"]),
        ("a: @x", ["r.yaml:1:4: a text that starts with this character needs quotes"]),
        ("a: *x", ["r.yaml:1:4: not valid YAML: found undefined alias 'x'"]),
        ("a: &a [1, *a]", ["r.yaml:1:4: this anchor holds an alias to itself"]),
        ("a: 1\n---\nb: 2", ["r.yaml:3:1: exactly one recipe must be left that no other uses"]),
        (b"a: 1\nbc: \xff", ["r.yaml:2:5: the byte 0xff is not UTF-8"]),
        ("a: 1\nb: x\0", ["r.yaml:2:5: the character 0x00 is not allowed"]),
        ('a: "\\UFFFFFFFF"', ["r.yaml:1:7: not valid YAML"]),
        ('a: "\\ud800"', ["r.yaml:1:4: '\\ud800' is not Unicode text"]),
        ("%YAML " + "1" * 5000 + ".1\n---\na: 1", ["r.yaml:1:7: not valid YAML"]),
        ("a: " + "1" * 5000, ["r.yaml:1:4: the integer 111111111111111111111111... does not fit in 64 bits"]),
        ("a: 18446744073709551616", ["r.yaml:1:4: the integer 18446744073709551616... does not fit"]),
    ],
)
def test_each_fault_has_its_line_and_column(text: str | bytes, expected: list[str]) -> None:
    found = problems_of(text)
    for line in expected:
        assert any(problem.startswith(line) for problem in found), found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1, "a": 2, "b": [{"c": 1, "c": 2}]}', ["r.json: a: key 'a' appears twice", "r.json: b[0].c: key"]),
        ('{"a":\n 1,}', ["r.json:2:"]),
        ('{"a": ' + "9" * 5000 + "}", ["r.json: a: the integer 999999999999999999999999... does not fit"]),
        ("[" * 100_000, ["r.json: nested more than 64 deep"]),
        ("[" * 70 + "]" * 70, ["r.json: nested more than 64 deep"]),
        ('{"a": "\\ud800"}', ["r.json: a: '\\ud800' is not Unicode text"]),
        ('{"a": 1} x', ["r.json:1:10: not valid JSON"]),
    ],
)
def test_json_is_as_strict(text: str, expected: list[str]) -> None:
    found = problems_of(text, "r.json")
    for line in expected:
        assert any(problem.startswith(line) for problem in found), found


def test_bombs_are_refused_by_arithmetic() -> None:
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for level in range(1, 30):
        laughs += f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n"
    chain = "a0: &a0 [x]\n" + "".join(f"a{level}: &a{level} [*a{level - 1}]\n" for level in range(1, 100))
    started = time.process_time()
    assert f"more than {MOST_NODES:,} values, aliases expanded" in problems_of(laughs)[0]
    assert "nested more than 64 deep" in problems_of(chain)[0]
    assert "nested more than 64 deep" in problems_of("[" * 100_000)[0]
    assert "nested more than 64 deep" in problems_of("{a: " * 3000)[0]
    assert time.process_time() - started < 3
    assert load_document("a: &a [x, x]\nb: [" + "*a, " * 1000 + "]").data["b"][999] == ["x", "x"]


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "recipe.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    doc = load_document(Path("recipe.yaml"))
    assert (doc.data, doc.folder, doc.place(("b",))) == ({"a": 1, "b": 2}, tmp_path, "recipe.yaml:2:1")
    with pytest.raises(RecipeError, match=r"^recipe.yml does not exist; did you mean 'recipe.yaml'\?$"):
        load_document(Path("recipe.yml"))
    with pytest.raises(RecipeError, match=r"does not exist$"):
        load_document(Path("none/at/all"))
    with pytest.raises(RecipeError, match="is a folder"):
        load_document(tmp_path)
    with pytest.raises(RecipeError, match="cannot be read"):
        load_document(Path("a\0b"))
    with pytest.raises(RecipeError, match="cannot be read"):
        load_document(Path("x" * 5000))
    file.write_bytes(b"# " + b"x" * (1 << 20))
    with pytest.raises(RecipeError, match="longer than 1 MiB"):
        load_document(file)


@pytest.mark.parametrize("name", ["r.yaml", "r.json"])
@pytest.mark.parametrize("text", ["", " \n\n", "null", b""])
def test_an_empty_recipe_shows_an_example(text: str | bytes, name: str) -> None:
    with pytest.raises(RecipeError, match="is an empty recipe") as caught:
        load_document(text, name=name)
    example = str(caught.value).split("\n", 1)[1]
    assert len(example.splitlines()) == 5
    assert load_document(example).data["merge_method"] == "linear"


def test_only_comments_is_empty_too() -> None:
    with pytest.raises(RecipeError, match="is an empty recipe"):
        load_document("# merge_method: linear\n---\n# models\n")


@fuzz
@given(
    st.one_of(st.binary(max_size=200), st.text(max_size=100), yamlish, plain.map(repr)),
    st.sampled_from(["yaml", "json"]),
)
def test_any_text_gives_plain_data_or_a_recipe_error(text: str | bytes, suffix: str) -> None:
    try:
        doc = load_document(text, name=f"r.{suffix}")
    except RecipeError as error:
        assert all(problem.startswith("r.") and "\n" not in problem for problem in error.problems)
    else:
        json.dumps(doc.data)
        assert doc.place(("a", 0, "b")).startswith("r.")


@fuzz
@given(plain)
def test_json_yaml_and_mappings_round_trip(data: Any) -> None:
    data = {"data": data}
    assert load_document(data).data == data
    assert load_document(json.dumps(data), name="r.json").data == data
    assert load_document(json.dumps(data, ensure_ascii=False)).data == data
    assert load_document(dump_yaml(data)).data == data


@fuzz
@given(st.dictionaries(st.text(max_size=6).filter("<<".__ne__), scalars, max_size=4))
def test_dumped_text_reads_back_whatever_it_holds(data: dict[str, Any]) -> None:
    assert load_document(dump_yaml(data), name="r.yaml").data == data
