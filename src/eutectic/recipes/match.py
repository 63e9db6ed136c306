"""Every tensor of every source, accounted for: merged, copied, tied or refused; nothing is dropped in silence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass

from eutectic.errors import SourceError
from eutectic.recipes.binding import Binding, Renumbered
from eutectic.recipes.source_statistics import covers
from eutectic.recipes.tree import Leaf, Merge, Tree
from eutectic.recipes.vocabulary import Unified
from eutectic.weights.dtypes import DType
from eutectic.weights.keymap import Presented
from eutectic.weights.layout import heads_of, layout_of, repeats_embedding, ties_heads, vocabulary_tensors
from eutectic.weights.tensor_ref import TensorRef

__all__ = ["Account", "Step", "match_tensors"]

MOST_SHOWN = 6
_VOCABULARIES = (
    "Their vocabularies differ. 'tokenizer_source: union' in the recipe keeps every model's tokens, 'base' those of "
    "the base model; embeddings follow."
)


@dataclass(frozen=True, slots=True)
class Step:
    """One tensor of the result: `action` "merge" or "copy"; `refs` one handle per leaf (None where absent).

    `root` is its merge, with the parameters of this tensor: equal ones are one object.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    action: str
    refs: tuple[TensorRef | None, ...]
    numel: int
    root: Merge

    @property
    def merges(self) -> tuple[Merge, ...]:
        """The merges that make it, inner ones first."""
        return self.root.merges

    @property
    def nbytes(self) -> int:
        """Bytes it takes in the result."""
        return self.numel * self.dtype.size

    @property
    def kind(self) -> tuple[object, ...]:
        """What decides how it is cut and what it costs: equal for tensors that differ in name and place only."""
        codes = (None if ref is None else (ref.dtype.code, ref.work_bytes(1)) for ref in self.refs)
        return self.action, id(self.root), self.shape, self.dtype.code, *codes

    @property
    def origin(self) -> TensorRef:
        """Where a copied tensor comes from: the first leaf that has it (the reference comes first)."""
        return next(ref for ref in self.refs if ref is not None)


@dataclass(frozen=True)
class Account:
    """The steps in file order, and one line for each kind of tensor that is not simply merged."""

    steps: tuple[Step, ...]
    lines: tuple[str, ...]
    renumbered: tuple[Renumbered, ...] = ()
    unified: Unified | None = None


def match_tensors(tree: Tree, *, allow_mismatch: bool = False, unified: Unified | None = None) -> Account:
    """Match tensors by name across all leaves; the reference checkpoint decides order, names and copies.

    Where the recipe asks for one vocabulary, embeddings are those of `unified`.

    Raises:
        SourceError: shapes differ, or a tensor is missing somewhere (unless `allow_mismatch`); the message lists all
            of a kind.
    """
    reference = tree.reference
    binding = Binding(tree, unified)
    tied = _tied_heads(reference, tree.sources)
    steps: list[Step] = []
    kinds: dict[str, list[str]] = {}
    shapes: list[str] = []
    bare: list[str] = []
    tokens = True
    lacking: dict[str, str] = {}
    for name in binding.names:
        if name in tied:
            kinds.setdefault("tied", []).append(name)
            continue
        bound = binding.bound(name)
        found = [] if bound is None else bound.needed
        present = [ref for ref in found if ref is not None]
        if bound is None or not present:  # only an inner recipe's slices can lack what the outer one names
            raise SourceError(f"{name}: an inner recipe has no such tensor, the other sources do")
        origin = present[0]
        if any(ref.shape != origin.shape for ref in present):
            tokens &= unified is None and _by_token(name, tree)
            shapes.append(f"{name}: " + ", ".join(
                f"{leaf.label} {list(ref.shape)}" for leaf, ref in zip(tree.leaves, bound.refs, strict=True)
                if ref and leaf.statistics is None
            ))  # fmt: skip
            continue
        dtype, numel = tree.root.dtype or origin.native, math.prod(origin.shape)
        numbers = all(ref.dtype.floating for ref in present)
        if numbers and len(present) == len(found):
            bare += [name for merge in bound.merge.merges if not covers(merge, name, origin.shape, bound.refs)]
            steps.append(Step(name, origin.shape, dtype, "merge", bound.refs, numel, bound.merge))
            continue
        if not numbers:
            kinds.setdefault("not a float", []).append(f"{name} ({origin.dtype})")
        else:
            kinds.setdefault("unmatched", []).append(name)
            have = [leaf.label for leaf in bound.merge.leaves if bound.refs[leaf.index] is not None]
            lack = [leaf.label for leaf in bound.merge.leaves if bound.refs[leaf.index] is None]
            lacking[name] = f"{name}: in {', '.join(have)}; not in {', '.join(lack)}"
        if origin.native is not origin.dtype and allow_mismatch:
            raise SourceError(
                f"{lacking.get(name, name)}. It is calculated as it is read (codes, an adapter, rows of tokens), so it "
                "cannot be copied; give every source this tensor"
            )
        copied = tuple(ref if ref is origin else None for ref in bound.refs)
        steps.append(Step(name, origin.shape, origin.dtype, "copy", copied, numel, bound.merge))
    if shapes:
        raise SourceError(
            _listing(
                f"{_tensors(shapes)} {'differs' if len(shapes) == 1 else 'differ'} in shape between sources",
                shapes,
                _VOCABULARIES if tokens else "",
            )
        )
    unmatched = kinds.get("unmatched", [])
    if unmatched and not allow_mismatch:
        raise SourceError(_unmatched([lacking[name] for name in unmatched]))
    binding.check_filters()
    lines = [
        *_lines(steps, kinds),
        *_by_token_lines(binding.by_token),
        *([f"averaged, for there are no statistics of them: {len(bare)} ({_shown(bare)})"] if bare else []),
        *(f"statistics: {leaf.statistics} of {leaf.label}" for leaf in tree.statistics),
        *(f"dequantised as read: {leaf.label} ({leaf.dequantised})" for leaf in tree.sources if leaf.dequantised),
        *_presented(tree.sources),
        *_unknown(reference),
        *(unified.lines if unified is not None else ()),
    ]
    return Account(tuple(steps), tuple(lines), tuple(binding.renumbered), unified)


