"""Names that differ only in numbers become one line."""

from __future__ import annotations

import pytest

from eutectic.cli.patterns import collapse, find_stacks, natural_key


def texts(names: list[str]) -> list[str]:
    return [pattern.text for pattern in collapse(names)]


def test_a_mixture_of_experts_stays_on_one_screen() -> None:
    names = [f"m.layers.{i}.experts.{e}.{p}.weight" for i in range(48) for e in range(128) for p in ("up", "down")]
    patterns = collapse([*names, "m.norm.weight"])
    assert [(p.text, p.count) for p in patterns] == [
        ("m.layers.{0..47}.experts.{0..127}.down.weight", "6144"),
        ("m.layers.{0..47}.experts.{0..127}.up.weight", "6144"),
        ("m.norm.weight", "1"),
    ]


@pytest.mark.parametrize(
    ("numbers", "brace"),
    [
        ([5], "5"), ([0, 1], "{0,1}"), ([0, 7], "{0,7}"), (range(24), "{0..23}"), (range(3, 48, 4), "{3..47..4}"),
        ([0, 1, 2, 5], "{0..2,5}"), ([0, 1, 2, 3, 5, 6, 7, 9], "{0..3,5..7,9}"), ([9, 10, 11], "{9..11}"),
        ([n * n for n in range(12)], "{0,1,4,9,16,...,121}"),
    ],
)  # fmt: skip
def test_ranges(numbers: list[int], brace: str) -> None:
    assert texts([f"h.{n}.w" for n in numbers]) == [f"h.{brace}.w"]


def test_combinations_that_do_not_exist_are_counted() -> None:
    (pattern,) = collapse(["h.0.e.0.w", "h.0.e.1.w", "h.1.e.0.w"])
    assert (pattern.text, pattern.count) == ("h.{0,1}.e.{0,1}.w", "3 of 4")


def test_the_key_keeps_groups_apart() -> None:
    names = [f"h.{i}.w" for i in range(4)]
    assert [p.text for p in collapse(names, lambda name: name == "h.0.w")] == ["h.0.w", "h.{1..3}.w"]


def test_numbers_inside_words_stay() -> None:
    assert texts(["a.conv1.weight", "a.conv2.weight"]) == ["a.conv1.weight", "a.conv2.weight"]


def test_shard_names_keep_their_zeros() -> None:
    names = [f"model-{i:05d}-of-00016.safetensors" for i in range(1, 17)]
    assert texts(names) == ["model-{00001..00016}-of-00016.safetensors"]


def test_order_is_natural() -> None:
    assert sorted(["h.10", "h.9", "h.x", "h.01"], key=natural_key) == ["h.01", "h.9", "h.10", "h.x"]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "1", "1.2.3", "9" * 6000, "a." + "9" * 6000 + ".b", "٣.w", "\x00.0.\n"]
)
def test_strange_names_survive(name: str) -> None:
    (pattern,) = collapse([name])
    assert (pattern.text, pattern.names, pattern.span) == (name, (name,), 1)
    assert find_stacks([name]) == []


def test_stacks_inner_ones_too() -> None:
    names = [f"m.layers.{i}.experts.{e}.w" for i in range(3) for e in range(2)] + ["m.layers.0.norm", "head.0.w"]
    found = [(s.prefix, s.first, s.last, s.count) for s in find_stacks(names)]
    assert found == [("m.layers", 0, 2, 3), ("m.layers.*.experts", 0, 1, 2)]
