"""Exchange two folders in one step (Linux `renameat2` with RENAME_EXCHANGE), else by two renames."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

__all__ = ["exchange_folders"]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


def exchange_folders(new: Path, old: Path) -> None:
    """Afterwards `old` names what `new` was, and `new` what `old` was.

    Where the file system cannot exchange, `old` is moved aside first: a crash between the two renames leaves
    both folders whole, under `new` and `old.replaced`.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    rename = getattr(libc, "renameat2", None)
    if rename is not None:
        if rename(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE) == 0:
            return
        code = ctypes.get_errno()
        if code not in _UNSUPPORTED:
            raise OSError(code, os.strerror(code), str(new))
    aside = old.with_name(old.name + ".replaced")
    old.rename(aside)
    new.rename(old)
    aside.rename(new)
