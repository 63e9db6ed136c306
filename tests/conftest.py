"""Fixtures that several folders share: tiny models on disk, recipes as files, and the command line in-process."""

from __future__ import annotations

import base64
import http.server
import itertools
import json
import os
import signal
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy
import pytest
import yaml
from click.testing import CliRunner, Result
from safetensors.numpy import save_file

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, on import: no test asks the real hub


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """A shell's background jobs ignore Ctrl-C, and so would the programs that the tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Measured rates go to a cache of the tests' own, in subprocesses too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def make_model(tmp_path: Path) -> Callable[..., Path]:
    """``make_model(name, tensors, config=None, card=None)`` writes a model folder with numpy tensors."""

    def make(
        name: str,
        tensors: Mapping[str, numpy.ndarray],
        config: Mapping[str, Any] | None = None,
        card: str | None = None,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        if config is not None:
            (folder / "config.json").write_text(json.dumps(config))
        if card is not None:
            (folder / "README.md").write_text(card)
        return folder

    return make


@pytest.fixture
def make_adapter(tmp_path: Path) -> Callable[..., Path]:
    """``make_adapter(name, {module: (B, A)}, whole={key: tensor}, **config)`` writes a LoRA adapter's folder.

    A module whose name starts with ``embed`` gets the keys of an embedding.
    """

    def make(
        name: str,
        factors: Mapping[str, tuple[numpy.ndarray, numpy.ndarray]],
        whole: Mapping[str, numpy.ndarray] | None = None,
        **config: Any,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        tensors = {f"base_model.model.{key}": value for key, value in (whole or {}).items()}
        for module, pair in factors.items():
            for side, value in zip("BA", pair, strict=True):
                end = f"lora_embedding_{side}" if module.startswith("embed") else f"lora_{side}.weight"
                tensors[f"base_model.model.{module}.{end}"] = numpy.ascontiguousarray(value)
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        rank = max(pair[1].shape[0] for pair in factors.values())
        settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "base_model_name_or_path": "org/base"}
        (folder / "adapter_config.json").write_text(json.dumps({**settings, **config}))
        return folder

    return make


@pytest.fixture
def family(make_model: Callable[..., Path]) -> dict[str, Path]:
    """``base``, ``a`` and ``b``: three models of one shape, with a 0-d, an empty and an integer tensor."""
    random = numpy.random.default_rng(7)

    def tensors() -> dict[str, numpy.ndarray]:
        return {
            "embed.weight": random.standard_normal((40, 8), dtype=numpy.float32),
            "layers.0.weight": random.standard_normal((8, 8), dtype=numpy.float32),
            "layers.0.scale": random.standard_normal((), dtype=numpy.float32),
            "layers.0.empty": numpy.zeros((0, 8), numpy.float32),
            "steps": numpy.array([3], numpy.int64),
        }

    return {name: make_model(name, tensors(), {"model_type": "tiny"}) for name in ("base", "a", "b")}


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    """``write_recipe(method, models, base=None, **parameters)`` writes recipe.yaml; keys in `top` go beside them."""

    def write(
        method: str, models: list[Any], base: Any = None, top: Mapping[str, Any] | None = None, **parameters: Any
    ) -> Path:
        sources = [model if isinstance(model, dict) else {"model": str(model)} for model in models]
        document: dict[str, Any] = {"merge_method": method, "models": sources, **(top or {})}
        if base is not None:
            document["base_model"] = str(base)
        if parameters:
            document["parameters"] = parameters
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        return path

    return write


@pytest.fixture
def cli() -> Callable[..., Result]:
    """``cli(*arguments)`` runs the command line in this process; the result has exit_code, stdout and stderr."""
    from eutectic.cli.main import main

    def run(*arguments: Any) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """``contents(folder)``: every file below it, by relative name."""

    def read(folder: Path) -> dict[str, bytes]:
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    return read


@pytest.fixture(scope="session", autouse=True)
def compiled_kernels() -> None:
    """Compile (or load) every kernel before the first test, so that no test sees the sentence about compiling."""
    from eutectic.ops.sparse_sum import SparseSum
    from eutectic.ops.weighted_sum import GramSum, WeightedSum
    from eutectic.recipes.executors.local import rehearse

    rehearse(WeightedSum([1.0, 1.0]), 2)
    rehearse(GramSum(2, lambda gram: (0.5, 0.5)), 2)
    rehearse(SparseSum([1.0], [0.5], vote="weighted"), 2)
    rehearse(SparseSum([1.0], [0.5], keys=[(1, 2)], rescale="l1"), 2)


class RangeServer:
    """A local HTTP server of a folder's files, with ETags and ranges; `fault(handler)` may answer instead (true)."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log, self.sent = folder, list[tuple[str, str | None]](), 0
        self.fault: Callable[[Any], bool] = lambda handler: False
        self.etags: dict[str, str] = {}
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing is printed."""

            def do_GET(self) -> None:
                owner.log.append((self.path, self.headers.get("Range")))
                if not owner.fault(self):
                    self.answer()

            def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
                self.send_response(status)
                for key, value in {"Content_Length": str(len(body)), **headers}.items():
                    self.send_header(key.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(body)

            def answer(self, ranges: bool = True) -> None:
                path = owner.folder / unquote(self.path).lstrip("/")
                if not path.is_file():
                    return self.reply(404)
                body, asked = path.read_bytes(), self.headers.get("Range")
                etag = owner.etags.get(self.path, f'"{zlib.crc32(body)}"')
                if self.headers.get("If-Match", etag) != etag:
                    return self.reply(412)
                if asked is None or not ranges:
                    return self.reply(200, body, ETag=etag)
                begin, end = (int(n) for n in asked.removeprefix("bytes=").split("-"))
                if begin >= len(body):
                    return self.reply(416)
                part = body[begin : end + 1]
                owner.sent += len(part)
                place = f"bytes {begin}-{begin + len(part) - 1}/{len(body)}"
                return self.reply(206, part, ETag=etag, Content_Range=place)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda request, client_address: None  # a client that hangs up
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def once(self, times: int, act: Callable[[Any], object]) -> None:
        """The next `times` requests are answered by `act`."""
        left = itertools.count(times, -1)

        def fault(handler: Any) -> bool:
            if next(left) <= 0:
                return False
            act(handler)
            return True

        self.fault = fault


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], RangeServer]]:
    """``serve(folder)`` starts a `RangeServer`; pauses between attempts are short."""
    monkeypatch.setattr("eutectic.weights.remote.PAUSE", 0.001)
    servers: list[RangeServer] = []

    def start(folder: Path) -> RangeServer:
        servers.append(RangeServer(folder))
        return servers[-1]

    yield start
    for server in servers:
        server.server.shutdown()
        server.server.server_close()


class Hub(RangeServer):
    """A stand-in of the hub's API: models by id, their files behind a redirect, and what is pushed to it."""

    def __init__(self, folder: Path, models: Mapping[str, Path], cache: Path) -> None:
        super().__init__(folder)
        self.models, self.cache, self.commit = dict(models), cache, "a" * 40
        self.authorisations: dict[str, set[str | None]] = {}
        self.pushed: dict[str, bytes] = {}
        self.made: list[dict[str, Any]] = []
        self.fault = self.handle
        handler = self.server.RequestHandlerClass
        handler.do_HEAD = handler.do_GET
        handler.do_POST = handler.do_PUT = lambda request: self.receive(request)

    def handle(self, request: Any) -> bool:
        path = unquote(request.path)
        self.authorisations.setdefault(path[:5], set()).add(request.headers.get("Authorization"))
        if path == "/api/whoami-v2":
            if request.headers.get("Authorization") == "Bearer hf_secret":
                self.json(request, {"name": "me", "type": "user", "orgs": [{"name": "org"}]})
            else:
                request.reply(401)
        elif path.startswith("/api/models/"):
            repo, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            if repo == "org/broken":
                request.reply(500)
            elif repo == "org/gated":
                request.reply(403, X_Error_Code="GatedRepo")
            elif repo not in self.models:
                request.reply(404, X_Error_Code="RepoNotFound")
            elif revision not in ("", "main", self.commit):
                request.reply(404, X_Error_Code="RevisionNotFound")
            else:
                files = [{"rfilename": path.name} for path in self.models[repo].iterdir()]
                self.json(request, {"id": repo, "sha": self.commit, "siblings": files})
        elif "/resolve/" in path:
            repo, _, rest = path[1:].partition("/resolve/")
            file = self.models[repo] / rest.partition("/")[2]
            place = f"http://localhost:{self.server.server_port}/cdn/{file.relative_to(self.folder)}?signature=x"
            request.reply(302, Location=place) if file.is_file() else request.reply(404)
        elif path.startswith("/cdn/"):
            request.path = path.removeprefix("/cdn").partition("?")[0]
            return False
        else:
            request.reply(404)
        return True

    def receive(self, request: Any) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        path = unquote(request.path)
        self.log.append((path, None))
        if path == "/api/repos/create":
            self.made.append(json.loads(body))
            self.json(request, {"url": f"{self.url}/org/merged", "id": "org/merged", "name": "org/merged"})
        elif "/preupload/" in path:
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            self.json(request, {"files": [{"path": f["path"], **mode} for f in json.loads(body)["files"]]})
        elif "/commit/" in path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.pushed[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            address = f"{self.url}/org/merged/commit/c"
            self.json(request, {"success": True, "commitOid": "c" * 40, "commitUrl": address})
        else:
            self.json(request, {})

    def json(self, request: Any, document: Any) -> None:
        request.reply(200, json.dumps(document).encode(), Content_Type="application/json")


@pytest.fixture
def serve_hub(
    serve: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Hub]]:
    """``serve_hub({"org/name": folder})``: a `Hub` that huggingface_hub talks to in place of the real one."""
    import huggingface_hub.constants as constants

    servers: list[Hub] = []
    cache = tmp_path / "hub-cache"
    cache.mkdir()
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)

    def start(models: Mapping[str, Path]) -> Hub:
        servers.append(Hub(tmp_path, models, cache))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", servers[-1].url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        return servers[-1]

    yield start
    for server in servers:
        server.server.shutdown()
        server.server.server_close()


