"""Run recipes of every shape through Eutectic and mergekit 0.1.5, and compare the two folders.

    python benchmarks/parity/recipes.py [--report]

Tiny float32 Llamas; mergekit runs in its own environment (benchmarks/speed/peers.py makes it), as its users run it. The
difference of an entry is divided by the largest magnitude of its tensor.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import BpeTrainer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import eutectic

BENCHMARKS = Path(__file__).resolve().parent.parent
WORK = BENCHMARKS / ".work" / "parity-recipes"
PEER = BENCHMARKS / ".work" / "venv-mergekit" / "bin" / "mergekit-yaml"
TOLERANCE = 1e-6
LAYERS = 6
WORDS, OTHER, THIRD = (
    str(WORK / name) for name in ("words", "other", "third")
)  # mergekit looks bare names up in the hub
TEXTS = {
    "words": "low lower lowest slow slower",
    "other": "new newer newest wide wider",
    "third": "news widest low show",
}
FILTERS = [{"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]}, {"filter": "mlp", "value": [1, 0.5, 0]}]


def source(model: str, first: int = 0, stop: int = LAYERS, **parameters: Any) -> dict[str, Any]:
    given = {"parameters": parameters} if parameters else {}
    return {"model": model, "layer_range": [first, stop], **given}


def whole(model: str, **parameters: Any) -> dict[str, Any]:
    return {"model": model, **({"parameters": parameters} if parameters else {})}


def recipes() -> dict[str, dict[str, Any]]:
    """The shapes of mergekit's documented recipes, over our own models."""
    both = [source("a"), source("b")]
    return {
        "frankenmerge": {
            "merge_method": "passthrough",
            "slices": [{"sources": [source("a", 0, 4)]}, {"sources": [source("b", 2, 6)]}],
        },
        "repeated layers, scaled": {
            "merge_method": "passthrough",
            "slices": [
                {"sources": [source("a", 0, 4)]},
                {"sources": [source("a", 2, 4, scale=[{"filter": "o_proj", "value": 0.5}, {"value": 1}])]},
                {"sources": [source("a", 4, 6)]},
            ],
        },
        "slerp, gradients by filter": {
            "merge_method": "slerp", "slices": [{"sources": both}], "base_model": "a",
            "parameters": {"t": [*FILTERS, {"value": 0.5}]},
        },
        "linear, a gradient of weights": {
            "merge_method": "linear", "models": [whole("a", weight=[1, 0.2]), whole("b", weight=[0.1, 0.5, 1])],
        },
        "linear, slices of other layers": {
            "merge_method": "linear",
            "slices": [
                {"sources": [source("a", 0, 3, weight=0.4), source("b", 3, 6, weight=[0.2, 0.9])]},
                {"sources": [source("a", 5, 6), source("b", 0, 1)], "parameters": {"weight": [0.1, 0.7]}},
            ],
            "parameters": {"weight": 1},
        },
        "ties, a gradient of densities": {
            "merge_method": "ties", "base_model": "base",
            "models": [whole("base"), whole("a", density=[1, 0.7, 0.1], weight=1), whole("b", density=0.5, weight=[
                0, 0.3, 0.7, 1])],
            "parameters": {"normalize": True},
        },
        "ties, filters that fall through": {
            "merge_method": "ties", "base_model": "base",
            "models": [whole("a", weight=[{"filter": "mlp", "value": 0.5}]), whole("b", density=1)],
            "parameters": {"weight": [{"filter": "norm", "value": 0.1}, {"value": 0.8}], "density": 0.6},
        },
        "task_arithmetic, slices with the base": {
            "merge_method": "task_arithmetic", "base_model": "base",
            "slices": [
                {"sources": [source("base", *r), source("a", *r, weight=0.3), source("b", *r)],
                 "parameters": {"weight": w}}
                for r, w in (((0, 2), 0.9), ((2, 6), [0.2, 0.5]))
            ],
        },
        "modules": {
            "merge_method": "linear", "modules": {"default": {"slices": [{"sources": both}]}},
            "parameters": {"weight": [0.3, 0.6]},
        },
        "model_stock": {"merge_method": "model_stock", "base_model": "base", "models": [whole("a"), whole("b")]},
        "breadcrumbs, gradients": {
            "merge_method": "breadcrumbs", "base_model": "base",
            "models": [whole("a", density=[0.4, 0.9]), whole("b", density=0.7, gamma=0.02)],
            "parameters": {"weight": 0.6, "gamma": 0.01},
        },
        "tokens, union": {
            "merge_method": "linear", "models": [whole(WORDS, weight=0.4), whole(OTHER, weight=0.6)],
            "tokenizer_source": "union",
        },
        "tokens, union, ties with a base": {
            "merge_method": "ties", "base_model": WORDS,
            "models": [whole(OTHER, weight=0.5, density=0.5), whole(THIRD, weight=0.7, density=0.8)],
            "tokenizer": {"source": "union", "pad_to_multiple_of": 16},
        },
        "tokens of the base": {
            "merge_method": "task_arithmetic", "base_model": WORDS,
            "models": [whole(OTHER, weight=0.5), whole(THIRD, weight=0.3)], "tokenizer_source": "base",
        },
        "tokens of one model": {
            "merge_method": "slerp", "base_model": WORDS, "models": [whole(WORDS), whole(OTHER)],
            "parameters": {"t": 0.3}, "tokenizer": {"source": OTHER},
        },
        "tokens, one by one": {
            "merge_method": "linear", "models": [whole(WORDS, weight=0.4), whole(OTHER, weight=0.6)],
            "tokenizer": {
                "source": "union", "pad_to_multiple_of": 8,
                "tokens": {
                    "<words>": {"source": {"kind": "model_token", "model": OTHER, "token": "<other>"}},
                    "</s>": {"source": OTHER, "force": True},
                    "<new>": {"source": {"kind": "model_token", "model": WORDS, "token_id": 3}},
                    "<empty>": {"source": {"kind": "zero"}},
                },
            },
        },
        "adapter": {
            "merge_method": "task_arithmetic", "base_model": "base",
            "models": [whole("base+lora", weight=0.7), whole("a", weight=0.4)],
        },
    }  # fmt: skip


