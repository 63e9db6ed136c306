"""Bad input of every kind, through the command line: one clear screen, the right exit code, and no output."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml
from click.testing import Result
from safetensors.numpy import save_file

from eutectic.recipes.merge import merge, plan
from eutectic.recipes.plan import Options
from eutectic.weights.sink import Sink, split_into_shards

Cli = Callable[..., Result]
Refused = Callable[..., str]
RECIPE, SOURCE, OUTPUT, RESOURCE = 3, 4, 5, 6
ONE_SCREEN = 30


@pytest.fixture
def linear(family: dict[str, Path], write_recipe: Callable[..., Path]) -> Path:
    """A recipe that works, until a test harms one of its sources."""
    return write_recipe("linear", [family["a"], family["b"]], weight=0.5)


@pytest.fixture
def refused(tmp_path: Path, cli: Cli) -> Refused:
    """``refused(recipe, code, *words)``: the merge fails so, and nothing was made. Returns the message."""

    def run(recipe: Path, code: int, *words: str, options: tuple[Any, ...] = (), staged: bool = False) -> str:
        out = tmp_path / "out"
        before = out.exists()
        result = cli("merge", recipe, out, "--no-fsync", *options)
        message = result.stderr
        assert result.exit_code == code, message or result.exception
        assert message.startswith("error: ") and "Traceback" not in message
        assert len(message.splitlines()) <= ONE_SCREEN and max(map(len, message.splitlines())) < 1200
        assert result.stdout == ""
        for word in words:
            assert word in message, message
        assert out.exists() == before
        assert staged or not out.with_name("out.partial").exists()
        return message

    return run


# ---------------------------------------------------------------- files


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def header(entries: Any, data: int = 0, length: int | None = None) -> bytes:
    body = json.dumps(entries).encode()
    return (len(body) if length is None else length).to_bytes(8, "little") + body + bytes(data)


TWICE = b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
FILES: dict[str, tuple[bytes, list[str]]] = {
    "no bytes": (b"", ["0 bytes are too few"]),
    "header beyond the file": (header({}, length=5000), ["claims 5000 bytes", "fetch it again"]),
    "enormous header": (header({}, length=2**62), ["format allows 100000000", "Is this a safetensors file?"]),
    "out of range": (header({"w": entry("F32", [4], 0, 16)}, 8), ["'w'", "truncated", "fetch it again"]),
    "overlap": (header({"v": entry("U8", [4], 0, 4), "w": entry("U8", [4], 2, 6)}, 6), ["'w'", "overlaps"]),
    "hole": (header({"v": entry("U8", [4], 0, 4), "w": entry("U8", [2], 6, 8)}, 8), ["'w'", "hole"]),
    "leftover": (header({"w": entry("U8", [4], 0, 4)}, 40), ["36 bytes after the last tensor"]),
    "duplicate": (len(TWICE).to_bytes(8, "little") + TWICE + b"\0", ["'w' twice"]),
    "wrong dtype": (header({"w": entry("BF61", [2], 0, 4)}, 4), ["'w'", "'BF61'", "did you mean 'BF16'"]),
    "negative shape": (header({"w": entry("U8", [-4], 0, 4)}, 4), ["'w'", "[-4]"]),
    "control characters": (header({"w\x1b[31m": entry("U9", [4], 0, 4)}, 4), [r"w\x1b[31m"]),
    "surrogates": (header({"w\ud800": entry("F32", [1], 0, 4)}, 4), ["ud800"]),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", ["Is this a safetensors file?"]),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", ["Is this a safetensors"]),
}


@pytest.mark.parametrize("case", FILES)
def test_malformed_files(family: dict[str, Path], linear: Path, refused: Refused, case: str) -> None:
    content, words = FILES[case]
    path = family["b"] / "model.safetensors"
    path.write_bytes(content)
    refused(linear, SOURCE, str(path), *words)


@pytest.mark.parametrize("cut", [1, 100, 600])
def test_a_truncated_file(family: dict[str, Path], linear: Path, refused: Refused, cut: int) -> None:
    path = family["b"] / "model.safetensors"
    os.truncate(path, path.stat().st_size - cut)
    refused(linear, SOURCE, str(path), "truncated; fetch it again")


def test_a_missing_shard_and_an_index_that_points_outside(
    family: dict[str, Path], linear: Path, refused: Refused
) -> None:
    folder = family["b"]
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "model-00001-of-00001.safetensors"}}))
    refused(linear, SOURCE, str(folder), "shard model-00001-of-00001.safetensors", "missing; fetch it again")
    index.write_text(json.dumps({"weight_map": {"w": "../elsewhere.safetensors"}}))
    refused(linear, SOURCE, str(index), "'../elsewhere.safetensors'", "outside its own folder")
    index.write_text(json.dumps({"weight_map": {"w": "x" * 300}}))
    refused(linear, SOURCE, str(index), "points to 'xxxx", "File name too long")


def test_a_missing_model_names_the_path(tmp_path: Path, write_recipe: Callable[..., Path], refused: Refused) -> None:
    for path in (tmp_path / "absent", tmp_path / ("x" * 300), "loop"):
        if path == "loop":
            path = tmp_path / "loop"
            path.symlink_to(path)
        refused(write_recipe("linear", [path], weight=1), SOURCE, str(path)[-40:])


class Evil:
    """Makes a folder when a pickle of it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def test_a_pickle_that_holds_code_is_refused_unrun(
    tmp_path: Path, family: dict[str, Path], linear: Path, refused: Refused
) -> None:
    marker = tmp_path / "pwned"
    (family["b"] / "model.safetensors").unlink()
    path = family["b"] / "pytorch_model.bin"
    torch.save({"w": torch.ones(2), "x": Evil(marker)}, path)
    refused(linear, SOURCE, str(path), "mkdir")
    path.write_bytes(pickle.dumps({"w": Evil(marker)}))
    refused(linear, SOURCE, str(path))
    assert not marker.exists()


