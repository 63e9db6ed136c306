"""Averages as recipes: the weighted sum in float64, uniform bit for bit, and the form of a recipe of adapters."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import eutectic
from eutectic.errors import RecipeError
from eutectic.recipes.average import SPACES, average_recipe, recipe_text
from eutectic.recipes.run_metrics import read_trainer_state
from eutectic.recipes.schedules import FORMS, metric_weights
from eutectic.recipes.schema import load_recipe
from eutectic.recipes.training_run import Saved, find_checkpoints

Make = Callable[..., Path]
LOSSES = {10: 1.0, 20: 0.5, 30: 0.4}
ADAPTERS = [Saved(Path(f"run/checkpoint-{step}"), step, True, "[8, {}]") for step in (1, 2, 3)]


def test_an_average_is_the_weighted_sum(make_run: Make, tmp_path: Path) -> None:
    saved = find_checkpoints(make_run("run", LOSSES))
    weights = metric_weights([*LOSSES.values()], p=2)
    out = eutectic.merge(average_recipe(saved, weights), tmp_path / "out")
    assert isinstance(out, Path)
    made = load_file(out / "model.safetensors")
    parts = [load_file(entry.path / "model.safetensors") for entry in saved]
    for name in ("embed.weight", "layers.0.weight"):
        wanted = sum(w * part[name].astype("f8") for w, part in zip(weights, parts, strict=True))
        np.testing.assert_array_equal(made[name], np.asarray(wanted).astype("f4"))
    assert eutectic.verify(out).sound
    assert {path.name for path in out.iterdir()} == {
        "README.md", "config.json", "model.safetensors", "recipe.lock.json", "recipe.yaml",
    }  # fmt: skip


@pytest.mark.parametrize("count", [3, 7, 10])
@pytest.mark.parametrize("form", FORMS)
def test_without_a_factor_it_is_the_uniform_average_bit_for_bit(
    count: int, form: str, make_run: Make, tmp_path: Path
) -> None:
    losses = {10 * i: 1 / i for i in range(1, count + 1)}
    saved = find_checkpoints(make_run("run", losses))
    eutectic.merge(average_recipe(saved, metric_weights([*losses.values()], form=form, p=0)), tmp_path / "p0")
    models = [{"model": str(entry.path), "parameters": {"weight": 1}} for entry in saved]
    eutectic.merge({"merge_method": "linear", "models": models}, tmp_path / "uniform")
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("p0", "uniform"))
    assert one == two


def test_a_large_factor_copies_the_best(make_run: Make) -> None:
    saved = find_checkpoints(make_run("run", LOSSES))
    recipe = average_recipe(saved, metric_weights([*LOSSES.values()], p=1e5))
    assert [source["model"] for source in recipe["models"]] == [str(saved[2].path)]
    np.testing.assert_array_equal(
        eutectic.plan(recipe)["embed.weight"].to_numpy(), eutectic.open(saved[2].path)["embed.weight"].to_numpy()
    )


def test_a_recipe_reads_back_equal(make_run: Make, tmp_path: Path) -> None:
    saved = find_checkpoints(make_run("run", LOSSES))
    recipe = average_recipe(saved, [1 / 3, 1 / 3, 1e-17], name="average of 3: #1")
    (tmp_path / "r.yaml").write_text(recipe_text(recipe, ["one", "two\nlines: x"]))
    assert load_recipe(tmp_path / "r.yaml") == load_recipe(recipe)
    assert (tmp_path / "r.yaml").read_text().startswith("# one\n# two lines: x\nname: 'average of 3: #1'\n")


def test_a_recipe_of_adapters() -> None:
    models = [
        {"model": "run/checkpoint-1", "parameters": {"weight": 0.25}},
        {"model": "run/checkpoint-3", "parameters": {"weight": 0.75}},
    ]
    assert average_recipe(ADAPTERS, [0.25, 0, 0.75]) == {
        "merge_method": "linear",
        "models": models,
        "parameters": {"normalize": False},
        "adapter": {"space": "product"},
    }
    for space in SPACES:
        assert average_recipe(ADAPTERS, [1, 1, 1], space=space)["adapter"] == {"space": space}
    full = average_recipe(ADAPTERS, [1, 1, 1], rank=16, max_error=0.1)
    assert full["adapter"] == {"space": "product", "rank": 16, "max_error": 0.1}


def test_factors_have_one_rank() -> None:
    other = [*ADAPTERS[:2], Saved(Path("run/checkpoint-3"), 3, True, "[16, {}]")]
    assert "adapter" in average_recipe(other, [1, 1, 1])
    assert "adapter" in average_recipe(other, [0.5, 0.5, 0], space="factors")  # the other one takes no part
    with pytest.raises(RecipeError, match=r"checkpoint-1 and .*checkpoint-3 are adapters of different ranks"):
        average_recipe(other, [1, 1, 1], space="factors")
    with pytest.raises(RecipeError, match="factors keep their rank"):
        average_recipe(ADAPTERS, [1, 1, 1], space="factors", rank=4)
    with pytest.raises(RecipeError, match="no space 'delta'"):
        average_recipe(ADAPTERS, [1, 1, 1], space="delta")


def test_wrong_weights_and_options() -> None:
    models = [Saved(Path("a")), Saved(Path("b"))]
    for weights, why in (
        ([1.0], "1 weights for 2 checkpoints"),
        ([1.0, -0.1], "a weight is -0.1"),
        ([1.0, math.nan], "a weight is nan"),
        ([0.0, 0.0], "every weight is 0"),
    ):
        with pytest.raises(RecipeError, match=why):
            average_recipe(models, weights)
    with pytest.raises(RecipeError, match="space, rank: these checkpoints are models"):
        average_recipe(models, [1, 1], space="product", rank=3)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_a_run_of_a_real_trainer(adapter: bool, tmp_path: Path) -> None:
    """Folders, names and log as transformers writes them, with the states of its optimiser beside each model."""
    import peft
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config)
    if adapter:
        model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    tokens = torch.randint(0, 32, (16, 8)).tolist()
    data = [{"input_ids": row, "labels": row} for row in tokens]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=6, save_steps=2, eval_steps=2, eval_strategy="steps",
        logging_steps=1, learning_rate=1e-2, use_cpu=True, report_to=[], disable_tqdm=True,
    )  # fmt: skip
    transformers.Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data).train()
    saved = find_checkpoints(tmp_path / "run")
    assert [(entry.step, entry.adapter) for entry in saved] == [(2, adapter), (4, adapter), (6, adapter)]
    losses = read_trainer_state(saved, "eval_loss")
    assert len(set(losses)) == 3 and len(read_trainer_state(saved, "loss", window=True)) == 3
    recipe = average_recipe(saved, metric_weights(losses, p=2))
    if adapter:
        assert recipe["adapter"] == {"space": "product"}
        return
    out = eutectic.merge(recipe, tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert torch.isfinite(again(torch.tensor(tokens)).logits).all()
