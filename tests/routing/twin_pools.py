"""Twin pools, and the small networks that are in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eutectic.pools.pool import Pool
from eutectic.recipes.pooling import pack

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
BYTES = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 256, **SMALL,
    "tie_word_embeddings": True,
}  # fmt: skip
ENCODER = {"model_type": "bert", "architectures": ["BertModel"], "vocab_size": 40, **SMALL}


def pack_twin(base: Path, experts: Mapping[str, Path], out: Path, **given: Any) -> Pool:
    """A Twin pool."""
    return pack(base, experts, out, scheme="twin", **given)
