"""Retrieval, and classification by a head on an encoder, against numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers

from eutectic.evaluation.evaluator import evaluate
from eutectic.evaluation.scores import Failure, Scores
from eutectic.weights.safetensors import write_safetensors


def embeddings(folder: Path, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    model = transformers.AutoModel.from_pretrained(folder).double()
    with torch.no_grad():
        states = model(torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state.numpy()
    return (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)


def tokens(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    mask = (np.arange(12) < random.integers(3, 13, (n, 1))).astype(np.int64)
    return random.integers(0, 40, (n, 12)) * mask, mask


def test_retrieval(encoder: Path, tmp_path: Path) -> None:
    (queries, query_mask), (documents, document_mask) = tokens(9, 0), tokens(20, 1)
    relevant = np.arange(9)
    data = {"queries": queries, "queries_mask": query_mask, "documents": documents, "documents_mask": document_mask}
    write_safetensors(tmp_path / "d.safetensors", {**data, "relevant": relevant})
    task = {"name": "t", "kind": "retrieval", "data": {"test": str(tmp_path / "d.safetensors")}}
    found = evaluate(encoder, {"tasks": [task]})["t"]
    a, b = embeddings(encoder, queries, query_mask), embeddings(encoder, documents, document_mask)
    cosines = a @ b.T / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    ranks = 1 + (np.argsort(-cosines, axis=1) == relevant[:, None]).argmax(axis=1)
    assert isinstance(found, Scores) and np.allclose(found.samples, 1 / ranks)
    write_safetensors(tmp_path / "d.safetensors", {**data, "relevant": relevant + 15})
    found = evaluate(encoder, {"tasks": [task]})["t"]
    assert isinstance(found, Failure) and "documents that are not there (0 to 19)" in found.reason


def test_a_head_on_an_encoder(encoder: Path, tmp_path: Path) -> None:
    ids, mask = tokens(15, 3)
    random = np.random.default_rng(4)
    weight, bias = random.standard_normal((3, 16)).astype("f4"), random.standard_normal(3).astype("f4")
    labels = random.integers(0, 3, 15)
    write_safetensors(tmp_path / "head.safetensors", {"weight": weight, "bias": bias})
    write_safetensors(tmp_path / "d.safetensors", {"input_ids": ids, "attention_mask": mask, "labels": labels})
    task = {
        "name": "t", "kind": "classification", "data": {"test": str(tmp_path / "d.safetensors")},
        "head": str(tmp_path / "head.safetensors"), "labels": ["for", "readers", "only"],
    }  # fmt: skip
    found = evaluate(encoder, {"tasks": [task]})["t"]
    expected = (embeddings(encoder, ids, mask) @ weight.T + bias).argmax(axis=1) == labels
    assert isinstance(found, Scores) and found.samples.tolist() == expected.astype(float).tolist()
