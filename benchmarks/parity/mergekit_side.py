"""Run every case in mergekit's own environment: python mergekit_side.py FOLDER (inputs.safetensors in, theirs out).

Random masks come from our words: `torch.bernoulli(p)` becomes `word / 2^32 < p`, word by word of each source.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from cases import DRAWS, SOURCES, WEIGHTS, cases, random_cases
from mergekit.merge_methods.api import merge_tensors
from safetensors.torch import load_file, save_file


def main() -> None:
    """All cases, one output file."""
    folder = Path(sys.argv[1])
    inputs = load_file(folder / "inputs.safetensors")
    merged = {}
    for case in cases():
        for shape in case.shapes:
            merged[f"{case.name}/{shape}"] = one(case, shape, inputs).contiguous()
    for case in random_cases():
        for shape in case.shapes:
            torch.manual_seed(0)
            drawn = torch.stack([one(case, shape, inputs, inject=False) for _ in range(DRAWS)]).double()
            merged[f"mean {case.name}/{shape}"], merged[f"variance {case.name}/{shape}"] = drawn.mean(0), drawn.var(0)
    save_file(merged, folder / "theirs.safetensors")


def one(case, shape: str, inputs: dict[str, torch.Tensor], *, inject: bool = True) -> torch.Tensor:
    """One case on one tensor, with our random words or with its own."""
    names = [*(["base"] if case.base else []), *SOURCES[: case.sources]]
    parameters = dict(case.parameters)
    if case.weighted:
        parameters["weight"] = {name: WEIGHTS[name] for name in SOURCES[: case.sources]}
    words: Iterator[torch.Tensor] = iter([inputs[f"words{k}/{shape}"] for k in range(case.sources)])

    def bernoulli(p: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        uniform = next(words).double() / 2**32
        return (uniform.reshape(p.shape) < p.double()).to(p.dtype)

    real = torch.bernoulli
    torch.bernoulli = bernoulli if inject else real
    try:
        return merge_tensors(
            [inputs[f"{name}/{shape}"].double() if case.wide else inputs[f"{name}/{shape}"] for name in names],
            case.method,
            parameters=parameters,
            ids=names,
            base_index=0 if case.base or case.method == "slerp" else None,
            name=shape,
        )
    finally:
        torch.bernoulli = real


if __name__ == "__main__":
    main()
