"""Tiny models of text: a Llama over bytes, one with a tokenizer, an encoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

TINY = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip


@pytest.fixture
def byte_model(tmp_path: Path) -> Callable[..., Path]:
    """``byte_model(name, seed)``: a Llama with a vocabulary of 256 bytes."""

    def make(name: str = "bytes", seed: int = 0) -> Path:
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=256, **TINY))
        model.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture
def token_model(tmp_path: Path) -> Path:
    """A Llama with a tokenizer of words."""
    import tokenizers

    words = ["<s>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz", "the", "cat", "sat", "on", "mat", ".", "yes", "no"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    torch.manual_seed(1)
    config = transformers.LlamaConfig(vocab_size=len(words), bos_token_id=0, eos_token_id=1, pad_token_id=1, **TINY)
    folder = tmp_path / "tokens"
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A BERT of random weights."""
    torch.manual_seed(2)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=32,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """``write_lines(name, entries)``: a JSON-lines file."""

    def write(name: str, entries: list[Any]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        return path

    return write
