"""What lies beside the weights: lock file, model card, the recipe itself, and the reference model's side files."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

import eutectic
from eutectic.errors import SourceError
from eutectic.recipes.card import CARD, LOCK, front_matter
from eutectic.recipes.chat_templates import choose_template
from eutectic.recipes.config_json import edited
from eutectic.recipes.plan import Plan
from eutectic.recipes.tokenizer_files import TOKENIZER_FILES, renumbered, with_template, with_tokens
from eutectic.recipes.tree import Leaf
from eutectic.recipes.vocabulary import folder_of
from eutectic.weights import digest
from eutectic.weights.checkpoint import PICKLE_SUFFIXES, Checkpoint, read_json
from eutectic.weights.files import Place, RemotePath, open_file
from eutectic.weights.lora import ADAPTER_FILES
from eutectic.weights.member import MemberPath
from eutectic.weights.quantized.dequantise import dense_config, native_of
from eutectic.weights.sink import Shard

__all__ = [
    "CARD", "LOCK", "RECIPE", "SIDE_FILES", "Parent", "adapter_files", "cached_identity", "fingerprint", "front_matter",
    "licence_of", "lock_document", "parents_of", "public_base", "public_name", "read_files", "side_files",
]  # fmt: skip

RECIPE = "recipe.yaml"
LOCK_VERSION = 1
SIDE_FILES = (
    "config.json", "generation_config.json", *TOKENIZER_FILES, "*processor*.json", "*.py", "LICENSE*", "NOTICE*",
)  # fmt: skip
PIPELINE_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.py", "LICENSE*", "NOTICE*")
MOST_SIDE_BYTES = 256 << 20
_HUB_CACHE = re.compile(r"models--(?:([^/]+?)--)?([^/]+)/snapshots/([0-9a-f]+)")


@dataclass(frozen=True)
class Parent:
    """A source as the model card names it: `name` is a hub id where one is known, else the folder's name."""

    name: str
    revision: str | None
    licence: str | None
    nbytes: int


def parents_of(plan: Plan) -> list[Parent]:
    """Every source with its public name and licence, the reference first; an adapter on a model is one of its own."""
    found: dict[Place, Parent] = {}
    for leaf in plan.tree.sources:
        weights = leaf.checkpoint.nbytes
        if leaf.adapter is not None:
            own = [file for file in leaf.checkpoint.headers if file.path.name in ADAPTER_FILES]
            found.setdefault(leaf.adapter, _parent(leaf.adapter, sum(file.size for file in own)))
            weights = sum(file.size for file in leaf.checkpoint.headers if file not in own)
        place = _place_of(leaf)
        if place not in found or leaf.adapter is None:
            found[place] = _parent(place, weights)
    return list(found.values())


def _place_of(leaf: Leaf) -> Place:
    return leaf.checkpoint.path or Path(leaf.label)


def _parent(path: Place, nbytes: int) -> Parent:
    return Parent(*public_name(path), licence_of(path), nbytes)


def licence_of(path: Place) -> str | None:
    """The licence that a source's model card states, if it states one."""
    folder = path if path.is_dir() else path.parent
    licence = path.licence if isinstance(path, MemberPath) else front_matter(folder / CARD).get("license")
    return licence if isinstance(licence, str) else None


def cached_identity(path: Path) -> tuple[str, str] | None:
    """The hub id and commit of a path in the hub's cache."""
    cached = _HUB_CACHE.search(path.as_posix())
    return ("/".join(part for part in cached.group(1, 2) if part), cached[3]) if cached else None


def public_name(path: Place) -> tuple[str, str | None]:
    """What to call a source in public: its hub id and revision where they are known, else its own name."""
    if isinstance(path, RemotePath):
        return path.identity
    path = path.absolute()
    return cached_identity(path) or ((path.name if path.is_dir() else path.stem), None)


def public_base(name: str) -> str:
    """What to call in public the base that an adapter names: a hub id as it is, of a folder its own name.

    >>> public_base("org/base"), public_base("/home/me/models/base")
    ('org/base', 'base')
    """
    here = name.startswith((".", "~", "/")) or os.path.exists(name)  # noqa: PTH110  (never raises)
    return public_name(Path(name))[0] if here else name


def licence_warning(parents: list[Parent]) -> str | None:
    """A sentence where the parents' licences are unknown or differ."""
    unknown = [parent.name for parent in parents if parent.licence is None]
    known = sorted({parent.licence for parent in parents if parent.licence})
    parts = []
    if len(known) > 1:
        parts.append(f"The parents' licences differ ({', '.join(known)}); what the merge may be used for is unclear.")
    if unknown:
        shown = ", ".join(unknown[:4]) + (", ..." if len(unknown) > 4 else "")
        parts.append(f"No licence is stated for {shown}; check before you share this model.")
    return " ".join(parts) or None


# ---------------------------------------------------------------- lock file