# ---------------------------------------------------------------- sources that do not fit


def test_shapes_that_differ(
    make_model: Callable[..., Path], write_recipe: Callable[..., Path], refused: Refused
) -> None:
    a = make_model("m1", {"w": numpy.ones((2, 3), "f4")})
    b = make_model("m2", {"w": numpy.ones((3, 2), "f4")})
    for options in ((), ("--allow-mismatch",)):
        refused(
            write_recipe("linear", [a, b], weight=1), SOURCE, "w: ", "[2, 3]", "[3, 2]", str(a), str(b), options=options
        )


def test_tensors_that_are_missing(
    tmp_path: Path, make_model: Callable[..., Path], write_recipe: Callable[..., Path], refused: Refused, cli: Cli
) -> None:
    shared, mine, theirs = (numpy.full(3, value, "f4") for value in (1, 2, 3))
    a = make_model("m1", {"w": shared, "mine": mine})
    b = make_model("m2", {"w": shared, "theirs": theirs})
    recipe = write_recipe("linear", [a, b], weight=0.5)
    refused(recipe, SOURCE, "2 tensors", "mine: in", "theirs: in", f"not in {b}", "--allow-mismatch")
    assert cli("merge", recipe, tmp_path / "out", "--allow-mismatch", "--no-fsync").exit_code == 0
    import eutectic

    found = eutectic.open(tmp_path / "out")
    assert {name: tensor.to_numpy()[0] for name, tensor in found.items()} == {"w": 1, "mine": 2, "theirs": 3}


@pytest.mark.parametrize("method", ["linear", "slerp", "ties", "dare_ties"])
@pytest.mark.parametrize("value", [numpy.nan, numpy.inf, -numpy.inf])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_nan_and_infinity(
    tmp_path: Path, make_model: Callable[..., Path], write_recipe: Callable[..., Path], refused: Refused, cli: Cli,
    method: str, value: float, dtype: str,
) -> None:  # fmt: skip
    bad = numpy.ones((70, 1000), dtype)
    bad[69, 4] = value
    models = [make_model(name, {"w": numpy.ones((70, 1000), dtype)}) for name in ("base", "m1")]
    models.append(make_model("m2", {"w": bad}))
    options: dict[str, Any] = {"t": 0.5} if method == "slerp" else {"weight": 0.5}
    base = None if method in ("linear", "slerp") else models[0]
    recipe = write_recipe(method, models[1:], base, **options)
    refused(recipe, SOURCE, str(models[2]), "'w'", f"holds {value}", "[69, 4]", "--allow-nonfinite", staged=True)
    done = cli("merge", recipe, tmp_path / "out", "--force", "--allow-nonfinite", "--no-fsync")
    assert done.exit_code == 0, done.stderr


