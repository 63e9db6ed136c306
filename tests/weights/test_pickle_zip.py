"""`read_pickle_zip` against files that torch wrote, and against files made to hurt."""

from __future__ import annotations

import collections
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from handmade_pickles import Reduced, StorageReference, hand_pickle, rebuilt
from hypothesis import given, settings
from hypothesis import strategies as st

import eutectic
from eutectic.errors import FormatError, SourceError
from eutectic.weights.dtypes import BY_TORCH
from eutectic.weights.files import SourceFile
from eutectic.weights.pickle_zip import read_pickle_zip
from eutectic.weights.tensor_ref import StoredTensor

FLOATS = torch.arange(6, dtype=torch.float32).reshape(2, 3)


def read_zip(path: Path) -> dict[str, StoredTensor]:
    return read_pickle_zip(SourceFile(path))


def save_zip(folder: Path, content: Any, **options: Any) -> Path:
    path = folder / "model.bin"
    torch.save(content, path, **options)
    return path


def raw_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same_as_torch(path: Path) -> None:
    found, expected = read_zip(path), torch.load(path, weights_only=True)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert (found[name].name, found[name].shape) == (name, tuple(tensor.shape))
        assert f"torch.{found[name].dtype}" == str(tensor.dtype)
        assert bytes(found[name].read()) == raw_bytes(tensor)


def refused(path: Path, *clauses: str) -> None:
    with pytest.raises(FormatError) as caught:
        read_zip(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message) < 2000
    for clause in clauses:
        assert clause in message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def rewrite_zip(path: Path, changes: dict[str, bytes | None], method: int = zipfile.ZIP_STORED) -> Path:
    """The same archive with entries replaced, added, or (None) left out."""
    with zipfile.ZipFile(path) as old:
        entries = {name.partition("/")[2]: old.read(name) for name in old.namelist()}
    for name, data in changes.items():
        entries.pop(name, None)
        if data is not None:
            entries[name] = data
    with zipfile.ZipFile(path, "w", method) as new:
        for name, data in entries.items():
            new.writestr(f"model/{name}", data)
    return path


def with_pickle(folder: Path, program: bytes) -> Path:
    return rewrite_zip(save_zip(folder, {"w": FLOATS}), {"data.pkl": program})


# --- files that torch wrote


@pytest.mark.parametrize("name", BY_TORCH)
def test_every_dtype(tmp_path: Path, name: str) -> None:
    payload = torch.arange(96, dtype=torch.uint8)
    tensor = (payload % 2).bool() if name == "bool" else payload.view(getattr(torch, name))
    assert_same_as_torch(save_zip(tmp_path, {"w": tensor.reshape(2, -1), "part": tensor[3:7]}))


def test_a_ranged_read(tmp_path: Path) -> None:
    tensor = read_zip(save_zip(tmp_path, {"pad": torch.ones(5), "w": FLOATS}))["w"]
    assert numpy.frombuffer(tensor.read(2, 5), "<f4").tolist() == [2, 3, 4]


def test_a_state_dict_with_metadata_and_buffers(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    path = save_zip(tmp_path, model.state_dict())
    assert_same_as_torch(path)
    assert read_zip(path)["1.num_batches_tracked"].shape == ()


@pytest.mark.filterwarnings("ignore:.*pickle protocol")
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol(tmp_path: Path, protocol: int) -> None:
    content = {"w": FLOATS, "é": torch.nn.Parameter(FLOATS), "note": {"a": {1, 2}}, "raw": b"x"}
    path = save_zip(tmp_path, content, pickle_protocol=protocol)
    assert [(name, tensor.shape) for name, tensor in read_zip(path).items()] == [("w", (2, 3)), ("é", (2, 3))]


def test_parameters_and_buffers_keep_their_values(tmp_path: Path) -> None:
    marked = torch.nn.Parameter(FLOATS + 1)
    vars(marked)["note"] = "kept beside the tensor"  # pickled through _rebuild_parameter_with_state
    buffer = torch.nn.Buffer(FLOATS + 2)  # pickled through _rebuild_from_type_v2
    path = save_zip(tmp_path, {"plain": torch.nn.Parameter(FLOATS), "marked": marked, "buffer": buffer})
    found = read_zip(path)
    assert [numpy.frombuffer(found[name].read(), "<f4")[0] for name in found] == [0, 1, 2]


def test_tied_tensors_share_a_place(tmp_path: Path) -> None:
    path = save_zip(tmp_path, {"in": FLOATS, "out": FLOATS, "row": FLOATS[1]})
    assert_same_as_torch(path)
    found = read_zip(path)
    assert found["in"].offset == found["out"].offset == found["row"].offset - 12


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1, 1), (1, 4, 1)])
def test_odd_shapes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    assert_same_as_torch(save_zip(tmp_path, {"w": torch.ones(shape), "other": FLOATS}))


