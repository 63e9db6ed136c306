"""One vocabulary for all sources: embeddings follow their tokens, row by row; the tokenizer's files and config, too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file

from eutectic.errors import EutecticError, RecipeError, SourceError
from eutectic.recipes.chat_templates import NAMED
from eutectic.recipes.merge import merge, plan
from eutectic.recipes.plan import Options
from eutectic.weights.vocabulary import read_vocabulary

QUICK = Options(fsync=False)
WIDTH = 3
BASE = ["<s>", "</s>", "a", "b", "c"]
OTHER = ["b", "</s>", "d", "<s>"]
HEADS = ("model.embed_tokens.weight", "lm_head.weight")


def write_tokenizer(folder: Path, trained: list[str], added: list[str] | None = None) -> None:
    entries = [{"id": len(trained) + at, "content": token, "special": True} for at, token in enumerate(added or [])]
    document = {
        "model": {"type": "WordLevel", "vocab": {t: at for at, t in enumerate(trained)}},
        "added_tokens": entries,
    }
    (folder / "tokenizer.json").write_text(json.dumps(document))


Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A model of an embedding, a head, one layer; with the tokenizer asked for."""

    def save(
        name: str,
        trained: list[str] | None,
        added: list[str] | None = None,
        *,
        rows: int | None = None,
        dtype: torch.dtype = torch.float32,
        config: dict[str, Any] | None = None,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        count = rows or len(trained or []) + len(added or [])
        random = torch.Generator().manual_seed(sum(map(ord, name)))
        tensors = {head: torch.randn(count, WIDTH, generator=random).to(dtype) for head in HEADS}
        tensors["model.layers.0.w.weight"] = torch.randn(2, WIDTH, generator=random).to(dtype)
        save_file(tensors, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"vocab_size": count, "num_hidden_layers": 1, **(config or {})}))
        if trained is not None:
            write_tokenizer(folder, trained, added)
        return folder

    return save


def linear(*models: Path, base: Path | None = None, **top: Any) -> dict[str, Any]:
    sources = [{"model": str(model), "parameters": {"weight": 0.5}} for model in models]
    based = {} if base is None else {"base_model": str(base)}
    return {"merge_method": "linear", "models": sources, **based, **top}


def rows_of(folder: Path, name: str = HEADS[0]) -> dict[str, np.ndarray]:
    """Each token's row."""
    found = read_vocabulary(folder)
    assert found is not None
    tensor = load_torch(folder / "model.safetensors")[name].double().numpy()
    return {token: tensor[number] for token, number in found.ids.items() if number < len(tensor)}


def merged(recipe: Any, tmp_path: Path) -> Path:
    out = merge(recipe, tmp_path / "out", QUICK)
    assert isinstance(out, Path)
    return out


@pytest.mark.parametrize("head", HEADS)
def test_the_union_keeps_every_token_of_every_model(make: Make, tmp_path: Path, head: str) -> None:
    a, b = make("a", BASE, ["<x>"]), make("b", OTHER, ["<y>"])
    out = merged(linear(a, b, tokenizer_source="union"), tmp_path)
    mine, yours, found = rows_of(a, head), rows_of(b, head), rows_of(out, head)
    assert list(read_vocabulary(out).ids) == [*BASE, "<x>", "d", "<y>"]  # pyright: ignore[reportOptionalMemberAccess]
    for token, row in found.items():
        wanted = (mine.get(token, yours.get(token)) + yours.get(token, mine.get(token))) / 2  # pyright: ignore
        np.testing.assert_allclose(row, wanted, rtol=1e-6, err_msg=token)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 8
    layer = "model.layers.0.w.weight"
    both = [load_file(model / "model.safetensors")[layer] for model in (a, b, out)]
    np.testing.assert_allclose(both[2], (both[0] + both[1]) / 2, rtol=1e-6)


def test_the_base_s_tokens_and_what_is_left_out(make: Make, tmp_path: Path) -> None:
    a, b = make("a", BASE), make("b", OTHER)
    recipe = linear(a, b, tokenizer_source="base")
    assert "tokens (base): 5 in 5 rows" in plan(recipe, QUICK).account.lines
    found, mine, yours = rows_of(merged(recipe, tmp_path)), rows_of(a), rows_of(b)
    assert found.keys() == mine.keys()
    for token in BASE:
        np.testing.assert_allclose(found[token], (mine[token] + yours.get(token, mine[token])) / 2, rtol=1e-6)


