"""Bits per byte against the model's own loss, for bytes and for tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from eutectic.evaluation.evaluator import evaluate
from eutectic.evaluation.scores import Failure, Scores
from eutectic.evaluation.tasks.bits_per_byte import BitsPerByte
from eutectic.weights.safetensors import write_safetensors


def measured(model: Path, data: Path, **settings: Any) -> Scores:
    task = {"name": "t", "kind": "bits_per_byte", "data": {"test": str(data)}, **settings}
    found = evaluate(model, {"tasks": [task]})["t"]
    assert isinstance(found, Scores), found
    return found


def test_bytes_against_the_models_own_loss(byte_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = byte_model()
    ids = np.random.default_rng(0).integers(0, 256, (7, 50)).astype(np.uint8)
    write_safetensors(tmp_path / "d.safetensors", {"input_ids": ids})
    found = measured(folder, tmp_path / "d.safetensors")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).double()
    for row, bits in zip(ids, found.samples, strict=True):
        tokens = torch.tensor(row[None].astype(np.int64))
        assert bits == pytest.approx(float(model(tokens, labels=tokens).loss.detach()) / math.log(2), rel=1e-5)


def test_a_text_file_is_cut_at_characters(byte_model: Callable[..., Path], tmp_path: Path) -> None:
    text = "Schöne Grüße aus München – naïve café. " * 20
    (tmp_path / "t.txt").write_text(text, encoding="utf-8")
    found = measured(byte_model(), tmp_path / "t.txt", slice_bytes=64)
    task = BitsPerByte(name="t", kind="bits_per_byte", data={"test": str(tmp_path / "t.txt")}, slice_bytes=64)
    slices = task._slices("test")
    assert found.n == len(slices) and all(32 <= len(bytes(piece)) <= 64 for piece in slices)
    joined = b"".join(bytes(piece) for piece in slices)
    assert text.encode().startswith(joined) and all(bytes(piece).decode() for piece in slices)


def test_tokens_are_counted_in_bytes(token_model: Path, tmp_path: Path) -> None:
    text = "the cat sat on the mat . " * 40
    (tmp_path / "t.txt").write_text(text)
    found = measured(token_model, tmp_path / "t.txt", slice_bytes=200)
    tokenizer = transformers.AutoTokenizer.from_pretrained(token_model)
    model = transformers.AutoModelForCausalLM.from_pretrained(token_model).double()
    piece = text.encode()[:200].decode()
    ids = torch.tensor([[0, *tokenizer(piece, add_special_tokens=False)["input_ids"]]])
    nats = float(model(ids, labels=ids).loss.detach()) * (ids.shape[1] - 1)
    assert found.samples[0] == pytest.approx(nats / math.log(2) / 200, rel=1e-5)


def test_bad_text(byte_model: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"fine \xff\xfe")
    task = {"name": "t", "kind": "bits_per_byte", "data": {"test": str(tmp_path / "t.txt")}}
    found = evaluate(byte_model(), {"tasks": [task]})["t"]
    assert isinstance(found, Failure) and "not UTF-8 at byte 5" in found.reason
