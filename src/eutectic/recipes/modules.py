"""Modules of a model of several parts: which of the names that recipes use a tensor belongs to."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["module_of"]

# The names that mergekit's recipes use, and the parts of tensor names that they stand for in public checkpoints;
# the innermost come first. Any other module is a part of the tensor's name itself.
_PARTS = {
    "multi_modal_projector": {"multi_modal_projector", "mm_projector", "merger", "connector", "aligner"},
    "vision_tower": {"vision_tower", "vision_model", "visual", "vision_encoder"},
    "vision_model": {"vision_model", "vision_tower"},
    "audio_tower": {"audio_tower", "audio_encoder"},
}
_REST = ("text_decoder", "default", "decoder")  # take what belongs to no other module


def module_of(name: str, modules: Sequence[str]) -> str | None:
    """The module, among those of a recipe, that a tensor belongs to; None where there is none.

    >>> module_of("visual.blocks.0.mlp.w", ["text_decoder", "vision_tower"])
    'vision_tower'
    >>> module_of("lm_head.weight", ["text_decoder", "vision_tower"]), module_of("lm_head.weight", ["encoder"])
    ('text_decoder', None)
    """
    parts = set(re.split(r"[./]", name))
    ranked = sorted(modules, key=lambda module: list(_PARTS).index(module) if module in _PARTS else len(_PARTS))
    for module in ranked:
        if parts & _PARTS.get(module, {module}):
            return module
    return next((module for module in _REST if module in modules), None)
