"""Each hazard where it is, and none where it is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eutectic.evaluation.hazards import hazards
from eutectic.weights.checkpoint import Checkpoint, open_checkpoint

Make = Callable[..., Path]
EMBED = "model.embed_tokens.weight"


def tensors(dtype: Any = np.float32, **more: np.ndarray) -> dict[str, np.ndarray]:
    return {EMBED: np.zeros((10, 4), dtype), "model.layers.0.w": np.zeros((4, 4), dtype), **more}


def tokenizer(folder: Path, size: int) -> None:
    vocabulary = {f"t{number}": number for number in range(size)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))


def kinds(folder: Path) -> list[str]:
    return [hazard.kind for hazard in hazards(open_checkpoint(folder))]


def test_a_plain_model_has_none(make_model: Make) -> None:
    folder = make_model("m", tensors(), {"model_type": "llama"})
    tokenizer(folder, 10)
    assert kinds(folder) == []


@pytest.mark.parametrize(
    ("config", "kind", "words"),
    [
        ({"tie_word_embeddings": True}, "tied_head", "yet a head is stored"),
        ({"text_config": {"tie_word_embeddings": True}}, "tied_head", "yet a head is stored"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised", "quantised (awq): read as dense"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "remote_code", "auto_map"),
        ({"num_local_experts": 8}, "experts", "a mixture of 8 experts"),
    ],
)
def test_what_config_tells(make_model: Make, config: dict[str, Any], kind: str, words: str) -> None:
    folder = make_model("m", tensors(**{"lm_head.weight": np.zeros((10, 4), np.float32)}), config)
    tokenizer(folder, 10)
    (found,) = hazards(open_checkpoint(folder))
    assert found.kind == kind and words in found.message


def test_what_names_and_types_tell(make_model: Make) -> None:
    found = tensors(
        **{
            "bn.running_mean": np.zeros(2, np.float32),
            "ids": np.zeros(2, np.int64),
        },
        half=np.zeros(2, np.float16),
    )
    checkpoint = open_checkpoint(make_model("m", found, {"model_type": "x"}))
    by_kind = {hazard.kind: hazard for hazard in hazards(checkpoint)}
    assert set(by_kind) == {"mixed_types", "overflow", "not_float", "running_statistics", "no_tokenizer"}
    assert by_kind["mixed_types"].tensors == by_kind["overflow"].tensors == ("half",)
    assert "float32 3" in by_kind["mixed_types"].message and "float16 1" in by_kind["mixed_types"].message
    assert by_kind["not_float"].tensors == ("ids",)


def test_codes_are_no_buffers(make_model: Make) -> None:
    folder = make_model("m", {"l.qweight": np.zeros((2, 2), np.int32), "l.w": np.zeros(2, np.float32)}, {"a": 1})
    (found,) = hazards(open_checkpoint(folder))
    assert (found.kind, found.tensors) == ("quantised", ("l.qweight",)) and "a merge refuses it" in found.message


def test_vocabulary(make_model: Make) -> None:
    folder = make_model("m", tensors(), {"model_type": "x"})
    assert kinds(folder) == ["no_tokenizer"]
    for size, words in (
        (7, "3 of 10 embedding rows lie beyond the tokenizer's 7 tokens"),
        (12, "the last have no row"),
    ):
        tokenizer(folder, size)
        (found,) = hazards(open_checkpoint(folder))
        assert found.kind == "vocabulary" and words in found.message and found.tensors == (EMBED,)
    (folder / "tokenizer.json").write_text("{")
    (found,) = hazards(open_checkpoint(folder))
    assert found.kind == "tokenizer" and "not valid JSON" in found.message


def test_generation_config(make_model: Make) -> None:
    folder = make_model("m", {"w": np.zeros(2, np.float32)}, {"eos_token_id": 2})
    path = folder / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [2, 3], "do_sample": True, "temperature": 0.7}))
    assert kinds(folder) == []
    path.write_text(json.dumps({"eos_token_id": 3, "do_sample": False, "temperature": 0.7}))
    messages = [hazard.message for hazard in hazards(open_checkpoint(folder))]
    assert messages[0].startswith("generation_config.json has eos_token_id 3, config.json 2") and len(messages) == 2
    path.write_text("[]")
    assert kinds(folder) == ["generation_config"]


def test_no_config_and_no_folder(make_model: Make) -> None:
    folder = make_model("m", {"w": np.zeros(2, np.float32)})
    assert kinds(folder) == ["no_config"]
    assert hazards(open_checkpoint(folder / "model.safetensors")) == []
    assert hazards(Checkpoint(open_checkpoint(folder))) == []
