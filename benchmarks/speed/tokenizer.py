"""A tiny word-level tokenizer, enough for a merger to find tokenizer files beside the weights."""

from __future__ import annotations

import json
from pathlib import Path


def write(folder: Path, vocabulary: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json with `vocabulary` words."""
    special = ["<unk>", "<s>", "</s>"]
    words = special + [f"w{index}" for index in range(len(special), vocabulary)]
    added = [
        {"id": index, "content": word, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for index, word in enumerate(special)
    ]
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "<unk>"},
    }
    tokens = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer.json").write_text(json.dumps(document))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(tokens | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2)
    )
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens, indent=2))
