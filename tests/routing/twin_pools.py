"""Twin pools made by hand, file by file, and the small networks that are in them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eutectic.pools.manifest import Core, Expert, Manifest, Stored, expert_file
from eutectic.pools.pool import Pool, open_pool
from eutectic.pools.scheme import Span
from eutectic.pools.twin import TWIN, shared_expert
from eutectic.weights.checkpoint import open_checkpoint
from eutectic.weights.digest import hash_file
from eutectic.weights.files import SourceFile
from eutectic.weights.safetensors import write_safetensors
from eutectic.weights.statistics_folder import identity_of

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
BYTES = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 256, **SMALL,
    "tie_word_embeddings": True,
}  # fmt: skip
ENCODER = {"model_type": "bert", "architectures": ["BertModel"], "vocab_size": 40, **SMALL}


def pack_by_hand(base: Path, experts: Mapping[str, Path], out: Path, **given: Any) -> Pool:
    """A Twin pool, as the packer writes it."""
    settings = {name: parameter.default for name, parameter in TWIN.parameters.items()} | given
    origin, opened = open_checkpoint(base), {name: open_checkpoint(path) for name, path in experts.items()}
    (out / "experts").mkdir(parents=True)
    core: dict[str, np.ndarray] = {}
    own: dict[str, dict[str, np.ndarray]] = {name: {} for name in opened}
    for tensor, ref in origin.items():
        values = [expert[tensor].to_numpy().reshape(-1) for expert in opened.values()]
        shared = shared_expert(ref.to_numpy().reshape(-1), values, settings).astype(np.float32)
        core[tensor] = shared.reshape(ref.shape)
        if all(np.array_equal(found, shared) for found in values):
            continue
        parts = TWIN.parts(ref.shape, ref.dtype, len(values), settings)[1]
        encoded = TWIN.encode(Span(ref.shape, 0, ref.numel), shared, values, [settings] * len(values), None)[1]
        for name, arrays in zip(opened, encoded, strict=True):
            own[name] |= {f"{tensor}#{key}": a.astype(np.float32).reshape(parts[key].shape) for key, a in
                          arrays.items()}  # fmt: skip
    (out / "core").mkdir()
    shutil.copy(base / "config.json", out / "core")
    write_safetensors(out / "core" / "model.safetensors", core)
    for name, arrays in own.items():
        write_safetensors(out / expert_file(name), arrays)

    def stored(name: str) -> Stored:
        return Stored(bytes=(out / name).stat().st_size, blake3=hash_file(SourceFile(out / name)))

    manifest = Manifest(
        pool=1, eutectic="0", scheme="twin", settings=settings, shared=None, log=[],
        core=Core(source=str(base), name="base", identity=identity_of(open_checkpoint(out / "core")), stored=True),
        experts={
            name: Expert(source=str(path), name=name, identity=identity_of(opened[name]), licence=None,
                         file=stored(expert_file(name)), error=0.0)
            for name, path in experts.items()
        },
    )  # fmt: skip
    (out / "pool.json").write_text(manifest.text())
    return open_pool(out)