def test_strides_of_size_one_do_not_matter(tmp_path: Path) -> None:
    assert_same_as_torch(save_zip(tmp_path, {"w": FLOATS.as_strided((1, 2, 3), (77, 3, 1))}))


def test_values_beside_tensors_are_ignored(tmp_path: Path) -> None:
    beside = {
        "step": 3, "loss": 0.5, "huge": 1 << 300, "name": "run", "none": None, "yes": True, "list": [1, (2,)],
        "size": torch.Size([1]), "dtype": torch.float32, "device": torch.device("cpu"), 5: "integer key",
        "counter": collections.Counter("aab"), "best": numpy.float64(0.25), "set": {1}, "complex": 1j,
        ("tuple", "key"): collections.defaultdict(list, a=[1]),
    }  # fmt: skip
    assert list(read_zip(save_zip(tmp_path, {**beside, "w": FLOATS}))) == ["w"]


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "module"])
def test_wrappers(tmp_path: Path, wrapper: str) -> None:
    content = {"epoch": 1, wrapper: {"w": FLOATS, "version": 2}, "optimizer": {"state": {0: {"m": FLOATS + 1}}}}
    found = read_zip(save_zip(tmp_path, content))
    assert {name: bytes(tensor.read()) for name, tensor in found.items()} == {"w": raw_bytes(FLOATS)}


def test_a_name_outside_ascii_and_foreign_alignment(tmp_path: Path) -> None:
    path = tmp_path / "modèle.pt"
    torch.save({"w": FLOATS}, path)
    assert_same_as_torch(path)
    assert_same_as_torch(rewrite_zip(path, {}))  # as if zipped anew: no padding, other extra fields


