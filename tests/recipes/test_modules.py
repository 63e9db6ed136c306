"""Modules: the parts of models with several towers, by the names that recipes use."""

from __future__ import annotations

import pytest

from eutectic.recipes.modules import module_of

LLAVA = ["text_decoder", "vision_tower", "multi_modal_projector"]


@pytest.mark.parametrize(
    ("name", "modules", "module"),
    [
        ("model.vision_tower.encoder.layers.0.w", LLAVA, "vision_tower"),
        ("model.multi_modal_projector.linear_1.weight", LLAVA, "multi_modal_projector"),
        ("model.language_model.layers.0.mlp.w", LLAVA, "text_decoder"),
        ("visual.merger.mlp.0.weight", LLAVA, "multi_modal_projector"),  # the innermost part
        ("visual.blocks.0.w", LLAVA, "vision_tower"),
        ("model.encoder.layers.0.w", ["encoder", "decoder"], "encoder"),
        ("proj_out.weight", ["encoder", "decoder"], "decoder"),  # what belongs to no other
        ("unet.mid.w", ["unet", "vae"], "unet"),
        ("text.w", ["unet", "vae"], None),
        ("x.w", ["vision_tower", "default"], "default"),
    ],
)
def test_modules(name: str, modules: list[str], module: str | None) -> None:
    assert module_of(name, modules) == module
    assert module_of(name, modules[::-1]) == module
