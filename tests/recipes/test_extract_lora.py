"""Adapters extracted from fine-tunes: exact where the change is of low rank, best where it is not, read by PEFT."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file

import eutectic
from eutectic.errors import OutputError, SourceError
from eutectic.recipes.extract_lora import extract_lora
from eutectic.recipes.merge import merge

Make = Callable[..., Path]
Q, UP = "model.layers.0.q_proj.weight", "model.layers.1.up_proj.weight"


@pytest.fixture
def pair(make_model: Make) -> tuple[Path, Path]:
    """A base, and a fine-tune whose q_proj changed by rank 3, up_proj by full rank, and a norm."""
    random = np.random.default_rng(0)
    base = {Q: random.normal(size=(40, 30)), UP: random.normal(size=(50, 40)), "model.norm.weight": np.ones(30)}
    change = random.normal(size=(40, 3)) @ random.normal(size=(3, 30)) * 0.01
    tuned = {
        Q: base[Q] + change,
        UP: base[UP] + 0.01 * random.normal(size=(50, 40)),
        "model.norm.weight": np.full(30, 1.5),
    }
    save = lambda name, found: make_model(name, {k: v.astype("f4") for k, v in found.items()}, config={})  # noqa: E731
    return save("base", base), save("tuned", tuned)


def test_a_change_of_low_rank_comes_back_whole(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = pair
    found = extract_lora(eutectic.open(tuned), eutectic.open(base), tmp_path / "adapter", rank=3)
    q, up = found.modules
    assert q.error < 1e-3 < up.error
    out = merge(
        {"merge_method": "passthrough", "models": [{"model": f"{base}+{tmp_path / 'adapter'}"}]}, tmp_path / "out"
    )
    assert isinstance(out, Path)
    made, wanted = (load_file(folder / "model.safetensors") for folder in (out, tuned))
    np.testing.assert_allclose(made[Q], wanted[Q], atol=1e-6)
    delta = wanted[UP].astype("f8") - load_file(base / "model.safetensors")[UP]
    left = np.linalg.norm(wanted[UP].astype("f8") - made[UP]) / np.linalg.norm(delta)
    assert left == pytest.approx(up.error, rel=1e-3)
    assert [name for name, _ in found.lost] == ["model.norm.weight"]
    assert found.lost[0][1] == pytest.approx(0.5 * 30**0.5)


def test_max_error_takes_the_smallest_rank(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = pair
    found = extract_lora(eutectic.open(tuned), eutectic.open(base), tmp_path / "a", rank=40, max_error=0.3)
    s = np.linalg.svd(
        load_file(tuned / "model.safetensors")[UP].astype("f8") - load_file(base / "model.safetensors")[UP]
    )[1]
    left = np.sqrt(np.maximum(0, 1 - np.cumsum(s**2) / np.sum(s**2)))
    assert found.modules[1].rank == int(np.argmax(left <= 0.3)) + 1
    assert found.modules[0].rank < 4
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["r"] == found.modules[1].rank and list(config["rank_pattern"].values()) == [found.modules[0].rank]
    with pytest.raises(SourceError, match=r"rank 4 does not reach(.|\n)*up_proj"):
        extract_lora(eutectic.open(tuned), eutectic.open(base), tmp_path / "b", rank=4, max_error=0.3)
    assert not (tmp_path / "b").exists()


def test_threads_do_not_matter_and_targets_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = (eutectic.open(folder) for folder in pair)
    for threads in (1, 2):
        extract_lora(tuned, base, tmp_path / f"t{threads}", rank=2, threads=threads)
    one, two = ((tmp_path / f"t{n}" / "adapter_model.safetensors").read_bytes() for n in (1, 2))
    assert one == two
    with pytest.raises(OutputError, match="exists"):
        extract_lora(tuned, base, tmp_path / "t1")
    with pytest.raises(SourceError, match="no linear weight of a layer differs"):
        extract_lora(base, base, tmp_path / "same")
    with pytest.raises(SourceError, match="no linear weight of a layer differs"):
        extract_lora(tuned, base, tmp_path / "none", exclude=["_proj"])


def test_large_matrices_have_the_same_bytes_on_any_number_of_threads(make_model: Make, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    names = [f"model.layers.{at}.up_proj.weight" for at in range(4)]
    save = lambda name: make_model(name, {n: random.normal(size=(400, 300)).astype("f4") for n in names}, config={})  # noqa: E731
    base, tuned = (eutectic.open(save(name)) for name in ("base", "tuned"))
    before = torch.get_num_threads()
    for threads, own in ((1, 1), (3, 1), (3, 2)):
        torch.set_num_threads(own)
        try:
            extract_lora(tuned, base, tmp_path / f"{threads}-{own}", rank=16, threads=threads)
            assert torch.get_num_threads() == own
        finally:
            torch.set_num_threads(before)
    found = {(folder / "adapter_model.safetensors").read_bytes() for folder in tmp_path.glob("?-?")}
    assert len(found) == 1


def test_models_are_named_as_recipes_name_them(
    pair: tuple[Path, Path], make_model: Make, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    base, tuned = map(str, pair)
    assert cli("extract-lora", tuned, str(tmp_path / "a"), "--base", base, "--rank", "3").exit_code == 0
    again = cli("extract-lora", f"{base}+{tmp_path / 'a'}", str(tmp_path / "b"), "--base", base, "--json")
    assert again.exit_code == 0, again.output
    assert max(module["error"] for module in json.loads(again.stdout)["modules"]) < 1e-3
    (tmp_path / "r.yaml").write_text(f"merge_method: soup\nmodels: [{{model: {tuned}}}, {{model: {base}}}]\n")
    other = make_model("other", {"model.layers.0.other.weight": np.ones((2, 2), "f4")}, config={})
    refused = cli("extract-lora", str(tmp_path / "r.yaml"), str(tmp_path / "c"), "--base", str(other))
    assert refused.exit_code == 4 and "the fine-tune: lacks model.layers.0.other.weight" in refused.stderr


@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
@pytest.mark.filterwarnings("ignore")
def test_peft_reads_it(kind: str, tmp_path: Path) -> None:
    sizes = {
        "Llama": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
        "GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32},
    }[kind]
    torch.manual_seed(0)
    model_class = getattr(transformers, {"Llama": "LlamaForCausalLM", "GPT2": "GPT2LMHeadModel"}[kind])
    model = model_class(getattr(transformers, f"{kind}Config")(vocab_size=64, **sizes))
    model.save_pretrained(tmp_path / "base")
    for name, value in model.named_parameters():
        if value.ndim == 2 and ".0." in name + ".1.":
            value.data += 0.02 * torch.randn_like(value)
    model.save_pretrained(tmp_path / "tuned")
    extract_lora(
        eutectic.open(tmp_path / "tuned"), eutectic.open(tmp_path / "base"), tmp_path / "adapter",
        rank=32, max_error=0.4,
    )  # fmt: skip
    plain = model_class.from_pretrained(tmp_path / "base")
    adapted = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter")
    theirs = {n: v.detach().numpy() for n, v in adapted.merge_and_unload().state_dict().items()}
    recipe = {"merge_method": "passthrough", "models": [{"model": f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"}]}
    out = merge(recipe, tmp_path / "out")
    assert isinstance(out, Path)
    base = load_file(tmp_path / "base" / "model.safetensors")
    changed = 0
    for name, ours in load_file(out / "model.safetensors").items():
        full = name if name in theirs else f"transformer.{name}"
        np.testing.assert_allclose(ours, theirs[full], atol=1e-6, err_msg=name)
        changed += not np.array_equal(ours, base[name])
    assert changed >= 4


def test_the_command(pair: tuple[Path, Path], tmp_path: Path, cli: Callable[..., object]) -> None:
    base, tuned = pair
    result = cli("extract-lora", str(tuned), str(tmp_path / "a"), "--base", str(base), "--rank", "3", "--json")
    document = json.loads(result.stdout)  # pyright: ignore[reportAttributeAccessIssue]
    assert [m["rank"] for m in document["modules"]] == [3, 3] and document["lost"][0]["tensor"] == "model.norm.weight"
    result = cli("extract-lora", str(tuned), str(tmp_path / "b"), "--base", str(base))
    assert "up_proj" in result.stdout and "no linear weights: model.norm.weight" in result.stdout  # pyright: ignore
