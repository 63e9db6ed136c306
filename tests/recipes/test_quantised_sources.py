"""Recipes over quantised sources: the merge of their dense forms; codes stay codes where nothing is done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import Result
from safetensors.torch import load_file, save_file

from eutectic.errors import SourceError
from eutectic.recipes.merge import merge, plan
from eutectic.weights.adapter import open_adapted
from eutectic.weights.checkpoint import open_checkpoint
from eutectic.weights.quantized.dequantise import open_dequantised

Tensors = dict[str, torch.Tensor]
BLOCK = 16
FP8 = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK], "activation_scheme": "dynamic"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq", "desc_act": False}


def as_fp8(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """Codes and scales of blocks, and what they stand for."""
    rows, columns = (-(-size // BLOCK) for size in weight.shape)
    dense, codes = torch.empty_like(weight), torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    scale = torch.empty(rows, columns)
    for i in range(rows):
        for j in range(columns):
            at = slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK)
            scale[i, j] = weight[at].abs().max() / 448
            codes[at] = (weight[at] / scale[i, j]).to(torch.float8_e4m3fn)
            dense[at] = codes[at].float() * scale[i, j]
    return {name: codes, f"{name}_scale_inv": scale}, dense


def as_gptq(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """Four bits, groups of 32 inputs, zero points 8."""
    groups = weight.reshape(len(weight), -1, 32)
    scale = (groups.abs().amax(2, keepdim=True) / 7).half()
    codes = (groups / scale.float()).round().clamp(-8, 7)
    dense = (codes * scale.float()).reshape(weight.shape)
    q = (codes.reshape(weight.shape).T + 8).long().reshape(-1, 8, len(weight))
    words = (q << (4 * torch.arange(8))[None, :, None]).sum(1)
    stem, signed = name.removesuffix("weight"), torch.where(words < 2**31, words, words - 2**32).int()
    zeros = torch.full((groups.shape[1], len(weight) // 8), 0x77777777, dtype=torch.int32)
    return {f"{stem}qweight": signed, f"{stem}qzeros": zeros, f"{stem}scales": scale[:, :, 0].T.contiguous()}, dense


@pytest.fixture
def quantised(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """``quantised(name, settings)``: a tiny Llama with coded layers, and its dense form in float32."""

    def make(name: str, settings: dict[str, Any]) -> tuple[Path, Path]:
        torch.manual_seed(sum(map(ord, name)))
        config = transformers.LlamaConfig(
            vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        )
        dense = tmp_path / f"{name}-dense"
        transformers.LlamaForCausalLM(config).save_pretrained(dense)
        tensors: Tensors = {}
        plain = load_file(dense / "model.safetensors")
        for key, weight in plain.items():
            tensors[key] = weight.bfloat16()
            plain[key] = tensors[key].float()
            if key.endswith("_proj.weight"):
                coded, plain[key] = (as_fp8 if settings is FP8 else as_gptq)(key, weight)
                del tensors[key]
                tensors |= coded
        save_file(plain, dense / "model.safetensors", metadata={"format": "pt"})
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
        said = {**json.loads((dense / "config.json").read_text()), "quantization_config": settings}
        (tmp_path / name / "config.json").write_text(json.dumps({**said, "dtype": "bfloat16"}))
        return tmp_path / name, dense

    return make


def linear(*models: Path, **top: Any) -> dict[str, Any]:
    sources = [{"model": str(m), "parameters": {"weight": w}} for m, w in zip(models, (0.7, 0.3, 0.5), strict=False)]
    return {"merge_method": "linear", "models": sources, **top}


@pytest.mark.parametrize("method", ["linear", "ties", "slerp", "model_stock"])
def test_a_merge_of_codes_is_the_merge_of_their_dense_forms(
    quantised: Callable[..., tuple[Path, Path]], tmp_path: Path, method: str
) -> None:
    (a, dense_a), (b, dense_b), (c, dense_c) = quantised("a", FP8), quantised("b", GPTQ), quantised("c", FP8)

    def recipe(*models: Path) -> dict[str, Any]:
        base = {"base_model": str(models[0])} if method != "linear" else {}
        used = models[1:] if method in ("ties", "model_stock") else models[:2]
        named = [{"model": str(m)} for m in used]
        parameters = {"linear": {"weight": 0.5}, "ties": {"weight": 0.6, "density": 0.4}, "slerp": {"t": 0.3}}
        return {"merge_method": method, "models": named, "parameters": parameters.get(method, {}), **base}

    merge(recipe(a, b, c), tmp_path / "out", fsync=False)
    merge({**recipe(dense_a, dense_b, dense_c), "dtype": "bfloat16"}, tmp_path / "expected", fsync=False)
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "expected"))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == torch.bfloat16 and torch.equal(found[name], value), name


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_the_result_is_a_dense_model(quantised: Callable[..., tuple[Path, Path]], tmp_path: Path) -> None:
    (a, _), (b, _) = quantised("a", FP8), quantised("b", GPTQ)
    merge(linear(a, b), tmp_path / "out", fsync=False)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "bfloat16"
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model(torch.arange(4)[None]).logits.isfinite().all()
    card = (tmp_path / "out/README.md").read_text()
    assert f"dequantised as read: {a} (fp8, blocks of 16 x 16)" in card
    assert f"dequantised as read: {b} (gptq, 4 bits, groups of 32)" in card
    merge(tmp_path / "out/recipe.lock.json", tmp_path / "again", fsync=False)
    first, again = (tmp_path / name / "model.safetensors" for name in ("out", "again"))
    assert first.read_bytes() == again.read_bytes()


def test_bits_do_not_depend_on_tiles_and_threads(quantised: Callable[..., tuple[Path, Path]], tmp_path: Path) -> None:
    (a, _), (b, _) = quantised("a", FP8), quantised("b", GPTQ)
    for name, options in {"one": {"threads": 1}, "more": {"threads": 3, "max_memory": 64 << 20}}.items():
        merge(linear(a, b), tmp_path / name, fsync=False, **options)
    one, more = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "more"))
    assert all(torch.equal(one[name], more[name]) for name in one)


def test_the_type_is_written_where_config_json_has_none(
    quantised: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    a, _ = quantised("a", GPTQ)
    config = json.loads((a / "config.json").read_text())
    del config["dtype"]
    (a / "config.json").write_text(json.dumps(config))
    merge(linear(a), tmp_path / "out", fsync=False)
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"


def test_a_configuration_left_over_beside_dense_weights(
    quantised: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    _, dense = quantised("a", GPTQ)
    config = json.loads((dense / "config.json").read_text())
    (dense / "config.json").write_text(json.dumps({**config, "quantization_config": GPTQ}))
    merge(linear(dense), tmp_path / "out", fsync=False)
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())
    assert "(no codes, though config.json says gptq" in (tmp_path / "out/README.md").read_text()


def test_one_model_that_is_only_copied_keeps_its_codes(
    quantised: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    a, dense = quantised("a", GPTQ)
    copy: dict[str, Any] = {"merge_method": "passthrough", "models": [{"model": str(a)}]}
    merge(copy, tmp_path / "copy", fsync=False)
    before, after = (load_file(folder / "model.safetensors") for folder in (a, tmp_path / "copy"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((tmp_path / "copy/config.json").read_text())["quantization_config"] == GPTQ
    expected = load_file(dense / "model.safetensors")
    scaled = {**copy, "models": [{"model": str(a), "parameters": {"scale": 2}}]}
    sliced = {"merge_method": "passthrough", "slices": [{"sources": [{"model": str(a), "layer_range": [0, 2]}]}]}
    for changed, factor in (({**copy, "dtype": "float32"}, 1), ({**scaled, "dtype": "float32"}, 2), (sliced, None)):
        merge(changed, tmp_path / "out", fsync=False, force=True)
        found = load_file(tmp_path / "out/model.safetensors")
        assert found.keys() == expected.keys()
        for name in expected if factor else ():
            assert torch.equal(found[name], expected[name] * factor)


def test_an_adapter_on_a_quantised_base(quantised: Callable[..., tuple[Path, Path]], tmp_path: Path) -> None:
    """What an adapter saw that was trained on this base: the dequantised weights."""
    a, dense = quantised("a", GPTQ)
    folder, module = tmp_path / "lora", "model.layers.0.self_attn.q_proj"
    folder.mkdir()
    factors = {"A": torch.randn(4, 32), "B": torch.randn(32, 4)}
    named = {f"base_model.model.{module}.lora_{key}.weight": value for key, value in factors.items()}
    save_file(named, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    recipe = {"merge_method": "passthrough", "models": [{"model": f"{a}+{folder}"}], "dtype": "float32"}
    merge(recipe, tmp_path / "out", fsync=False)
    found, expected = (load_file(path / "model.safetensors") for path in (tmp_path / "out", dense))
    wanted = expected[f"{module}.weight"] + 2 * factors["B"] @ factors["A"]
    torch.testing.assert_close(found[f"{module}.weight"], wanted, rtol=1e-5, atol=1e-5)
    assert found.keys() == expected.keys()
    made = plan(recipe)
    assert any(f"dequantised as read: {a}+{folder} (gptq" in line for line in made.account.lines)
    again = open_adapted(open_dequantised(open_checkpoint(a)), folder)
    assert set(again) == set(expected)


def test_the_plan_counts_what_is_read_and_held(quantised: Callable[..., tuple[Path, Path]]) -> None:
    (a, _), (b, _) = quantised("a", FP8), quantised("b", GPTQ)
    made = plan(linear(a, b))
    assert 0 < made.bytes_read <= sum((path / "model.safetensors").stat().st_size for path in (a, b))
    dequantised = open_dequantised(open_checkpoint(b))
    assert dequantised.held_bytes > 0 and made.shape.buffers > dequantised.held_bytes


def test_inspect_says_how_it_is_quantised(
    quantised: Callable[..., tuple[Path, Path]], cli: Callable[..., Result]
) -> None:
    a, dense = quantised("a", GPTQ)
    shown = cli("inspect", a)
    assert shown.exit_code == 0 and "gptq, 4 bits, groups of 32; a merge reads it as dense" in shown.stdout
    facts = json.loads(cli("inspect", a, "--json").stdout)
    words = "gptq, 4 bits, groups of 32"
    assert facts["quantisation"] == {"method": "gptq", "bits": 4, "words": words, "understood": True}
    assert json.loads(cli("inspect", dense, "--json").stdout)["quantisation"] is None
    config = json.loads((a / "config.json").read_text())
    (a / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "aqlm"}}))
    assert "aqlm; a merge refuses it" in cli("inspect", a).stdout
    with pytest.raises(SourceError, match=r"quantised \(aqlm\)"):
        plan(linear(a))


def test_the_change_to_a_quantised_base_as_an_adapter(
    quantised: Callable[..., tuple[Path, Path]], cli: Callable[..., Result], tmp_path: Path
) -> None:
    a, dense = quantised("a", GPTQ)
    name = "model.layers.0.self_attn.q_proj.weight"
    changed = load_file(dense / "model.safetensors")
    delta = torch.randn(32, 2) @ torch.randn(2, 32)
    changed[name] += delta
    save_file(changed, dense / "model.safetensors", metadata={"format": "pt"})
    made = cli("extract-lora", dense, tmp_path / "lora", "--base", a, "--rank", 2, "--json")
    assert made.exit_code == 0, made.stderr
    assert len(json.loads(made.stdout)["modules"]) == 1
    factors = load_file(tmp_path / "lora/adapter_model.safetensors")
    up, down = (value for key, value in sorted(factors.items(), reverse=True))
    torch.testing.assert_close(up @ down, delta, rtol=1e-4, atol=1e-4)
