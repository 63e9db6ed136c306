"""What recipes take besides a family's models: `python benchmarks/speed/recipe_inputs.py SIZE` writes it once.

`adapter`: LoRA factors of rank 16 on every linear layer, float32 as PEFT saves them. `renumbered`: the second
fine-tune's weights (linked, not copied) with a tokenizer whose words are numbered in another order.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import checkpoints
import numpy as np
from folder import places

RANK, ALPHA, SCALE = 16, 32, 0.01
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def adapter(family: Path) -> Path:
    """Write the adapter unless it is there."""
    folder = family / "adapter"
    if (folder / "adapter_config.json").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    stream = np.random.default_rng(7)
    factors: dict[str, np.ndarray] = {}
    for name, place in places(family / "base").items():
        module = name.removesuffix(".weight")
        if module.endswith(TARGETS):
            for letter, shape in (("A", (RANK, place.shape[1])), ("B", (place.shape[0], RANK))):
                key = f"base_model.model.{module}.lora_{letter}.weight"
                factors[key] = np.float32(SCALE) * stream.standard_normal(shape, dtype=np.float32)
    header, at = {}, 0
    for key, values in factors.items():
        header[key] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [at, at + values.nbytes]}
        at += values.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values in factors.values():
            file.write(values.tobytes())
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": list(TARGETS)}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return folder


def renumbered(family: Path) -> Path:
    """Write the model with other numbers unless it is there."""
    folder, like = family / "renumbered", family / "ft2"
    if (folder / "tokenizer.json").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(like, folder, copy_function=os.link)
    document = json.loads((like / "tokenizer.json").read_text())
    special = {token["content"] for token in document["added_tokens"]}
    vocabulary = document["model"]["vocab"]
    words = [word for word in vocabulary if word not in special]
    order = np.random.default_rng(11).permutation([vocabulary[word] for word in words]).tolist()
    vocabulary.update(zip(words, order, strict=True))
    (folder / "tokenizer.json").unlink()  # a link until now
    (folder / "tokenizer.json").write_text(json.dumps(document))
    return folder


if __name__ == "__main__":
    made = checkpoints.family(sys.argv[1])
    adapter(made)
    renumbered(made)