@pytest.mark.parametrize("method", ["linear", "ties", "slerp"])
def test_large_float64_values_are_finite(
    tmp_path: Path, make_model: Callable[..., Path], write_recipe: Callable[..., Path], cli: Cli, method: str
) -> None:
    """Finite in float64 though not in float32: no complaint about infinity, no crash."""
    models = [make_model(name, {"w": numpy.full(9, 1e300)}) for name in ("base", "m1", "m2")]
    options: dict[str, Any] = {"t": 0.5} if method == "slerp" else {"weight": 0.5}
    recipe = write_recipe(method, models[1:], models[0] if method == "ties" else None, **options)
    done = cli("merge", recipe, tmp_path / "out", "--no-fsync")
    assert done.exit_code == 0, done.stderr


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 8}
CODES = {
    "w.qweight": numpy.ones((1, 8), "i4"),
    "w.qzeros": numpy.ones((1, 1), "i4"),
    "w.scales": numpy.ones((1, 8), "f2"),
}


@pytest.mark.parametrize(
    ("settings", "tensors", "words"),
    [
        ({"quant_method": "aqlm"}, {}, ["quantised (aqlm)", "averaged as numbers", "dequantise"]),
        ("gptq", CODES, ["quantised (unknown)", "averaged as numbers"]),
        ({"quant_method": ["gptq"]}, CODES, ["quantised (['gptq'])"]),
        ({"quant_method": "x" * 9999}, CODES, ["quantised (xxx"]),
        ({"quant_method": "compressed-tensors", "format": "y" * 9999}, CODES, ["'yyy"]),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"a": {"targets": 5, "weights": 5}, "b": []}},
            {"w.weight_packed": CODES["w.qzeros"]},
            ["'w.weight_packed'", "no config_groups"],
        ),
        (None, {"w.weight_scale_inv": numpy.ones(1, "f4")}, ["'w.weight_scale_inv'", "averaged as numbers"]),
        (None, {"w.weight.absmax": numpy.ones(1, "f4")}, ["'w.weight.absmax'", "averaged as numbers"]),
        (None, {"w.qzeros": numpy.ones(1, "i4")}, ["'w.qzeros'", "averaged as numbers", "dequantise"]),
        ({"quant_method": "gptq"}, CODES, ["'w.qweight'", "bits None"]),
        ({**GPTQ, "bits": 4.0}, CODES, ["bits 4.0"]),
        ({**GPTQ, "bits": 10**30}, CODES, ["bits 1"]),
        ({**GPTQ, "group_size": "8"}, CODES, ["group_size '8'"]),
        ({**GPTQ, "group_size": 4}, CODES, ["'w.qzeros' is [1, 1]", "[2, 1]"]),
        (GPTQ, {**CODES, "w.scales": numpy.ones((1, 8), "i4")}, ["'w.scales' is int32"]),
        (GPTQ, {**CODES, "w.weight": numpy.ones((8, 8), "f4")}, ["'w.qweight'", "stored, too"]),
        (GPTQ, {"w.qweight": CODES["w.qweight"]}, ["'w.qzeros' is missing"]),
        (GPTQ, {"w.scales": CODES["w.scales"], "w.qzeros": CODES["w.qzeros"]}, ["'w.qzeros'", "no part of gptq"]),
        (
            {"quant_method": "fp8", "weight_block_size": "x" * 999},
            {"w.weight": numpy.ones((2, 2), "u1")},
            ["weight_block_size 'xxx"],
        ),
    ],
)
def test_quantised_checkpoints(
    make_model: Callable[..., Path], write_recipe: Callable[..., Path], refused: Refused,
    settings: Any, tensors: dict[str, numpy.ndarray], words: list[str],
) -> None:  # fmt: skip
    config = {} if settings is None else {"quantization_config": settings}
    models = [make_model(name, {"norm.weight": numpy.ones(4, "f4"), **tensors}, config) for name in ("m1", "m2")]
    refused(write_recipe("linear", models, weight=1), SOURCE, str(models[0]), *words)