def source_records(plan: Plan, *, full: bool = False) -> list[dict[str, Any]]:
    """What each source was: its files' sizes, times and header digests, and (if `full`) all of their bytes'."""
    records = []
    for leaf in [*plan.tree.sources, *plan.tree.statistics]:
        files = []
        place = leaf.checkpoint.path
        pinned = place is not None and not isinstance(place, Path) and place.identity[1] is not None
        for file, header in leaf.checkpoint.headers.items():
            record: dict[str, Any] = {
                "name": leaf.checkpoint.name_of(file),
                "bytes": file.size,
                "modified_ns": 0 if pinned else file.mtime_ns,  # a commit is the same in the cache and on the hub
                "header": digest.hash_bytes(header),
            }
            if file.etag is not None:
                record["etag"] = file.etag
            if full:
                record["blake3"] = digest.hash_file(file)
            files.append(record)
        places = [_place_of(leaf), *([] if leaf.adapter is None else [leaf.adapter])]
        names = [public_name(place) for place in places]
        where = [str(place.absolute() if isinstance(place, Path) else place) for place in places]
        name, revision = "+".join(name for name, _ in names), names[0][1]
        records.append({"path": "+".join(where), "name": name, "revision": revision, "files": files})
    return records


def fingerprint(plan: Plan) -> str:
    """Everything that the result's bytes depend on, as one digest: a resumed run must have the same."""
    options = plan.options
    depends = [
        eutectic.__version__,
        plan.expanded,
        source_records(plan),
        [plan.tree.root.seed, options.shard_bytes, options.allow_mismatch, options.torch_only, options.device_kind],
        *([plan.account.unified.digest] if plan.account.unified is not None else []),
    ]
    return digest.hash_bytes(json.dumps(depends, sort_keys=True).encode())


def lock_document(
    plan: Plan,
    shards: Sequence[Shard],
    digests: Mapping[str, str],
    files: Mapping[str, bytes],
    recipe_text: str,
) -> dict[str, Any]:
    """The lock file: what went in, with what, and the digest of everything that came out."""
    options = plan.options
    return {
        "lock": LOCK_VERSION,
        "eutectic": eutectic.__version__,
        "fingerprint": fingerprint(plan),
        "recipe": plan.expanded,
        "text": recipe_text,
        "sources": source_records(plan, full=options.hash_sources),
        "options": {
            "seed": plan.tree.root.seed,
            "shard_bytes": options.shard_bytes,
            "allow_mismatch": options.allow_mismatch,
            "allow_nonfinite": options.allow_nonfinite,
            "torch_only": options.torch_only,
            "device": options.device_kind,
        },
        "versions": _versions(plan),
        "output": {
            "digest": digest.NAME,
            "headers": {shard.name: digest.hash_bytes(shard.header[8:]) for shard in shards},
            "tensors": {name: digests[name] for shard in shards for name in shard.offsets},
            "files": {name: digest.hash_bytes(content) for name, content in sorted(files.items())},
        },
    }


def _versions(plan: Plan) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("numpy", "numba", *(("torch",) if plan.uses_torch else ())):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


# ---------------------------------------------------------------- files beside the weights


def side_files(plan: Plan, shards: list[Shard], recipe_text: str) -> dict[str, bytes]:
    """Every file of the result but the weights and the lock."""
    files = _copied(plan)
    files |= _indices(plan, shards)
    files[RECIPE] = recipe_text.encode()
    names = list(dict.fromkeys(parent.name for parent in parents_of(plan)))
    library = "diffusers" if "_class_name" in plan.tree.reference.checkpoint.config else "transformers"
    front = {"base_model": names, "base_model_relation": "merge", "library_name": library}
    files[CARD] = _card(plan, recipe_text, front, "Merged model").encode()
    return files


def adapter_files(plan: Plan, recipe_text: str, base: str | None, words: list[str]) -> dict[str, bytes]:
    """Every file of a merge of adapters but the weights, their configuration and the lock."""
    files = _copied(plan)
    files[RECIPE] = recipe_text.encode()
    front = {} if base is None else {"base_model": base, "base_model_relation": "adapter"}
    files[CARD] = _card(plan, recipe_text, {**front, "library_name": "peft"}, "Merged adapter", words).encode()
    return files


def _copied(plan: Plan) -> dict[str, bytes]:
    path, unified, template = plan.tree.reference.checkpoint.path, plan.account.unified, plan.recipe.chat_template
    folder = folder_of(plan.tree.reference)
    if path is None or (folder != path and not (folder / "config.json").is_file()):
        return {}  # a lone weight file among a project's own files
    if "" not in plan.components:
        return _copied_pipeline(plan, Path(str(folder)))
    files = read_files(folder, SIDE_FILES)
    source: dict[str, bytes] = {}
    if unified is not None:
        if unified.source.folder != folder:
            source = read_files(unified.source.folder, SIDE_FILES)
            kept = {name: content for name, content in files.items() if not _matches(name, TOKENIZER_FILES)}
            files = {**kept, **{name: content for name, content in source.items() if _matches(name, TOKENIZER_FILES)}}
        files = with_tokens(files, unified.fresh)
    if template is not None:
        folders = [folder_of(leaf) for leaf in plan.tree.sources]
        chosen = choose_template(template, folders)
        files = files if chosen is None else with_template(files, chosen)
    for name in ("config.json", "generation_config.json"):
        if name in files:
            files[name] = _config(plan, folder / name, files[name], source.get(name))
    return dict(sorted(files.items()))


