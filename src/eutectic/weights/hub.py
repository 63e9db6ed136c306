"""A model of the Hugging Face hub: `org/name`, or `org/name@revision`. Needs huggingface_hub (extra `hf`).

What lies in the hub's cache is read there. What does not is streamed by ranges and never stored. No request is made
where the cache holds the weights and the revision is a commit, or where HF_HUB_OFFLINE is set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from eutectic.errors import MissingDependencyError, SourceError
from eutectic.weights.files import RemotePath, SourceFile
from eutectic.weights.remote import HELD_BYTES, RemoteFile, Store, Window

__all__ = ["HubPath", "import_hub"]

ASK_TIMEOUT = 20.0  # seconds
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.\w+)")
WHOLE = ("model.safetensors", "pytorch_model.bin", "adapter_model.safetensors", "adapter_model.bin")


def import_hub(wanted: str) -> Any:
    """The library; `wanted` begins the sentence that says what needs it.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError:
        raise MissingDependencyError(f"{wanted} needs huggingface_hub: pip install 'eutectic[hf]'") from None
    return huggingface_hub


@dataclass
class Snapshot:
    """One commit of a model: its files by name, and the folder of the cache where some of them may lie."""

    repo: str
    commit: str
    names: tuple[str, ...]
    cached: Path
    window: Window = field(default_factory=Window)
    opened: dict[str, SourceFile] = field(default_factory=dict)

    @cached_property
    def store(self) -> Store:
        """The hub, as a server of ranges."""
        hub = import_hub(self.repo)
        headers = hub.utils.build_hf_headers(library_name="eutectic")
        cure = "Ask for access on the model's page, and log in: hf auth login"
        return Store(hub.constants.ENDPOINT, headers=headers, cure=cure, pins=True)

    def open(self, place: HubPath, name: str) -> SourceFile:
        """A file: of the cache where it is there, else by ranges."""
        if name not in self.opened:
            local = self.cached / name
            if local.is_file():
                self.opened[name] = SourceFile(local)
            else:
                path = f"{self.repo}/resolve/{self.commit}/{name}"
                self.opened[name] = RemoteFile(place, self.store, path, self.window)
        return self.opened[name]


class HubPath(RemotePath):
    """A model of the hub, or one of its files. Nothing is asked before `pinned`, which every reader calls first."""

    def __init__(
        self, repo: str, revision: str | None = None, name: str = "", snapshot: Snapshot | None = None
    ) -> None:
        self.repo, self.revision, self._name, self._snapshot = repo, revision, name, snapshot
        self.name = name or repo.rpartition("/")[2]

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{revision}" + (f"/{self._name}" if self._name else "")

    @property
    def parent(self) -> HubPath:
        return HubPath(self.repo, self.revision, "", self._snapshot)

    @property
    def identity(self) -> tuple[str, str | None]:
        return self.repo, self.revision

    @property
    def held_bytes(self) -> int:
        opened = self._snapshot.opened.values() if self._snapshot else ()
        return 0 if all(file.on_disk for file in opened) else HELD_BYTES

    @property
    def snapshot(self) -> Snapshot:
        """What is there; asked for once."""
        if self._snapshot is None:
            self._snapshot = _find(self.repo, self.revision)
        return self._snapshot

    def __truediv__(self, name: str) -> HubPath:
        return HubPath(self.repo, self.revision, f"{self._name}/{name}" if self._name else name, self.snapshot)

    def is_dir(self) -> bool:
        return not self._name

    def is_file(self) -> bool:
        return self._name in self.snapshot.names

    def iterdir(self) -> Iterator[HubPath]:
        yield from (self / name for name in self.snapshot.names if "/" not in name)

    def open(self) -> SourceFile:
        return self.snapshot.open(self, self._name)

    def pinned(self) -> HubPath:
        return HubPath(self.repo, self.snapshot.commit, self._name, self.snapshot)


def _find(repo: str, revision: str | None) -> Snapshot:
    """The snapshot that a revision names: from the cache where that can be, else from the hub."""
    asked = f"{repo}@{revision}" if revision else repo
    hub = import_hub(f"{asked}: no such folder or file here; to read it from the hub")
    folder = Path(hub.constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    named = revision or "main"
    ref = folder / "refs" / named
    commit = named if _COMMIT.fullmatch(named) else (ref.read_text().strip() if ref.is_file() else None)
    cached = folder / "snapshots" / (commit or named)
    offline = hub.constants.HF_HUB_OFFLINE
    if commit and cached.is_dir() and (offline or (commit == named and _is_whole(cached))):
        return Snapshot(repo, commit, _names(cached), cached)
    if offline:
        raise SourceError(
            f"{asked}: no such folder or file here, nor in the cache ({folder.parent}), and HF_HUB_OFFLINE forbids to "
            f"ask the hub. Where you are online: hf download {repo}" + (f" --revision {revision}" if revision else "")
        )
    info = _ask(hub, repo, revision, commit if cached.is_dir() else None)
    names = tuple(sorted(entry.rfilename for entry in info.siblings or ()))
    return Snapshot(repo, info.sha, names, folder / "snapshots" / info.sha)


def _names(cached: Path) -> tuple[str, ...]:
    """The files of a folder of the cache; links whose target is gone do not count."""
    return tuple(sorted(path.relative_to(cached).as_posix() for path in cached.rglob("*") if path.is_file()))


def _is_whole(cached: Path) -> bool:
    """Whether the cache holds a model's description and all of its weights: by its series of shards, if it has one."""
    names = set(_names(cached))
    if not names & {"config.json", "adapter_config.json"}:
        return False
    if names & set(WHOLE):
        return True
    series = [match for name in names if (match := _SHARD.fullmatch(name))]
    return bool(series) and len(series) == int(series[0][2]) and any(name.endswith(".index.json") for name in names)


def _ask(hub: Any, repo: str, revision: str | None, copy: str | None) -> Any:
    """What the hub says of a model: its commit and its files."""
    asked, errors = f"{repo}@{revision}" if revision else repo, hub.errors
    try:
        api = hub.HfApi(endpoint=hub.constants.ENDPOINT, library_name="eutectic")
        return api.model_info(repo, revision=revision, timeout=ASK_TIMEOUT)
    except errors.GatedRepoError:
        raise SourceError(
            f"{asked} is gated: ask for access at {hub.constants.ENDPOINT}/{repo}, then log in: hf auth login"
        ) from None
    except errors.RepositoryNotFoundError:
        raise SourceError(
            f"{asked}: no such folder or file here, and the hub has no such model, or not for you. Check the name; for "
            "a private one log in: hf auth login"
        ) from None
    except errors.RevisionNotFoundError:
        raise SourceError(f"{asked}: the hub's {repo} has no branch, tag or commit {revision!r}") from None
    except errors.HFValidationError as error:
        raise SourceError(f"{asked}: no such folder or file here, and no name of the hub: {str(error)[:120]}") from None
    except Exception as error:  # what the HTTP library beneath raises differs between its versions
        status = getattr(getattr(error, "response", None), "status_code", None)
        why = f"it answers {status}" if status else f"{type(error).__name__}: {str(error)[:120]}"
        cure = f". HF_HUB_OFFLINE=1 takes commit {copy} from the cache" if copy else ""
        raise SourceError(
            f"{asked}: no such folder or file here, and the hub ({hub.constants.ENDPOINT}) cannot be asked: {why}{cure}"
        ) from None