def test_the_local_header_says_where_data_is(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    program = hand_pickle({"w": rebuilt()})
    with zipfile.ZipFile(path, "w") as new:
        new.writestr("model/data.pkl", program)
        with new.open("model/data/0", "w", force_zip64=True) as entry:  # 20 bytes of extra field, here only
            entry.write(raw_bytes(FLOATS))
    assert bytes(read_zip(path)["w"].read()) == raw_bytes(FLOATS)


def test_reading_loads_no_torch(tmp_path: Path) -> None:
    path = save_zip(tmp_path, torch.nn.Linear(3, 2).state_dict())
    code = (
        "import sys; from eutectic.weights.files import SourceFile\n"
        "from eutectic.weights.pickle_zip import read_pickle_zip\n"
        "print(list(read_pickle_zip(SourceFile(sys.argv[1]))), 'torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(eutectic.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "['weight', 'bias'] False", done.stderr


# --- content that is not a state dict


@pytest.mark.parametrize(
    ("content", "clauses"),
    [
        ({}, ["no tensor", "keys: none"]),
        ({"epoch": 1, "note": "x"}, ["no tensor", "'epoch', 'note'"]),
        (FLOATS, ["holds one tensor", "state dict"]),
        ([FLOATS], ["holds one list"]),
        (numpy.float64(1), ["holds one object"]),
        (collections.defaultdict(list, loss=1), ["no tensor", "'loss'"]),
        ({"encoder": {"w": FLOATS}, "decoder": {"w": FLOATS}}, ["nested", "'encoder', 'decoder'"]),
        ({"model": {"encoder": {"w": FLOATS}}}, ["nested", "'model'"]),
        ({"loss": FLOATS, "model": {"w": FLOATS}}, ["nested", "'model'"]),
        ({"model": {"w": FLOATS, "ema": [{"w": FLOATS}]}}, ["nested", "under 'model'", "'ema'"]),
        ({"model": {"w": FLOATS}, "state_dict": {"w": FLOATS}}, ["'model' and 'state_dict'", "save the one"]),
        ({0: FLOATS}, ["named by int"]),
    ],
)
def test_content_that_is_no_state_dict(tmp_path: Path, content: Any, clauses: list[str]) -> None:
    refused(save_zip(tmp_path, content), *clauses)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("make", "clauses"),
    [
        (lambda: FLOATS.t(), ["strides [1, 3]", ".contiguous()"]),
        (lambda: FLOATS[:, :2], ["strides [3, 1]", ".contiguous()"]),
        (lambda: torch.ones(1).expand(4), ["strides [0]", ".contiguous()"]),
        (lambda: torch.eye(2).to_sparse(), ["sparse", "to_dense"]),
        (lambda: torch.quantize_per_tensor(FLOATS, 0.1, 0, torch.qint8), ["quantised", "dequantize"]),
        (lambda: torch.ones(2, device="meta"), ["meta", "values"]),
        (lambda: torch.ones(2, dtype=torch.complex128), ["complex128", "convert"]),
        (lambda: torch.ones(2, dtype=torch.complex64).conj(), ["conjugated", "resolve_conj"]),
    ],
)
def test_tensors_that_cannot_be_read(tmp_path: Path, make: Any, clauses: list[str]) -> None:
    refused(save_zip(tmp_path, {"fine": FLOATS, "bad.one": make()}), "'bad.one'", *clauses)


def test_a_whole_module_names_its_class(tmp_path: Path) -> None:
    refused(save_zip(tmp_path, torch.nn.Linear(2, 2)), "torch.nn.modules.linear.Linear", "safetensors")


def test_a_pickle_of_too_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eutectic.weights.pickle_zip.MOST_PICKLE_BYTES", 500)
    refused(with_pickle(tmp_path, b"\x80\x02" + b"N" * 1000 + b"."), "1003 bytes (limit 500)")


def test_code_in_an_archive_is_refused_unrun(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    program = hand_pickle({"w": rebuilt(), "x": Reduced(os.system, f"touch {marker}")})
    refused(with_pickle(tmp_path, program), "posix.system", "safetensors.torch.save_file")
    assert not marker.exists()


# --- tensors that lie


@pytest.mark.parametrize(
    ("tensor", "clauses"),
    [
        (rebuilt(offset=1), ["'w'", "outside its storage", "from element 1"]),
        (rebuilt(offset=-1), ["'w'", "not sizes"]),
        (rebuilt(offset=True), ["'w'", "not sizes"]),
        (rebuilt(offset=1 << 200), ["'w'", "not sizes"]),
        (rebuilt(shape=(-2, 3)), ["'w'", "not sizes"]),
        (rebuilt(shape=[2, 3]), ["'w'", "not sizes"]),
        (rebuilt(shape=(2.0, 3)), ["'w'", "not sizes"]),
        (rebuilt(shape=(2,)), ["'w'", "not sizes"]),
        (rebuilt(shape=(1,) * 65, strides=(1,) * 65), ["'w'", "not sizes"]),
        (rebuilt(strides=(-3, 1)), ["'w'", "not sizes"]),
        (rebuilt(shape=(1 << 62, 3)), ["'w'", "outside its storage"]),
        (rebuilt(shape=(1 << 200, 3)), ["'w'", "not sizes"]),
        (rebuilt(storage=StorageReference(elements=7)), ["'w'", "28 bytes", "holds 24"]),
        (rebuilt(storage=StorageReference(elements=5)), ["'w'", "outside its storage of 20 bytes"]),
        (rebuilt(storage=StorageReference(elements=-6)), ["damaged"]),
        (rebuilt(storage=StorageReference(key="1")), ["'data/1' is missing"]),
        (rebuilt(storage=StorageReference(key="../data.pkl")), ["is missing"]),
        (rebuilt(storage=StorageReference(key=0)), ["damaged"]),
        (rebuilt(storage=StorageReference(kind=torch.Size)), ["damaged"]),
        (rebuilt(storage=(1, 2)), ["damaged"]),
        (rebuilt(metadata={"neg": True}), ["'w'", "negated"]),
    ],
)
def test_tensors_that_lie(tmp_path: Path, tensor: Reduced, clauses: list[str]) -> None:
    refused(with_pickle(tmp_path, hand_pickle({"w": tensor})), *clauses)


def test_a_name_that_comes_twice(tmp_path: Path) -> None:
    twice = hand_pickle({"w": rebuilt()})[:-1] + b"X\x01\x00\x00\x00w" + hand_pickle(rebuilt())[2:-1] + b"s."
    refused(with_pickle(tmp_path, twice), "'w' is there twice")


# --- archives


def test_files_that_are_no_zip(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    for data, clause in [
        (b"", "not a zip"),
        (b"hello world", "not a zip"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"PK\3\4", "zip directory"),
        (b"PK\5\6" + bytes(18), "0 zip entries"),
        (b"PK\5\6" + b"\xff" * 18, "zip directory"),
    ]:
        path.write_bytes(data)
        refused(path, clause)
    refused(save_zip(tmp_path, {"w": FLOATS}, _use_new_zipfile_serialization=False), "before 1.6", "torch.load")
    with pytest.raises(SourceError, match="no such file"):
        read_zip(tmp_path / "absent.bin")


def test_a_truncated_file(tmp_path: Path) -> None:
    path = save_zip(tmp_path, {"w": torch.ones(500)})
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 100, 5):
        path.write_bytes(whole[:length])
        refused(path, "truncated")


def test_entries_that_are_missing_or_wrong(tmp_path: Path) -> None:
    path = save_zip(tmp_path, {"w": FLOATS})
    refused(rewrite_zip(path, {"data/0": None}), "'data/0' is missing")
    refused(rewrite_zip(path, {"data/0": b"short"}), "'w'", "24 bytes", "holds 5")
    refused(rewrite_zip(path, {"data.pkl": None}), "data.pkl")
    path = save_zip(tmp_path, {"w": FLOATS})
    refused(rewrite_zip(path, {"byteorder": b"big"}), "byte order b'big'", "little-endian")
    assert list(read_zip(rewrite_zip(path, {"byteorder": None}))) == ["w"]
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/data.pkl", b"N.")
    refused(path, "2 zip entries named <archive>/data.pkl")


def test_compressed_and_encrypted_entries(tmp_path: Path) -> None:
    path = save_zip(tmp_path, {"w": torch.ones(500)})
    refused(rewrite_zip(path, {}, zipfile.ZIP_DEFLATED), "compressed")
    whole = bytearray(rewrite_zip(path, {}).read_bytes())
    whole[whole.rindex(b"PK\1\2") + 8] |= 1
    for start in (at for at in range(len(whole)) if whole[at : at + 4] == b"PK\1\2"):
        whole[start + 8] |= 1
    path.write_bytes(whole)
    refused(path, "encrypted")


def test_two_entries_of_one_name(tmp_path: Path) -> None:
    path = save_zip(tmp_path, {"w": FLOATS})
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model/data/0", bytes(24))
    refused(path, "two zip entries")


@pytest.mark.parametrize(
    ("at", "value", "clause"),
    [
        (42, (1 << 31) - 1, "outside the file"),  # where its local header is
        (42, 7, "no header where the directory says"),
        (20, 1 << 30, "compressed"),  # its compressed size
        (24, 1 << 30, "compressed"),  # its size
    ],
)
def test_a_directory_that_lies(tmp_path: Path, at: int, value: int, clause: str) -> None:
    path = rewrite_zip(save_zip(tmp_path, {"w": FLOATS}), {})
    whole = bytearray(path.read_bytes())
    entry = whole.rindex(b"model/data/0") - 46
    assert whole[entry : entry + 4] == b"PK\1\2"
    whole[entry + at : entry + at + 4] = value.to_bytes(4, "little")
    path.write_bytes(whole)
    refused(path, "'data/0'", clause)
    if at == 24:  # both sizes alike: stored, but beyond the end
        whole[entry + 20 : entry + 24] = value.to_bytes(4, "little")
        path.write_bytes(whole)
        refused(path, "'data/0'", "ends outside the file")


def test_a_local_header_of_another_entry(tmp_path: Path) -> None:
    path = rewrite_zip(save_zip(tmp_path, {"w": FLOATS}), {})
    whole = bytearray(path.read_bytes())
    whole[whole.index(b"model/data/0") + 11] = ord("7")
    path.write_bytes(whole)
    refused(path, "'data/0'", "data/7")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_torchscript(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(3, 2), FLOATS), path)
    refused(path, "TorchScript", "state_dict()")


# --- anything at all


@pytest.fixture(scope="module")
def sound_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rewrite_zip(save_zip(tmp_path_factory.mktemp("zip"), {"w": FLOATS, "b": torch.ones(2).half()}), {})


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 255)), min_size=1, max_size=6))
def test_any_damage_reads_or_refuses(sound_zip: Path, damage: list[tuple[int, int]]) -> None:
    whole = bytearray(sound_zip.read_bytes())
    for at, value in damage:
        whole[at % len(whole)] = value
    path = sound_zip.with_name("damaged.bin")
    path.write_bytes(whole)
    try:
        for tensor in read_zip(path).values():
            tensor.read()
    except FormatError as error:
        assert str(error).startswith(f"{path}: ")


OPCODES = st.sampled_from(
    [b"(", b")", b"}", b"]", b"N", b"K\x02", b"X\x01\x00\x00\x00w", b"q\x00", b"h\x00", b"R", b"\x81", b"b", b"Q",
     b"t", b"\x85", b"\x86", b"\x87", b"s", b"u", b"a", b"e", b"ctorch\nFloatStorage\n", b"ctorch\nSize\n",
     b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n", b"X\x07\x00\x00\x00storage",
     hand_pickle({"w": rebuilt()})[2:-1], hand_pickle(rebuilt())[2:-1]]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(OPCODES, max_size=30))
def test_any_program_reads_or_refuses(sound_zip: Path, program: list[bytes]) -> None:
    path = sound_zip.with_name("program.bin")
    path.write_bytes(sound_zip.read_bytes())
    rewrite_zip(path, {"data.pkl": b"\x80\x02" + b"".join(program) + b"."})
    try:
        for tensor in read_zip(path).values():
            assert len(tensor.read()) == tensor.nbytes
    except FormatError as error:
        assert str(error).startswith(f"{path}: ")