def test_scales_that_are_no_numbers(
    make_model: Callable[..., Path], write_recipe: Callable[..., Path], refused: Refused
) -> None:
    """Codes themselves hold no NaN, what they stand for does."""
    bad = {**CODES, "w.scales": numpy.full((1, 8), numpy.nan, "f2")}
    models = [make_model(name, bad, {"quantization_config": GPTQ}) for name in ("m1", "m2")]
    refused(write_recipe("linear", models, weight=1), SOURCE, str(models[0]), "'w.weight'", "holds nan", staged=True)


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize("text", ["", "\n\n# only a comment\n", "---\n"])
def test_an_empty_recipe_shows_a_full_one(tmp_path: Path, refused: Refused, text: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    refused(recipe, RECIPE, str(recipe), "empty", "merge_method: linear")


def test_recipes_that_are_no_plain_data(tmp_path: Path, refused: Refused) -> None:
    recipe, marker = tmp_path / "recipe.yaml", tmp_path / "pwned"
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for at, name in enumerate("bcdefghi"):
        before = "abcdefghi"[at]
        bomb += f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n"
    for text, word in {
        f"models: !!python/object/apply:os.mkdir [{marker}]\n": "tag",
        bomb: "recipe never needs",
        "a: " + "[" * 5000: "recipe never needs",
        "a: &a [*a]\n": "alias to itself",
        "merge_method: linear\nmerge_method: ties\n": "appears twice",
        "merge_method: [linear\n": "not closed",
        "\tmerge_method: linear\n": "tab",
        "merge_method: \x07\n": "not allowed",
    }.items():
        recipe.write_text(text)
        message = refused(recipe, RECIPE, str(recipe), word)
        assert re.search(r"recipe\.yaml:\d+:\d+: ", message)
    recipe.write_bytes(b"merge_method: \xff\xfe\n")
    refused(recipe, RECIPE, f"{recipe}:1:15", "0xff is not UTF-8")
    recipe.write_text("#" * (1 << 20) + "\n")
    refused(recipe, RECIPE, "longer than 1 MiB")
    refused(tmp_path, RECIPE, "is a folder")
    refused(tmp_path / "recipe.yml", RECIPE, "does not exist; did you mean 'recipe.yaml'?")
    assert not marker.exists()


def test_every_fault_of_a_recipe_at_once_with_its_line(tmp_path: Path, refused: Refused) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "merge_method: tise\n"  # 1
        "modles: 3\n"  # 2
        "models:\n"
        "  - model: ./a\n"
        "    parameters: {weight: 1}\n"
        "    wieght: 2\n"  # 6
        "  - ./b\n"  # 7
        "dtype: float23\n"  # 8
        "seed: -1\n"  # 9
    )
    message = refused(recipe, RECIPE, "did you mean 'ties'", "'./b'", "'float23'")
    lines = [int(line) for line in re.findall(r"recipe\.yaml:(\d+):\d+: ", message)]
    assert lines == sorted(lines) and set(lines) == {1, 2, 6, 7, 8, 9}
    recipe.write_text(
        "merge_method: ties\n"
        "base_model: ./base\n"
        "models:\n"
        "  - model: ./a\n"
        "    parameters: {weight: 1, densty: 0.5}\n"  # 5
        "  - model: ./b\n"
        "    parameters: {weight: 1, density: 1.5}\n"  # 7
        "parameters: {lamda: 2, normalize: maybe}\n"  # 8 twice
    )
    message = refused(recipe, RECIPE, "did you mean 'density'", "did you mean 'lambda'", "0 to 1, not 1.5", "'maybe'")
    assert [int(line) for line in re.findall(r"recipe\.yaml:(\d+):", message)] == [5, 7, 8, 8]


def test_the_wrong_number_of_sources_and_a_missing_base(
    family: dict[str, Path], write_recipe: Callable[..., Path], refused: Refused
) -> None:
    a, b, base = family["a"], family["b"], family["base"]
    refused(write_recipe("slerp", [a], t=0.5), RECIPE, "slerp merges exactly 2 sources", "not 1", "recipe.yaml:2:1")
    refused(write_recipe("slerp", [a, b, base], t=0.5), RECIPE, "not 3")
    refused(write_recipe("passthrough", [a, b]), RECIPE, "passthrough merges exactly 1 source", "not 2")
    refused(write_recipe("ties", [a, b], weight=1), RECIPE, "ties needs a base_model", "recipe.yaml:1:1")
    refused(
        write_recipe("ties", [base], base, weight=1), RECIPE, "ties merges at least 1 source besides the base, not 0"
    )
    refused(write_recipe("linear", [a, b]), RECIPE, "weight")
    refused(write_recipe("linear", []), RECIPE, "'models' is empty")


@pytest.mark.parametrize("options", [(), ("--semantics-only",)])
def test_weights_that_sum_to_zero(
    family: dict[str, Path], write_recipe: Callable[..., Path], refused: Refused, options: tuple[str, ...]
) -> None:
    models = [{"model": str(family[n]), "parameters": {"weight": w}} for n, w in (("a", 1), ("b", -1))]
    refused(write_recipe("linear", models), RECIPE, "[1, -1]", "sum to 0", "normalize: false", options=options)