@pytest.fixture
def make_run(make_model: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """``make_run(name, losses)``: a run as a Trainer leaves it, a checkpoint and an eval_loss for each step.

    A loss is logged half-way and at each step, 0.2 and 0.1 above eval_loss; beside each model lies what training
    keeps of its own.
    """

    def make(name: str, losses: Mapping[int, float]) -> Path:
        random = numpy.random.default_rng(3)
        history: list[dict[str, float]] = []
        for step, loss in losses.items():
            tensors = {
                "embed.weight": random.standard_normal((40, 8), dtype=numpy.float32),
                "layers.0.weight": random.standard_normal((8, 8), dtype=numpy.float32),
                "steps": numpy.array([3], numpy.int64),
            }
            folder = make_model(f"{name}/checkpoint-{step}", tensors, {"model_type": "tiny"})
            history += [
                {"epoch": 0.5, "step": step - 5, "loss": loss + 0.2, "learning_rate": 1e-4},
                {"epoch": 1.0, "step": step, "loss": loss + 0.1, "learning_rate": 1e-4},
                {"epoch": 1.0, "step": step, "eval_loss": loss, "eval_accuracy": 1 - loss / 10},
            ]
            state = {"global_step": step, "epoch": 1.0, "log_history": history, "best_metric": None}
            (folder / "trainer_state.json").write_text(json.dumps(state))
            for kept in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
                (folder / kept).write_bytes(b"not a model")
        return tmp_path / name

    return make
