"""`read_pickle` against programs that want to run, to eat memory, or to break off; nothing is imported or called."""

from __future__ import annotations

import functools
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from handmade_pickles import Reduced, hand_pickle, rebuilt
from hypothesis import given, settings
from hypothesis import strategies as st

from eutectic.errors import FormatError
from eutectic.weights.pickle_reader import PickledMapping, PickledTensor, read_pickle

ARCHIVE = Path("a folder/model.bin")
SOUND = hand_pickle({"w": rebuilt()})


def refused(program: bytes, *clauses: str) -> None:
    with pytest.raises(FormatError) as caught:
        read_pickle(ARCHIVE, program)
    message = str(caught.value)
    assert message.startswith(f"{ARCHIVE}: data.pkl ") and len(message) < 2000
    for clause in clauses:
        assert clause in message
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def tensors_of(program: bytes) -> list[Any]:
    content = read_pickle(ARCHIVE, program)
    assert isinstance(content, PickledMapping)
    return [key for key, value in content.pairs if isinstance(value, PickledTensor)]


def test_what_torch_writes_becomes_records() -> None:
    content = read_pickle(ARCHIVE, hand_pickle({"w": rebuilt(offset=1, shape=(2, 2)), "step": 7, "ok": [True, 0.5]}))
    (_, tensor), *rest = content.pairs
    assert (tensor.offset, tensor.shape, tensor.strides, tensor.dtype) == (1, (2, 2), (3, 1), "float32")
    assert (tensor.storage.key, tensor.storage.elements, tensor.fault) == ("0", 6, "")
    assert rest == [("step", 7), ("ok", [True, 0.5])]


# --- programs that must not run


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("posix.system", lambda marker: Reduced(os.system, f"touch {marker}")),
        ("__builtin__.eval", lambda marker: Reduced(eval, f"open({str(marker)!r}, 'w')")),
        ("__builtin__.getattr", lambda marker: Reduced(getattr, str(marker), "touch")),
        ("io.open", lambda marker: Reduced(open, str(marker), "w")),
        ("functools.partial", lambda marker: Reduced(functools.partial, Path.touch, marker)),
    ],
)
def test_code_is_refused_unrun(tmp_path: Path, name: str, make: Any) -> None:
    marker = tmp_path / "ran"
    refused(hand_pickle({"w": rebuilt(), "x": make(marker)}), name, "safetensors.torch.save_file")
    assert not marker.exists()


def test_code_in_the_place_of_a_name(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    command = f"touch {marker}".encode()
    text = b"X" + len(command).to_bytes(4, "little") + command
    for program in (
        b"\x80\x02cos\nsystem\n" + text + b"\x85R.",  # REDUCE
        b"\x80\x02cos\nsystem\n" + text + b"\x85\x81.",  # NEWOBJ
        b"\x80\x04\x8c\x02os\x8c\x06system\x93" + text + b"\x85R.",  # STACK_GLOBAL
        b"\x80\x02ctorch\n_utils.os.system\n" + text + b"\x85R.",  # a dotted name
        b"\x80\x02cbuiltins\ngetattr\ncbuiltins\n__import__\nX\x02\x00\x00\x00os\x85RX\x06\x00\x00\x00system\x86R"
        + (text + b"\x85R."),  # getattr(__import__("os"), "system")(command)
        b"(S'" + command + b"'\nios\nsystem\n.",  # INST, an opcode of protocol 0
        b"\x80\x02\x82\x01.",  # EXT1
        b"\x80\x02\x93.",  # a global from an empty stack
        b"\x80\x04K\x01K\x02\x93.",  # a global named by numbers
    ):
        refused(program)
        assert not marker.exists()


@pytest.mark.parametrize("target", [b"ctorch\nfloat32\n", b"X\x01\x00\x00\x00f", b"}", b"]", b"K\x01"])
def test_calls_of_what_cannot_be_called(target: bytes) -> None:
    refused(b"\x80\x02" + target + b")R.", "damaged")
    refused(b"\x80\x02" + target + b")\x81.", "damaged")


def test_build_changes_nothing() -> None:
    state = {"__class__": 1, "__setstate__": 2, "pairs": [], "file": "/etc/passwd", "fault": ""}
    assert tensors_of(SOUND[:-1] + hand_pickle(state)[2:-1] + b"b.") == ["w"]  # BUILD on the mapping


# --- programs that eat memory or the stack


def test_a_deeply_nested_key_is_never_hashed() -> None:
    assert tensors_of(b"\x80\x02})" + b"\x85" * 500_000 + b"Ns.") == []  # crashes pickle.Unpickler


@pytest.mark.parametrize("opening", [b"]", b"}K\x01", b"("])
def test_deep_nesting(opening: bytes) -> None:
    closing = {b"]": b"a", b"}K\x01": b"s", b"(": b"t"}[opening]
    body = opening * 50_000 + b"N" + closing * 50_000
    assert tensors_of(SOUND[:-1] + b"X\x01\x00\x00\x00x" + body + b"s.") == ["w"]


def test_nested_calls_end_in_a_sentence() -> None:
    wrap = b"ctorch._tensor\n_rebuild_from_type_v2\nN"
    refused(b"\x80\x02" + wrap * 5000 + b"N" + b"\x87R" * 5000 + b".", "damaged")
    nested = b"ctorch._tensor\n_rebuild_from_type_v2\nq\x00" + b"h\x00N" * 5000 + b")" + b"\x87" * 5000 + b"R."
    refused(b"\x80\x02" + nested, "RecursionError")


def test_a_laugh_of_references() -> None:
    lists = b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(100))  # each holds the last one twice
    laugh = b"](]q\x00" + lists + b"e"
    assert isinstance(read_pickle(ARCHIVE, b"\x80\x02" + laugh + b"."), list)
    assert tensors_of(SOUND[:-1] + b"X\x01\x00\x00\x00x" + laugh + b"s.") == ["w"]


def test_a_memo_index_costs_nothing() -> None:
    tracemalloc.start()
    try:
        assert read_pickle(ARCHIVE, b"\x80\x02Nr\xff\xff\xff\xff.") is None
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_too_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eutectic.weights.pickle_reader.MOST_OPCODES", 1000)
    refused(b"\x80\x02" + b"N" * 1000 + b".", "1000 steps")


@pytest.mark.parametrize(
    "program",
    [b"", b".", b"\x80\x02", b"\x80\x02N", b"\x80\x02R.", b"\x80\x02b.", b"\x80\x02h\x07.", b"\x80\x02Q.",
     b"\x80\x02t.", b"\x80\x02}(K\x01u.", b"\x80\x02K\x01K\x02a.", b"\x80\x02X\xff\xff\xff\x7fa.",
     b"\x80\x02X\x01\x00\x00\x00\xff.", b"\x80\x02ctorch\n", b"\x80\x02ctorch\nSize\n)R."],
)  # fmt: skip
def test_programs_that_break_off(program: bytes) -> None:
    refused(program, "fetch the file again")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 255), max_size=60).map(bytes))
def test_any_bytes_are_read_or_refused(program: bytes) -> None:
    try:
        read_pickle(ARCHIVE, b"\x80\x02" + program + b".")
    except FormatError as error:
        assert str(error).startswith(f"{ARCHIVE}: ")