def test_the_tokenizer_of_one_model_brings_its_numbers(make: Make, tmp_path: Path) -> None:
    a = make("a", BASE, config={"bos_token_id": 0, "eos_token_id": [1], "pad_token_id": 4, "image_token_id": None})
    b = make("b", OTHER, config={"bos_token_id": 3, "pad_token_id": 1})
    (a / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, "temperature": 1}))
    out = merged(linear(a, b, tokenizer_source=str(b)), tmp_path)
    assert rows_of(out).keys() == set(OTHER)
    config = json.loads((out / "config.json").read_text())
    # "c", the base's padding, is no token here: what the tokenizer's own model pads with takes its place.
    expected = {"bos_token_id": 3, "eos_token_id": [1], "pad_token_id": 1, "image_token_id": None, "vocab_size": 4}
    assert {key: config[key] for key in expected} == expected
    assert json.loads((out / "generation_config.json").read_text()) == {"eos_token_id": 1, "temperature": 1}
    assert (out / "tokenizer.json").read_bytes() == (b / "tokenizer.json").read_bytes()


def test_a_token_of_several_models_but_not_the_base_is_their_average(make: Make, tmp_path: Path) -> None:
    base, a, b = make("base", BASE), make("a", OTHER), make("b", [*OTHER, "e"])
    out = merged(linear(base, a, b, base=base, tokenizer_source="union"), tmp_path)
    found, one, two = rows_of(out), rows_of(a), rows_of(b)
    lent = (one["d"] + two["d"]) / 2
    np.testing.assert_allclose(found["d"], (lent + one["d"] + two["d"]) / 3, rtol=1e-6)
    np.testing.assert_allclose(found["e"], two["e"], rtol=1e-6)


def test_single_tokens_take_what_the_recipe_says(make: Make, tmp_path: Path) -> None:
    a, b = make("a", BASE), make("b", OTHER)
    tokens = {
        "a": {"source": {"kind": "zero"}, "force": True},
        "b": {"source": str(b), "force": True},
        "c": {"source": {"kind": "model_token", "model": {"model": {"path": str(b)}}, "token": "d"}},
        "new": {"source": {"kind": "model_token", "model": str(a), "token_id": 2}},
    }
    out = merged(linear(a, b, tokenizer={"source": "base", "tokens": tokens, "pad_to_multiple_of": 4}), tmp_path)
    found, mine, yours = rows_of(out), rows_of(a), rows_of(b)
    np.testing.assert_array_equal(found["a"], 0)
    np.testing.assert_allclose(found["b"], yours["b"], rtol=1e-6)
    np.testing.assert_allclose(found["c"], (mine["c"] + yours["d"]) / 2, rtol=1e-6)
    np.testing.assert_allclose(found["new"], mine["a"], rtol=1e-6)
    table = load_file(out / "model.safetensors")[HEADS[0]].astype(np.float64)
    assert table.shape == (8, WIDTH)
    # Padding is the mean of the rows above it, in each model and so in their average.
    np.testing.assert_allclose(table[6:], np.broadcast_to(table[:6].mean(axis=0), (2, WIDTH)), rtol=1e-5, atol=1e-7)


def test_rows_beyond_the_tokens_stay(make: Make, tmp_path: Path) -> None:
    a, b = make("a", BASE, rows=8), make("b", BASE, rows=8)
    out = merged(linear(a, b, tokenizer_source="union"), tmp_path)
    tables = [load_file(folder / "model.safetensors")[HEADS[0]] for folder in (a, b, out)]
    np.testing.assert_array_equal(tables[2], (tables[0] + tables[1]) / 2)


def test_equal_vocabularies_cost_nothing(make: Make) -> None:
    a, b = make("a", BASE), make("b", BASE)
    for source in ("union", "base", str(b)):
        unified = plan(linear(a, b, tokenizer_source=source), QUICK).account.unified
        assert unified is not None and not unified.tensors


