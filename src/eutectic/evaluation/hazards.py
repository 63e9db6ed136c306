"""What may go wrong when a checkpoint is merged, from headers and the small files beside them; no value is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from eutectic.errors import EutecticError
from eutectic.weights.checkpoint import PICKLE_SUFFIXES, Checkpoint, read_json
from eutectic.weights.files import Place
from eutectic.weights.quantized.scheme import READERS, scheme_of
from eutectic.weights.vocabulary import read_vocabulary

__all__ = ["Hazard", "hazards"]

_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "tok_embeddings.weight", "shared.weight",
               "embed_in.weight")  # fmt: skip
_STATISTICS = (".running_mean", ".running_var")
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class Hazard:
    """One hazard: a short `kind` for programs, a sentence, and the tensors that it is about."""

    kind: str
    message: str
    tensors: tuple[str, ...] = ()


def hazards(checkpoint: Checkpoint) -> list[Hazard]:
    """Everything found, in a fixed order.

    >>> hazards(Checkpoint({}, config={"quantization_config": {"quant_method": "gptq"}}))[0].kind
    'quantised'
    """
    folder = None
    if checkpoint.path is not None and checkpoint.path.is_dir():
        folder = checkpoint.path
    found = [*_types(checkpoint), *_names(checkpoint), *_config(checkpoint)]
    if folder is not None:
        found += [*_vocabulary(checkpoint, folder), *_generation(checkpoint, folder)]
    return found


def _types(checkpoint: Checkpoint) -> Iterator[Hazard]:
    names: dict[str, list[str]] = {}
    for name, tensor in checkpoint.items():
        names.setdefault(tensor.dtype.name, []).append(name)
    floats = {dtype: listed for dtype, listed in names.items() if checkpoint[listed[0]].dtype.floating}
    whole = tuple(name for dtype, listed in names.items() if dtype not in floats for name in listed)
    if len(floats) > 1:
        counts = ", ".join(f"{checkpoint[listed[0]].dtype} {len(listed)}" for listed in floats.values())
        rare = min(floats.values(), key=len)
        yield Hazard("mixed_types", f"floats of several types ({counts}); set `dtype` in the recipe", tuple(rare))
    if "F16" in floats:
        message = (
            "float16 ends at 65,504: a merge that adds deltas up may overflow to infinity; merge in bfloat16 or float32"
        )
        yield Hazard("overflow", message, tuple(floats["F16"]))
    small = tuple(name for dtype, listed in floats.items() if dtype.startswith("F8") for name in listed)
    coded = scheme_of(checkpoint) is not None  # then types are those of codes, and the hazard is another
    if small and not coded:
        yield Hazard("fp8", "fp8 has two or three bits of mantissa: deltas of fine-tuning are mostly lost in it", small)
    if whole and not coded:
        message = "not floating-point: such tensors are copied from the base or first source, not merged"
        yield Hazard("not_float", message, whole)


def _names(checkpoint: Checkpoint) -> Iterator[Hazard]:
    scheme = scheme_of(checkpoint)
    if scheme is not None:
        use = "read as dense, without what coding lost" if scheme.method in READERS else "a merge refuses it"
        sign = (scheme.sign,) if scheme.sign else ()
        yield Hazard("quantised", f"quantised ({scheme.words}): {use}; better merge what it was made from", sign)
    statistics = tuple(name for name in checkpoint if name.endswith(_STATISTICS))
    if statistics:
        message = "running statistics of batch norms: their mean is not the statistics of the merge; measure them again"
        yield Hazard("running_statistics", message, statistics)
    pickles = sorted({file.path.name for file in checkpoint.headers if file.path.name.endswith(PICKLE_SUFFIXES)})
    if pickles:
        yield Hazard(
            "pickle", f"{', '.join(pickles[:3])}: a pickle, read here without running its code; others may run it"
        )


def _config(checkpoint: Checkpoint) -> Iterator[Hazard]:
    config = checkpoint.config
    parts = [part for part in (config, config.get("text_config")) if isinstance(part, dict)]
    heads = tuple(name for name in checkpoint if name.endswith("lm_head.weight"))
    if heads and any(part.get("tie_word_embeddings") is True for part in parts):
        message = (
            "config.json ties the head to the embeddings, yet a head is stored: readers drop it, or read it instead"
        )
        yield Hazard("tied_head", message, heads)
    if not config and checkpoint.path is not None and checkpoint.path.is_dir():
        yield Hazard("no_config", "no config.json: the result will not load by itself")
    if config.get("auto_map"):
        yield Hazard("remote_code", "config.json names code of its own (auto_map), which loading the result runs")
    experts = next((part[key] for part in parts for key in _EXPERTS if isinstance(part.get(key), int)), 0)
    if experts > 1:
        message = f"a mixture of {experts} experts: expert n is merged with expert n, whatever each has learned"
        yield Hazard("experts", message)


def _vocabulary(checkpoint: Checkpoint, folder: Place) -> Iterator[Hazard]:
    rows: Counter[int] = Counter()
    embeddings = tuple(name for name in checkpoint if name.endswith(_EMBEDDINGS))
    for name in embeddings:
        rows[checkpoint[name].shape[0] if checkpoint[name].shape else 0] += 1
    if not embeddings:
        return
    count = max(rows)
    try:
        vocabulary = read_vocabulary(folder)
    except EutecticError as error:
        yield Hazard("tokenizer", f"the tokenizer cannot be read: {str(error).splitlines()[0]}")
        return
    if vocabulary is None:
        yield Hazard("no_tokenizer", "no tokenizer: that tokens are the same as another model's cannot be checked")
    elif vocabulary.size > count:
        message = f"the tokenizer has {vocabulary.size:,} tokens, the embeddings {count:,} rows: the last have no row"
        yield Hazard("vocabulary", message, embeddings)
    elif vocabulary.size < count:
        extra = count - vocabulary.size
        message = (
            f"{extra:,} of {count:,} embedding rows lie beyond the tokenizer's {vocabulary.size:,} tokens (padding)"
        )
        yield Hazard("vocabulary", message, embeddings)


def _generation(checkpoint: Checkpoint, folder: Place) -> Iterator[Hazard]:
    path = folder / "generation_config.json"
    if not path.is_file():
        return
    try:
        stated = read_json(path)
    except EutecticError as error:
        yield Hazard("generation_config", str(error).splitlines()[0])
        return
    for key in _IDS:
        ours, theirs = checkpoint.config.get(key), stated.get(key)
        if ours is not None and theirs is not None and _ids(ours) - _ids(theirs):
            message = f"generation_config.json has {key} {theirs}, config.json {ours}: a merge copies both files"
            yield Hazard("generation_config", message)
    if stated.get("do_sample") is False and stated.get("temperature") not in (None, 1, 1.0):
        message = "generation_config.json sets a temperature and do_sample: false; transformers refuses to save that"
        yield Hazard("generation_config", message)


def _ids(value: Any) -> set[Any]:
    return {item for item in (value if isinstance(value, list) else [value]) if isinstance(item, int)}