# ---------------------------------------------------------------- room


def test_a_budget_below_the_floor_names_one_that_works(
    tmp_path: Path, family: dict[str, Path], write_recipe: Callable[..., Path], refused: Refused, cli: Cli
) -> None:
    recipe = write_recipe("ties", [family["a"], family["b"]], family["base"], weight=1, density=0.5)
    message = refused(recipe, RESOURCE, "embed.weight", options=("--max-memory", "1KiB"))
    said = re.search(r"floor of ([\d,]+) bytes .* at least (\d+)MiB", message)
    assert said is not None
    floor = int(said[1].replace(",", ""))
    refused(recipe, RESOURCE, "floor", options=("--max-memory", str(floor - 1)))
    for at, budget in enumerate((str(floor), f"{said[2]}MiB")):
        done = cli("merge", recipe, tmp_path / f"fits{at}", "--max-memory", budget, "--no-fsync")
        assert done.exit_code == 0, done.stderr


def test_a_file_size_limit_in_mid_run(
    tmp_path: Path, make_model: Callable[..., Path], write_recipe: Callable[..., Path]
) -> None:
    """What a quota does to an ordinary user: the write fails; the message says what to do; resuming works."""
    models = [make_model(name, {"w": numpy.ones(200_000, "f4")}) for name in ("m1", "m2")]
    recipe = write_recipe("linear", models, weight=0.5)
    command = [sys.executable, "-m", "eutectic.cli.main", "merge", recipe, tmp_path / "out", "--resume", "--no-fsync"]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))

    done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True)
    assert done.returncode == RESOURCE, done.stderr
    assert "no room left" in done.stderr and "--resume" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_a_full_disk(linear: Path, tmp_path: Path, refused: Refused, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.pwrite, []

    def filling(*arguments: Any) -> int:
        calls.append(1)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", filling)
        refused(linear, RESOURCE, "no room left", "out.partial", "--resume", staged=True)
    assert cli("merge", linear, tmp_path / "out", "--resume", "--no-fsync").exit_code == 0


def test_too_little_room_is_known_before(linear: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    refused(linear, RESOURCE, "1,000 bytes free", "Free some space first")


# ---------------------------------------------------------------- targets


def test_targets_that_cannot_be_written(
    tmp_path: Path, linear: Path, cli: Cli, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for out, word in {
        tmp_path / "file": "is not a folder",
        tmp_path / "file" / "out": "cannot be",
        tmp_path / ("x" * 300): "name too long",
        tmp_path / ("x" * 300) / "out": "name too long",
    }.items():
        result = cli("merge", linear, out)
        assert result.exit_code == OUTPUT, result.stderr
        assert word in result.stderr
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
        refused(linear, OUTPUT, str(tmp_path), "cannot be written", "choose another target")
    with monkeypatch.context() as patch:

        def denied(*arguments: Any, **keywords: Any) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        patch.setattr(Path, "mkdir", denied)
        refused(linear, OUTPUT, "out.partial cannot be made: Permission denied")


def test_a_target_that_exists(tmp_path: Path, linear: Path, cli: Cli, refused: Refused) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert cli("merge", linear, out, "--no-fsync").exit_code == 0  # an empty folder is no obstacle
    before = (out / "model.safetensors").stat().st_mtime_ns
    refused(linear, OUTPUT, f"{out} exists. --force replaces it")
    assert (out / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "held", [["thesis.txt"], ["config.json", "main.c"], ["setup.py", "README.md"], ["recipe.yaml"]], ids=str
)
def test_force_does_not_delete_what_is_no_model(
    tmp_path: Path, linear: Path, refused: Refused, held: list[str]
) -> None:
    (tmp_path / "out").mkdir()
    for name in held:
        (tmp_path / "out" / name).write_text("{}")
    refused(linear, OUTPUT, "does not look like a model folder", options=("--force",))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(held)


def test_force_replaces_models_of_every_kind(tmp_path: Path, linear: Path, cli: Cli) -> None:
    for at, name in enumerate(("model.safetensors", "model-00001-of-00002.safetensors", "pytorch_model.bin")):
        out = tmp_path / f"model{at}"
        out.mkdir()
        (out / name).write_text("")
        (out / "config.json").write_text("{}")
        done = cli("merge", linear, out, "--force", "--no-fsync")
        assert done.exit_code == 0, done.stderr


def test_a_target_that_is_holds_or_lies_in_a_source(
    tmp_path: Path, family: dict[str, Path], linear: Path, cli: Cli
) -> None:
    before = {path: path.read_bytes() for path in family["a"].iterdir()}
    (tmp_path / "link").symlink_to(family["a"])
    for out in (family["a"], family["a"] / "sub" / "out", tmp_path, tmp_path / "link", tmp_path / "b" / ".." / "a"):
        for options in ((), ("--force",), ("--resume", "--force")):
            result = cli("merge", linear, out, *options)
            assert result.exit_code == OUTPUT, (out, result.stderr)
            assert "source" in result.stderr
    assert {path: path.read_bytes() for path in family["a"].iterdir()} == before


def test_a_staging_folder_that_is_a_source(
    tmp_path: Path, family: dict[str, Path], cli: Cli, write_recipe: Callable[..., Path]
) -> None:
    """OUT.partial may be where a source lies: it must survive --force and --resume."""
    source = family["a"].rename(tmp_path / "out.partial")
    recipe = write_recipe("linear", [source, family["b"]], weight=1)
    before = {path: path.read_bytes() for path in source.iterdir()}
    for options in ((), ("--force",), ("--resume",)):
        result = cli("merge", recipe, tmp_path / "out", *options)
        assert result.exit_code == OUTPUT, result.stderr
        assert {path: path.read_bytes() for path in source.iterdir()} == before


def test_another_process_at_work(tmp_path: Path, linear: Path, refused: Refused) -> None:
    made = plan(linear)
    sink = Sink(tmp_path / "out", made.steps, split_into_shards(made.steps), "other", fsync=False)
    for options in ((), ("--resume",), ("--force",)):
        refused(linear, OUTPUT, "being written by another process", options=options, staged=True)
    sink.close()


# ---------------------------------------------------------------- what lies beside the weights


@pytest.mark.parametrize(
    "card",
    [
        "---\ndate: 2023-02-30\n---\n",
        "---\n" + "[" * 5000 + "\n---\n",
        "---\nlicense: !!python/object/apply:os.system [echo]\n---\n",
        "---\n? [a]\n: b\n---\n",
        "---\na: &a [*a]\nlicense: *a\n---\n",
        "---\nlicense: [mit, apache-2.0]\n---\n",
        "---\n\x00\n---\n",
        "---\n- license\n---\n",
        "---\nnever closed",
    ],
    ids=range(9),
)
def test_model_cards_of_strangers(
    tmp_path: Path, make_model: Callable[..., Path], write_recipe: Callable[..., Path], cli: Cli, card: str
) -> None:
    """A card that cannot be read states no licence; it never stops a merge."""
    models = [make_model(name, {"w": numpy.ones(4, "f4")}, card=card) for name in ("m1", "m2")]
    recipe = write_recipe("linear", models, weight=1)
    shown = cli("plan", recipe)
    assert shown.exit_code == 0, shown.stderr
    assert "No licence is stated for m1, m2" in shown.stdout
    assert cli("merge", recipe, tmp_path / "out", "--no-fsync").exit_code == 0
    front = (tmp_path / "out" / "README.md").read_text().split("---\n")[1]
    assert "license" not in yaml.safe_load(front)


def test_errors_as_json(family: dict[str, Path], linear: Path, cli: Cli, tmp_path: Path) -> None:
    (family["b"] / "model.safetensors").write_bytes(b"")
    result = cli("merge", linear, tmp_path / "out", "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == report["error"]["exit_code"] == SOURCE
    assert report["error"]["type"] == "FormatError" and "too few" in report["error"]["message"]


def test_the_command_itself_prints_no_traceback(family: dict[str, Path], linear: Path, tmp_path: Path) -> None:
    save_file({"w": numpy.ones(2, "f4")}, family["b"] / "model.safetensors")
    command = [sys.executable, "-m", "eutectic.cli.main", "merge", linear, tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == SOURCE
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_merge_in_python_raises_what_the_command_prints(linear: Path, family: dict[str, Path], tmp_path: Path) -> None:
    from eutectic.errors import FormatError

    (family["b"] / "model.safetensors").write_bytes(b"")
    with pytest.raises(FormatError):
        merge(linear, tmp_path / "out", Options(fsync=False))