def make_models() -> None:
    from peft import LoraConfig, get_peft_model

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    for seed, name in enumerate(("base", "a", "b")):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes))
        model.save_pretrained(WORK / name)
    for seed, (name, text) in enumerate(TEXTS.items(), 10):
        tokens = make_tokenizer(f"<{name}>", text)
        torch.manual_seed(seed)
        LlamaForCausalLM(LlamaConfig(vocab_size=len(tokens), **sizes)).save_pretrained(WORK / name)
        tokens.save_pretrained(WORK / name)
    adapted = get_peft_model(
        LlamaForCausalLM.from_pretrained(WORK / "base"), LoraConfig(r=4, target_modules=["q_proj"])
    )
    for name, value in adapted.named_parameters():
        if "lora_" in name:
            value.data += 0.02 * torch.randn_like(value)
    adapted.save_pretrained(WORK / "lora")


def make_tokenizer(added: str, text: str) -> PreTrainedTokenizerFast:
    """A BPE tokenizer of the words of a text, with one token added."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.train_from_iterator([text] * 4, BpeTrainer(vocab_size=60, special_tokens=["<s>", "</s>"]))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.add_tokens([added], special_tokens=True)
    return fast


def by_token(theirs: dict[str, torch.Tensor], folder: Path) -> dict[str, torch.Tensor]:
    """mergekit's embeddings in our order of tokens: theirs varies from run to run where tokens are appended."""
    ids = [json.loads((folder / side / "tokenizer.json").read_text()) for side in ("ours", "theirs")]
    ours, other = ({**d["model"]["vocab"], **{t["content"]: t["id"] for t in d["added_tokens"]}} for d in ids)
    if ours.keys() != other.keys():
        sys.exit(f"different tokens: {sorted(ours.keys() ^ other.keys())}")
    table = dict(theirs)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        table[name] = theirs[name].clone()
        for token, row in ours.items():
            table[name][row] = theirs[name][other[token]]
    return table


def compare(name: str, recipe: dict[str, Any]) -> str:
    """One row of the report."""
    folder = WORK / "out"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = WORK / "recipe.yaml"
    path.write_text(yaml.safe_dump({**recipe, "dtype": "float32"}, sort_keys=False))
    eutectic.merge(path, folder / "ours", fsync=False)
    command = [PEER, path.name, folder / "theirs", "--quiet", "--lora-merge-cache", folder / "cache"]
    done = subprocess.run(command, cwd=WORK, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if not (folder / "theirs" / "config.json").is_file():
        return f"| {name} | mergekit refuses: {done.stderr.strip().splitlines()[-1][:120]} | | |"
    theirs: dict[str, torch.Tensor] = {}
    for file in (folder / "theirs").glob("*.safetensors"):
        theirs |= load_file(file)
    ours = load_file(folder / "ours" / "model.safetensors")
    if name.startswith("tokens"):
        theirs = by_token(theirs, folder)
    configs = [json.loads((folder / side / "config.json").read_text()) for side in ("ours", "theirs")]
    layers = all(configs[0][key] == configs[1][key] for key in ("num_hidden_layers", "vocab_size"))
    if ours.keys() != theirs.keys() or not layers:
        return f"| {name} | {len(ours)} against {len(theirs)} tensors | | **differs** |"
    worst = max(float((ours[n] - theirs[n]).abs().max() / theirs[n].abs().max().clamp_min(1e-30)) for n in ours)
    return f"| {name} | {len(ours)} | {worst:.1e} | {'equal' if worst <= TOLERANCE else '**differs**'} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare recipes of every shape with mergekit.")
    parser.add_argument("--report", action="store_true", help="write benchmarks/reports/parity-recipes_<date>.md")
    arguments = parser.parse_args()
    if not PEER.exists():
        sys.exit("mergekit is not installed: python benchmarks/speed/peers.py mergekit")
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    make_models()
    os.chdir(WORK)
    rows = [compare(name, recipe) for name, recipe in recipes().items()]
    lines = [
        f"# Recipes against mergekit 0.1.5, {datetime.date.today()}", "",
        "`python benchmarks/parity/recipes.py --report`", "", (main.__doc__ or __doc__ or "").split("\n\n")[2].strip(),
        "", "| recipe | tensors | worst relative difference | |", "|---|---:|---:|---|", *rows, "",
    ]  # fmt: skip
    print("\n".join(lines))
    if arguments.report:
        out = BENCHMARKS / "reports" / f"parity-recipes_{datetime.date.today()}.md"
        out.write_text("\n".join(lines))
    if any("differs" in row for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