def _copied_pipeline(plan: Plan, folder: Path) -> dict[str, bytes]:
    """The side files of a pipeline and of its components: schedulers and tokenizers as they are."""
    files = read_files(folder, PIPELINE_FILES)
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            found = read_files(entry, PIPELINE_FILES)
            if entry.name in plan.components and "config.json" in found:
                found["config.json"] = _config(plan, entry / "config.json", found["config.json"], None)
            files |= {f"{entry.name}/{name}": content for name, content in found.items()}
    return {name: content for name, content in files.items() if name not in (LOCK, RECIPE, CARD)}


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def read_files(folder: Place, patterns: tuple[str, ...]) -> dict[str, bytes]:
    """The small files of a folder whose names match; weights are none of them."""
    files: dict[str, bytes] = {}
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        weights = entry.suffix in (".safetensors", *PICKLE_SUFFIXES) or entry.name.endswith(".index.json")
        wanted = _matches(entry.name, patterns) and not weights
        if wanted and entry.is_file() and (file := open_file(entry)).size <= MOST_SIDE_BYTES:
            try:
                files[entry.name] = file.read(0, file.size)
            except SourceError as error:
                raise SourceError(f"{error}; mend it, then --resume") from None
    return files


def _config(plan: Plan, path: Place, verbatim: bytes, source: bytes | None) -> bytes:
    """config.json (or generation_config.json) of the result; verbatim where it says already what the weights are."""
    unified = plan.account.unified
    if unified is None and path.name != "config.json":
        return verbatim
    config = found = read_json(path)
    if path.name == "config.json":
        found = edited(config, _stated_dtype(plan, config), plan.account.renumbered)
        found = dense_config(found) if plan.tree.reference.dequantised else found
    if unified is not None:
        found = renumbered(found, unified, json.loads(source) if source else {})
    return verbatim if found == config else (json.dumps(found, indent=2, ensure_ascii=False) + "\n").encode()


def _stated_dtype(plan: Plan, config: Mapping[str, Any]) -> str | None:
    """The type that config.json must state: the recipe's, or that of weights that are no longer codes."""
    dtype, leaf = plan.tree.root.dtype, plan.tree.reference
    if dtype is None and leaf.dequantised:
        dtype = native_of(Checkpoint(leaf.checkpoint, config=config))
    return None if dtype is None else dtype.torch


def _indices(plan: Plan, shards: list[Shard]) -> dict[str, bytes]:
    """The index of each component that has several weight files."""
    files: dict[str, bytes] = {}
    for component, stem in plan.components.items():
        folder = f"{component}/" if component else ""
        own = [shard for shard in shards if shard.name.startswith(f"{folder}{stem}-")]
        if own:
            places = {name: shard.name for shard in own for name in shard.offsets}
            steps = [step for step in plan.steps if step.name in places]
            total = {"total_parameters": sum(s.numel for s in steps), "total_size": sum(s.nbytes for s in steps)}
            weight_map = {name.removeprefix(folder): file.removeprefix(folder) for name, file in sorted(places.items())}
            document = {"metadata": total, "weight_map": weight_map}
            files[f"{folder}{stem}.safetensors.index.json"] = (json.dumps(document, indent=2) + "\n").encode()
    return files


def _card(plan: Plan, recipe_text: str, front: dict[str, Any], title: str, words: Sequence[str] = ()) -> str:
    parents = parents_of(plan)
    known = {parent.licence for parent in parents}
    front = {**front, "tags": ["merge", "eutectic"]}
    if len(known) == 1 and None not in known:
        front["license"] = known.pop()
    root = plan.tree.root
    title = plan.recipe.name or title
    source = f" ({root.method.reference})" if root.method.reference else ""
    lines = [
        "---", yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(), "---", "", f"# {title}", "",
        f"Made with Eutectic {eutectic.__version__} by `{root.method.name}`: {root.method.summary}{source}.", "",
    ]  # fmt: skip
    warning = licence_warning(parents)
    if warning:
        lines += [f"> **Licence.** {warning}", ""]
    lines += ["## Sources", "", "| model | revision | licence | bytes |", "|---|---|---|---|"]
    for parent in parents:
        row = (parent.name, parent.revision or "", parent.licence or "unknown", f"{parent.nbytes:,}")
        lines.append(f"| {' | '.join(row)} |")
    lines += ["", "## Tensors", "", *(f"- {line}" for line in (*plan.account.lines, *words)), ""]
    lines += ["## Recipe", "", "```yaml", recipe_text.strip(), "```", ""]
    lines += [
        f"`eutectic merge {LOCK} OUT` rebuilds the same bytes from the same sources; "
        "`eutectic verify FOLDER` checks this copy.",
        "",
    ]
    return "\n".join(lines)
