"""A model behind an OpenAI-compatible endpoint: it answers prompts and shows no weights."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from eutectic.errors import MissingDependencyError, SourceError
from eutectic.weights.digest import hash_bytes

__all__ = ["Endpoint", "is_endpoint"]

RETRIES, PAUSE, LONGEST_PAUSE = 5, 0.5, 30.0
AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
AT_ONCE = 4


def is_endpoint(text: str) -> bool:
    """Whether a text names an endpoint: ``openai:http://host/v1#model``."""
    return text.startswith("openai:")


class Endpoint:
    """`URL#model` over the completions of the OpenAI wire format; the key comes from OPENAI_API_KEY.

    A request that times out or is answered by 429 or 5xx is made again, up to five times, with growing pauses (or those
    that the server asks for). What still fails, and an answer that is none, is a SourceError.
    """

    def __init__(self, text: str, *, timeout: float = 120.0, pause: float = PAUSE) -> None:
        address = text.removeprefix("openai:")
        self.url, _, self.name = address.partition("#")
        self.url = self.url.rstrip("/")
        if not self.url.startswith(("http://", "https://")) or not self.name:
            raise SourceError(f"{text}: an endpoint is written openai:http://host/v1#model")
        self.timeout, self.pause = timeout, pause
        try:
            import urllib3
        except ImportError:
            raise MissingDependencyError("endpoints need urllib3; pip install 'eutectic[endpoint]'") from None
        self._pool = urllib3.PoolManager(maxsize=AT_ONCE)

    @property
    def label(self) -> str:
        """The address and the model's name."""
        return f"{self.url}#{self.name}"

    @property
    def identity(self) -> str:
        """Of the address and the name: what answers behind them is not known here."""
        return hash_bytes(f"endpoint {self.label}".encode())

    def complete(self, prompts: Sequence[str], most_tokens: int) -> list[str]:
        """The most likely continuation of each prompt, up to a line break."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(lambda prompt: self._complete(prompt, most_tokens), prompts))

    def _complete(self, prompt: str, most_tokens: int) -> str:
        wish = {"model": self.name, "prompt": prompt, "max_tokens": most_tokens, "temperature": 0, "stop": ["\n"]}
        answer = self._post("completions", wish)
        try:
            text = answer["choices"][0]["text"]
        except (KeyError, IndexError, TypeError):
            text = None
        if not isinstance(text, str):
            raise SourceError(f"{self.label}: answered without choices[0].text: {json.dumps(answer)[:200]}")
        return text

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        import urllib3

        key = os.environ.get("OPENAI_API_KEY")
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        why = ""
        for attempt in range(RETRIES + 1):
            wait = min(LONGEST_PAUSE, self.pause * 2**attempt)
            try:
                answer = self._pool.request(
                    "POST", f"{self.url}/{path}", body=json.dumps(body).encode(), headers=headers,
                    timeout=self.timeout, retries=False, redirect=False,
                )  # fmt: skip
            except urllib3.exceptions.HTTPError as error:
                why = f"no answer ({type(error).__name__})"
            else:
                if answer.status == 200:
                    try:
                        return json.loads(answer.data)
                    except ValueError:
                        why = f"an answer that is not JSON: {answer.data[:80]!r}"
                elif answer.status in AGAIN:
                    why = f"status {answer.status}"
                    asked = answer.headers.get("Retry-After", "")
                    wait = min(LONGEST_PAUSE, float(asked)) if asked.replace(".", "", 1).isdigit() else wait
                else:
                    raise SourceError(f"{self.label}: status {answer.status}: {answer.data[:200]!r}")
            if attempt < RETRIES:
                time.sleep(wait)
        raise SourceError(f"{self.label}: {why}, {RETRIES + 1} times; is the server up?")