def test_a_token_without_a_row_anywhere_is_zero_and_told(make: Make, tmp_path: Path) -> None:
    a, b = make("a", BASE, ["<x>"], rows=5), make("b", BASE)
    recipe = linear(a, b, tokenizer_source="base")
    assert any("zeros for tokens" in line and "'<x>'" in line for line in plan(recipe, QUICK).account.lines)
    np.testing.assert_array_equal(rows_of(merged(recipe, tmp_path))["<x>"], 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_averages_are_rounded_once(make: Make, tmp_path: Path, dtype: torch.dtype) -> None:
    base, a, b = (make(name, tokens, dtype=dtype) for name, tokens in (("base", BASE), ("a", OTHER), ("b", OTHER)))
    out = merged(linear(base, a, b, base=base, tokenizer_source="union"), tmp_path)
    one, two = rows_of(a), rows_of(b)
    wanted = torch.tensor(((one["d"] + two["d"]) / 2 + one["d"] + two["d"]) / 3).to(dtype)
    table = load_torch(out / "model.safetensors")[HEADS[0]]
    assert table.dtype == dtype and torch.equal(table[5], wanted)


def test_the_result_does_not_depend_on_tiles_or_threads(make: Make, tmp_path: Path) -> None:
    base = make("base", [f"t{n}" for n in range(3000)])
    a = make("a", [f"t{n}" for n in range(3999, 900, -1)], dtype=torch.bfloat16)
    recipe = {
        "merge_method": "ties", "base_model": str(base), "models": [{"model": str(a)}],
        "parameters": {"density": 0.5, "weight": 1}, "tokenizer": {"source": "union", "pad_to_multiple_of": 512},
    }  # fmt: skip
    many, one = (merge(recipe, tmp_path / f"out{n}", QUICK, threads=n) for n in (2, 1))
    assert isinstance(many, Path) and isinstance(one, Path)
    assert (many / "model.safetensors").read_bytes() == (one / "model.safetensors").read_bytes()
    lazy = plan(recipe, QUICK)[HEADS[0]]
    whole, parts = lazy.read(), b"".join(lazy.read(at, min(at + 777, lazy.numel)) for at in range(0, lazy.numel, 777))
    assert whole == parts


def test_different_vocabularies_without_a_word_are_refused_with_the_cure(make: Make) -> None:
    a, b = make("a", BASE), make("b", OTHER)
    with pytest.raises(SourceError, match=r"differ in shape(.|\n)*'tokenizer_source: union'"):
        plan(linear(a, b), QUICK)


@pytest.mark.parametrize(
    ("words", "error", "sentence"),
    [
        ({"tokenizer": {"tokens": {"a": {"source": "/nowhere", "force": True}}}}, RecipeError, "none of the merged"),
        (
            {"tokenizer": {"tokens": {"a": {"source": {"kind": "zero"}}, "q": {}}, "source": "base"}},
            None,
            "zeros for tokens that no model has an embedding for: 1 ('q')",
        ),
        ({"tokenizer_source": "/nowhere"}, SourceError, "no folder with a tokenizer"),
    ],
)
def test_what_does_not_fit_is_refused_in_the_plan(
    make: Make, words: dict[str, Any], error: type[EutecticError] | None, sentence: str
) -> None:
    recipe = linear(make("a", BASE), make("b", OTHER), **{"tokenizer_source": "base", **words})
    if "tokenizer" in words:
        del recipe["tokenizer_source"]
    if error is None:
        assert sentence in plan(recipe, QUICK).account.lines
        return
    with pytest.raises(error, match=sentence):
        plan(recipe, QUICK)


def test_a_model_without_a_tokenizer(make: Make) -> None:
    a, b, longer = make("a", BASE), make("b", None, rows=5), make("longer", None, rows=6)
    lines = plan(linear(a, b, tokenizer_source="union"), QUICK).account.lines
    assert any("has no tokenizer: taken to have that of" in line for line in lines)
    with pytest.raises(SourceError, match="put its tokenizer's files beside it"):
        plan(linear(a, longer, tokenizer_source="union"), QUICK)
    with pytest.raises(SourceError, match="remove 'tokenizer_source'"):
        plan(linear(b, a, tokenizer_source="union"), QUICK)
    (b / "spiece.model").write_bytes(b"x")
    with pytest.raises(SourceError, match="save it once with transformers"):
        plan(linear(a, b, tokenizer_source="union"), QUICK)


def test_an_inner_recipe_may_not_have_another_vocabulary(make: Make) -> None:
    a, b = make("a", BASE), make("b", OTHER)
    inner = linear(a, b, tokenizer_source="union")
    for words in ({}, {"tokenizer_source": "base"}):
        outer = {"merge_method": "linear", "models": [{"model": inner}], "parameters": {"weight": 1}, **words}
        with pytest.raises(RecipeError, match="say it in the outermost recipe"):
            plan(outer, QUICK)
    outer = {"merge_method": "linear", "models": [{"model": inner}], "parameters": {"weight": 1}}
    assert plan({**outer, "tokenizer_source": "union"}, QUICK)[HEADS[0]].shape == (6, WIDTH)


def test_calculated_rows_are_not_copied_for_want_of_a_partner(make: Make) -> None:
    a, b = make("a", BASE, dtype=torch.bfloat16), make("b", OTHER)
    tensors = load_torch(b / "model.safetensors")
    save_file({name: value for name, value in tensors.items() if name != HEADS[1]}, b / "model.safetensors")
    recipe = linear(a, b, tokenizer={"source": "base", "pad_to_multiple_of": 8})
    with pytest.raises(SourceError, match="calculated as it is read"):
        plan(recipe, QUICK, allow_mismatch=True)


def test_chat_templates(make: Make, tmp_path: Path) -> None:
    a, b, c = make("a", BASE), make("b", BASE), make("c", BASE)
    (a / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ one }}", "x": 1}))
    for model in (b, c):
        (model / "chat_template.jinja").write_text("{{ two }}\n")
    for at, (wanted, expected) in enumerate(
        [("auto", "{{ two }}"), ("chatml", NAMED["chatml"]), ("{{ mine }}", "{{ mine }}")]
    ):
        out = merge(linear(a, b, c, chat_template=wanted), tmp_path / f"out{at}", QUICK)
        assert isinstance(out, Path)
        assert (out / "chat_template.jinja").read_text() == expected
        config = json.loads((out / "tokenizer_config.json").read_text())
        assert config == {"chat_template": expected, "x": 1}


