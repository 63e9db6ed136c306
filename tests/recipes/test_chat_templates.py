"""Chat templates: named ones render, folders' own are found, and what is neither is refused."""

from __future__ import annotations

import json
from pathlib import Path

import jinja2
import pytest
from pydantic_core import PydanticCustomError

from eutectic.recipes.chat_templates import NAMED, check_template, choose_template, template_of


@pytest.mark.parametrize("name", NAMED)
def test_named_templates_render(name: str) -> None:
    messages = [
        {"role": role, "content": f"{role} says"} for role in ("system", "user", "assistant", "user")
    ]  # fmt: skip
    values = {"bos_token": "<s>", "eos_token": "</s>", "messages": messages, "add_generation_prompt": True}
    text = jinja2.Template(NAMED[name]).render(**values)
    assert [text.find(f"{m['role']} says") for m in messages[:3]] == sorted(
        text.find(f"{m['role']} says") for m in messages[:3]
    )
    assert all(f"{m['role']} says" in text for m in messages)


def test_where_a_folder_keeps_its_template(tmp_path: Path) -> None:
    assert template_of(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    several = [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]
    config.write_text(json.dumps({"chat_template": several}))
    assert template_of(tmp_path) == "d"
    config.write_text(json.dumps({"chat_template": "{{ plain }}"}))
    assert template_of(tmp_path) == "{{ plain }}"
    (tmp_path / "chat_template.jinja").write_text("{{ own }}")
    assert template_of(tmp_path) == "{{ own }}"


def test_auto_takes_what_most_folders_have(tmp_path: Path) -> None:
    for name, text in (("a", "{{ x }}"), ("b", "{{ y }}"), ("c", "{{ y }}\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "chat_template.jinja").write_text(text)
    assert choose_template("auto", [tmp_path / name for name in "abc"]) == "{{ y }}"
    assert choose_template("auto", [tmp_path]) is None
    assert choose_template("chatml", []) == NAMED["chatml"]


def test_a_misspelt_name_is_refused_with_the_nearest() -> None:
    assert check_template("{{ messages }}") == "{{ messages }}"
    with pytest.raises(PydanticCustomError, match="chatml"):
        check_template("chatlm")
