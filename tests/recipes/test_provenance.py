"""What lies beside the weights: the card, the lock, the configuration; and transformers reads the whole."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml

import eutectic
from eutectic.evaluation.folder import declared_base
from eutectic.recipes.merge import merge, plan
from eutectic.recipes.plan import Options
from eutectic.recipes.provenance import LOCK, fingerprint
from eutectic.recipes.publish import public_files
from eutectic.weights.safetensors import write_safetensors

QUICK = Options(fsync=False)
ONE = {"w": numpy.ones(4, "f4")}


def linear(*models: Path, **top: Any) -> dict[str, Any]:
    sources = [{"model": str(model), "parameters": {"weight": 0.5}} for model in models]
    return {"merge_method": "linear", "models": sources, **top}


def front_of(out: Path) -> dict[str, Any]:
    text = (out / "README.md").read_text()
    assert text.startswith("---\n")
    front = yaml.safe_load(text.split("---\n")[1])
    assert isinstance(front, dict)
    return front


def card(licence: str | None) -> str:
    return "---\n" + (f"license: {licence}\n" if licence else "") + "tags:\n- x\n---\n# A model\n"


@pytest.mark.parametrize(
    ("licences", "key", "words"),
    [
        (("mit", "mit"), "mit", None),
        (("mit", "apache-2.0"), None, "licences differ (apache-2.0, mit)"),
        (("mit", None), None, "No licence is stated for m2"),
        ((None, None), None, "No licence is stated for m1, m2"),
    ],
)
def test_the_licence_is_the_parents_or_a_warning(
    tmp_path: Path,
    make_model: Callable[..., Path],
    licences: tuple[str | None, ...],
    key: str | None,
    words: str | None,
) -> None:
    models = [make_model(f"m{at}", ONE, card=card(licence)) for at, licence in enumerate(licences, 1)]
    merge(linear(*models), tmp_path / "out", QUICK)
    assert front_of(tmp_path / "out").get("license") == key
    text = (tmp_path / "out" / "README.md").read_text()
    assert ("**Licence.**" in text) == (words is not None)
    if words:
        assert words in text
        assert words in (plan(linear(*models)).licence_warning or "")


def test_the_card(tmp_path: Path, make_model: Callable[..., Path]) -> None:
    a, b = make_model("alpha", ONE, card=card("mit")), make_model("beta", ONE, card=card("mit"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("# half and half\n" + yaml.safe_dump(linear(a, b, name="Mélange: 1/2")))
    out = merge(recipe, tmp_path / "out", QUICK)
    front, text = front_of(tmp_path / "out"), (tmp_path / "out" / "README.md").read_text()
    assert front["base_model"] == ["alpha", "beta"] and front["base_model_relation"] == "merge"
    assert "merge" in front["tags"] and front["library_name"] == "transformers"
    assert "# Mélange: 1/2" in text and "# half and half" in text and "merged: 1 tensor, 4 parameters" in text
    assert (tmp_path / "out" / "recipe.yaml").read_bytes() == recipe.read_bytes()
    assert out == tmp_path / "out"


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("models--meta-llama--Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        ("models--org--a--b", "org/a--b"),
        ("models--gpt2", "gpt2"),
    ],
)
def test_the_hubs_cache_tells_name_and_revision(
    tmp_path: Path, make_model: Callable[..., Path], folder: str, name: str
) -> None:
    revision = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
    cached = make_model(f"hub/{folder}/snapshots/{revision}", ONE)
    for at, path in enumerate((cached, cached / "model.safetensors")):
        merge(linear(path), tmp_path / f"out{at}", QUICK)
        assert front_of(tmp_path / f"out{at}")["base_model"] == [name]
        assert f"| {name} | {revision} |" in (tmp_path / f"out{at}" / "README.md").read_text()
        lock = json.loads((tmp_path / f"out{at}" / LOCK).read_text())
        assert (lock["sources"][0]["name"], lock["sources"][0]["revision"]) == (name, revision)


def test_side_files_come_from_the_reference(tmp_path: Path, make_model: Callable[..., Path]) -> None:
    a, b, base = (make_model(name, ONE, {"who": name}) for name in ("a", "b", "base"))
    for model in (a, b, base):
        for name in ("tokenizer.json", "vocab.txt", "generation_config.json", "chat_template.jinja", "LICENSE"):
            (model / name).write_text(model.name)
        for name in ("notes.txt", ".env", "optimizer.pt", "trainer_state.json", "x.safetensors.index.json"):
            (model / name).write_text("no")
        (model / "tokenizer_extra").mkdir()
    ties = {**linear(a, b), "merge_method": "ties", "base_model": str(base)}
    for recipe, origin in ((linear(a, b), "a"), (ties, "base")):
        out = tmp_path / f"out-{origin}"
        merge(recipe, out, QUICK)
        assert sorted(path.name for path in out.iterdir()) == sorted(
            ["config.json", "tokenizer.json", "vocab.txt", "generation_config.json", "chat_template.jinja", "LICENSE",
             "README.md", "recipe.yaml", LOCK, "model.safetensors"]
        )  # fmt: skip
        assert (out / "tokenizer.json").read_text() == origin
        assert json.loads((out / "config.json").read_text()) == {"who": origin}


def test_a_lone_weight_file_does_not_drag_its_neighbours_along(tmp_path: Path) -> None:
    """Beside a file such as ./expert.safetensors lie a project's own files."""
    for name in ("x", "y"):
        write_safetensors(tmp_path / f"{name}.safetensors", ONE)
    (tmp_path / "train.py").write_text("secret = 1")
    (tmp_path / "LICENSE").write_text("the project's")
    merge(linear(tmp_path / "x.safetensors", tmp_path / "y.safetensors"), tmp_path / "out", QUICK)
    assert not (tmp_path / "out" / "train.py").exists()


