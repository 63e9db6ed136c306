"""How to run a merge: everything that is not part of the recipe."""

from __future__ import annotations

import re
from dataclasses import dataclass

from eutectic.errors import ResourceError
from eutectic.weights.sink import DEFAULT_SHARD_BYTES

__all__ = ["DEFAULT_MEMORY", "EXECUTORS", "Options"]

DEFAULT_MEMORY = 256 << 20
EXECUTORS = ("local", "ray")
_DEVICE = re.compile(r"cpu|cuda(:\d+)?")


@dataclass(frozen=True)
class Options:
    """How to run a merge; of these only `seed`, `allow_mismatch`, `shard_bytes` and `device` can change its bytes.

    Args:
        max_memory: bytes for tiles and buffers. threads: None means all cores (of a node, with Ray).
        seed: of methods that draw random numbers; None: the recipe's. shard_bytes: of the largest weight file.
        allow_mismatch: copy tensors that not every source has. allow_nonfinite: merge NaN and infinity.
        torch_only: run the torch functions, not the kernels. fsync: flush to the disk at the end.
        hash_sources: record hashes of whole source files.
        device: "cpu" (kernels), "cuda" or "cuda:1" (torch functions on that GPU).
        executor: "local" (this process) or "ray" (a cluster, at `address` or wherever Ray finds one).

    Raises:
        ResourceError: no such device or executor, or two that exclude each other.
    """

    max_memory: int = DEFAULT_MEMORY
    threads: int | None = None
    seed: int | None = None
    shard_bytes: int = DEFAULT_SHARD_BYTES
    allow_mismatch: bool = False
    allow_nonfinite: bool = False
    torch_only: bool = False
    fsync: bool = True
    hash_sources: bool = False
    device: str = "cpu"
    executor: str = "local"
    address: str | None = None

    def __post_init__(self) -> None:
        if not _DEVICE.fullmatch(self.device):
            raise ResourceError(f"there is no device {self.device!r}; choose cpu, cuda, or one GPU such as cuda:1")
        if self.executor not in EXECUTORS:
            raise ResourceError(f"there is no executor {self.executor!r}; choose {' or '.join(EXECUTORS)}")
        if self.executor == "ray" and self.device != "cpu":
            raise ResourceError("a Ray cluster merges on its processors only; leave out either --device or --executor")
        if self.address is not None and self.executor != "ray":
            raise ResourceError("an address is a Ray cluster's; add --executor ray, or leave --address out")

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU merges."""
        return self.device != "cpu"

    @property
    def device_kind(self) -> str:
        """The device without its number: what the bytes of the result may depend on."""
        return self.device.partition(":")[0]
