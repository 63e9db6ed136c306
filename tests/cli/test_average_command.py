"""`eutectic average`: from a run to a folder, its table, its JSON, and what it refuses before it writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from safetensors.numpy import load_file, save_file

import eutectic
from eutectic.cli.average import average
from eutectic.recipes.average import SPACES

Cli = Callable[..., Result]
LOSSES = {5: 1.0, 20: 0.5, 100: 0.25}


@pytest.fixture
def run(make_run: Callable[..., Path]) -> Path:
    return make_run("run", LOSSES)


def facts(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def weights(result: Result) -> list[float]:
    return [entry["weight"] for entry in facts(result)["checkpoints"]]


def test_a_run_becomes_a_model(
    cli: Cli, run: Path, tmp_path: Path, contents: Callable[[Path], Mapping[str, bytes]]
) -> None:
    before, out = contents(run), tmp_path / "out"
    done = cli("average", run, out)
    assert done.exit_code == 0 and done.stderr == "", done.output
    assert done.stdout.startswith(
        "  average  3 checkpoints by power of eval_loss (low is good), p 1\n"
        "  checkpoint      eval_loss  weight\n"
        "  checkpoint-5            1  0.1429\n"
        "  checkpoint-20         0.5  0.2857\n"
        "  checkpoint-100       0.25  0.5714\n"
        f"{out}: 3 tensors, "
    )
    assert eutectic.verify(out).sound and contents(run) == before
    assert "average of 3 checkpoints by power of eval_loss (low is good), p 1" in (out / "README.md").read_text()
    again = cli("average", run, out)
    assert again.exit_code == 5 and "exists" in again.stderr
    assert "is this average already, finished" in cli("average", run, out, "--resume").stdout
    assert cli("average", run, out, "--force", "--schedule", "uniform").exit_code == 0
    assert cli("merge", out / "recipe.lock.json", tmp_path / "again").exit_code == 0


def test_folders_may_be_listed_in_any_order(cli: Cli, run: Path, tmp_path: Path) -> None:
    folders = [run / f"checkpoint-{step}" for step in LOSSES]
    for name, listed in (("a", [run]), ("b", folders[::-1])):
        assert cli("average", *listed, tmp_path / name).exit_code == 0
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert one == two


def test_a_recipe_instead(cli: Cli, run: Path, tmp_path: Path) -> None:
    file = tmp_path / "average.yaml"
    done = cli("average", run, "--recipe", file, "-p", 2, "--form", "rank")
    assert done.exit_code == 0 and f"wrote {file}" in done.stdout
    assert "# checkpoint-100  0.25  0.6429\n" in file.read_text()
    assert cli("average", run, tmp_path / "direct", "-p", 2, "--form", "rank").exit_code == 0
    assert cli("merge", file, tmp_path / "merged").exit_code == 0
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("direct", "merged"))
    assert one == two
    assert cli("average", run, "--recipe", file).exit_code == 5
    assert cli("average", run, "--recipe", file, "--force").exit_code == 0
    assert cli("average", run, "--recipe", tmp_path / "no" / "folder.yaml").exit_code == 5
    assert cli("average", run, tmp_path / "out", "--recipe", tmp_path / "new.yaml").exit_code == 4


def test_a_dry_run_writes_nothing(cli: Cli, run: Path, tmp_path: Path) -> None:
    shown = cli("average", run, tmp_path / "out", "--dry-run")
    assert shown.exit_code == 0 and "checkpoint-5  " in shown.stdout and "  memory  " in shown.stdout
    found = facts(cli("average", run, tmp_path / "out", "--dry-run", "--json"))
    assert found["plan"]["method"] == "linear" and not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("")
    assert cli("average", run, tmp_path / "out", "--dry-run").exit_code == 5


def test_json(cli: Cli, run: Path, tmp_path: Path) -> None:
    found = facts(cli("average", run, tmp_path / "out", "--metric", "eval_accuracy", "--json", "-p", 3))
    assert (found["command"], found["out"], found["metric"]) == ("average", str(tmp_path / "out"), "eval_accuracy")
    assert found["weights"] == "power of eval_accuracy (high is good), p 3" and found["file"] is None
    last = found["checkpoints"][2]
    assert last["path"] == str(run / "checkpoint-100") and (last["step"], last["value"]) == (100, 0.975)
    assert sum(entry["weight"] for entry in found["checkpoints"]) == pytest.approx(1)
    assert [source["model"] for source in found["recipe"]["models"]][2] == last["path"]
    assert (tmp_path / "out" / "model.safetensors").is_file()
    failed = cli("average", run, tmp_path / "new", "--metric", "nope", "--json")
    assert failed.exit_code == 4 and json.loads(failed.stdout)["error"]["type"] == "SourceError"


def test_every_way_to_weigh(cli: Cli, run: Path, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("checkpoint,f1\ncheckpoint-5,0.5\ncheckpoint-20,0.25\ncheckpoint-100,0.25\n")
    said = "printf '%s' {checkpoint} | wc -c"
    assert len({len(str(run / f"checkpoint-{step}")) for step in LOSSES}) == 3
    for flags, wanted in (
        (["--metrics", tmp_path / "m.csv"], [0.5, 0.25, 0.25]),
        (["--metrics", tmp_path / "m.csv", "--lower"], [0.2, 0.4, 0.4]),
        (["--metric", "eval_loss", "--higher"], [1 / 1.75, 0.5 / 1.75, 0.25 / 1.75]),
        (["--evaluator", said, "--higher", "--form", "rank"], [1 / 6, 2 / 6, 3 / 6]),
        (["--evaluator", said, "--metric", "error", "--form", "rank"], [3 / 6, 2 / 6, 1 / 6]),
        (["--metric", "loss", "--window", "-p", "0"], [1 / 3, 1 / 3, 1 / 3]),
        (["--schedule", "uniform"], [1 / 3, 1 / 3, 1 / 3]),
        (["--schedule", "last", "--k", "2"], [0, 0.5, 0.5]),
        (["--schedule", "ema", "--decay", "0.5"], [1 / 7, 2 / 7, 4 / 7]),
        (["--schedule", "cosine"], [0.25, 0.5, 0.25]),
        (["--schedule", "step"], [0.04, 0.16, 0.8]),
    ):
        found = weights(cli("average", run, tmp_path / "out", "--dry-run", "--json", *flags))
        assert found == pytest.approx(wanted), flags


def test_what_is_not_finite_is_left_out_with_a_warning(cli: Cli, make_run: Callable[..., Path], tmp_path: Path) -> None:
    run = make_run("run", {10: 1.0, 20: float("nan"), 30: 0.5})
    done = cli("average", run, tmp_path / "out")
    assert done.exit_code == 0 and done.stderr == "warning: checkpoint-20 is left out: its eval_loss is nan\n"
    assert "2 checkpoints by" in done.stdout and "checkpoint-20" not in (tmp_path / "out/recipe.yaml").read_text()
    nothing = cli("average", make_run("bad", {10: float("nan")}), tmp_path / "no")
    assert nothing.exit_code == 3 and "none of the 1 values of the metric is finite" in nothing.stderr


def test_evaluators_are_told_and_run_after_the_checks(cli: Cli, run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("")
    command = f"touch {tmp_path}/ran; echo 1; {{checkpoint}} 2>/dev/null || true"
    assert cli("average", run, tmp_path / "out", "--evaluator", command, "--lower").exit_code == 5
    assert not (tmp_path / "ran").exists()
    done = cli("average", run, tmp_path / "new", "--evaluator", "echo 2 # {checkpoint}", "--lower")
    assert done.exit_code == 0 and done.stderr == "checkpoint-5: 2\ncheckpoint-20: 2\ncheckpoint-100: 2\n"
    failed = cli("average", run, tmp_path / "failed", "--evaluator", "exit 3; {checkpoint}", "--lower")
    assert failed.exit_code == 4 and not (tmp_path / "failed").exists()


@pytest.mark.parametrize(
    ("flags", "code", "why"),
    [
        (["--metrics", "m.csv", "--schedule", "last"], 2, "--metrics and --schedule are two ways to weigh"),
        (["--schedule", "uniform", "--metric", "loss"], 2, "--metric belongs to weights by a metric"),
        (["--schedule", "uniform", "--lower"], 2, "--lower belongs to weights by a metric"),
        (["--schedule", "uniform", "--form", "exp"], 2, "--form belongs to"),
        (["--schedule", "cosine", "-p", "1"], 2, "--p belongs to weights by a metric and to --schedule step"),
        (["--schedule", "last"], 2, "--schedule last needs --k"),
        (["--schedule", "ema", "--k", "3"], 2, "--k belongs to --schedule last"),
        (["--decay", "0.5"], 2, "--decay belongs to --schedule ema"),
        (["--timeout", "5"], 2, "--timeout belongs to --evaluator"),
        (["--metrics", "m.csv", "--window"], 2, "--window belongs to the run's log"),
        (["--evaluator", "x {checkpoint}"], 2, "--lower or --higher"),
        (["--recipe", "r.yaml", "--dry-run"], 2, "--recipe writes the recipe alone"),
        (["--evaluator", "x", "--lower"], 3, "does not hold {checkpoint}"),
        (["--schedule", "last", "--k", "4"], 3, "k is 4, and there are 3 checkpoints"),
        (["--schedule", "ema", "--decay", "2"], 3, "decay is 2"),
        (["-p", "nan"], 3, "p is nan; choose a finite number"),
        (["-p", "-1"], 3, "p is -1"),
        (["--space", "factors"], 3, "space: these checkpoints are models"),
        (["--metric", "eval_los"], 4, "did you mean 'eval_loss'"),
    ],
)
def test_wrong_use(cli: Cli, run: Path, tmp_path: Path, flags: list[str], code: int, why: str) -> None:
    done = cli("average", run, tmp_path / "out", *flags)
    assert done.exit_code == code and why in " ".join(done.stderr.split()), done.stderr
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_still_written(cli: Cli, run: Path, tmp_path: Path) -> None:
    assert cli("average", run).exit_code == 2
    folder = run / "checkpoint-100"
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"embed.weight": "model-00001-of-00002.safetensors", "x": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    done = cli("average", run, tmp_path / "out")
    assert done.exit_code == 4 and "model-00002-of-00002.safetensors" in done.stderr and "missing" in done.stderr
    (folder / "model.safetensors.index.json").unlink()
    assert "shard 2 of 2 is missing" in cli("average", run, tmp_path / "out").stderr


def test_spaces_are_those_of_recipes() -> None:
    option = next(parameter for parameter in average.params if parameter.name == "space")
    assert tuple(option.type.choices) == SPACES  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("space", [None, "factors"])
def test_a_run_of_adapters_becomes_an_adapter(
    cli: Cli, make_run: Callable[..., Path], tmp_path: Path, space: str | None
) -> None:
    run, random, pairs = make_run("run", LOSSES), np.random.default_rng(0), []
    for step in LOSSES:
        folder = run / f"checkpoint-{step}"
        (folder / "model.safetensors").unlink()
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"]}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        pairs.append({k: random.normal(size=s).astype("f4") for k, s in (("A", (2, 30)), ("B", (20, 2)))})
        stored = {f"base_model.model.layers.0.q.lora_{k}.weight": v for k, v in pairs[-1].items()}
        save_file(stored, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "out"
    done = cli("average", run, out, *([] if space is None else ["--space", space]))
    assert done.exit_code == 0, done.output
    assert f"{out}: an adapter of 1 module, rank {2 if space == 'factors' else 6}, " in done.stdout
    assert eutectic.verify(out).sound and not (out / "optimizer.pt").exists()
    made = load_file(out / "adapter_model.safetensors")
    a, b = (made[f"base_model.model.layers.0.q.lora_{k}.weight"].astype("f8") for k in "AB")
    config = json.loads((out / "adapter_config.json").read_text())
    shares = np.array([1, 2, 4]) / 7
    if space == "factors":
        np.testing.assert_allclose(
            a, sum(w * p["A"].astype("f8") for w, p in zip(shares, pairs, strict=True)), rtol=1e-6
        )
        return
    wanted = sum(w * 2 * p["B"].astype("f8") @ p["A"] for w, p in zip(shares, pairs, strict=True))
    np.testing.assert_allclose(config["lora_alpha"] / config["r"] * b @ a, wanted, atol=1e-5)