@pytest.mark.parametrize("key", ["dtype", "torch_dtype", None])
def test_the_config_says_the_dtype_of_the_weights(
    tmp_path: Path, make_model: Callable[..., Path], key: str | None
) -> None:
    config = {"model_type": "x", "é": [1, 2.5]} | ({key: "float32"} if key else {})
    model = make_model("m", ONE, config)
    merge(linear(model, dtype="bfloat16"), tmp_path / "out", QUICK)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {**config, key or "dtype": "bfloat16"}
    merge(linear(model), tmp_path / "same", QUICK)
    assert (tmp_path / "same" / "config.json").read_bytes() == (model / "config.json").read_bytes()


def test_the_lock_records_what_went_in_and_what_came_out(tmp_path: Path, family: dict[str, Path]) -> None:
    recipe = linear(family["a"], family["b"])
    merge(recipe, tmp_path / "out", QUICK, hash_sources=True)
    lock = json.loads((tmp_path / "out" / LOCK).read_text())
    assert lock["eutectic"] == eutectic.__version__
    assert [source["path"] for source in lock["sources"]] == [str(family["a"]), str(family["b"])]
    assert all("blake3" in file for source in lock["sources"] for file in source["files"])
    assert lock["output"]["tensors"].keys() == eutectic.open(tmp_path / "out").keys()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        LOCK, "model.safetensors", *lock["output"]["files"]
    }  # fmt: skip
    assert lock["fingerprint"] == fingerprint(plan(recipe))


def test_equal_merges_have_equal_fingerprints(family: dict[str, Path]) -> None:
    a, b = family["a"], family["b"]
    mark = fingerprint(plan(linear(a, b)))
    assert mark == fingerprint(plan(linear(a, b), threads=1, max_memory=1 << 30, fsync=False))
    for other in (plan(linear(b, a)), plan(linear(a, b), seed=1), plan(linear(a, b, dtype="bfloat16"))):
        assert fingerprint(other) != mark


