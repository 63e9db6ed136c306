"""The safetensors reader and writer against the reference library, and their laws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eutectic.errors import FormatError, SourceError
from eutectic.weights.dtypes import BY_NAME, BY_TORCH, PACKED, dtype_of
from eutectic.weights.files import SourceFile
from eutectic.weights.safetensors import build_header, read_header, write_safetensors

TYPES = [torch_type for name in BY_TORCH if isinstance(torch_type := getattr(torch, name, None), torch.dtype)]


def values_of(dtype: torch.dtype, numel: int) -> torch.Tensor:
    """Any bit pattern that the type allows."""
    size = torch.empty((), dtype=dtype).element_size()
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (numel * size,), dtype=torch.uint8)
    return raw.view(dtype)


def raw_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def write_raw(path: Path, header: Any, data: bytes) -> Path:
    body = json.dumps(header).encode()
    path.write_bytes(len(body).to_bytes(8, "little") + body + data)
    return path


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_dtype_reads_as_the_library_wrote_it(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"whole": values_of(dtype, 24).reshape(2, 3, 4), "scalar": values_of(dtype, 1).reshape(())}
    tensors["none"] = values_of(dtype, 0).reshape(0, 5)
    safetensors.torch.save_file(tensors, tmp_path / "m.safetensors", metadata={"a": "b"})
    header = read_header(SourceFile(tmp_path / "m.safetensors"))
    assert header.metadata == {"a": "b"}
    assert header.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        found = header.tensors[name]
        assert (found.shape, found.nbytes) == (tuple(tensor.shape), tensor.nbytes)
        assert f"torch.{found.dtype}" == str(dtype)
        assert bytes(found.read()) == raw_bytes(tensor)
        assert found.to_torch().dtype == dtype and found.to_torch().shape == tensor.shape
        assert raw_bytes(found.to_torch()) == raw_bytes(tensor)
        assert found.to_numpy().shape == tensor.shape


def test_numpy_values_are_the_true_ones(tmp_path: Path) -> None:
    true = torch.tensor([-2.5, 0.0, 0.25, 3.0])
    floats = ["bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"]
    tensors = {name: true.to(getattr(torch, name)) for name in floats}
    safetensors.torch.save_file(tensors, tmp_path / "m.safetensors")
    for name, found in read_header(SourceFile(tmp_path / "m.safetensors")).tensors.items():
        assert numpy.array_equal(found.to_numpy().astype("f8"), tensors[name].double().numpy()), name


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_ranged_read_is_that_part_of_the_full_read(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"first": values_of(dtype, 7), "middle": values_of(dtype, 60).reshape(5, 12), "last": values_of(dtype, 3)}
    safetensors.torch.save_file(tensors, tmp_path / "m.safetensors")
    found = read_header(SourceFile(tmp_path / "m.safetensors")).tensors["middle"]
    full, size = bytes(found.read()), found.dtype.size

    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 60), st.integers(0, 60))
    def check(a: int, b: int) -> None:
        start, stop = sorted((a, b))
        assert bytes(found.read(start, stop)) == full[start * size : stop * size]

    check()
    for start, stop in [(-1, 2), (0, 61), (5, 4)]:
        with pytest.raises(IndexError, match="middle"):
            found.read(start, stop)


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8).filter(
                lambda name: name != "__metadata__"
            ),
            st.sampled_from(sorted(BY_NAME)),
            st.lists(st.integers(0, 4), max_size=4),
        ),
        max_size=6,
        unique_by=lambda item: item[0],
    )
)
def test_a_header_built_here_reads_back_and_is_aligned(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[tuple[str, str, list[int]]]
) -> None:
    entries = {name: (BY_NAME[dtype], tuple(shape)) for name, dtype, shape in shapes}
    start, offsets = build_header(entries, {"format": "pt"})
    path = tmp_path_factory.mktemp("header") / "m.safetensors"
    sizes = {name: dtype.size * int(numpy.prod(shape)) for name, (dtype, shape) in entries.items()}
    path.write_bytes(start + bytes(sum(sizes.values())))
    assert len(start) % 8 == 0
    header = read_header(SourceFile(path))
    assert header.tensors.keys() == entries.keys()
    for name, (dtype, shape) in entries.items():
        found = header.tensors[name]
        assert (found.dtype, found.shape, found.offset) == (dtype, shape, offsets[name])
        assert found.offset % dtype.size == 0
    with safetensors.safe_open(path, "np") as library:
        assert set(library.keys()) == entries.keys()


def test_layout_is_that_of_the_reference_writer(tmp_path: Path) -> None:
    """Widest element first, 8-byte aligned data: the library's own writer does the same."""
    tensors = {
        "bytes": numpy.arange(3, dtype="u1"), "half": numpy.ones(5, "f2"), "wide": numpy.ones((2, 2), "f8"),
        "single": numpy.ones((1, 3), "f4"), "scalar": numpy.array(2.0, "f4"), "none": numpy.ones((0, 4), "f4"),
    }  # fmt: skip
    write_safetensors(tmp_path / "ours.safetensors", tensors)
    safetensors.numpy.save_file(tensors, tmp_path / "theirs.safetensors")
    ours, theirs = (read_header(SourceFile(tmp_path / f"{who}.safetensors")) for who in ("ours", "theirs"))
    sizes = [found.dtype.size for found in sorted(ours.tensors.values(), key=lambda found: found.offset)]
    assert sizes == sorted(sizes, reverse=True)
    assert [f.dtype.size for f in sorted(theirs.tensors.values(), key=lambda found: found.offset)] == sizes
    for name, array in safetensors.numpy.load_file(tmp_path / "ours.safetensors").items():
        assert array.dtype == tensors[name].dtype and array.shape == tensors[name].shape
        assert array.tobytes() == tensors[name].tobytes()
    for name, found in theirs.tensors.items():
        assert found.to_numpy().tobytes() == tensors[name].tobytes()


