"""Models as transformers saves them: slices load without a missing or unexpected key and generate; gradients merge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from eutectic.recipes.merge import merge

SMALL: dict[str, Any] = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4}
LLAMA = {**SMALL, "intermediate_size": 32, "num_key_value_heads": 2, "max_position_embeddings": 64}
MOE = {"num_experts": 4, "num_experts_per_tok": 2}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

DECODERS: dict[str, dict[str, Any]] = {
    "Llama": LLAMA,
    "Qwen3": {**LLAMA, "head_dim": 4},
    "Gemma3Text": {**LLAMA, "head_dim": 4, "sliding_window": 8},
    "Phi3": LLAMA,
    "GPT2": {"vocab_size": 64, "n_embd": 16, "n_layer": 4, "n_head": 4, "n_positions": 64},
    "Mixtral": {**LLAMA, "num_local_experts": 4},
    "Qwen3Moe": {**LLAMA, **MOE, "head_dim": 4, "moe_intermediate_size": 8, "mlp_only_layers": [1]},
    "Olmoe": {**LLAMA, **MOE},
}
T5 = {"vocab_size": 64, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 3, "num_heads": 4}
WHISPER = {
    "vocab_size": 64,
    "d_model": 16,
    "num_mel_bins": 8,
    **{f"{part}_layers": count for part, count in (("encoder", 3), ("decoder", 2))},
    **{f"{part}_attention_heads": 4 for part in ("encoder", "decoder")},
    **{f"{part}_ffn_dim": 32 for part in ("encoder", "decoder")},
    **{f"max_{part}_positions": 20 for part in ("source", "target")},
}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Bert": ("BertModel", {**SMALL, "intermediate_size": 32}),
    "T5": ("T5ForConditionalGeneration", T5),
    "Whisper": ("WhisperForConditionalGeneration", WHISPER),
    "ViT": ("ViTModel", {**SMALL, "intermediate_size": 32, "image_size": 8, "patch_size": 4}),
}
NORMS = {"GPT2": "ln_", "Bert": "LayerNorm", "T5": "layer_norm", "Whisper": "layer_norm"}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    def save(kind: str, name: str, seed: int, sizes: dict[str, Any], model: str) -> Path:
        config_class = getattr(transformers, f"{kind}Config")
        torch.manual_seed(seed)
        config = config_class(**sizes, **(TOKENS if kind != "ViT" else {}))
        getattr(transformers, model)(config).eval().save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


def loaded(folder: Path, model: str) -> Any:
    found, report = getattr(transformers, model).from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    return found.eval()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", DECODERS)
def test_slices_of_a_decoder_generate(kind: str, make: Callable[..., Path], tmp_path: Path) -> None:
    name = (
        "Gemma3ForCausalLM" if kind == "Gemma3Text" else "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    )
    a, b = (make(kind, folder, seed, DECODERS[kind], name) for seed, folder in enumerate("ab"))
    slices = [
        {"sources": [{"model": str(a), "layer_range": [0, 3]}]},
        {"sources": [{"model": str(b), "layer_range": [1, 4]}]},
    ]
    out = merge({"merge_method": "passthrough", "slices": slices}, tmp_path / "out", fsync=False)
    assert isinstance(out, Path)
    model = loaded(out, name)
    assert model.config.num_hidden_layers == 6
    prompt = torch.tensor([[1, 5, 9]])
    tokens = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4, do_sample=False)
    assert tokens.shape[1] > 3 and torch.isfinite(model(prompt).logits).all()


def averaged(a: Any, b: Any, weight: Callable[[str], float]) -> dict[str, torch.Tensor]:
    """The state that a linear merge should give, in float64."""
    ours, theirs = a.state_dict(), b.state_dict()
    return {
        name: (weight(name) * ours[name].double() + (1 - weight(name)) * theirs[name].double()).to(ours[name].dtype)
        if ours[name].is_floating_point()
        else ours[name]
        for name in ours
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", [*DECODERS, *OTHERS])
def test_a_filtered_merge_is_that_of_the_state_dicts(kind: str, make: Callable[..., Path], tmp_path: Path) -> None:
    if kind in DECODERS:
        model = {"Gemma3Text": "Gemma3ForCausalLM", "GPT2": "GPT2LMHeadModel"}.get(kind, f"{kind}ForCausalLM")
        sizes = DECODERS[kind]
    else:
        model, sizes = OTHERS[kind]
    a, b = (make(kind, folder, seed, sizes, model) for seed, folder in enumerate("ab"))
    norm = NORMS.get(kind, "norm")
    weights = [{"filter": norm, "value": 0.25}, {"value": 0.75}]
    rest = [{"filter": norm, "value": 0.75}, {"value": 0.25}]
    sources = [{"model": str(folder), "parameters": {"weight": w}} for folder, w in ((a, weights), (b, rest))]
    out = merge({"merge_method": "linear", "models": sources, "dtype": "float32"}, tmp_path / "out", fsync=False)
    assert isinstance(out, Path)
    found = loaded(out, model).state_dict()
    expected = averaged(loaded(a, model), loaded(b, model), lambda name: 0.25 if norm in name else 0.75)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7)
