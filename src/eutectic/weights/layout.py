"""`Layout`: what the names of a checkpoint mean. Rules over names, shapes and config.json; no class per model.

A name is read from its innermost part outwards. Tables hold words of public checkpoints, only where no rule derives
the meaning; what they do not know is found by its place (layers, by their numbering) and its shape.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from eutectic.weights.layers import layer_of, stacks_of

if TYPE_CHECKING:
    from eutectic.weights.checkpoint import Checkpoint

__all__ = [
    "TURNED", "Layout", "Part", "heads_of", "is_log_space", "layout_of", "repeats_embedding", "role_of", "ties_heads",
    "vocabulary_sizes", "vocabulary_tensors",
]  # fmt: skip

# Architectures (model_type) whose linear layers store [inputs, outputs], which headers do not tell.
TURNED = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")
_TIED = ("lm_head.weight", "embed_out.weight", "output.weight", "cls.predictions.decoder.weight")  # may be
_SAMPLES, _SAMPLE = 8, 1024  # places and elements read to tell a copy of the embedding from a head of its own

# Parameters whose exponential (or softplus) the network takes, and the constants of its recurrences: a small change of
# one changes every step. Last parts of names: Mamba, RWKV, Griffin, gated delta nets, S4, differential attention, CLIP.
_LOG_SPACE = {
    "A_log", "A_logs", "log_A_real", "dt_bias", "dt_proj.bias", "log_dt", "time_decay", "time_first", "time_faaaa",
    "nu_log", "theta_log", "gamma_log", "recurrent_param", "lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2",
    "logit_scale", "logit_scale_a", "logit_scale_t",
}  # fmt: skip
_STATE = {"D", "Ds"}  # of a recurrence where they stand in a layer
_BUFFERS = {"position_ids", "inv_freq", "num_batches_tracked", "running_mean", "running_var", "masked_bias", "freqs"}
_POSITIONS = {"wpe", "pos_embed", "relative_attention_bias"}
_TOKEN_EMBEDDINGS = {
    "embed_tokens", "wte", "word_embeddings", "tok_embeddings", "token_embedding", "embed_in", "shared", "tokens_embed",
    "embed_tokens_per_layer", "embeddings", "embedding", "emb",
}  # fmt: skip
_EMBEDDINGS = _TOKEN_EMBEDDINGS | {
    "token_type_embeddings", "patch_embedding", "patch_embed", "patch_embeddings", "class_embedding", "cls_token",
    "mask_token", "embed", "time_embedding", "add_embedding",
}  # fmt: skip
_TOKEN_HEADS = {"lm_head", "embed_out", "output", "predictions", "proj_out", "final_logits_bias"}
_HEADS = _TOKEN_HEADS | {"score", "classifier", "qa_outputs", "cls"}
_TOKENS = _TOKEN_EMBEDDINGS | _TOKEN_HEADS | {"decoder"}  # indexed by token, where lengths alone do not tell
_ROUTERS = {"router", "gate", "shared_expert_gate"}
_RECURRENT = {
    "linear_attn", "mamba", "mamba2", "mixer", "ssm", "rg_lru", "recurrent_block", "temporal_block", "rwkv", "time_mix",
    "delta_net", "short_conv",
}  # fmt: skip
_MLP = {
    "mlp", "feed_forward", "feedforward", "ffn", "ff", "fc1", "fc2", "gate_proj", "up_proj", "down_proj",
    "gate_up_proj", "c_fc", "DenseReluDense", "intermediate", "wi", "wi_0", "wi_1", "w1", "w2", "w3", "lin1", "lin2",
    "dense_h_to_4h", "dense_4h_to_h", "block_sparse_moe",
}  # fmt: skip
_KINDS = {
    "qkv": ("qkv_proj", "qkv", "c_attn", "query_key_value", "Wqkv", "W_pack", "in_proj_weight", "to_qkv"),
    "q": ("q_proj", "to_q", "query", "q", "wq", "q_lin"),
    "k": ("k_proj", "to_k", "key", "k", "wk", "k_lin"),
    "v": ("v_proj", "to_v", "value", "v", "wv", "v_lin"),
    "o": ("o_proj", "to_out", "out_proj", "o", "wo", "out_lin", "dense", "c_proj", "proj"),
}  # of an attention; the first of each means one wherever it stands
_KIND = {word: kind for kind, words in _KINDS.items() for word in words}
_ATTENTION_ALONE = {word for words in _KINDS.values() for word in words[:2]} | set(_KINDS["qkv"])
_ATTENTION = re.compile(r"att", re.IGNORECASE)
_NORM = re.compile(r"norm|layrnorm|(^|_)ln(\d|_|$)", re.IGNORECASE)
_PROJECTION = re.compile(r"proj|connector|aligner|merger|pooler")
_EXPERT = re.compile(r"[./]experts[./](\d+)[./]")
_NUMBER = re.compile(r"(?<![^./])\d+(?![^./])")


@dataclass(frozen=True, slots=True)
class Part:
    """What one tensor is: its role, its layer in a stack, its expert, and the axis that tokens index."""

    role: str
    stack: str | None
    layer: int | None
    expert: int | None
    vocabulary_axis: int | None


class Layout(Mapping[str, Part]):
    """The part that every tensor plays, by name; see `role_of` for the roles."""

    def __init__(self, parts: Mapping[str, Part], sizes: Mapping[str, int]) -> None:
        self._parts, self._sizes = dict(parts), dict(sizes)

    def __getitem__(self, name: str) -> Part:
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    @cached_property
    def stacks(self) -> dict[str, int]:
        """Every stack of layers with its depth."""
        return stacks_of(self)

    @cached_property
    def elements(self) -> dict[str, int]:
        """Elements by role, the largest first."""
        found: Counter[str] = Counter()
        for name, part in self.items():
            found[part.role] += self._sizes[name]
        return dict(found.most_common())

    @property
    def recognised(self) -> bool:
        """Whether the rules tell what most elements are for."""
        return 2 * self.elements.get("other", 0) <= sum(self._sizes.values())


def layout_of(checkpoint: Checkpoint) -> Layout:
    """The layout of a checkpoint, from its header and its config.json."""
    tokens = set(vocabulary_tensors(checkpoint))
    parts = {}
    for name, ref in checkpoint.items():
        layer, expert = layer_of(name), _EXPERT.search(name)
        parts[name] = Part(
            role_of(name, len(ref.shape)), None if layer is None else layer.stack,
            None if layer is None else layer.number, int(expert[1]) if expert else None, 0 if name in tokens else None,
        )  # fmt: skip
    return Layout(parts, {name: ref.numel for name, ref in checkpoint.items()})


def role_of(name: str, axes: int = 2) -> str:
    """What a tensor is for: ``embedding``, ``position``, ``head``, ``norm``, ``bias``, ``attention`` (``.q``, ``.k``,
    ``.v``, ``.o``, ``.qkv`` where the name says so), ``mlp``, ``expert``, ``router``, ``recurrent``, ``log-space``,
    ``convolution``, ``projection``, ``buffer``, or ``other``.

    >>> role_of("model.layers.3.self_attn.q_proj.weight"), role_of("transformer.h.0.attn.c_attn.weight")
    ('attention.q', 'attention.qkv')
    >>> role_of("model.layers.0.mlp.experts.gate_up_proj", 3), role_of("backbone.layers.1.mixer.A_log", 1)
    ('expert', 'log-space')
    """
    return _role(_NUMBER.sub("0", name), axes)


def is_log_space(name: str) -> bool:
    """Whether a tensor is read through an exponential or drives a recurrence: entries of it must not be dropped.

    >>> is_log_space("model.layers.0.linear_attn.A_log"), is_log_space("model.layers.0.mlp.up_proj.weight")
    (True, False)
    """
    last = name.rpartition(".")[2]
    return last in _LOG_SPACE or name.endswith(".dt_proj.bias") or (last in _STATE and layer_of(name) is not None)


@lru_cache(maxsize=4096)
def _role(name: str, axes: int) -> str:
    parts = re.split(r"[./]", name)
    if is_log_space(name):
        return "log-space"
    if parts[-1] in _BUFFERS:
        return "buffer"
    inner = [part for part in parts if part != "0"]
    if inner[-1:] and inner[-1] in ("weight", "bias", "gamma", "beta"):
        inner.pop()
    words, last = set(inner), inner[-1] if inner else ""
    if last in _POSITIONS or "position" in last:
        return "position"
    if _NORM.search(last) and axes < 2:
        return "norm"
    if last in _ROUTERS and (words & _MLP or last != "gate"):
        return "router"
    if words & {"experts", "shared_expert", "shared_experts"}:
        return "expert"
    if parts[-1] == "bias" or last.endswith("_bias"):
        return "bias"
    if layer_of(name) is None and (last.endswith("_head") or (words & _HEADS and "embeddings" not in words)):
        return "head"
    layer = layer_of(name)
    if layer is not None and axes == 2 and layer.rest in ("", ".weight"):
        return "mlp"  # a layer that is one matrix
    return _block(inner) or _rest(words, last, axes)


def _block(parts: list[str]) -> str | None:
    """Attention, MLP or recurrence: the innermost part that says so."""
    last = parts[-1] if parts else ""
    alone = last in _ATTENTION_ALONE
    for part in reversed(parts):
        if part in _RECURRENT and not (part == "mixer" and alone):  # Nemotron calls all its blocks mixers
            return "recurrent"
        if part in _MLP:
            return "mlp"
        if _ATTENTION.search(part):
            return f"attention.{_KIND[last]}" if last in _KIND else "attention"
    if alone:
        return f"attention.{_KIND[last]}"
    return "mlp" if last == "dense" and "output" in parts else None  # BERT


def _rest(words: set[str], last: str, axes: int) -> str:
    if words & _EMBEDDINGS:
        return "embedding"
    if axes > 2 or "conv" in last:
        return "convolution"
    return "projection" if any(_PROJECTION.search(word) for word in words) else "other"


# ---------------------------------------------------------------- tokens


def ties_heads(config: Mapping[str, Any]) -> bool | None:
    """What config.json says about tied embeddings, at the top or for the text part; None where it does not say."""
    for part in (config, config.get("text_config")):
        if isinstance(part, Mapping) and isinstance(part.get("tie_word_embeddings"), bool):
            return part["tie_word_embeddings"]
    return None


def heads_of(names: Iterable[str]) -> list[str]:
    """The output heads that may be tied to an embedding, which is then stored alone.

    >>> heads_of(["model.embed_tokens.weight", "language_model.lm_head.weight", "h.0.output.weight"])
    ['language_model.lm_head.weight']
    """
    return [name for name in names if f".{name}".endswith(tuple(f".{head}" for head in _TIED)) and not layer_of(name)]


def repeats_embedding(checkpoint: Checkpoint, head: str) -> bool:
    """Whether a stored head is a copy of the embedding, by a few places of both."""
    mine = checkpoint[head]
    for name, ref in checkpoint.items():
        if name != head and (ref.shape, ref.dtype) == (mine.shape, mine.dtype) and layer_of(name) is None:
            step = max(_SAMPLE, mine.numel // _SAMPLES)
            places = [(at, min(at + _SAMPLE, mine.numel)) for at in range(0, mine.numel, step)]
            if all(ref.read(*place) == mine.read(*place) for place in places):
                return True
    return False


def vocabulary_sizes(config: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], int]]:
    """Where config.json states a number of embeddings, nested configurations included, and that number.

    >>> list(vocabulary_sizes({"vocab_size": 8, "text_config": {"vocab_size": 9}}))
    [(('vocab_size',), 8), (('text_config', 'vocab_size'), 9)]
    """
    for key, value in config.items():
        if key.startswith("vocab_size") and isinstance(value, int) and not isinstance(value, bool):
            yield (key,), value
        elif isinstance(value, Mapping) and (key == "text_config" or key == "decoder"):
            yield from (((key, *path), size) for path, size in vocabulary_sizes(value))


def vocabulary_tensors(checkpoint: Checkpoint) -> list[str]:
    """Names of the tensors whose first axis is indexed by token.

    They lie outside the layers and are as long as config.json's vocab_size; where layers have that length, too,
    familiar names decide.
    """
    sizes = {size for _, size in vocabulary_sizes(checkpoint.config)}
    inside = {length for name, ref in checkpoint.items() if layer_of(name) for length in ref.shape}
    return [
        name
        for name, ref in checkpoint.items()
        if ref.shape and ref.shape[0] in sizes and layer_of(name) is None
        and (ref.shape[0] not in inside or _TOKENS & set(name.split(".")))
        and "position" not in name and "wpe" not in name.split(".")
    ]  # fmt: skip
