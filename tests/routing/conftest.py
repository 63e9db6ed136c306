"""Twin pools of small experts: digits, an encoder with heads, and a language model of bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from twin_pools import pack_twin

from eutectic.evaluation.networks import structure
from eutectic.pools.pool import Pool
from eutectic.weights.safetensors import write_safetensors
from eutectic.zoo.digits import build_digits


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits family, far from its base."""
    return build_digits(tmp_path_factory.mktemp("zoo") / "digits", regime="far").path


@pytest.fixture(scope="session")
def digits_experts(digits: Path) -> dict[str, Path]:
    """Three of its experts."""
    return {name: digits / "experts" / name for name in ("flip", "shift", "invert")}


@pytest.fixture(scope="session")
def digits_suite(digits: Path) -> dict[str, Any]:
    """Their tasks and the base's, with absolute paths."""
    suite = json.loads((digits / "suite.json").read_text())
    for task in suite["tasks"]:
        task["data"] = {split: str(digits / place) for split, place in task["data"].items()}
    suite["tasks"] = [task for task in suite["tasks"] if task["name"] in ("flip", "shift", "invert", "general")]
    return suite


@pytest.fixture
def digits_pool(digits: Path, digits_experts: dict[str, Path], tmp_path: Path) -> Pool:
    """A Twin pool of the three."""
    return pack_twin(digits / "base", digits_experts, tmp_path / "pool")


@pytest.fixture
def random_pool(tmp_path: Path) -> Callable[..., Pool]:
    """``random_pool(config)``: two experts near a random base."""

    def make(config: Mapping[str, Any]) -> Pool:
        random = np.random.default_rng(0)
        shapes = {name: tuple(slot.shape) for name, slot in structure(config).named_parameters()}
        if config.get("tie_word_embeddings"):
            shapes.pop("lm_head.weight", None)
        tensors = {name: (0.4 * random.standard_normal(shape)).astype("f4") for name, shape in shapes.items()}
        places = {}
        for place in ("base", "left", "right"):
            places[place] = tmp_path / place
            places[place].mkdir()
            moved = {n: t + (place != "base") * 0.2 * random.standard_normal(t.shape).astype("f4") for n, t in
                     tensors.items()}  # fmt: skip
            write_safetensors(places[place] / "model.safetensors", moved)
            (places[place] / "config.json").write_text(json.dumps(config))
        return pack_twin(places.pop("base"), places, tmp_path / "pool")

    return make


@pytest.fixture
def bytes_suite(tmp_path: Path) -> dict[str, Any]:
    """Texts of two alphabets, and questions in one of them."""
    random, tasks = np.random.default_rng(1), []
    for name, letters in (("left", range(97, 105)), ("right", range(110, 118))):
        data = {}
        for split, count in (("train", 40), ("validation", 12), ("test", 8)):
            data[split] = str(tmp_path / f"{name}.{split}.safetensors")
            ids = random.choice(np.array(letters, dtype=np.uint8), (count, 24))
            write_safetensors(Path(data[split]), {"input_ids": ids})
        tasks.append({"name": name, "kind": "bits_per_byte", "data": data, "expert": name})
    lines = [json.dumps({"prompt": f"{'abcdefgh'[at:]}:", "answer": "a"}) for at in range(6)]
    (tmp_path / "asked.jsonl").write_text("\n".join(lines))
    asked = {split: str(tmp_path / "asked.jsonl") for split in ("train", "validation", "test")}
    tasks.append({"name": "asked", "kind": "generation", "data": asked, "expert": "left", "most_tokens": 5})
    return {"name": "letters", "tasks": tasks}


@pytest.fixture
def headed_suite(tmp_path: Path) -> dict[str, Any]:
    """Two tasks of an encoder, each with a head of its own, of different sizes."""
    random, tasks = np.random.default_rng(2), []
    for name, classes, first in (("left", 3, 0), ("right", 2, 20)):
        head = tmp_path / f"{name}.head.safetensors"
        weight, bias = random.standard_normal((classes, 16)), random.standard_normal(classes)
        write_safetensors(head, {"weight": weight.astype("f4"), "bias": bias.astype("f4")})
        data = {}
        for split, count in (("train", 40), ("validation", 12), ("test", 8)):
            data[split] = str(tmp_path / f"{name}.{split}.safetensors")
            lengths = random.integers(2, 9, (count, 1))
            write_safetensors(Path(data[split]), {
                "input_ids": random.integers(first, first + 20, (count, 8)),
                "attention_mask": (np.arange(8) < lengths).astype(np.uint8),
                "labels": random.integers(0, classes, count),
            })  # fmt: skip
        tasks.append({
            "name": name, "kind": "classification", "data": data, "expert": name, "head": str(head),
            "labels": [f"{name} {at}" for at in range(classes)],
        })  # fmt: skip
    return {"name": "headed", "tasks": tasks}
