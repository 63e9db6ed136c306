"""Greedy decoding of prompts, in batches of equal length, so that no padding changes what a model sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from eutectic.errors import NonFiniteError
from eutectic.evaluation.tasks.batches import batches, by_length

if TYPE_CHECKING:
    import torch

__all__ = ["continue_greedily"]

NEWLINE = 10


def continue_greedily(
    networks: Sequence[torch.nn.Module], tokenizer: Any, prompts: Sequence[str], most_tokens: int
) -> list[str]:
    """The most likely continuation of each prompt, up to a line break, the end token or `most_tokens` tokens.

    Of several networks the mean of the probabilities decides. Where `tokenizer` is None a token is a byte.
    """
    import torch

    ids = [_encode(tokenizer, prompt) for prompt in prompts]
    end = None if tokenizer is None else tokenizer.eos_token_id
    found = [""] * len(prompts)
    for same in by_length(np.array([len(tokens) for tokens in ids])):
        for part in batches(same, (len(ids[same[0]]) + most_tokens) * 8):
            start = torch.tensor(np.stack([ids[at] for at in part]), dtype=torch.long)
            for at, new in zip(part, _decode(networks, start, most_tokens, end, tokenizer is None), strict=True):
                text = bytes(t for t in new if t < 256).decode("utf-8", "replace") if tokenizer is None else (
                    tokenizer.decode(new, skip_special_tokens=True)
                )  # fmt: skip
                found[at] = text.partition("\n")[0]
    return found


def _encode(tokenizer: Any, prompt: str) -> np.ndarray:
    if tokenizer is None:
        return np.frombuffer(prompt.encode(), dtype=np.uint8).astype(np.int64)
    return np.array(tokenizer(prompt)["input_ids"], dtype=np.int64)


def _decode(
    networks: Sequence[torch.nn.Module], tokens: torch.Tensor, most: int, end: int | None, is_bytes: bool
) -> list[list[int]]:
    """New tokens of each row; the cache of keys and values is the network's own."""
    import torch

    new: list[torch.Tensor] = []
    done = torch.zeros(len(tokens), dtype=torch.bool)
    past: list[Any] = [None] * len(networks)
    step = tokens
    with torch.inference_mode():
        for _ in range(most):
            answers = [
                n(input_ids=step, past_key_values=p, use_cache=True) for n, p in zip(networks, past, strict=True)
            ]
            past = [answer.past_key_values for answer in answers]
            logits = torch.stack([answer.logits[:, -1].float() for answer in answers])
            if not bool(torch.isfinite(logits).all()):
                raise NonFiniteError("the network answers with NaN or infinity; look at its weights")
            mean = torch.softmax(logits, dim=-1).mean(dim=0)
            step = mean.argmax(dim=-1, keepdim=True)
            new.append(torch.where(done[:, None], -1, step))
            stop = step[:, 0] == NEWLINE if is_bytes else step[:, 0] == (-1 if end is None else end)
            done |= stop
            if bool(done.all()):
                break
    rows = torch.cat(new, dim=1).tolist()
    return [[token for token in row if token >= 0] for row in rows]