def test_transformers_reads_the_union(tmp_path: Path) -> None:
    """Real tokenizers and models: tokens keep their text, and each its own logits' row."""
    import tokenizers
    import transformers

    models = []
    for seed, (words, added) in enumerate((("low lower lowest", "<one>"), ("new newer newest wide", "<two>"))):
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        tokenizer.train_from_iterator(
            [words] * 4, tokenizers.trainers.BpeTrainer(vocab_size=30, special_tokens=["</s>"])
        )
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
        fast.add_tokens([added], special_tokens=True)
        torch.manual_seed(seed)
        config = transformers.LlamaConfig(
            vocab_size=len(fast), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
            eos_token_id=fast.eos_token_id, tie_word_embeddings=bool(seed < 0),
        )  # fmt: skip
        transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / f"m{seed}")
        fast.save_pretrained(tmp_path / f"m{seed}")
        models.append((tmp_path / f"m{seed}", fast))
    out = merged(linear(*(folder for folder, _ in models), tokenizer_source="union"), tmp_path)
    found = transformers.AutoTokenizer.from_pretrained(out)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert len(found) == model.get_input_embeddings().weight.shape[0] == model.config.vocab_size
    written = read_vocabulary(out)
    assert written is not None and written.ids == found.get_vocab()
    for _, other in models:
        assert set(other.get_vocab()) <= set(found.get_vocab())
    text = "low lowest<two>lower<one>"
    assert found.convert_ids_to_tokens(found(text)["input_ids"]) == [
        *models[0][1].tokenize("low lowest"), "<two>", *models[0][1].tokenize("lower"), "<one>",
    ]  # fmt: skip
    assert model.generate(torch.tensor([found(text)["input_ids"]]), max_new_tokens=3, do_sample=False).shape[1] > 3
