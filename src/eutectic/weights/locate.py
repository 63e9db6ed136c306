"""What a reference means: a path, a URL, a pool's member, or a model of the hub. A path that exists wins."""

from __future__ import annotations

import os
import re
from pathlib import Path

from eutectic.errors import SourceError
from eutectic.weights.files import Place, RemotePath
from eutectic.weights.member import member_at

__all__ = ["is_remote_text", "locate"]

SCHEMES = ("http", "https", "s3")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_HUB = re.compile(r"([A-Za-z0-9][\w.-]*/[\w][\w.-]*)(?:@([\w][\w./-]*))?")


def is_remote_text(reference: str) -> bool:
    """Whether a text is a URL, which no path is taken for."""
    return _SCHEME.match(reference) is not None


def locate(reference: str | os.PathLike[str] | RemotePath) -> Place:
    """Where a reference points. Nothing is asked of any server yet.

    A text is a URL (``https://``, ``http://``, ``s3://``), else a path that exists, else a member of a pool
    (``POOL#NAME``), else a model of the hub (``org/name``, ``org/name@revision``) where it has that form, else a path
    that does not exist.

    Raises:
        SourceError: a URL of another kind, or one that carries a key.

    >>> locate("./models/base")
    PosixPath('models/base')
    >>> locate("org/name@main")
    HubPath('org/name@main')
    >>> locate("s3://bucket/models/base")
    UrlPath('s3://bucket/models/base')
    """
    if not isinstance(reference, str):
        return reference if isinstance(reference, RemotePath) else Path(reference)
    scheme = _SCHEME.match(reference)
    if scheme is not None:
        if scheme[1].lower() not in SCHEMES:
            known = ", ".join(f"{name}://" for name in SCHEMES)
            raise SourceError(f"{reference.split('?')[0]}: URLs of this kind are not read; {known} are")
        from eutectic.weights.url import UrlPath

        return UrlPath.parse(reference)
    if "#" in reference and (member := member_at(reference)) is not None:
        return member
    hub = _HUB.fullmatch(reference)
    if hub is None or os.path.exists(reference):  # noqa: PTH110  (never raises)
        return Path(reference)
    if hub[2] is not None and os.path.exists(hub[1]):  # noqa: PTH110
        raise SourceError(f"{reference}: {hub[1]} is a folder here, which has no revisions; leave out @{hub[2]}")
    from eutectic.weights.hub import HubPath

    return HubPath(hub[1], hub[2])
