"""A safetensors file, or a folder of a model, behind an http, https or s3 URL."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

from eutectic.errors import SourceError
from eutectic.weights.files import RemotePath
from eutectic.weights.remote import HELD_BYTES, Absent, Refused, RemoteFile, Store, Window, insistent

__all__ = ["UrlPath"]

FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json")
# An http server cannot be asked what it has: these are tried, one request each.
TRIED = (
    "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "adapter_config.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "config.json", "generation_config.json", "merges.txt", "preprocessor_config.json",
    "processor_config.json", "sentencepiece.bpe.model", "special_tokens_map.json", "spiece.model", "tokenizer.json",
    "tokenizer.model", "tokenizer_config.json", "video_preprocessor_config.json", "vocab.json", "vocab.txt",
)  # fmt: skip
CURES = {
    "s3": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket.",
    "http": "Download it with what has access, and give its path.",
}


class _Site:
    """What the places of one source share: the store, the pieces in memory, the files that were opened."""

    def __init__(self, scheme: str, host: str) -> None:
        self.lists = scheme == "s3"
        self.root = f"{scheme}://{host}"
        self.cure = CURES["s3" if self.lists else "http"]
        self.window = Window()
        self.opened: dict[str, RemoteFile] = {}
        self.listed: dict[str, list[str]] = {}
        self.absent: set[str] = set()
        self.refused: Refused | None = None
        self._store: Store | None = None

    @property
    def store(self) -> Store:
        if self._store is None:
            self._store = Store(self.root, cure=self.cure)
        return self._store


class UrlPath(RemotePath):
    """A place under one server or bucket; `parse` makes it, and `/` and `parent` stay on the same site."""

    def __init__(self, site: _Site, path: str) -> None:
        self._site, self._path = site, path
        self.name = path.rpartition("/")[2] or site.root.rpartition("/")[2]

    @classmethod
    def parse(cls, url: str) -> UrlPath:
        """From a URL.

        Raises:
            SourceError: it names no host, or carries a user, a password or a query.
        """
        parts = urlsplit(url)
        bare = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        if not parts.hostname or "\\" in url:
            raise SourceError(f"{bare}: not a URL; one looks like https://host/model or s3://bucket/model")
        if parts.query or parts.fragment or "@" in parts.netloc:
            raise SourceError(
                f"{bare}: a URL with a key, a query or a fragment is not taken, as recipes are copied into model cards "
                "and lock files; give the bare URL, or download the file and give its path"
            )
        path = parts.path.strip("/")
        return cls(_Site(parts.scheme.lower(), parts.netloc), path if parts.scheme.lower() == "s3" else unquote(path))

    def __str__(self) -> str:
        return f"{self._site.root}/{self._path}" if self._path else self._site.root

    @property
    def parent(self) -> UrlPath:
        return UrlPath(self._site, self._path.rpartition("/")[0])

    @property
    def identity(self) -> tuple[str, str | None]:
        return str(self), None

    @property
    def held_bytes(self) -> int:
        return HELD_BYTES

    def __truediv__(self, name: str) -> UrlPath:
        return UrlPath(self._site, f"{self._path}/{name}" if self._path else name)

    def is_dir(self) -> bool:
        return not self._path.endswith(FILES)

    def is_file(self) -> bool:
        if self._site.lists:
            return self.name in self.parent._names()
        if self._path in self._site.absent:
            return False
        try:
            self.open()
            return True
        except Absent:
            pass
        except Refused as error:  # what many stores say of a file that is not there
            self._site.refused = error
        self._site.absent.add(self._path)
        return False

    def _names(self) -> list[str]:
        site = self._site
        if self._path not in site.listed:
            try:
                site.listed[self._path] = insistent(self, lambda: site.store.names(self, self._path))
            except Absent:
                site.listed[self._path] = []
        return site.listed[self._path]

    def iterdir(self) -> Iterator[UrlPath]:
        if self._site.lists:
            yield from (self / name for name in self._names())
            return
        found = [place for name in TRIED if (place := self / name).is_file()]
        if not found and self._site.refused is not None:
            raise self._site.refused
        yield from found

    def open(self) -> RemoteFile:
        opened = self._site.opened
        if self._path not in opened:
            opened[self._path] = RemoteFile(self, self._site.store, self._path, self._site.window)
        return opened[self._path]

    def pinned(self) -> UrlPath:
        return self
