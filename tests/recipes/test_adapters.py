"""Adapters merged into an adapter: PEFT reads it, one at weight 1 returns itself, nothing half-done looks finished."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from eutectic.errors import OutputError, SourceError, VerificationError
from eutectic.recipes.merge import Watcher, check_merge, merge, plan
from eutectic.recipes.publish import public_files
from eutectic.recipes.verify import verify

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")

Make = Callable[..., Path]
Recipe = dict[str, Any]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 7},
    "rslora": {"r": 3, "use_rslora": True},
    "patterns": {"r": 4, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.v_proj": 3}},
    "embedding": {"r": 4, "target_modules": ["embed_tokens", "q_proj"]},
    "saved": {"r": 4, "modules_to_save": ["lm_head"]},
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapt(base: Path, tmp_path: Path) -> Callable[..., Path]:
    """``adapt(kind, name=kind)`` writes an adapter with random factors."""

    def make(kind: str, name: str | None = None) -> Path:
        torch.manual_seed(len(name or kind))
        settings = {"target_modules": ["q_proj", "v_proj", "down_proj"], **KINDS[kind]}
        model = peft.get_peft_model(
            transformers.LlamaForCausalLM.from_pretrained(base), peft.LoraConfig(task_type="CAUSAL_LM", **settings)
        )
        for key, value in model.named_parameters():
            if "lora_" in key or "modules_to_save" in key:
                value.data += 0.1 * torch.randn_like(value)
        model.save_pretrained(tmp_path / (name or kind))
        return tmp_path / (name or kind)

    return make


def recipe(method: str, weights: dict[Path, float], **top: Any) -> Recipe:
    models = [{"model": str(folder), "parameters": {"weight": weight}} for folder, weight in weights.items()]
    return {"merge_method": method, "models": models, **top}


def made(document: Any, out: Path, **options: Any) -> Path:
    found = merge(document, out, fsync=False, **options)
    assert isinstance(found, Path)
    return found


def loaded(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """What PEFT makes of the base with an adapter."""
    plain = transformers.LlamaForCausalLM.from_pretrained(base)
    return peft.PeftModel.from_pretrained(plain, adapter).merge_and_unload().state_dict()


def far(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).abs().max() / max(1e-30, float(wanted.abs().max())))


# ---------------------------------------------------------------- the law, and PEFT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["task_arithmetic", "linear"])
def test_one_adapter_at_weight_1_returns_itself(method: str, kind: str, adapt: Any, tmp_path: Path) -> None:
    adapter = adapt(kind)
    out = made(recipe(method, {adapter: 1.0}), tmp_path / "out")
    for name in (WEIGHTS, CONFIG):
        assert (out / name).read_bytes() == (adapter / name).read_bytes()
    assert verify(out).sound


@pytest.mark.parametrize("kind", ["lora", "rslora", "patterns", "embedding", "saved"])
def test_peft_merges_the_result_as_the_plan_over_the_base(kind: str, base: Path, adapt: Any, tmp_path: Path) -> None:
    """Rank, alpha, scaling and modules differ; the embedding and the saved head are in one or in both."""
    weights = {adapt(kind): 0.6, adapt("saved" if kind == "saved" else "lora", "second"): 0.4}
    out = made(recipe("task_arithmetic", weights), tmp_path / "out")
    over = {Path(f"{base}+{folder}"): weight for folder, weight in weights.items()}
    wanted = plan(recipe("task_arithmetic", over, base_model=str(base)))
    theirs = loaded(base, out)
    assert theirs.keys() == set(wanted)
    for name in wanted:
        assert far(theirs[name], wanted[name].to_torch()) <= 1e-6, name
    ours = plan({"merge_method": "passthrough", "models": [{"model": f"{base}+{out}"}]})
    for name in wanted:
        assert far(ours[name].to_torch(), theirs[name]) <= 1e-6, name


@pytest.mark.parametrize("method", ["ties", "dare_ties", "breadcrumbs"])
def test_methods_that_choose_entries(method: str, base: Path, adapt: Any, tmp_path: Path) -> None:
    """At full rank what PEFT makes is the merge over the base; at the sources' rank the error is as foretold."""
    weights = {adapt("lora"): 0.6, adapt("rslora"): 0.4}
    over = {Path(f"{base}+{folder}"): weight for folder, weight in weights.items()}
    wanted = plan(recipe(method, over, base_model=str(base)))
    theirs = loaded(base, made(recipe(method, weights, adapter={"rank": 16}), tmp_path / "full"))
    for name in wanted:
        assert far(theirs[name], wanted[name].to_torch()) <= 2e-6, name

    class Keeps(Watcher):
        def factored(self, modules: Any) -> None:
            self.modules = modules

    watcher = Keeps()
    made(recipe(method, weights), tmp_path / "out", watcher=watcher)
    before = load_file(base / "model.safetensors")
    theirs = loaded(base, tmp_path / "out")
    assert {found.rank for found in watcher.modules} == {4}
    for found in watcher.modules:
        name = f"{found.module}.weight"
        change = (wanted[name].to_torch() - before[name]).double()
        missed = (theirs[name] - wanted[name].to_torch()).double().norm() / change.norm()
        assert float(missed) == pytest.approx(found.error, rel=1e-3) and found.error > 0.05
    assert "the largest relative error of a change is" in (tmp_path / "out" / "README.md").read_text()


