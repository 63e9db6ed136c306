"""Kernel files compile parts of `kernels.py` into themselves; numba's cache must notice when those change."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from eutectic.ops import entry_kernels, kernels, row_kernels


@pytest.mark.parametrize("module", [entry_kernels, row_kernels], ids=lambda module: module.__name__)
def test_the_codec_stamp_is_that_of_the_file_it_names(module: object) -> None:
    digest = hashlib.blake2b(Path(kernels.__file__).read_bytes(), digest_size=8).hexdigest()
    assert digest == module.CODEC, f'set CODEC = "{digest}" in {module.__name__}: numba caches by file'  # type: ignore[attr-defined]
