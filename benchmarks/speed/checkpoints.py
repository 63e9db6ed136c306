"""Write synthetic checkpoint families: a base ~ N(0, 0.02) and fine-tunes = bf16(base + N(0, 0.002)).

Every block of every tensor has a random stream of its own, keyed by (seed, source, tensor, block), so the files
are the same for any number of threads, and memory stays bounded by a few blocks. A family that is there already,
made with the same parameters, is reused.

    python benchmarks/speed/checkpoints.py 0.1B [--out FOLDER] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import bfloat16
import numpy as np
import tokenizer
from paths import WORK
from shapes import FAMILIES, Family, tensors

BASE_SCALE, DELTA_SCALE = 0.02, 0.002
BLOCK = 1 << 21  # elements: a few MB of float32 a thread
RESERVE = 20 * 10**9  # bytes of disk to leave free


def family(name: str, out: Path | None = None, seed: int = 0, threads: int = 2, layers: int | None = None) -> Path:
    """Make the named family (of the first `layers` layers) unless it is there; its folder (base, ft1, ft2, ...)."""
    spec = FAMILIES[name]
    if layers is not None:
        name = f"{name}-{layers}-layers"
        spec = replace(spec, name=name, config=spec.config | {"num_hidden_layers": layers})
    folder = (out or WORK / "checkpoints") / name
    marker = folder / "family.json"
    wanted = {
        "format": 2,
        "seed": seed,
        "config": spec.config,
        "shard_bytes": spec.shard_bytes,
        "fine_tunes": spec.fine_tunes,
        "scales": [BASE_SCALE, DELTA_SCALE],
    }
    if marker.exists() and json.loads(marker.read_text()) == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _check_disk(spec, folder)
    for index in range(1 + spec.fine_tunes):
        _write_model(spec, folder / ("base" if index == 0 else f"ft{index}"), index, seed, threads)
    marker.write_text(json.dumps(wanted))
    return folder


def _check_disk(spec: Family, folder: Path) -> None:
    elements = sum(int(np.prod(shape)) for shape in tensors(spec.config).values())
    need = 2 * elements * (1 + spec.fine_tunes)
    free = shutil.disk_usage(folder).free
    if free - need < RESERVE:
        raise SystemExit(f"{spec.name} needs {need / 1e9:.1f} GB and only {free / 1e9:.1f} GB are free")


def _shards(spec: Family) -> list[list[tuple[int, str, tuple[int, ...]]]]:
    """Tensors (with their numbers) packed into shards in file order."""
    shards: list[list[tuple[int, str, tuple[int, ...]]]] = [[]]
    size = 0
    for number, (name, shape) in enumerate(tensors(spec.config).items()):
        nbytes = 2 * int(np.prod(shape))
        if shards[-1] and size + nbytes > spec.shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append((number, name, shape))
        size += nbytes
    return shards


def _write_model(spec: Family, folder: Path, source: int, seed: int, threads: int) -> None:
    folder.mkdir()
    shards = _shards(spec)
    weight_map: dict[str, str] = {}
    total = 0
    for index, shard in enumerate(shards, start=1):
        single = len(shards) == 1
        name = "model.safetensors" if single else f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        base = folder.parent / "base" / name if source else None
        total += _write_shard(folder / name, base, shard, (seed, source), threads)
        weight_map |= {tensor: name for _, tensor, _ in shard}
    if len(shards) > 1:
        index_json = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index_json))
    (folder / "config.json").write_text(json.dumps(spec.config, indent=2) + "\n")
    tokenizer.write(folder, spec.config["vocab_size"])


def _write_shard(
    path: Path, base: Path | None, shard: list[tuple[int, str, tuple[int, ...]]], key: tuple[int, int], threads: int
) -> int:
    header: dict[str, dict] = {}
    at = 0
    for _, name, shape in shard:
        end = at + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps({"__metadata__": {"format": "pt"}} | header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    prefix = len(text).to_bytes(8, "little") + text
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    origin = os.open(base, os.O_RDONLY) if base else None
    os.pwrite(target, prefix, 0)
    os.ftruncate(target, len(prefix) + at)

    def fill(block: tuple[int, int, int, int, float]) -> None:
        number, index, offset, count, mean = block
        stream = np.random.Generator(np.random.SFC64(np.random.SeedSequence((*key, number, index))))
        values = stream.standard_normal(count, dtype=np.float32)
        if origin is None:
            values *= np.float32(BASE_SCALE)
            values += np.float32(mean)
        else:
            values *= np.float32(DELTA_SCALE)
            values += bfloat16.widen(np.frombuffer(os.pread(origin, 2 * count, offset), np.uint16))
        os.pwrite(target, bfloat16.from_float32(values).tobytes(), offset)

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(fill, _blocks(shard, header, len(prefix))):
            pass
    os.close(target)
    if origin is not None:
        os.close(origin)
    return at


def _blocks(
    shard: list[tuple[int, str, tuple[int, ...]]], header: dict[str, dict], start: int
) -> Iterator[tuple[int, int, int, int, float]]:
    """(tensor number, block number, byte offset, elements, mean) of every block; norm weights lie around one."""
    for number, name, _ in shard:
        begin, end = header[name]["data_offsets"]
        elements = (end - begin) // 2
        for index, first in enumerate(range(0, elements, BLOCK)):
            count = min(BLOCK, elements - first)
            yield number, index, start + begin + 2 * first, count, 1.0 if "norm" in name else 0.0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    family(arguments.family, arguments.out, threads=arguments.threads)
    print(f"{arguments.family} is ready")
