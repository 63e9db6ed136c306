"""Experts mixed for each input of a batch, against weights that are formed for each sample, in one run.

    python benchmarks/speed/twin.py [--batch 64] [--rounds 15] [--report]

Linear layers, and networks of the zoo's shapes, with random weights and experts of rank 10%. All ways take turns in
every round, on one thread; figures are medians, and the answers of all ways are compared first.

    mixed        the product's way: grouped low-rank products, `routing/mixed_network.py`
    one by one   each sample's weights are formed, and the network runs on that sample
    at once      all samples' weights are formed, and the network runs on the batch (`torch.func.vmap`; our networks)
    whole        all experts' weights are formed beforehand and kept, T networks in memory; each runs on its samples
    shared       the network of the shared expert alone, which mixes nothing
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers
from machine import cpu_model, load, slug
from paths import REPORTS
from torch.func import functional_call, vmap

from eutectic.evaluation.networks import load_network, structure
from eutectic.routing.mixed_network import Difference, MixedNetwork

SHARE, SEED = 0.1, 0


class Case(NamedTuple):
    """A network, how many experts it has, and the shape of one sample: numbers, or tokens of a vocabulary.

    Without a configuration it is one linear layer: its inputs are the last axis of a sample, `outputs` its outputs.
    """

    name: str
    config: dict[str, Any]
    experts: int
    sample: tuple[int, ...]
    vocabulary: int = 0
    outputs: int = 0


def linear(tokens: int, inputs: int, outputs: int) -> Case:
    """A linear layer with five experts."""
    return Case(f"linear {inputs} to {outputs}, {tokens} rows a sample", {}, 5, (tokens, inputs), outputs=outputs)


def transformer(config: Any, architecture: str) -> dict[str, Any]:
    """A config.json of transformers."""
    return {**json.loads(config.to_json_string(use_diff=False)), "architectures": [architecture]}


CASES = (
    linear(1, 384, 1536),
    linear(32, 384, 1536),
    linear(128, 384, 1536),
    linear(128, 96, 288),
    Case("perceptron 64-256-256-10", {
        "model_type": "eutectic-mlp", "input_size": 64, "hidden_sizes": [256, 256], "norm": "layer", "num_labels": 10,
    }, 5, (64,)),
    Case("CNN 16-32, 28 x 28", {
        "model_type": "eutectic-cnn", "image_size": 28, "channels": [16, 32], "hidden_sizes": [64], "num_labels": 10,
    }, 8, (784,)),
    Case("BERT of MiniLM's shape, 32 tokens", transformer(transformers.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    ), "BertModel"), 5, (32,), 30522),
    Case("Llama of the bytes family's shape, 128 bytes", transformer(transformers.LlamaConfig(
        vocab_size=256, hidden_size=96, intermediate_size=288, num_hidden_layers=3, num_attention_heads=6,
        tie_word_embeddings=False,
    ), "LlamaForCausalLM"), 6, (128,), 256),
)  # fmt: skip


def slots(case: Case) -> torch.nn.Module:
    """The network without its tensors."""
    if case.config:
        return structure(case.config)
    return torch.nn.Linear(case.sample[-1], case.outputs, device="meta")


def filled(case: Case, tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
    """The network with these tensors."""
    if case.config:
        return load_network(tensors, case.config)
    layer = slots(case)
    layer.load_state_dict(tensors, assign=True)
    return layer


def made(case: Case) -> tuple[dict[str, torch.Tensor], dict[str, Difference]]:
    """Random shared weights, and differences of rank `SHARE` (vectors whole)."""
    torch.manual_seed(SEED)
    shared, parts = {}, {}
    for name, slot in slots(case).named_parameters():
        fan = math.prod(slot.shape[1:])
        shared[name] = torch.randn(slot.shape) * (fan**-0.5 if slot.ndim > 1 else 0.1) + ("norm" in name.lower())
        if slot.ndim < 2:
            parts[name] = Difference(torch.randn(case.experts, *slot.shape) * 0.03)
            continue
        rank = max(1, int(SHARE * min(slot.shape[0], fan)))
        scale = 0.3 * (rank * fan) ** -0.25
        left, right = torch.randn(case.experts, slot.shape[0], rank), torch.randn(case.experts, rank, fan)
        parts[name] = Difference(left * scale, right * scale)
    return shared, parts


def formed(shared: dict[str, torch.Tensor], parts: dict[str, Difference], gates: torch.Tensor) -> dict[str, Any]:
    """θ_s + Σ g_t v_t of one sample; of a single expert without the others' products."""
    found = {}
    taken = gates.nonzero()[:, 0].tolist()
    for name, tensor in shared.items():
        left, right = parts[name]
        total = tensor
        for at in taken:
            v = left[at] if right is None else left[at] @ right[at]
            total = torch.add(total, v.reshape(tensor.shape), alpha=float(gates[at]))
        found[name] = total
    return found