def test_peft_concatenates_to_the_same(base: Path, adapt: Any, tmp_path: Path) -> None:
    """PEFT's own exact combination, which needs the base in memory (of plain LoRA: it is wrong for the others)."""
    folders = [adapt("lora"), adapt("lora", "second")]
    model = peft.PeftModel.from_pretrained(transformers.LlamaForCausalLM.from_pretrained(base), folders[0], "a")
    model.load_adapter(folders[1], "b")
    model.add_weighted_adapter(["a", "b"], [0.6, 0.4], "both", combination_type="cat")
    out = made(recipe("task_arithmetic", dict(zip(folders, (0.6, 0.4), strict=True))), tmp_path / "out")
    for module in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        theirs = model.get_submodule(f"base_model.model.{module}").get_delta_weight("both").detach()
        assert far(torch.from_numpy(change_of(out, module)), theirs) <= 1e-6


def test_the_layers_of_gpt2_stay_transposed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    for name, rank in (("a", 2), ("b", 3)):
        model = peft.get_peft_model(
            transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base"),
            peft.LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True),
        )
        for key, value in model.named_parameters():
            if "lora_" in key:
                value.data += 0.1 * torch.randn_like(value)
        model.save_pretrained(tmp_path / name)
    for method, form in (("task_arithmetic", {}), ("ties", {"rank": 16})):
        weights = {tmp_path / "a": 0.5, tmp_path / "b": 2.0}
        out = made(recipe(method, weights, adapter=form), tmp_path / method)
        plain = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base")
        theirs = peft.PeftModel.from_pretrained(plain, out).merge_and_unload().state_dict()
        over = {Path(f"{tmp_path / 'base'}+{folder}"): weight for folder, weight in weights.items()}
        wanted = plan(recipe(method, over, base_model=str(tmp_path / "base")))
        for name in wanted:
            full = name if name in theirs else f"transformer.{name}"
            assert far(theirs[full], wanted[name].to_torch()) <= 2e-6, name


