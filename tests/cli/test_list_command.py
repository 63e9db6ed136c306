"""`eutectic list methods`: the table, one method in full, the JSON, and names that nobody offers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result

import eutectic
from eutectic.methods import BUILT_IN, list_methods

Cli = Callable[..., Result]


def test_the_table_has_every_method(cli: Cli) -> None:
    done = cli("list", "methods")
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.startswith("  ")}
    assert (done.exit_code, done.stderr) == (0, "")
    for name, method in list_methods().items():
        assert method.scope in lines[name] and method.base in lines[name] and lines[name].endswith(method.summary)


@pytest.mark.parametrize("name", BUILT_IN)
def test_one_method_in_full(cli: Cli, name: str) -> None:
    method = BUILT_IN[name]
    shown = cli("list", "methods", name).stdout
    assert shown.startswith(f"{name}: {method.summary}\n")
    assert (method.reference or "source") in shown
    for parameter in method.parameters.values():
        (line,) = [line for line in shown.splitlines() if line.startswith(f"  {parameter.name} ")]
        assert parameter.meaning in line and parameter.expected in line
        assert ("required" in line) == parameter.required
        assert ("per source" in line) == parameter.per_source
    assert all(words in shown for words in (*method.ignored, *method.departures))


def test_the_envelope_holds_the_facts(cli: Cli) -> None:
    document = json.loads(cli("list", "methods", "--json").stdout)
    assert (document["eutectic"], document["schema"]) == (eutectic.__version__, 1)
    assert (document["command"], document["broken"]) == ("list methods", {})
    found = {facts["name"]: facts for facts in document["methods"]}
    assert list(found) == list(list_methods())
    assert found["slerp"]["sources"] == "exactly 2" and found["dare_ties"]["stochastic"]
    density = next(p for p in found["ties"]["parameters"] if p["name"] == "density")
    assert (density["range"], density["per_source"], density["required"], density["default"]) == (
        "0 to 1", True, False, 1.0,
    )  # fmt: skip
    weight = next(p for p in found["linear"]["parameters"] if p["name"] == "weight")
    assert weight["required"] and weight["default"] is None and weight["range"] is None
    assert any(p["name"] == "lambda" for p in found["ties"]["parameters"])  # as a recipe spells it


def test_one_method_as_json_is_the_same_entry(cli: Cli) -> None:
    every = json.loads(cli("list", "methods", "--json").stdout)["methods"]
    (alone,) = json.loads(cli("list", "methods", "ties", "--json").stdout)["methods"]
    assert alone == next(facts for facts in every if facts["name"] == "ties")


def test_an_unknown_name_gets_the_nearest(cli: Cli) -> None:
    done = cli("list", "methods", "tiess", "--json")
    error: dict[str, Any] = json.loads(done.stdout)["error"]
    assert (done.exit_code, error["exit_code"], error["type"]) == (3, 3, "MethodError")
    assert "did you mean 'ties'?" in done.stderr and "did you mean 'ties'?" in error["message"]


def test_an_unknown_name_far_from_all_says_where_to_look(cli: Cli) -> None:
    done = cli("list", "methods", "zzzzzz\x1b[2J")
    assert done.exit_code == 3 and "see `eutectic list methods`" in done.stderr and "\x1b" not in done.stderr


@pytest.mark.parametrize(("words", "shown"), [([], "methods"), (["methds"], "Did you mean 'methods'?")])
def test_a_wrong_command_line_is_a_usage_error(cli: Cli, words: list[str], shown: str) -> None:
    done = cli("list", *words)
    assert done.exit_code == 2 and shown in done.stderr + done.stdout