def test_an_array_without_a_name_in_the_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"'w'.*complex128"):
        write_safetensors(tmp_path / "m.safetensors", {"w": numpy.ones(2, "c16")})


def test_the_users_words_for_types() -> None:
    assert (
        all(dtype_of(word) is BY_NAME["BF16"] for word in ("bfloat16", "torch.bfloat16", "bf16", "BF16"))
        and dtype_of("half") is BY_NAME["F16"]
    )
    assert dtype_of("float") is BY_NAME["F32"] and dtype_of("int4") is None


F4 = {"w": entry("F32", [1], 0, 4)}
BAD: dict[str, tuple[Any, bytes, str]] = {
    "hole": ({"w": entry("F32", [1], 4, 8)}, bytes(8), "'w' at 4 leaves a hole"),
    "overlap": ({"v": entry("F32", [2], 0, 8), "w": entry("F32", [1], 4, 8)}, bytes(8), "'w' at 4 overlaps"),
    "past the end": ({"w": entry("F32", [4], 0, 16)}, bytes(8), "'w' ends at byte 16.*holds 8.*truncated"),
    "bytes left over": (F4, bytes(9), "5 bytes after the last tensor"),
    "backwards": ({"w": entry("F32", [1], 4, 0)}, bytes(4), "'w'.*takes 4 bytes.*span -4"),
    "span": ({"w": entry("F32", [2], 0, 4)}, bytes(4), "'w'.*takes 8 bytes.*span 4|'w'.*more bytes than the file"),
    "huge": ({"w": entry("F32", [2**40, 2**40], 0, 4)}, bytes(4), "'w'.*more bytes than the file"),
    "negative size": ({"w": entry("F32", [-1], 0, 4)}, bytes(4), "'w'.*not a list of sizes"),
    "true as size": ({"w": entry("F32", [True], 0, 4)}, bytes(4), "'w'.*not a list of sizes"),
    "size as float": ({"w": entry("F32", [1.0], 0, 4)}, bytes(4), "'w'.*not a list of sizes"),
    "too many axes": ({"w": entry("F32", [1] * 65, 0, 4)}, bytes(4), "'w'.*not a list of sizes"),
    "offsets as text": ({"w": entry("F32", [1], 0, 4) | {"data_offsets": "04"}}, bytes(4), "'w'.*not two positions"),
    "three offsets": ({"w": entry("F32", [1], 0, 4) | {"data_offsets": [0, 4, 4]}}, bytes(4), "'w'.*not two"),
    "dtype": ({"w": entry("FP32", [1], 0, 4)}, bytes(4), "'w': unknown dtype 'FP32'; did you mean 'F32'"),
    "dtype as number": ({"w": entry("F32", [1], 0, 4) | {"dtype": 3}}, bytes(4), "'w': unknown dtype 3"),
    "missing key": ({"w": {"dtype": "F32", "shape": [1]}}, bytes(4), "'w'.*exactly dtype, shape and data_offsets"),
    "extra key": ({"w": entry("F32", [1], 0, 4) | {"x": 1}}, bytes(4), "'w'.*exactly dtype"),
    "entry as list": ({"w": [1]}, bytes(4), "'w'.*exactly dtype"),
    "metadata": ({"__metadata__": {"a": 1}, **F4}, bytes(4), "__metadata__ must map text to text"),
    "array": ([1, 2], b"", "a JSON list, not an object"),
    "surrogate": ({"w\ud800": entry("F32", [1], 0, 4)}, bytes(4), r"w\\ud800"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_the_format_forbids(tmp_path: Path, case: str) -> None:
    header, data, words = BAD[case]
    path = write_raw(tmp_path / "m.safetensors", header, data)
    with pytest.raises(FormatError, match=words) as caught:
        read_header(SourceFile(path))
    assert str(caught.value).startswith(f"{path}: ") and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "0 bytes are too few"),
        (b"\x01\x00", "2 bytes are too few"),
        ((2**63).to_bytes(8, "little") + b"{}", "the format allows 100000000"),
        ((99).to_bytes(8, "little") + b"{}", "claims 99 bytes, the file has 2"),
        ((2).to_bytes(8, "little") + b"{]", "not valid JSON"),
        ((2).to_bytes(8, "little") + b"\xff\xfe", "not valid JSON"),
        ((40_000).to_bytes(8, "little") + b"[" * 40_000, "not valid JSON: nested too deeply"),
        ((6000).to_bytes(8, "little") + b'{"w":' + b"9" * 5994 + b"}", "not valid JSON"),
    ],
)
def test_headers_that_are_none(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(FormatError, match=words):
        read_header(SourceFile(tmp_path / "m.safetensors"))


@pytest.mark.parametrize("label", sorted(PACKED))
def test_types_narrower_than_a_byte_are_known_and_not_read(tmp_path: Path, label: str) -> None:
    path = write_raw(tmp_path / "m.safetensors", {"w": entry(label, [4], 0, 3)}, bytes(3))
    with pytest.raises(SourceError, match=f"'w': dtype {label} packs several numbers into a byte") as caught:
        read_header(SourceFile(path))
    assert not isinstance(caught.value, FormatError)  # the file is sound


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    body = b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    (tmp_path / "m.safetensors").write_bytes(len(body).to_bytes(8, "little") + body + b"\0")
    with pytest.raises(FormatError, match="names 'w' twice"):
        read_header(SourceFile(tmp_path / "m.safetensors"))


@settings(max_examples=150, deadline=None)
@given(cut=st.integers(0, 10_000), flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), max_size=4))
def test_a_damaged_file_is_refused_or_read_never_more(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flips: list[tuple[int, int]]
) -> None:
    """Any damage gives a FormatError or tensors that lie inside the file; no other exception."""
    folder = tmp_path_factory.mktemp("fuzz")
    start, _ = build_header({"a": (BY_NAME["F32"], (2, 3)), "b": (BY_NAME["BF16"], (4,))}, {"format": "pt"})
    content = bytearray(start + bytes(32))
    for at, change in flips:
        content[at % len(content)] ^= change
    path = folder / "m.safetensors"
    path.write_bytes(content[: len(content) - cut % 3 * (cut % len(content)) // 2])
    file = SourceFile(path)
    try:
        header = read_header(file)
    except FormatError:
        return
    for tensor in header.tensors.values():
        assert len(tensor.read()) == tensor.nbytes <= file.size