class Convolutions(torch.nn.Module):
    """Two layers that PEFT adapts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 6, 3)
        self.out = torch.nn.Linear(6, 5)


def test_convolutions(tmp_path: Path) -> None:
    changes = []
    for name, rank in (("a", 2), ("b", 3)):
        torch.manual_seed(rank)
        model = peft.get_peft_model(Convolutions(), peft.LoraConfig(r=rank, target_modules=["stem", "out"]))
        for key, value in model.named_parameters():
            if "lora_" in key:
                value.data += 0.1 * torch.randn_like(value)
        model.save_pretrained(tmp_path / name)
        layers = (model.base_model.model.stem, model.base_model.model.out)
        changes.append([layer.get_delta_weight("default").detach() for layer in layers])
    out = made(recipe("task_arithmetic", {tmp_path / "a": 0.5, tmp_path / "b": 2.0}), tmp_path / "merged")
    merged = peft.PeftModel.from_pretrained(Convolutions(), out)
    for at, layer in enumerate((merged.base_model.model.stem, merged.base_model.model.out)):
        wanted = 0.5 * changes[0][at] + 2.0 * changes[1][at]
        assert far(layer.get_delta_weight("default").detach(), wanted) <= 1e-6


# ---------------------------------------------------------------- ranks, errors, types


@pytest.fixture
def pair(make_adapter: Make) -> list[Path]:
    """Two small adapters of rank 3; q has singular values that fall."""
    found = []
    for seed, name in enumerate("ab"):
        random = np.random.default_rng(seed)
        scales = np.array([1.0, 0.3, 0.1])
        found.append(make_adapter(name, {
            f"h.{at}.q": (
                (random.normal(size=(30, 3)) * scales).astype("f4"),
                random.normal(size=(3, 20)).astype("f4"),
            )
            for at in range(2)
        }))  # fmt: skip
    return found


def change_of(folder: Path, module: str = "h.0.q") -> np.ndarray:
    from eutectic.weights.adapter_delta import open_changes

    return open_changes(folder)[f"{module}.weight"].to_numpy().astype("f8")


def test_a_rank_gives_the_best_of_that_rank(pair: list[Path], tmp_path: Path) -> None:
    document = recipe("task_arithmetic", dict.fromkeys(pair, 1.0))
    whole = change_of(pair[0]) + change_of(pair[1])
    s = np.linalg.svd(whole, compute_uv=False)
    for rank in (1, 2, 5):
        out = made({**document, "adapter": {"rank": rank}}, tmp_path / f"r{rank}")
        left = np.linalg.norm(change_of(out) - whole) / np.linalg.norm(whole)
        assert left == pytest.approx(np.sqrt((s[rank:] ** 2).sum() / (s**2).sum()), abs=1e-6)
        assert json.loads((out / CONFIG).read_text())["r"] == rank


def test_max_error_takes_the_smallest_rank(pair: list[Path], tmp_path: Path) -> None:
    for method in ("task_arithmetic", "ties"):
        document = recipe(method, dict.fromkeys(pair, 1.0), adapter={"max_error": 0.2})
        whole = plan(document)["h.0.q.weight"].to_numpy().astype("f8")
        s = np.linalg.svd(whole, compute_uv=False)
        rank = int(np.argmax(np.sqrt(np.maximum(0, 1 - np.cumsum(s**2) / np.sum(s**2))) <= 0.2)) + 1
        out = made(document, tmp_path / method)
        assert load_file(out / WEIGHTS)["base_model.model.h.0.q.lora_A.weight"].shape[0] == rank
        assert np.linalg.norm(change_of(out) - whole) <= 0.2 * np.linalg.norm(whole)
        with pytest.raises(SourceError, match=r"rank 1 does not reach an error of 0\.2(.|\n)*h\.\d\.q(.|\n)*raise or"):
            made({**document, "adapter": {"rank": 1, "max_error": 0.2}}, tmp_path / "none")
        assert not list(tmp_path.glob("none*"))


def test_the_type_of_the_factors(pair: list[Path], tmp_path: Path) -> None:
    document = recipe("linear", dict.fromkeys(pair, 1.0))
    half = {name: value.bfloat16() for name, value in load_file(pair[0] / WEIGHTS).items()}
    save_file(half, pair[0] / WEIGHTS)
    for asked, kind in ((None, torch.bfloat16), ("float32", torch.float32)):
        out = made({**document, **({"dtype": asked} if asked else {})}, tmp_path / str(asked))
        assert {value.dtype for value in load_file(out / WEIGHTS).values()} == {kind}


def test_ranks_of_their_own_are_written_as_peft_reads_them(make_adapter: Make, tmp_path: Path) -> None:
    """PEFT 3737: patterns that cannot be loaded again. Names that end alike have ranks of their own."""
    random = np.random.default_rng(0)
    ranks = {"q": 1, "h.q": 2, "h.1.q": 3}
    a = make_adapter("a", {
        module: (random.normal(size=(8, r)).astype("f4"), random.normal(size=(r, 6)).astype("f4"))
        for module, r in ranks.items()
    }, rank_pattern={"^q": 1, "^h\\.q": 2}, alpha_pattern={"^q": 1, "^h\\.q": 2})  # fmt: skip
    out = made(recipe("task_arithmetic", {a: 2.0}), tmp_path / "out")
    config = json.loads((out / CONFIG).read_text())
    assert (config["r"], config["rank_pattern"]) == (3, {"^q": 1, r"^h\.q": 2})
    for module in ranks:
        np.testing.assert_allclose(change_of(out, module), 2 * change_of(a, module), rtol=1e-5, atol=1e-6)


def test_factors_averaged_apart(pair: list[Path], tmp_path: Path) -> None:
    document = recipe("linear", {pair[0]: 1.0, pair[1]: 3.0}, adapter={"space": "factors"})
    out = made(document, tmp_path / "out")
    one, two, found = (load_file(folder / WEIGHTS) for folder in (*pair, out))
    for name, value in found.items():
        torch.testing.assert_close(value, 0.25 * one[name] + 0.75 * two[name])
    assert json.loads((out / CONFIG).read_text()).keys() >= {"r", "lora_alpha"}
    assert "which is not the average of the changes" in (out / "README.md").read_text()
    mean = 0.25 * change_of(pair[0]) + 0.75 * change_of(pair[1])
    error = np.linalg.norm(change_of(out) - mean) / np.linalg.norm(mean)

    class Keeps(Watcher):
        def factored(self, modules: Any) -> None:
            assert modules[0].error == pytest.approx(error, rel=1e-5)

    made(document, tmp_path / "again", watcher=Keeps())


@pytest.mark.parametrize("space", ["product", "factors"])
def test_targets_are_named_where_the_sources_name_none(pair: list[Path], tmp_path: Path, space: str) -> None:
    assert "target_modules" not in json.loads((pair[0] / CONFIG).read_text())
    out = made(recipe("linear", dict.fromkeys(pair, 1.0), adapter={"space": space}), tmp_path / "out")
    assert json.loads((out / CONFIG).read_text())["target_modules"] == ["h.0.q", "h.1.q"]


# ---------------------------------------------------------------- files, runs


def test_the_files_of_the_result(pair: list[Path], tmp_path: Path, contents: Callable[..., dict[str, bytes]]) -> None:
    for folder in pair:
        (folder / "README.md").write_text("---\nlicense: mit\n---\n")
        (folder / "tokenizer.json").write_text("{}")
    document = recipe("task_arithmetic", dict.fromkeys(pair, 0.5), name="Both")
    out = made(document, tmp_path / "out")
    names = {WEIGHTS, CONFIG, "README.md", "recipe.yaml", "recipe.lock.json", "tokenizer.json"}
    assert contents(out).keys() == names
    card = (out / "README.md").read_text()
    assert "library_name: peft" in card and "base_model_relation: adapter" in card and "license: mit" in card
    assert (
        "base_model: org/base" in card
        and "# Both" in card
        and "2 modules, rank 6; no change lost anything but rounding." in card
    )
    config = json.loads((out / CONFIG).read_text())
    assert config["base_model_name_or_path"] == "org/base" and config["target_modules"] == ["h.0.q", "h.1.q"]
    lock = json.loads((out / "recipe.lock.json").read_text())
    assert [file["name"] for file in lock["sources"][1]["files"]] == [WEIGHTS, CONFIG]
    assert verify(out).sound and verify(out).tensors == 4
    again = made(out / "recipe.lock.json", tmp_path / "again")
    assert (again / WEIGHTS).read_bytes() == (out / WEIGHTS).read_bytes()
    with open(out / WEIGHTS, "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    assert "its bytes differ" in verify(out).problems[0]
    lock["output"]["tensors"][next(iter(lock["output"]["tensors"]))] = "0" * 64
    (out / "recipe.lock.json").write_text(json.dumps(lock))
    with pytest.raises(VerificationError):
        made(out / "recipe.lock.json", tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_the_number_of_threads_changes_no_byte(pair: list[Path], tmp_path: Path) -> None:
    for method in ("task_arithmetic", "dare_ties", "karcher"):
        document = recipe(method, dict.fromkeys(pair, 0.5))
        if method == "karcher":
            document["models"] = [{"model": str(folder)} for folder in pair]
        outs = [made(document, tmp_path / f"{method}{threads}", threads=threads) for threads in (1, 2, 5)]
        assert len({(out / WEIGHTS).read_bytes() for out in outs}) == 1


def test_targets_resume_and_force(pair: list[Path], tmp_path: Path) -> None:
    document = recipe("task_arithmetic", dict.fromkeys(pair, 0.5))
    out = made(document, tmp_path / "out")
    with pytest.raises(OutputError, match="--force replaces it"):
        made(document, out)
    assert made(document, out, resume=True) == out
    other = {**document, "adapter": {"rank": 1}}
    made(other, out, force=True)
    assert json.loads((out / CONFIG).read_text())["r"] == 1 and not list(tmp_path.glob("*.partial"))
    with pytest.raises(OutputError, match="is, holds or lies inside the source"):
        made(document, pair[0], force=True)
    check_merge(document, tmp_path / "dry")
    assert not list(tmp_path.glob("dry*"))


def test_a_killed_run_leaves_nothing_that_looks_finished(pair: list[Path], tmp_path: Path) -> None:
    """Killed while the factors are found, nothing is there; while they are written, only OUT.partial, to resume."""
    document = recipe("task_arithmetic", dict.fromkeys(pair, 0.5))

    class Stops(Watcher):
        left = 3

        def moved(self, nbytes: int) -> None:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    class StopsAtOnce(Stops):
        left = 1

    with pytest.raises(KeyboardInterrupt):
        made(document, tmp_path / "out", watcher=StopsAtOnce())
    assert not list(tmp_path.glob("out*"))
    with pytest.raises(KeyboardInterrupt):
        made(document, tmp_path / "out", watcher=Stops())
    assert not (tmp_path / "out").exists() and (tmp_path / "out.partial").is_dir()
    with pytest.raises(OutputError, match="--resume continues it"):
        made(document, tmp_path / "out")
    out = made(document, tmp_path / "out", resume=True)
    assert verify(out).sound and not (tmp_path / "out.partial").exists()
    assert (out / WEIGHTS).read_bytes() == (made(document, tmp_path / "fresh") / WEIGHTS).read_bytes()


def test_a_plan_says_what_becomes_of_every_change(make_adapter: Make) -> None:
    random = np.random.default_rng(0)
    factors = lambda: (random.normal(size=(6, 2)).astype("f4"), random.normal(size=(2, 5)).astype("f4"))  # noqa: E731
    head = {"head.weight": np.ones((3, 5), "f4")}
    a = make_adapter("a", {"q": factors(), "k": factors()}, head, modules_to_save=["head"])
    b = make_adapter("b", {"q": factors()}, head, modules_to_save=["head"])
    found = plan(recipe("linear", {a: 1.0, b: 1.0}))
    assert found.account.lines == (
        "merged: the changes of 2 modules, exactly, as factors of rank 4 or less",
        f"zero where an adapter has none: 1 (k (not in {b}))",
        "merged as they are, saved whole: 1 (head.weight)",
    )
    document = found.to_json()
    assert document["adapter"] == {"space": "product", "modules": 2, "rank": 4, "exact": True}
    assert document["tensors"] == 5 and document["shards"][0]["name"] == WEIGHTS


def test_a_pushed_adapter_names_no_folder_of_this_machine(pair: list[Path], tmp_path: Path) -> None:
    for folder in pair:
        path = folder / CONFIG
        path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(tmp_path / "base")}))
    out = made(recipe("task_arithmetic", dict.fromkeys(pair, 0.5)), tmp_path / "out")
    files = public_files(out)
    assert json.loads(files[CONFIG])["base_model_name_or_path"] == "base"
    assert all(str(tmp_path).encode() not in content for content in files.values())
    for name, content in files.items():
        (out / name).write_bytes(content)
    assert verify(out).sound
