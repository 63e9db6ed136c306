"""`match_tensors`: merged, copied, tied or refused; which, and what is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

from eutectic.errors import SourceError
from eutectic.recipes.merge import plan
from eutectic.recipes.plan import Plan

ONE = numpy.ones(4, "f4")
EMBED = {"model.embed_tokens.weight": numpy.ones((4, 2), "f4")}
HEAD = {"lm_head.weight": numpy.ones((4, 2), "f4")}


def linear(*models: Path, method: str = "linear", base: Path | None = None, **options: Any) -> Plan:
    recipe: dict[str, Any] = {"merge_method": method, "models": [{"model": str(model)} for model in models]}
    recipe["parameters"] = {} if method == "passthrough" else {"weight": 1}
    if base is not None:
        recipe["base_model"] = str(base)
    return plan(recipe | options.pop("top", {}), **options)


def actions(made: Plan) -> dict[str, str]:
    return {step.name: step.action for step in made.steps}


def test_integers_are_copied_from_the_reference(make_model: Callable[..., Path]) -> None:
    models = [make_model(name, {"w": ONE, "ids": numpy.array([at])}) for at, name in enumerate(("m1", "m2"))]
    made = linear(*models)
    assert actions(made) == {"w": "merge", "ids": "copy"}
    assert made["ids"].to_numpy()[0] == 0
    assert linear(*reversed(models))["ids"].to_numpy()[0] == 1
    assert linear(models[0], method="ties", base=models[1])["ids"].to_numpy()[0] == 1
    assert any("ids (int64)" in line and "not floating-point" in line for line in made.account.lines)


def test_what_only_some_sources_have_is_refused_with_all_names(make_model: Callable[..., Path]) -> None:
    a = make_model("m1", {"w": ONE, **{f"a{at}": ONE for at in range(9)}})
    b = make_model("m2", {"w": ONE})
    with pytest.raises(SourceError) as caught:
        linear(a, b)
    message = str(caught.value)
    assert message.startswith("9 tensors are not in every source") and "... and 3 more" in message
    assert f"a0: in {a}; not in {b}" in message and "--allow-mismatch" in message
    made = linear(a, b, allow_mismatch=True)
    assert list(actions(made).values()).count("copy") == 9


def test_the_base_takes_part_in_the_matching(make_model: Callable[..., Path]) -> None:
    base = make_model("base", {"w": ONE, "old": ONE})
    tuned = make_model("m1", {"w": ONE, "new": ONE * 2})
    with pytest.raises(SourceError, match="2 tensors are not in every source"):
        linear(tuned, method="ties", base=base)
    made = linear(tuned, method="ties", base=base, allow_mismatch=True)
    assert actions(made) == {"w": "merge", "old": "copy", "new": "copy"}
    assert made["new"].to_numpy()[0] == 2


def test_shapes_never_bend(make_model: Callable[..., Path]) -> None:
    a = make_model("m1", {"w": ONE, "x": ONE})
    b = make_model("m2", {"w": ONE.reshape(2, 2), "x": ONE[:3].copy()})
    for allow in (False, True):
        with pytest.raises(SourceError) as caught:
            linear(a, b, allow_mismatch=allow)
        assert "2 tensors differ in shape" in str(caught.value)
        assert f"w: {a} [4], {b} [2, 2]" in str(caught.value)


def test_types_may_differ_and_the_result_takes_the_references(make_model: Callable[..., Path]) -> None:
    a, b = make_model("m1", {"w": ONE.astype("f2")}), make_model("m2", {"w": ONE * 3})
    assert str(linear(a, b)["w"].dtype) == "float16" and linear(a, b)["w"].to_numpy()[0] == 2
    assert str(linear(b, a)["w"].dtype) == "float32"
    assert str(linear(a, b, top={"dtype": "bfloat16"})["w"].dtype) == "bfloat16"
    assert str(linear(a, b, top={"dtype": "bfloat16", "out_dtype": "float64"})["w"].dtype) == "float64"


def test_one_path_written_twice_is_one_source(make_model: Callable[..., Path]) -> None:
    a, b = make_model("m1", {"w": ONE}), make_model("m2", {"w": ONE})
    made = linear(a, Path(f"{a}/"), b.parent / "." / "m2")
    assert len(made.tree.leaves) == 2


def test_a_head_that_the_reference_ties_is_left_out(make_model: Callable[..., Path]) -> None:
    tied, untied = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
    a = make_model("m1", EMBED, tied)
    b = make_model("m2", {**EMBED, **HEAD}, tied)
    made = linear(a, b)
    assert list(made) == ["model.embed_tokens.weight"]
    assert any("lm_head.weight" in line and "left out" in line for line in made.account.lines)
    assert list(linear(b, a)) == ["model.embed_tokens.weight"]  # b stores its embedding twice
    own = make_model("own", {**EMBED, "lm_head.weight": 2 * HEAD["lm_head.weight"]}, tied)
    with pytest.raises(SourceError, match="1 tensor is not in every source"):
        linear(own, a)
    assert len(linear(own, own.parent / "own" / ".." / "own", b)) == 2  # a head of its own, whatever config.json says
    c = make_model("m3", {**EMBED, **HEAD}, untied)
    with pytest.raises(SourceError, match=r"has its own lm_head\.weight, while"):
        linear(a, c)
    nested = make_model("m4", EMBED, {"text_config": tied})
    assert list(linear(nested, b)) == ["model.embed_tokens.weight"]


def test_a_quantised_checkpoint_may_be_passed_through_alone(make_model: Callable[..., Path]) -> None:
    config = {"quantization_config": {"quant_method": "awq"}}
    model = make_model("m1", {"w.qweight": numpy.ones(4, "i4"), "w.scales": ONE}, config)
    assert actions(linear(model, method="passthrough"))["w.qweight"] == "copy"
    with pytest.raises(SourceError, match="AWQ in the layout 'gemm' with bits None"):
        linear(model, model.parent / "m1" / ".." / "m1" / ".", make_model("m2", {"w": ONE}))
    with pytest.raises(SourceError, match="looks like a part of quantised weights"):
        (model / "config.json").unlink()
        linear(model, make_model("m3", {"w": ONE}))


def test_a_scale_that_is_a_parameter_is_no_sign_of_codes(make_model: Callable[..., Path]) -> None:
    """As in CLIP."""
    tensors = {"w": ONE, "logit_scale": numpy.ones((), "f4")}
    assert actions(linear(make_model("m1", tensors), make_model("m2", tensors)))["logit_scale"] == "merge"


def test_order_is_the_references(make_model: Callable[..., Path]) -> None:
    a = make_model("m1", dict.fromkeys(("z", "a", "m"), ONE))
    b = make_model("m2", dict.fromkeys(("a", "b", "m", "z"), ONE))
    first, second = linear(a, b, allow_mismatch=True), linear(b, a, allow_mismatch=True)
    assert sorted(list(first)[:3]) == ["a", "m", "z"] and list(first)[3] == "b"
    assert sorted(second) == ["a", "b", "m", "z"]


def test_an_unknown_architecture_is_merged_with_one_warning(make_model: Callable[..., Path]) -> None:
    tensors = {f"blorp.{layer}.zork.{part}": numpy.ones((2, 3), "f4") for layer in range(3) for part in "uvw"}
    a, b = (make_model(name, {**tensors, "fizz": ONE}, {"model_type": "blorp"}) for name in ("m1", "m2"))
    made = linear(a, b)
    assert set(actions(made).values()) == {"merge"} and len(made) == 10
    warnings = [line for line in made.account.lines if line.startswith("warning")]
    assert len(warnings) == 1 and "unknown architecture blorp" in warnings[0]
    slices = [{"sources": [{"model": str(model), "layer_range": [0, 2]}]} for model in (a, b)]
    with pytest.raises(SourceError, match="states nowhere that blorp"):
        plan({"merge_method": "passthrough", "slices": slices})
    known = {"model.embed_tokens.weight": ONE, "model.layers.0.mlp.up_proj.weight": ONE}
    quiet = linear(*(make_model(name, known, {"model_type": "blorp"}) for name in ("m3", "m4")))
    assert len(quiet.account.lines) == 1
