"""`--push-to-hub`: a finished folder as a model of the hub, without a word about this machine's folders."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eutectic.errors import OutputError
from eutectic.recipes.lock import read_lock
from eutectic.recipes.provenance import CARD, LOCK, RECIPE, cached_identity, public_base
from eutectic.recipes.yaml_text import dump_yaml
from eutectic.weights.checkpoint import read_json
from eutectic.weights.digest import hash_bytes
from eutectic.weights.hub import import_hub
from eutectic.weights.lora import ADAPTER_CONFIG

__all__ = ["check_push", "public_files", "push"]

_REPO = re.compile(r"([\w][\w.-]*)/([\w][\w.-]*)")
# Between a model and its adapter, as an expanded recipe writes them.
_PLUS = re.compile(r"\+(?=/|[a-z0-9]+://|[\w.-]+/[\w.-]+@[0-9a-f]{40}\Z)")
_KEYS = ("model", "base_model")


def check_push(repo: str) -> None:
    """Refuse, before anything is merged, a target that could not be pushed to.

    Raises:
        OutputError: not a name of the hub, nobody is logged in, or somebody who may not write there.
        MissingDependencyError: huggingface_hub is not installed.
    """
    name = _REPO.fullmatch(repo)
    if name is None:
        raise OutputError(f"--push-to-hub {repo}: a model of the hub is named by org/name")
    hub = import_hub("--push-to-hub")
    if hub.constants.HF_HUB_OFFLINE:
        raise OutputError("--push-to-hub: HF_HUB_OFFLINE is set; unset it, or leave the flag out")
    if hub.get_token() is None:
        raise OutputError("--push-to-hub: nobody is logged in; run hf auth login, or set HF_TOKEN")
    try:
        found = _api(hub).whoami()
    except Exception as error:  # what the HTTP library beneath raises differs between its versions
        raise OutputError(f"--push-to-hub: {hub.constants.ENDPOINT} does not take the login: {_why(error)}") from None
    spaces = [found["name"], *(org["name"] for org in found.get("orgs", ()))]
    if name[1] not in spaces:
        raise OutputError(f"--push-to-hub {repo}: {found['name']} writes to {', '.join(spaces)}, not to {name[1]}")


def push(folder: Path, repo: str) -> str:
    """Upload a merged folder in one commit; a model that is not there yet is made, private. Returns its address.

    The recipe, card and lock file are uploaded as `public_files` gives them; the folder itself stays as it is.

    Raises:
        OutputError: the hub refused; the folder is whole, and pushing again is safe.
    """
    hub = import_hub("--push-to-hub")
    public = public_files(folder)
    operations = [
        hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=public.get(name, str(path)))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and (name := path.relative_to(folder).as_posix())
    ]
    api = _api(hub)
    try:
        api.create_repo(repo, private=True, exist_ok=True)
        api.create_commit(repo, operations, commit_message="Merged with Eutectic")
    except Exception as error:
        raise OutputError(
            f"{folder} is merged and whole, but pushing it to {repo} failed: {_why(error)}. The same command with "
            "--resume pushes again"
        ) from None
    return f"{hub.constants.ENDPOINT}/{repo}"


def _api(hub: Any) -> Any:
    return hub.HfApi(endpoint=hub.constants.ENDPOINT, library_name="eutectic")


def _why(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return f"it answers {status}" if status else f"{type(error).__name__}: {str(error)[:160]}"


def public_files(folder: Path) -> dict[str, bytes]:
    """Recipe, card, lock file (and adapter_config.json) of a merged folder, with hub ids and names in place of paths.

    A model of the hub is named with its commit, wherever it was read; another one by its folder's name. The lock
    file's digests are those of these texts, so that `eutectic verify` accepts a download.
    """
    lock = read_lock(folder / LOCK)
    document = read_json(folder / LOCK)
    for holder, key in _references(document["recipe"]):
        holder[key] = "+".join(map(public_name, _PLUS.split(holder[key])))
    for source in document["sources"]:
        source["path"] = "+".join(map(public_name, _PLUS.split(source["path"])))
    text = dump_yaml(document["recipe"])
    card = (folder / CARD).read_text(encoding="utf-8").replace(lock.text.strip(), text.strip())
    files = {RECIPE: text.encode(), CARD: card.encode(), **_public_config(folder)}
    document["text"] = text
    document["output"]["files"] |= {name: hash_bytes(content) for name, content in files.items()}
    return {**files, LOCK: (json.dumps(document, indent=1) + "\n").encode()}


def public_name(place: str) -> str:
    """What others can make of a place: hub ids and URLs stay; of a path the name remains.

    >>> public_name("/home/me/models/base"), public_name("org/name@main")
    ('base', 'org/name@main')
    """
    if not place.startswith("/"):
        return place
    name, revision = cached_identity(Path(place)) or (Path(place).name, None)
    return f"{name}@{revision}" if revision else name


def _public_config(folder: Path) -> dict[str, bytes]:
    """The configuration of an adapter, if it names a folder as its base."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return {}
    config = read_json(folder / ADAPTER_CONFIG)
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or public_base(base) == base:
        return {}
    config["base_model_name_or_path"] = public_base(base)
    return {ADAPTER_CONFIG: (json.dumps(config, indent=2) + "\n").encode()}


def _references(node: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Every place in a recipe's plain data where a model is named."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in _KEYS and isinstance(value, str):
                yield node, key
            else:
                yield from _references(value)
    elif isinstance(node, list):
        for child in node:
            yield from _references(child)
