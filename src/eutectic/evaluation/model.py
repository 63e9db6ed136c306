"""`Model`: a checkpoint, stored or planned, as what a task asks for: a network, a tokenizer, a folder."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eutectic.errors import MissingDependencyError, SourceError
from eutectic.recipes.merge import merge
from eutectic.recipes.plan import Plan
from eutectic.recipes.provenance import fingerprint
from eutectic.recipes.vocabulary import folder_of
from eutectic.weights.checkpoint import Checkpoint
from eutectic.weights.digest import hash_bytes
from eutectic.weights.files import Place, is_folder
from eutectic.weights.member import MemberPath

if TYPE_CHECKING:
    import torch

__all__ = ["Model"]

BYTES = 512  # a vocabulary at most this large, without a tokenizer, is bytes (and a few special tokens)


class Model:
    """A checkpoint to be measured; a planned recipe is merged as it is read and never written."""

    def __init__(self, checkpoint: Checkpoint, label: str = "") -> None:
        self.checkpoint = checkpoint
        self.label = label or (str(checkpoint.path) if checkpoint.path is not None else "recipe")

    @property
    def identity(self) -> str:
        """A digest of what is measured: a recipe and its sources; place, size, time and header of files; or bytes."""
        return self._identity

    @cached_property
    def _identity(self) -> str:
        config = json.dumps(self.checkpoint.config, sort_keys=True, default=str)
        if isinstance(self.checkpoint, Plan):
            return hash_bytes(f"{fingerprint(self.checkpoint)} {config}".encode())
        files = sorted(
            (str(file.path.absolute() if isinstance(file.path, Path) else file.path), file.size, file.mtime_ns,
             file.etag, hash_bytes(header))
            for file, header in self.checkpoint.headers.items()
        )  # fmt: skip
        held = [
            (name, tensor.dtype.name, tensor.shape, hash_bytes(tensor.to_numpy().tobytes()))
            for name, tensor in (() if files else self.checkpoint.items())
        ]
        return hash_bytes(json.dumps([files, held, config]).encode())

    @property
    def recipe(self) -> Mapping[str, Any] | None:
        """The recipe as plain data, where there is one."""
        return self.checkpoint.expanded if isinstance(self.checkpoint, Plan) else None

    @cached_property
    def network(self) -> torch.nn.Module:
        """The network in float32 on the CPU, ready to answer."""
        from eutectic.evaluation.networks import load_network

        return load_network(self.checkpoint, self.checkpoint.config)

    @property
    def networks(self) -> list[torch.nn.Module]:
        """The networks whose answers are averaged: one, but for an ensemble."""
        return [self.network]

    @property
    def home(self) -> Place | None:
        """The folder whose tokenizer and configuration are the model's."""
        if isinstance(self.checkpoint, Plan):
            place = folder_of(self.checkpoint.tree.reference)
        else:
            path = self.checkpoint.path
            place = path if path is None or is_folder(path) else path.parent
        return place.side if isinstance(place, MemberPath) else place

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer (transformers); None for a model of bytes.

        Raises:
            SourceError: there is none, and the vocabulary is larger than bytes need.
            MissingDependencyError: transformers is not installed.
        """
        home = self.home
        found = isinstance(home, Path) and any(
            (home / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json")
        )
        if not found:
            size = self.checkpoint.config.get("vocab_size")
            if isinstance(size, int) and 256 <= size <= BYTES:
                return None
            raise SourceError(f"{self.label}: has no tokenizer beside its weights, which this task needs")
        try:
            from transformers import AutoTokenizer
        except ImportError:
            raise MissingDependencyError(
                "tasks of text need transformers; pip install 'eutectic[zoo]' or transformers"
            ) from None
        return AutoTokenizer.from_pretrained(str(home), local_files_only=True)

    def complete(self, prompts: Sequence[str], most_tokens: int) -> list[str]:
        """The most likely continuation of each prompt, up to a line break, greedily."""
        from eutectic.evaluation.decoding import continue_greedily

        return continue_greedily(self.networks, self.tokenizer, prompts, most_tokens)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder that other programs can load: the stored one, or the recipe's result in a temporary place."""
        path = self.checkpoint.path
        if isinstance(path, Path) and path.is_dir():
            yield path
        elif isinstance(self.checkpoint, Plan):
            with tempfile.TemporaryDirectory(prefix="eutectic-") as scratch:
                target = Path(scratch) / "model"
                merge(self.checkpoint.recipe, target, self.checkpoint.options)
                yield target
        elif isinstance(path, MemberPath):
            with tempfile.TemporaryDirectory(prefix="eutectic-") as scratch:
                target = Path(scratch) / "model"
                merge({"merge_method": "passthrough", "models": [{"model": str(path)}]}, target)
                yield target
        else:
            raise SourceError(f"{self.label}: this task needs a model folder on this machine")
