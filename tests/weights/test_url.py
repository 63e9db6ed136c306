"""Checkpoints behind URLs: the same tensors as on disk, whatever the server does, or a sentence that says why not."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import save_file

from eutectic.errors import FormatError, MissingDependencyError, SourceError
from eutectic.weights import remote
from eutectic.weights.checkpoint import open_checkpoint
from eutectic.weights.files import SourceFile
from eutectic.weights.url import UrlPath


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "START", 4096)
    monkeypatch.setattr(remote, "PIECE", 8192)


@pytest.fixture
def model(make_model: Callable[..., Path]) -> Path:
    random = numpy.random.default_rng(0)
    tensors = {f"layer.{at}": random.normal(size=(40, 200)).astype("float32") for at in range(6)}
    return make_model("served/model", tensors, config={"model_type": "x"}, card="---\nlicense: mit\n---\n")


def equal(url: str, folder: Path) -> None:
    found, there = open_checkpoint(url), open_checkpoint(folder)
    assert list(found) == list(there)
    assert found.config == there.config
    for name, tensor in there.items():
        assert found[name].read() == tensor.read()
        assert found[name].read(37, 4321) == tensor.read(37, 4321)


def test_a_folder_and_a_file_over_http(serve: Callable[..., Any], model: Path) -> None:
    server = serve(model.parent)
    equal(f"{server.url}/model", model)
    equal(f"{server.url}/model/", model)
    equal(f"{server.url}/model/model.safetensors", model)


def test_opening_reads_the_first_bytes_only(serve: Callable[..., Any], model: Path) -> None:
    server = serve(model.parent)
    found = open_checkpoint(f"{server.url}/model")
    assert len(found) == 6
    assert server.sent <= 3 * 4096
    assert found.held_bytes == remote.HELD_BYTES


def test_shards_with_an_index(serve: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "sharded model"
    folder.mkdir()
    for at in (1, 2):
        save_file({f"w{at}": numpy.arange(at * 5000.0)}, folder / f"model-0000{at}-of-00002.safetensors")
    index = {"weight_map": {f"w{at}": f"model-0000{at}-of-00002.safetensors" for at in (1, 2)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    server = serve(tmp_path)
    equal(f"{server.url}/sharded%20model", folder)
    equal(f"{server.url}/sharded%20model/model.safetensors.index.json", folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(SourceError, match=r"shard model-00002-of-00002.safetensors is named by .* but missing"):
        open_checkpoint(f"{server.url}/sharded%20model")


def test_long_reads_are_read_ahead_and_memory_is_bounded(serve: Callable[..., Any], tmp_path: Path) -> None:
    numpy.arange(1 << 18, dtype="<u4").tofile(tmp_path / "long.bin")
    server = serve(tmp_path)
    place = UrlPath.parse(f"{server.url}/long.bin")
    file, here = place.open(), SourceFile(tmp_path / "long.bin")
    for at in range(0, file.size, 1 << 12):
        assert file.read(at, 1 << 12) == here.read(at, 1 << 12)
        assert len(file._window._held) <= remote.SLOTS + remote.AHEAD
    assert server.sent == file.size  # small reads are joined, and nothing is fetched twice


def test_passing_faults_are_outlived(serve: Callable[..., Any], model: Path) -> None:
    server = serve(model.parent)

    def hang_up(handler: Any) -> None:
        handler.send_response(206)
        handler.send_header("Content-Length", "4096")
        handler.send_header("Content-Range", "bytes 0-4095/100000")
        handler.end_headers()
        handler.wfile.write(b"x" * 100)
        handler.close_connection = True

    def short(handler: Any) -> None:
        handler.reply(206, b"abc", Content_Range="bytes 0-4095/100000", ETag='"1"')

    for act in (hang_up, short, lambda h: h.reply(500), lambda h: h.reply(503), lambda h: h.reply(429)):
        server.once(remote.ATTEMPTS - 1, act)
        equal(f"{server.url}/model", model)


def test_lasting_faults_end_in_bounded_time(serve: Callable[..., Any], model: Path) -> None:
    server = serve(model.parent)
    found = open_checkpoint(f"{server.url}/model")
    server.log.clear()
    server.fault = lambda handler: handler.reply(500) or True
    begun = time.monotonic()
    with pytest.raises(SourceError, match=r"model\.safetensors: the server answers 500, 5 times.*--resume"):
        found["layer.5"].read()
    assert len(server.log) == remote.ATTEMPTS
    assert time.monotonic() - begun < 5


def test_pauses_grow_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", slept.append)

    def fail() -> None:
        raise remote._Passing("no")

    with pytest.raises(SourceError, match="no, 5 times"):
        remote.insistent(UrlPath.parse("https://host/x"), fail)
    assert slept == [0.25, 0.5, 1.0, 2.0]


@pytest.mark.parametrize("status", [401, 403, 410, 451])
def test_a_refusal_is_told_at_once(serve: Callable[..., Any], model: Path, status: int) -> None:
    server = serve(model.parent)
    server.fault = lambda handler: handler.reply(status) or True
    with pytest.raises(SourceError, match=rf"{status}"):
        open_checkpoint(f"{server.url}/model")
    assert len({path for path, _ in server.log}) == len(server.log)  # nothing was asked for twice
    with pytest.raises(SourceError, match=rf"{status}"):
        open_checkpoint(f"{server.url}/model/model.safetensors")


def test_a_server_without_ranges(serve: Callable[..., Any], model: Path) -> None:
    server = serve(model.parent)
    server.fault = lambda handler: handler.answer(ranges=False) or True
    with pytest.raises(SourceError, match="does not serve ranges of a file, so it cannot be streamed; download it"):
        open_checkpoint(f"{server.url}/model/model.safetensors")


@pytest.mark.parametrize("honours", [True, False])
def test_a_file_that_changes_under_way(serve: Callable[..., Any], model: Path, honours: bool) -> None:
    server = serve(model.parent)
    found = open_checkpoint(f"{server.url}/model")
    file = next(iter(found.headers))
    file.check_unchanged()
    server.etags["/model/model.safetensors"] = '"another"'
    if not honours:  # If-Match is ignored, and the ETag of the answer is another

        def ignore(handler: Any) -> bool:
            del handler.headers["If-Match"]
            return False

        server.fault = ignore
    with pytest.raises(SourceError, match="was changed on its server while it was read"):
        found["layer.5"].read()
    with pytest.raises(SourceError, match="was changed on its server"):
        file.check_unchanged()


def test_a_file_that_grows_without_an_etag(serve: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(20000))
    server = serve(tmp_path)
    server.etags["/w.bin"] = 'W/"weak"'
    file = UrlPath.parse(f"{server.url}/w.bin").open()
    assert file.read(9000, 100) == bytes(100)
    (tmp_path / "w.bin").write_bytes(bytes(20001))
    with pytest.raises(SourceError, match="was changed"):
        file.read(19000, 100)


def test_nothing_there_and_nobody_there(serve: Callable[..., Any], model: Path, tmp_path: Path) -> None:
    server = serve(model.parent)
    with pytest.raises(SourceError, match=r"/nothing: no weights found"):
        open_checkpoint(f"{server.url}/nothing")
    with pytest.raises(SourceError, match=r"x\.safetensors: there is no such file"):
        open_checkpoint(f"{server.url}/x.safetensors")
    with pytest.raises(SourceError, match=r"127\.0\.0\.1:1/x\.safetensors: .*, 5 times"):
        open_checkpoint("http://127.0.0.1:1/x.safetensors")


def test_malformed_files_are_told_as_on_disk(serve: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "cut.safetensors").write_bytes((1 << 20).to_bytes(8, "little") + b"{}")
    server = serve(tmp_path)
    with pytest.raises(FormatError, match="0 bytes are too few"):
        open_checkpoint(f"{server.url}/empty.safetensors")
    with pytest.raises(FormatError, match="truncated"):
        open_checkpoint(f"{server.url}/cut.safetensors")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://host/x.safetensors?sig=SECRET", r"host/x\.safetensors: a URL with a key"),
        ("https://me:SECRET@host/x", r"https://host/x: a URL with a key"),
        ("https://SECRET@host/x", "a URL with a key"),
        ("ftp://host/x", r"ftp://host/x: URLs of this kind are not read; http://, https://, s3:// are"),
        ("s3:///x", "not a URL"),
    ],
)
def test_urls_that_are_not_taken(url: str, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        open_checkpoint(url)
    assert "SECRET" not in str(caught.value)


def test_without_obstore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(MissingDependencyError, match=r"needs obstore: pip install 'eutectic\[remote\]'"):
        open_checkpoint("https://host/model")


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A local S3 with one bucket."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {
            "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ALLOW_HTTP": "true",
        }.items():  # fmt: skip
            patch.setenv(key, value)
        client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
        client.create_bucket(Bucket="models")
        yield client
    server.stop()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_s3(s3: Any, model: Path) -> None:
    for path in model.iterdir():
        s3.upload_file(str(path), "models", f"deep/model/{path.name}")
    equal("s3://models/deep/model", model)
    equal("s3://models/deep/model/model.safetensors", model)
    assert [place.name for place in UrlPath.parse("s3://models/deep/model").iterdir()] == [
        "README.md", "config.json", "model.safetensors",
    ]  # fmt: skip
    with pytest.raises(SourceError, match=r"s3://models/gone: no weights found"):
        open_checkpoint("s3://models/gone")
    with pytest.raises(SourceError, match=r"s3://models/gone\.safetensors: there is no such file"):
        open_checkpoint("s3://models/gone.safetensors")
    found = open_checkpoint("s3://models/deep/model")
    s3.put_object(
        Bucket="models", Key="deep/model/model.safetensors", Body=(model / "model.safetensors").read_bytes() + b"x"
    )
    with pytest.raises(SourceError, match="was changed on its server"):
        found["layer.5"].read()
