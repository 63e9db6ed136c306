"""An OpenAI-compatible endpoint on loopback that times out, refuses, and answers garbage."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eutectic.errors import SourceError
from eutectic.evaluation.endpoint import Endpoint
from eutectic.evaluation.evaluator import Evaluator
from eutectic.evaluation.scores import Failure, Scores

Answer = tuple[int, bytes, dict[str, str]]


class Server:
    """Answers `script` in turn, then echoes the prompt's last letter; `seen` are the requests."""

    def __init__(self) -> None:
        self.script: list[Answer | None] = []
        self.seen: list[dict[str, Any]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.seen.append({**body, "path": self.path, "key": self.headers.get("Authorization")})
                answer = outer.script.pop(0) if outer.script else outer.echo(body)
                if answer is None:  # hang up
                    self.connection.close()
                    return
                status, data, headers = answer
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                """Silence."""

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"openai:http://127.0.0.1:{self.http.server_address[1]}/v1#tiny"

    @staticmethod
    def echo(body: dict[str, Any]) -> Answer:
        return 200, json.dumps({"choices": [{"text": body["prompt"][-1]}]}).encode(), {}


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.http.shutdown()
    found.http.server_close()


@pytest.fixture
def suite(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"say {c}", "answer": c}) + "\n" for c in "abcx"))
    return {"tasks": [
        {"name": "echo", "kind": "generation", "data": {"test": str(path)}, "most_tokens": 3},
        {"name": "bpb", "kind": "bits_per_byte", "data": {"test": str(path)}},
    ]}  # fmt: skip


def test_an_endpoint_is_a_subject(server: Server, suite: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with Evaluator(suite) as evaluator:
        found = evaluator.measure(server.url)
    assert isinstance(found["echo"], Scores) and found["echo"].value == 1.0
    assert isinstance(found["bpb"], Failure) and "needs a model's weights" in found["bpb"].reason
    wish = server.seen[0]
    assert wish["path"] == "/v1/completions" and wish["key"] == "Bearer secret"
    assert (wish["model"], wish["temperature"], wish["max_tokens"]) == ("tiny", 0, 3)


def test_trouble_that_passes(server: Server) -> None:
    server.script = [
        (429, b"", {"Retry-After": "0"}), (503, b"busy", {}), None, (200, b"<html>", {}), Server.echo({"prompt": "z"}),
    ]  # fmt: skip
    assert Endpoint(server.url, pause=0.001).complete(["q"], 1) == ["z"]
    assert len(server.seen) == 5


@pytest.mark.parametrize(
    ("answer", "words", "asked"),
    [
        ((429, b"", {}), "status 429, 6 times", 6),
        ((200, b"not json", {}), "an answer that is not JSON: b'not json', 6 times", 6),
        (None, r"no answer \(ProtocolError\), 6 times", 6),
        ((401, b"no such key", {}), "status 401: b'no such key'", 1),
        ((200, b'{"choices": []}', {}), r"answered without choices\[0\].text", 1),
    ],
)
def test_trouble_that_stays(server: Server, answer: Answer | None, words: str, asked: int) -> None:
    server.script = [answer] * 10
    with pytest.raises(SourceError, match=words):
        Endpoint(server.url, pause=0.001).complete(["q"], 1)
    assert len(server.seen) == asked


def test_a_server_that_is_too_slow(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = threading.Event()
    real: Callable[[dict[str, Any]], Answer] = Server.echo

    def slow(body: dict[str, Any]) -> Answer:
        hold.wait(5)
        return real(body)

    monkeypatch.setattr(Server, "echo", staticmethod(slow))
    with pytest.raises(SourceError, match=r"no answer \(ReadTimeoutError\)"):
        Endpoint(server.url, timeout=0.05, pause=0.001).complete(["q"], 1)
    hold.set()


def test_addresses() -> None:
    for text in ("openai:http://host/v1", "openai:host#model", "openai:ftp://host#m"):
        with pytest.raises(SourceError, match="an endpoint is written openai:http"):
            Endpoint(text)
