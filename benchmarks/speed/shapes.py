"""Sizes of the synthetic families: configurations and the tensors that they imply."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """A base and its fine-tunes, all of one shape."""

    name: str
    config: dict
    shard_bytes: int
    fine_tunes: int = 4


def _llama(
    hidden: int, intermediate: int, layers: int, heads: int, vocabulary: int, kv_heads: int | None = None
) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads or heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 2048,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _mixture() -> dict:
    tiny = _llama(hidden=4, intermediate=4, layers=52, heads=1, vocabulary=8)
    return tiny | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "head_dim": 4,
        "moe_intermediate_size": 2,
        "num_experts": 128,
        "num_experts_per_tok": 8,
    }


FAMILIES = {
    family.name: family
    for family in (
        Family("tiny", _llama(hidden=16, intermediate=32, layers=2, heads=2, vocabulary=64), 1 << 40),
        Family("0.1B", _llama(hidden=768, intermediate=2048, layers=8, heads=12, vocabulary=32000), 1 << 40),
        Family("0.5B", _llama(hidden=1280, intermediate=3456, layers=21, heads=20, vocabulary=32000), 1 << 40),
        Family("0.5B-grouped", _llama(896, 4864, layers=24, heads=14, vocabulary=32000, kv_heads=2), 1 << 40),
        Family("2B", _llama(hidden=2048, intermediate=5632, layers=36, heads=32, vocabulary=32000), 10**9, 2),
        Family("moe", _mixture(), 1 << 17),
    )
}


def tensors(config: dict) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, in the order of the file."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    vocabulary = config["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        shapes[at + "input_layernorm.weight"] = (hidden,)
        narrow = hidden * config["num_key_value_heads"] // config["num_attention_heads"]
        for name in "qkvo":
            shapes[at + f"self_attn.{name}_proj.weight"] = (narrow if name in "kv" else hidden, hidden)
        shapes[at + "post_attention_layernorm.weight"] = (hidden,)
        experts = config.get("num_experts")
        if experts:
            shapes[at + "self_attn.q_norm.weight"] = (config["head_dim"],)
            shapes[at + "self_attn.k_norm.weight"] = (config["head_dim"],)
            shapes[at + "mlp.gate.weight"] = (experts, hidden)
            inner = config["moe_intermediate_size"]
        blocks = [f"mlp.experts.{expert}." for expert in range(experts)] if experts else ["mlp."]
        for block in blocks:
            shapes[at + block + "gate_proj.weight"] = (inner, hidden)
            shapes[at + block + "up_proj.weight"] = (inner, hidden)
            shapes[at + block + "down_proj.weight"] = (hidden, inner)
    shapes["model.norm.weight"] = (hidden,)
    shapes["lm_head.weight"] = (vocabulary, hidden)
    return shapes
