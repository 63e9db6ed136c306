"""`eutectic pool`: what it prints, and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

import eutectic

Cli = Callable[..., Result]


def test_pack_says_what_each_scheme_takes_before_it_writes(cli: Cli, family: dict[str, Path], tmp_path: Path) -> None:
    where = (family["base"], family["a"], f"other={family['b']}", "--out", tmp_path / "pool")
    dry = cli("pool", "pack", *where, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert not (tmp_path / "pool").exists()
    rows = [line.split() for line in dry.stdout.splitlines()[1:]]
    assert [row[0] if row[0] != "->" else row[1] for row in rows] == ["tall", "bitdelta", "rmm", "twin"]
    foretold = json.loads(cli("pool", "pack", *where, "--dry-run", "--json").stdout)
    done = cli("pool", "pack", *where)
    assert done.exit_code == 0, done.output
    written = sum(path.stat().st_size for path in (tmp_path / "pool").rglob("*.safetensors"))
    assert next(one["nbytes"] for one in foretold["schemes"] if one["scheme"] == "tall") == written
    assert "2 members (a, other)" in done.stdout


def test_the_round_of_a_pool(cli: Cli, family: dict[str, Path], tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    packed = cli(
        "pool", "pack", family["base"], family["a"], "-o", pool, "-s", "bitdelta", "--set", "scale=tensor", "-q"
    )
    assert packed.exit_code == 0 and packed.output == ""
    assert cli("pool", "add", pool, f"second={family['b']}").stdout.startswith(f"{pool}: 2 members (a, second)")
    listed = cli("pool", "list", pool).stdout
    assert "scale tensor" in listed and "second" in listed
    found = json.loads(cli("pool", "list", pool, "--json").stdout)
    assert list(found["experts"]) == ["a", "second"] and found["scheme"] == "bitdelta"
    got = cli("pool", "get", pool, "second", tmp_path / "second")
    assert got.exit_code == 0 and got.stdout == f"wrote {tmp_path / 'second'}\n"
    member, written = eutectic.open(f"{pool}#second"), eutectic.open(tmp_path / "second")
    assert {n: bytes(t.read()) for n, t in member.items()} == {n: bytes(t.read()) for n, t in written.items()}
    assert written.config["model_type"] == "tiny"
    assert cli("pool", "remove", pool, "a").exit_code == 0
    log = json.loads(cli("pool", "log", pool, "--json").stdout)["log"]
    assert [entry["action"] for entry in log] == ["pack", "add", "remove"]
    assert len(cli("pool", "log", pool).stdout.splitlines()) == 4
    assert cli("pool", "verify", pool).stdout.startswith(f"{pool}: sound (")
    (pool / "experts" / "second.safetensors").write_bytes(b"x")
    broken = cli("pool", "verify", pool)
    assert broken.exit_code == 7 and "experts/second.safetensors: 1 bytes, not" in broken.stdout
    assert cli("pool", "verify", pool, "--json").exit_code == 7


def test_schemes_are_listed(cli: Cli) -> None:
    shown = cli("pool", "schemes")
    assert all(f"{name}: " in shown.stdout for name in ("tall", "bitdelta", "rmm", "twin"))
    listed = json.loads(cli("pool", "schemes", "--json").stdout)["schemes"]
    assert listed["tall"]["settings"]["mask_lambda"]["default"] == 0.4


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["pack", "{base}", "{a}", "-o", "{out}", "--set", "x"], 3, "a setting is NAME=VALUE"),
        (["pack", "{base}", "{a}", "-o", "{out}", "--set", "mask_lambda=high"], 3, "is not a number"),
        (["pack", "{base}", "{a}", "-o", "{out}", "-s", "no"], 3, "no scheme of pools"),
        (["pack", "{base}", "nowhere", "-o", "{out}"], 4, "nowhere: no such folder or file"),
        (["list", "{base}"], 4, "no pool (pool.json is missing); `eutectic pool pack` makes one"),
        (["get", "{base}", "x", "{out}"], 4, "no pool"),
    ],
)
def test_what_is_refused(
    cli: Cli, family: dict[str, Path], tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    places = {**family, "out": tmp_path / "out"}
    done = cli("pool", *(word.format(**places) for word in words))
    assert done.exit_code == code and message in done.stderr
    assert not (tmp_path / "out").exists()
