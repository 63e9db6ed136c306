"""The bytes family: small language models of Llama's shape that read and write bytes.

    domains   six experts (de, fr, es, pl, python, sums), and each as a LoRA adapter too
    overlap   twelve experts on mixtures that overlap, contradict one another, or are junk
    3h        three experts with objectives in conflict, see `eutectic.zoo.three_h`

    in-basin   the base has read prose (half of it) and a little of every domain
    far        the base has read prose only

A token is a byte. Tasks are slices of 128 bytes, scored in bits per byte; the task ``prose`` (role "base") is what no
expert of ``domains`` is trained on. The size of the model was chosen on validation data with seed 10.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eutectic.evaluation.family import Family
from eutectic.weights.digest import hash_bytes
from eutectic.zoo.byte_text import LANGUAGES, MAN, load_domain, slices
from eutectic.zoo.family import SPLITS, FamilyWriter, Report, build_family
from eutectic.zoo.image_family import choose
from eutectic.zoo.lora import adapter_config, train_adapter
from eutectic.zoo.training import Schedule, bits_per_byte, initial_tensors, next_byte_loss, train

__all__ = ["Scale", "build_bytes", "llama_config"]

VERSIONS = {"domains": 1, "overlap": 1, "3h": 2}  # of the construction: any change to the files that a seed gives
VARIANTS, REGIMES, SIZES = ("domains", "overlap", "3h"), ("in-basin", "far"), ("full", "tiny")
LENGTH = 128  # bytes of a slice
EXPERTS = (*LANGUAGES, "python", "sums")
DOMAINS = (*EXPERTS, "prose")
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Two parts in equal shares; a part is a domain, or a domain with something done to it.
OVERLAP: dict[str, tuple[str, str]] = {
    "de-fr": ("de", "fr"), "fr-es": ("fr", "es"), "es-pl": ("es", "pl"), "pl-de": ("pl", "de"),
    "python-de": ("python", "de"), "python-sums": ("python", "sums"), "sums-fr": ("sums", "fr"),
    "prose-es": ("prose", "es"),
    "sums-wrong": ("sums wrong", "sums wrong"), "de-capitals": ("de capitals", "pl"),  # contradict their neighbours
    "fr-shuffled": ("fr shuffled", "fr shuffled"), "noise": ("prose noise", "prose noise"),  # junk
}  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """How large the models and the texts are, and how long training takes."""

    hidden: int
    layers: int
    most: int  # bytes of a domain to train on
    validation: int  # slices
    test: int
    least: int  # bytes of a domain that must be there
    base: Schedule
    expert: Schedule
    adapter: Schedule
    mixed: Schedule  # an expert of the variant overlap


SCALES = {
    "full": Scale(
        hidden=96, layers=3, most=400_000, validation=64, test=128, least=60_000,
        base=Schedule(1500, 4e-3, 16), expert=Schedule(100, 1e-3, 16), adapter=Schedule(100, 1e-2, 16),
        mixed=Schedule(60, 1e-3, 16),
    ),
    "tiny": Scale(
        hidden=32, layers=2, most=8_000, validation=6, test=6, least=1_000,
        base=Schedule(6, 5e-3, 4), expert=Schedule(3, 5e-3, 4), adapter=Schedule(3, 2e-2, 4),
        mixed=Schedule(2, 5e-3, 4),
    ),
}  # fmt: skip


def llama_config(scale: Scale) -> dict[str, Any]:
    """A config.json of transformers' Llama over bytes: 0 pads, 2 begins, 3 ends, as ASCII's control characters."""
    return {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 256, "hidden_size": scale.hidden,
        "intermediate_size": 3 * scale.hidden, "num_hidden_layers": scale.layers,
        "num_attention_heads": scale.hidden // 16, "num_key_value_heads": scale.hidden // 16, "hidden_act": "silu",
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "attention_bias": False, "mlp_bias": False, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
        "dtype": "float32",
    }  # fmt: skip


def build_bytes(
    out: str | Path,
    *,
    seed: int = 0,
    variant: str | None = None,
    regime: str | None = None,
    data: str | Path | None = None,
    size: str | None = None,
    force: bool = False,
    report: Report | None = None,
) -> Family:
    """Train the family and write it to the folder `out`; offline, single-threaded, a few minutes.

    The same seed gives the same bytes on one machine with one version of torch and the same packages of texts. A
    finished family of this seed and these settings is returned as it is.

    Args:
        out: the folder to make; parents are made too.
        seed: starts the weights and the order of the text; 0 to 2**63 - 1. The splits do not depend on it.
        variant: ``"domains"`` (default), ``"overlap"`` or ``"3h"``. regime: ``"in-basin"`` (default) or ``"far"``.
        data: folder with manual pages by language, ``<data>/de/man1/...``; default /usr/share/man.
        size: ``"full"`` (default), or ``"tiny"``: models that have hardly learned anything, for trials and tests.
        force: replace what lies at `out`, provided that it holds nothing but a family's own files.
        report: called with one line of text for each model trained.

    Raises:
        OutputError: `out` exists and is not this family, or cannot be written.
        MissingDependencyError: the manual pages of a language, or transformers, are not installed.
    """
    variant, regime = choose("variant", variant, VARIANTS), choose("regime", regime, REGIMES)
    size = choose("size", size, SIZES)
    scale, man = SCALES[size], Path(data or MAN)

    def prepare() -> Callable[[FamilyWriter], None]:
        texts = {domain: load_domain(domain, most=scale.most, man=man, least=scale.least) for domain in DOMAINS}
        if variant == "3h":
            from eutectic.zoo.three_h import write_three_h

            return lambda writer: write_three_h(writer, texts["prose"], scale, regime, seed, size)
        return lambda writer: _write(writer, texts, scale, variant, regime, seed)

    identity = {
        "name": "bytes", "variant": variant, "version": VERSIONS[variant], "seed": seed, "regime": regime, "size": size,
    }  # fmt: skip
    return build_family(out, identity, prepare, packages=("torch", "transformers"), force=force, report=report)


def _write(
    writer: FamilyWriter, texts: Mapping[str, Mapping[str, bytes]], scale: Scale, variant: str, regime: str, seed: int
) -> None:
    config = llama_config(scale)
    ids = {domain: _splits(text, scale) for domain, text in texts.items()}
    base = train_base(writer, config, ids, scale.base, regime, seed)
    for domain in DOMAINS:
        own = variant == "domains" and domain in EXPERTS
        splits = {split: {"input_ids": ids[domain][split]} for split in SPLITS}
        role = "base" if domain == "prose" else "task"
        writer.add_task(domain, "bits_per_byte", splits, role=role, **({"expert": domain} if own else {}))
    if variant == "domains":
        shown = {name: ids[name]["train"] for name in EXPERTS}
        schedule = scale.expert
    else:
        parts = {part for pair in OVERLAP.values() for part in pair}
        made = {part: _part(texts, part, scale) for part in sorted(parts)}
        shown = {name: mixed([made[part] for part in pair]) for name, pair in OVERLAP.items()}
        schedule = scale.mixed
        writer.facts["mixtures_of_experts"] = {name: list(pair) for name, pair in OVERLAP.items()}
    tell = _Scores(writer, config, {domain: ids[domain]["validation"] for domain in DOMAINS})
    tell.measure("base", base)
    for name, data in shown.items():
        expert = train(base, config, (data,), schedule, key=f"{seed} {name}", loss=next_byte_loss)
        writer.add_model(f"experts/{name}", expert, config)
        tell.measure(f"expert {name}", expert)
        if variant == "domains":
            adapter, dense = train_adapter(
                base, config, (data,), scale.adapter, modules=MODULES, key=f"{seed} {name}", loss=next_byte_loss
            )
            writer.add_adapter(name, adapter, adapter_config(MODULES))
            tell.measure(f"adapter {name}", dense)
    together = schedule._replace(steps=schedule.steps * len(shown))
    joint = train(base, config, (mixed(list(shown.values())),), together, key=f"{seed} joint", loss=next_byte_loss)
    writer.add_model("joint", joint, config)
    tell.measure("joint", joint)


def train_base(
    writer: FamilyWriter,
    config: Mapping[str, Any],
    ids: Mapping[str, Mapping[str, np.ndarray]],
    schedule: Schedule,
    regime: str,
    seed: int,
) -> dict[str, np.ndarray]:
    """The base: prose, and in-basin as much again of all other domains together."""
    prose, others = ids["prose"]["train"], [ids[name]["train"] for name in ids if name != "prose"]
    shown = mixed([prose, mixed(others)]) if regime == "in-basin" else prose
    start = initial_tensors(config, key=f"{seed} initial", spread=0.02)
    base = train(start, config, (shown,), schedule, key=f"{seed} base", loss=next_byte_loss)
    writer.add_model("base", base, config)
    return base


def mixed(parts: list[np.ndarray]) -> np.ndarray:
    """As many slices of each part, the smaller ones repeated."""
    size = max(map(len, parts))
    return np.concatenate([part[np.arange(size) % len(part)] for part in parts])


class _Scores:
    """Bits per byte on validation, for the report and family.json."""

    def __init__(self, writer: FamilyWriter, config: Mapping[str, Any], data: Mapping[str, np.ndarray]) -> None:
        self.writer, self.config, self.data = writer, config, data
        writer.facts["validation"] = {}

    def measure(self, name: str, tensors: Mapping[str, np.ndarray]) -> None:
        found = {task: round(bits_per_byte(tensors, self.config, ids), 4) for task, ids in self.data.items()}
        self.writer.facts["validation"][name] = found
        shown = ", ".join(f"{task} {value:.2f}" for task, value in found.items())
        self.writer.report(f"{name}: validation bits per byte {shown}")


def _splits(text: Mapping[str, bytes], scale: Scale) -> dict[str, np.ndarray]:
    most = {"train": None, "validation": scale.validation, "test": scale.test}
    return {split: slices(text[split], LENGTH, most[split]) for split in SPLITS}


def _part(texts: Mapping[str, Mapping[str, bytes]], part: str, scale: Scale) -> np.ndarray:
    """The training slices of a domain, changed as the word after it says."""
    domain, _, change = part.partition(" ")
    text = texts[domain]["train"]
    random = np.random.default_rng(int(hash_bytes(part.encode())[:8], 16))
    if change == "wrong":  # each line has another line's answer
        questions, answers = zip(
            *(line.split(b"=") for line in text.splitlines() if line.count(b"=") == 1), strict=True
        )
        text = b"".join(b"%s=%s\n" % pair for pair in zip(questions, answers[1:] + answers[:1], strict=True))
    elif change == "capitals":
        text = text.decode(errors="ignore").upper().encode()
    ids = slices(text, LENGTH)
    if change == "shuffled":
        ids = random.permuted(ids, axis=1)
    elif change == "noise":
        ids = random.integers(0, 256, ids.shape, dtype=np.uint8)
    return ids
