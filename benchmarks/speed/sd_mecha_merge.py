"""Drive sd-mecha through its public API: `python sd_mecha_merge.py METHOD OUT INPUT.safetensors ...`.

Runs inside sd-mecha's own environment with its defaults (float32 arithmetic, its own number of threads); only the
output type is set, to bfloat16. The base comes first for the methods that have one.
"""

import json
import sys
from pathlib import Path

import sd_mecha
import torch
from sd_mecha.extensions import merge_methods, model_configs


def layout(path: Path) -> str:
    """Register names and shapes from the header as a model configuration: sd-mecha ships none for language models."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    keys = {name: {"shape": entry["shape"], "dtype": "bfloat16"} for name, entry in header.items()}
    model_configs.register(model_configs.ModelConfigImpl(identifier="llama-hf", components={"model": keys}))
    return "llama-hf"


def recipe(method: str, models: list) -> object:
    """The nearest thing sd-mecha has to each method of the benchmark.

    The wrapper `sd_mecha.add_difference` raises AttributeError in 1.1.8 when one operand is an intermediate result,
    so the registered method of the same name is used.
    """
    add_difference = merge_methods.resolve("add_difference")
    first, *rest = models
    if method == "linear":  # an equal mean: there is no n-ary weighted mean
        return sd_mecha.n_average(*models)
    if method == "task_arithmetic":
        merged = first
        for model in rest:
            merged = add_difference(merged, sd_mecha.subtract(model, first), alpha=0.3)
        return merged
    if method == "ties":
        deltas = [sd_mecha.subtract(model, first) for model in rest]
        return add_difference(first, sd_mecha.ties_sum(*deltas, k=0.2), alpha=1.0)
    if method == "dare_ties":
        return sd_mecha.add_ties_with_dare(first, *rest, probability=0.5, seed=0)
    if method == "slerp":
        return sd_mecha.slerp(first, rest[0], alpha=0.4)
    raise SystemExit(f"sd-mecha has no {method}")


def main(method: str, out: Path, paths: list[Path]) -> None:
    out.parent.mkdir(parents=True)
    config = layout(paths[0])
    models = [sd_mecha.model(path.resolve(), config) for path in paths]
    sd_mecha.merge(recipe(method, models), output=out, output_dtype=torch.bfloat16)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), [Path(path) for path in sys.argv[3:]])