def answer(network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Logits or states, whatever the network gives first."""
    found = network(x)
    return found if isinstance(found, torch.Tensor) else found[0]


def ways(case: Case, batch: int, soft: bool) -> dict[str, Callable[[], torch.Tensor]]:
    """Every way to the same answers, and the shared network."""
    shared, parts = made(case)
    weights = torch.softmax(torch.randn(batch, case.experts), 1)
    if not soft:
        weights = torch.nn.functional.one_hot(weights.argmax(1), case.experts).float()
    x = torch.randint(0, case.vocabulary, (batch, *case.sample)) if case.vocabulary else torch.rand(batch, *case.sample)
    mixed = MixedNetwork(filled(case, shared), parts)
    plain = filled(case, shared)

    def by_mixing() -> torch.Tensor:
        found = mixed.answer(weights, x)
        return found if isinstance(found, torch.Tensor) else found[0]

    def one_by_one() -> torch.Tensor:
        rows = []
        for at in range(batch):
            found = functional_call(plain, formed(shared, parts, weights[at]), (x[at : at + 1],))
            rows.append(found if isinstance(found, torch.Tensor) else found[0])
        return torch.cat(rows)

    def at_once() -> torch.Tensor:
        every = [formed(shared, parts, row) for row in weights]
        stacked = {name: torch.stack([one[name] for one in every]) for name in shared}
        run = vmap(lambda tensors, row: functional_call(plain, tensors, (row[None],))[0])
        return run(stacked, x)

    found = {"shared": lambda: answer(plain, x), "mixed": by_mixing, "one by one": one_by_one}
    if not case.vocabulary:
        found["at once"] = at_once
    if not soft:
        eye = torch.eye(case.experts)
        whole = [filled(case, formed(shared, parts, row)) for row in eye]
        groups = [(network, weights[:, at].nonzero()[:, 0]) for at, network in enumerate(whole)]

        def by_whole() -> torch.Tensor:
            out: torch.Tensor | None = None
            for network, rows in groups:
                if len(rows):
                    part = answer(network, x[rows])
                    out = torch.empty(batch, *part.shape[1:]) if out is None else out
                    out[rows] = part
            assert out is not None
            return out

        found["whole"] = by_whole
    return found


def medians(every: dict[str, Callable[[], torch.Tensor]], rounds: int) -> tuple[dict[str, float], float]:
    """Median seconds of every way, taking turns; and the largest relative difference of answers."""
    wanted = every["one by one"]()
    apart = 0.0
    for name, way in every.items():
        if name != "shared":
            apart = max(apart, float((way() - wanted).abs().max() / wanted.abs().max()))
    spent: dict[str, list[float]] = {name: [] for name in every}
    for at in range(rounds):
        for name, way in every.items():
            if at >= SLOW and name in ("one by one", "at once"):
                continue
            begun = time.perf_counter()
            way()
            spent[name].append(time.perf_counter() - begun)
    return {name: statistics.median(times) for name, times in spent.items()}, apart


SLOW = 5  # rounds of what forms weights, which takes long


def main() -> None:
    """Measure, print, and write a report if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    begun = load()
    lines = [
        "| network | experts | gates | mixed, ms | one by one / mixed | at once / mixed | mixed / shared "
        "| mixed / whole | apart |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    with torch.inference_mode():
        for case in CASES:
            for soft in (False, True):
                found, apart = medians(ways(case, arguments.batch, soft), arguments.rounds)
                own = found["mixed"]
                ratios = [
                    f"{found[name] / own:.1f}" if name in found else "" for name in ("one by one", "at once")
                ] + [f"{own / found[name]:.2f}" if name in found else "" for name in ("shared", "whole")]  # fmt: skip
                kind = "soft" if soft else "top 1"
                lines.append(f"| {case.name} | {case.experts} | {kind} | {own * 1e3:.2f} | " + " | ".join(ratios)
                             + f" | {apart:.0e} |")  # fmt: skip
                print(lines[-1], flush=True)
    if arguments.report:
        write(arguments, begun, lines)


def write(arguments: argparse.Namespace, begun: str, lines: list[str]) -> None:
    """The report beside the others."""
    date = datetime.date.today().isoformat()
    head = [
        "# Twin-Merging at run time: experts mixed for each input", "",
        f"{cpu_model()}, {os.cpu_count()} processors, one thread, {date}, torch {torch.__version__},",
        f"transformers {transformers.__version__}; load average {begun} before and {load()} after.",
        f"`python benchmarks/speed/twin.py --batch {arguments.batch} --rounds {arguments.rounds}`: batches of "
        f"{arguments.batch}, random weights, rank {SHARE:.0%},",
        "medians of ways that take turns in one run. *One by one* and *at once* form each sample's weights; *shared*",
        "mixes nothing; *whole* keeps every expert's weights in memory, formed beforehand. *Apart* is the largest",
        "difference between the answers, as a share of the largest answer.", "",
    ]  # fmt: skip
    path = REPORTS / f"twin_{slug(cpu_model())}_{date}.md"
    path.write_text("\n".join([*head, *lines]) + "\n")
    print(f"written: {path.name}")


if __name__ == "__main__":
    main()