# ---------------------------------------------------------------- transformers


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three tiny Llamas of one shape, saved by transformers itself, in one file each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import LlamaConfig, LlamaForCausalLM

        folders = []
        for seed in range(3):
            torch.manual_seed(seed)
            config = LlamaConfig(
                vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=seed == 9,
            )  # fmt: skip
            folder = tmp_path_factory.mktemp(f"llama{seed}")
            LlamaForCausalLM(config).save_pretrained(folder)
            folders.append(folder)
        return folders


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 6000])
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_transformers_loads_a_merged_folder(tmp_path: Path, llamas: list[Path], shard_bytes: int, method: str) -> None:
    recipe = linear(*llamas[:2])
    if method == "ties":
        recipe |= {"merge_method": "ties", "base_model": str(llamas[2])}
    merge(recipe, tmp_path / "out", QUICK, shard_bytes=shard_bytes)
    written = eutectic.open(tmp_path / "out")
    assert (len(written.headers) > 1) == (shard_bytes == 6000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoModelForCausalLM

        model, notes = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
        first, second = (AutoModelForCausalLM.from_pretrained(folder) for folder in llamas[:2])
    assert not any(notes.values())
    state = model.state_dict()
    assert state.keys() == written.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, written[name].to_torch()), name
        if method == "linear":
            mean = (first.state_dict()[name].double() + second.state_dict()[name].double()) / 2
            assert torch.equal(tensor, mean.float()), name


def test_the_index_is_as_transformers_writes_it(tmp_path: Path, llamas: list[Path]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoModelForCausalLM

        AutoModelForCausalLM.from_pretrained(llamas[0]).save_pretrained(tmp_path / "theirs", max_shard_size=6000)
    merge(
        {"merge_method": "passthrough", "models": [{"model": str(tmp_path / "theirs")}]},
        tmp_path / "ours",
        QUICK,
        shard_bytes=6000,
    )
    names = [sorted(p.name for p in (tmp_path / who).glob("model*")) for who in ("theirs", "ours")]
    assert names[0] == names[1]
    theirs, ours = (
        json.loads((tmp_path / who / "model.safetensors.index.json").read_text()) for who in ("theirs", "ours")
    )
    assert list(ours) == list(theirs) and list(ours["weight_map"]) == list(theirs["weight_map"])
    assert ours["metadata"] == theirs["metadata"]


def test_adapters_on_one_base_are_sources_of_their_own(
    tmp_path: Path, make_model: Callable[..., Path], make_adapter: Callable[..., Path]
) -> None:
    random = numpy.random.default_rng(0)
    base = make_model("base", {"q.weight": random.normal(size=(6, 4)).astype("f4")}, card=card("mit"))
    adapters = []
    for name, rank in (("a", 1), ("b", 2)):
        pair = (random.normal(size=(6, rank)).astype("f4"), random.normal(size=(rank, 4)).astype("f4"))
        adapters.append(make_adapter(name, {"q": pair}))
    (adapters[1] / "README.md").write_text(card("gpl-3.0"))
    sources = [{"model": f"{base}+{adapter}", "parameters": {"weight": 0.5}} for adapter in adapters]
    recipe = {"merge_method": "task_arithmetic", "base_model": str(base), "models": sources}
    out = merge(recipe, tmp_path / "out", QUICK)
    assert isinstance(out, Path) and front_of(out)["base_model"] == ["base", "a", "b"]
    text = (out / "README.md").read_text()
    assert "licences differ (gpl-3.0, mit)" in text and "No licence is stated for a;" in text
    weights = (adapters[0] / "adapter_model.safetensors").stat().st_size
    config = (adapters[0] / "adapter_config.json").stat().st_size
    assert "| base |  | mit | 96 |" in text and f"| a |  | unknown | {weights + config:,} |" in text
    lock = json.loads((out / LOCK).read_text())
    assert [source["name"] for source in lock["sources"]] == ["base", "base+a", "base+b"]
    assert [source["path"] for source in lock["sources"]] == [str(base), *(f"{base}+{a}" for a in adapters)]
    again = merge(out / LOCK, tmp_path / "again", QUICK)  # two files called adapter_config.json, told apart
    assert isinstance(again, Path)
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    public = json.loads(public_files(out)[LOCK])["sources"]
    assert [source["path"] for source in public] == ["base", "base+a", "base+b"]
    assert declared_base(eutectic.open(out))[:3] == [("base", "README.md"), ("a", "README.md"), ("b", "README.md")]
