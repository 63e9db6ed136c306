"""Bits per byte: how many bits a language model needs for each byte of a text, lower is better.

    bpb(x) = - sum_t log2 p(x_t | x_<t) / bytes(x)

Over a slice of text, from the second token on (from the first where the tokenizer puts a token in front); the bytes
are those of the tokens that are counted, so that models with different tokenizers can be compared.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from eutectic.errors import FormatError, SourceError
from eutectic.evaluation.model import Model
from eutectic.evaluation.subject import Subject, weights_of
from eutectic.evaluation.tasks.batches import ask, batches, by_length
from eutectic.evaluation.tasks.task import DataTask

if TYPE_CHECKING:
    import torch

__all__ = ["BitsPerByte"]


class BitsPerByte(DataTask, frozen=True):
    """Bits per byte over slices of text.

    A split is a text file (UTF-8), cut into slices of `slice_bytes`, or a safetensors file with bytes as
    `input_ids` [n, L].
    """

    kind: Literal["bits_per_byte"]
    slice_bytes: int = Field(1024, ge=16, le=1 << 16, description="Bytes of one sample of a text file.")

    @property
    def unit(self) -> str:
        return "bits/byte"

    @property
    def higher(self) -> bool:
        return False

    def count(self, split: str) -> int:
        return len(self._slices(split))

    def _slices(self, split: str) -> list[bytes] | np.ndarray:
        path = self.file(split)
        if path.suffix == ".safetensors":
            return self.column(split, "input_ids")
        facts = path.stat()
        return _cut(path, self.slice_bytes, facts.st_size, facts.st_mtime_ns)

    def lengths(self, model: Model, split: str, rows: np.ndarray) -> np.ndarray:
        """Tokens of each sample."""
        slices = self._slices(split)
        return np.array([len(tokens) for tokens in _encoded(model, [slices[row] for row in rows])[0]])

    def log_likelihood(self, network: torch.nn.Module, model: Model, split: str, rows: np.ndarray) -> torch.Tensor:
        """log p of the tokens of samples of one length from the second on, [n], with gradients."""
        tokens = self._tokens(model, split, rows)
        return _chosen(network(input_ids=tokens).logits[:, :-1], tokens).sum(dim=1)

    def predicted(self, network: torch.nn.Module, model: Model, split: str, rows: np.ndarray) -> torch.Tensor:
        """log p of every token at every place of samples of one length but the first, [n, L - 1, V], with gradients."""
        return network(input_ids=self._tokens(model, split, rows)).logits[:, :-1].float().log_softmax(dim=-1)

    def _tokens(self, model: Model, split: str, rows: np.ndarray) -> torch.Tensor:
        import torch

        slices = self._slices(split)
        ids = _encoded(model, [slices[row] for row in rows])[0]
        return torch.from_numpy(np.stack(ids).astype(np.int64))

    def measure(self, subject: Subject, split: str, rows: np.ndarray) -> np.ndarray:
        model = weights_of(subject, self.name)
        slices = self._slices(split)
        ids, sizes = _encoded(model, [slices[row] for row in rows])
        found = np.empty(len(rows))
        for same in by_length(np.array([len(tokens) for tokens in ids])):
            for part in batches(same, len(ids[same[0]]) * 8):
                tokens = np.stack([ids[at] for at in part]).astype(np.int64)
                found[part] = _bits(model, tokens) / [sizes[at] for at in part]
        return found


def _bits(model: Model, tokens: np.ndarray) -> np.ndarray:
    """Bits of all tokens but the first, for each row."""
    import torch

    ids = torch.from_numpy(tokens)
    logits = ask(model, lambda network: network(input_ids=ids).logits[:, :-1])
    return -_chosen(logits, ids).double().sum(dim=1).numpy() / math.log(2)


def _chosen(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """log p of each token but the first."""
    return logits.float().log_softmax(dim=-1).gather(-1, ids[:, 1:, None])[..., 0]


def _encoded(model: Model, slices: list[Any]) -> tuple[list[np.ndarray], list[int]]:
    """Token numbers of each slice, and the bytes that its tokens but the first stand for."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        ids = [np.frombuffer(bytes(piece), dtype=np.uint8) if isinstance(piece, bytes) else piece for piece in slices]
        return ids, [len(tokens) - 1 for tokens in ids]
    ids, sizes = [], []
    for piece in slices:
        raw = piece if isinstance(piece, bytes) else bytes(piece.astype(np.uint8))
        text = raw.decode("utf-8", "replace")
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        start = tokenizer.bos_token_id
        first = [] if start is not None or not tokens else tokens[:1]
        skipped = len(tokenizer.decode(first).encode()) if first else 0
        tokens = np.array([*([start] if start is not None else []), *tokens])
        if len(tokens) < 2:
            raise SourceError(f"{model.label}: its tokenizer makes fewer than two tokens of {text[:40]!r}")
        ids.append(tokens)
        sizes.append(max(1, len(raw) - skipped))
    return ids, sizes


@lru_cache(maxsize=32)
def _cut(path: Path, size: int, _size: int, _modified: int) -> list[bytes]:
    """Slices of at most `size` bytes that end at whole characters; a last one of under half of that is left out."""
    raw = path.read_bytes()
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8 at byte {error.start}; convert it first") from None
    found, at = [], 0
    while at < len(raw):
        to = min(len(raw), at + size)
        while to < len(raw) and raw[to] & 0xC0 == 0x80:  # inside a character
            to -= 1
        found.append(raw[at:to])
        at = to
    return found[:-1] if len(found) > 1 and len(found[-1]) < size // 2 else found
