"""Options: which ways of running exclude one another, and what a wrong one is answered."""

from __future__ import annotations

import pytest

from eutectic.errors import ResourceError
from eutectic.recipes.options import Options


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"device": "gpu"}, "no device 'gpu'; choose cpu, cuda"),
        ({"device": "cuda:"}, "no device 'cuda:'"),
        ({"device": "CUDA"}, "no device 'CUDA'"),
        ({"executor": "dask"}, "no executor 'dask'; choose local or ray"),
        ({"executor": "ray", "device": "cuda"}, "leave out either --device or --executor"),
        ({"address": "localhost:6379"}, "add --executor ray"),
    ],
)
def test_what_cannot_be(wrong: dict[str, str], words: str) -> None:
    with pytest.raises(ResourceError, match=words):
        Options(**wrong)  # pyright: ignore[reportArgumentType]


def test_the_kind_of_a_device_has_no_number() -> None:
    assert (Options().device_kind, Options().on_gpu) == ("cpu", False)
    assert (Options(device="cuda:3").device_kind, Options(device="cuda:3").on_gpu) == ("cuda", True)
