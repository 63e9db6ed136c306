"""Kernel files compile parts of others into themselves; numba's cache must notice when those change."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

import pytest

from eutectic import ops

FILES = sorted(Path(ops.__file__).parent.glob("*_kernels.py"))


def _compiled_in(path: Path) -> list[Path]:
    """The kernel files that a kernel file imports from, theirs included."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").endswith("_kernels"):
            other = path.with_name(f"{(node.module or '').rpartition('.')[2]}.py")
            found |= {other, *_compiled_in(other)}
    return sorted(found)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_kernel_file_names_the_digest_of_what_it_compiles_in(path: Path) -> None:
    others = _compiled_in(path)
    assert others or path.stem == "codec_kernels"
    if others:
        digest = hashlib.blake2b(b"".join(other.read_bytes() for other in others), digest_size=8).hexdigest()
        line = f'COMPILED_IN = "{digest}"'
        assert line in path.read_text(encoding="utf-8"), f"set {line} in {path.name}: numba caches by file"