def _by_token(name: str, tree: Tree) -> bool:
    """Whether a tensor is an embedding in every source that has it."""
    return all(name in vocabulary_tensors(leaf.checkpoint) for leaf in tree.sources if name in leaf.checkpoint)


def _tied_heads(reference: Leaf, leaves: tuple[Leaf, ...]) -> set[str]:
    """Output heads that the reference ties to its embedding: it lacks them, or stores the embedding twice."""
    if not _ties(reference):
        return set()
    found: set[str] = set()
    for leaf in leaves:
        for name in heads_of(leaf.checkpoint):
            own = name in reference.checkpoint
            if own and not repeats_embedding(reference.checkpoint, name):
                continue
            if not _ties(leaf):
                raise SourceError(
                    f"{leaf.label}: has its own {name}, while {reference.label} ties the head to its embedding. "
                    "They cannot be merged: untie one or tie the other first."
                )
            found.add(name)
    return found


def _ties(leaf: Leaf) -> bool:
    return bool(ties_heads(leaf.checkpoint.config))


def _presented(leaves: tuple[Leaf, ...]) -> list[str]:
    lines = []
    for leaf in leaves:
        if isinstance(leaf.checkpoint, Presented):
            renamed, experts = leaf.checkpoint.renamed, leaf.checkpoint.experts
            what = [f"{renamed} under other names"] * bool(renamed) + [f"{experts} of experts"] * bool(experts)
            lines.append(f"{leaf.label}: tensors read in the layout of the reference model: {', '.join(what)}")
    return lines


def _unknown(reference: Leaf) -> list[str]:
    """A warning where config.json names an architecture and no rule tells what its tensors are for."""
    config = reference.checkpoint.config
    kind = config.get("model_type") or next(iter(config.get("architectures") or ()), None)
    if kind is None or layout_of(reference.checkpoint).recognised:
        return []
    return [
        f"warning: unknown architecture {kind}: no rule says what most of its tensors are for; layers are found by "
        "their numbering, the rest by name and shape"
    ]


def _unmatched(shown: list[str]) -> str:
    return _listing(
        f"{_tensors(shown)} {'is' if len(shown) == 1 else 'are'} not in every source",
        shown,
        "Are these models of one architecture? With --allow-mismatch each is copied from the reference model, "
        "or else from the first source that has it.",
    )


def _by_token_lines(found: Mapping[str, str]) -> list[str]:
    """A line for each method that merges embeddings and heads in place of the recipe's."""
    lines = []
    for method in dict.fromkeys(found.values()):
        names = [name for name, other in found.items() if other == method]
        lines.append(f"merged by {method}, for they have a row per token: {len(names)} ({_shown(names)})")
    return lines


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_SHOWN]) + (", ..." if len(names) > MOST_SHOWN else "")


def _tensors(found: Sized) -> str:
    return f"{len(found)} tensor{'s' if len(found) != 1 else ''}"


def _listing(head: str, lines: list[str], cure: str = "") -> str:
    more = [f"  ... and {len(lines) - MOST_SHOWN} more"] if len(lines) > MOST_SHOWN else []
    return "\n".join([head, *(f"  - {line}" for line in lines[:MOST_SHOWN]), *more, *([cure] if cure else [])])


def _lines(steps: list[Step], kinds: dict[str, list[str]]) -> list[str]:
    merged = [step for step in steps if step.action == "merge"]
    numbers = sum(step.numel for step in merged)
    lines = [f"merged: {_tensors(merged)}, {numbers:,} parameter{'s' if numbers != 1 else ''}"]
    reasons = {
        "whole": "not sparsified (log-space), merged by task_arithmetic",
        "not a float": "copied from the reference model: not floating-point numbers",
        "unmatched": "copied from the reference model or the first source that has it: not in every source",
        "tied": "left out: the reference model ties it to the embedding (tie_word_embeddings)",
    }
    whole = [step.name for step in merged if any(merge.instead is not None for merge in step.merges)]
    kinds = {**({"whole": whole} if whole else {}), **kinds}
    for kind, names in kinds.items():
        lines.append(f"{reasons[kind]}: {len(names)} ({_shown(names)})")
    return lines
