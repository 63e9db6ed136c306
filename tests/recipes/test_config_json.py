"""config.json: the type, the depth, lists per layer, towers; refused where no key says the depth."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from eutectic.errors import SourceError
from eutectic.recipes.binding import Renumbered
from eutectic.recipes.config_json import edited


def test_the_type_is_written_under_the_key_that_is_there() -> None:
    assert edited({"torch_dtype": "float32"}, "bfloat16", []) == {"torch_dtype": "bfloat16"}
    assert edited({}, "bfloat16", []) == {"dtype": "bfloat16"}
    both = {"dtype": "float32", "torch_dtype": "float32"}
    assert edited(both, "float16", []) == dict.fromkeys(both, "float16")
    towers = {"text_config": {"torch_dtype": "float32"}, "vision_config": {}, "dtype": "float32"}
    expected = {"text_config": {"torch_dtype": "float16"}, "vision_config": {}, "dtype": "float16"}
    assert edited(towers, "float16", []) == expected and towers["dtype"] == "float32"
    unet = {"_class_name": "UNet2DConditionModel"}
    assert edited(unet, "float16", []) == unet


@pytest.mark.parametrize(
    ("config", "stack", "expected"),
    [
        ({"num_hidden_layers": 3, "mlp_only_layers": [0, 2]}, "model.layers.",
         {"num_hidden_layers": 4, "mlp_only_layers": [1, 2, 3]}),
        ({"n_layer": 3, "layer_types": ["x", "y", "z"]}, "h.", {"n_layer": 4, "layer_types": ["y", "z", "x", "z"]}),
        ({"text_config": {"num_hidden_layers": 3}}, "model.layers.", {"text_config": {"num_hidden_layers": 4}}),
        ({"encoder_layers": 3, "decoder_layers": 3}, "model.decoder.layers.",
         {"encoder_layers": 3, "decoder_layers": 4}),
        ({"num_layers": 3, "max_window_layers": 3}, "h.", {"num_layers": 4, "max_window_layers": 4}),
        ({"num_layers": 3, "max_window_layers": 1}, "h.", {"num_layers": 4, "max_window_layers": 1}),
    ],
)  # fmt: skip
def test_what_follows_the_layers(config: dict[str, Any], stack: str, expected: dict[str, Any]) -> None:
    before = copy.deepcopy(config)
    order = (1, 2, 0, 2)
    assert edited(config, None, [Renumbered(stack, 3, order)]) == expected
    assert config == before
    assert edited(config, None, [Renumbered(stack, 3, (0, 1, 2))]) == config


def test_a_depth_that_no_key_states_is_refused() -> None:
    with pytest.raises(SourceError, match=r"states nowhere that h\.\* has 3 layers"):
        edited({"n_layer": 2}, None, [Renumbered("h.", 3, (0, 1))])
