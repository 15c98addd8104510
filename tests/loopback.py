"""A provider of one's own: an OpenAI-compatible server on 127.0.0.1 that does what it was told.

    with Loopback() as provider:
        provider.plan("gpt-4o-mini", failing(429, retry_after=0.2), answering(input_tokens=12))
        client = openai.OpenAI(base_url=provider.base_url, api_key="none")

The steps of a model are used up in order, and the last one stays. A model without a plan answers.
Every request is kept in `seen`, in the order in which it came, with what became of it. Each answer
has the same id, as those of many self-hosted servers have.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal

RESPONSE_ID = "chatcmpl-always-the-same"
Ending = Literal["answered", "failed", "cut", "left"]
"""`cut`: the server closed the connection; `left`: the client did."""


@dataclass(frozen=True)
class Step:
    """What to do with one request."""

    status: int = 200
    error: str = ""
    message: str = ""
    retry_after: float | None = None
    input_tokens: int = 10
    output_tokens: int = 20
    cached_tokens: int = 0
    words: int = 5
    delay: float = 0.0
    pause: float = 0.0
    cut_after: int | None = None
    text: str | None = None
    more: dict[str, Any] = field(default_factory=dict)


@dataclass
class Seen:
    """One request: `status` is None when the connection was closed before an answer began."""

    path: str
    model: str
    stream: bool
    status: int | None = None
    ending: Ending | None = None
    body: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


def answering(
    *,
    input_tokens: int = 10,
    output_tokens: int = 20,
    cached_tokens: int = 0,
    words: int = 5,
    delay: float = 0.0,
    pause: float = 0.0,
    cut_after: int | None = None,
    text: str | None = None,
    **more: Any,
) -> Step:
    """An answer, whole or as a stream of `words` chunks.

    Args:
        input_tokens: what the usage says.
        output_tokens: the same.
        cached_tokens: of the input.
        words: chunks of a stream.
        delay: seconds before the first byte.
        pause: seconds between the chunks of a stream.
        cut_after: chunks after which the connection is closed without an end.
        text: what a whole answer says, in place of `words` words.
        more: of the body of a whole answer, in place of what would be there.
    """
    return Step(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cached_tokens=cached_tokens,
        words=words,
        delay=delay,
        pause=pause,
        cut_after=cut_after,
        text=text,
        more=more,
    )


def failing(
    status: int,
    *,
    error: str = "",
    message: str = "",
    retry_after: float | None = None,
    delay: float = 0.0,
) -> Step:
    """An error as OpenAI words it; `error` is its code (``context_length_exceeded``)."""
    return Step(status=status, error=error, message=message, retry_after=retry_after, delay=delay)


def dropping() -> Step:
    """The connection is closed without an answer."""
    return Step(status=0)


class Loopback:
    """The server; a context manager. Its threads end with it."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self._plans: dict[str, list[Step]] = {}
        self._lock = threading.Lock()
        self._server = _Server(self)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )

    @property
    def base_url(self) -> str:
        """What a client of OpenAI takes as its base URL."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def plan(self, model: str, *steps: Step) -> None:
        """From now on, requests for this model meet these steps; the last one stays."""
        with self._lock:
            self._plans[model] = list(steps)

    def count(self, model: str | None = None) -> int:
        """How many requests came, of one model or in all."""
        with self._lock:
            return sum(model in (None, one.model) for one in self.seen)

    def statuses(self) -> Counter[tuple[str, int | None]]:
        """How many requests each model answered with each status."""
        with self._lock:
            return Counter((one.model, one.status) for one in self.seen)

    def __enter__(self) -> Loopback:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _take(self, seen: Seen) -> Step:
        with self._lock:
            self.seen.append(seen)
            steps = self._plans.get(seen.model) or [Step()]
            return steps.pop(0) if len(steps) > 1 else steps[0]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, provider: Loopback) -> None:
        self.provider = provider
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no error of the server's."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""

    def do_POST(self) -> None:
        """Answer a chat completion or an embedding as planned."""
        body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or b"{}")
        seen = Seen(
            self.path,
            str(body.get("model")),
            bool(body.get("stream")),
            body=body,
            headers={k.lower(): v for k, v in self.headers.items()},
        )
        step = self.server.provider._take(seen)
        time.sleep(step.delay)
        try:
            if step.status == 0:
                self._hang_up(seen)
            elif step.status >= 400:
                self._fail(seen, step)
            elif seen.stream:
                self._stream(seen, step, body)
            else:
                self._answer(seen, step)
        except OSError:
            seen.ending = "left"
            self.close_connection = True

    def _hang_up(self, seen: Seen) -> None:
        seen.ending = "cut"
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _fail(self, seen: Seen, step: Step) -> None:
        seen.status = step.status
        seen.ending = "failed"
        error = {
            "message": step.message or f"planned {step.status}",
            "type": step.error or "planned",
            "code": step.error or None,
            "param": None,
        }
        headers = {} if step.retry_after is None else {"retry-after": f"{step.retry_after:g}"}
        self._send(step.status, {"error": error}, headers)

    def _answer(self, seen: Seen, step: Step) -> None:
        seen.status = 200
        if seen.path.endswith("/embeddings"):
            body: dict[str, Any] = {
                "object": "list",
                "model": seen.model,
                "data": [{"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}],
                "usage": {"prompt_tokens": step.input_tokens, "total_tokens": step.input_tokens},
            }
        else:
            content = _text(step.words) if step.text is None else step.text
            message = {"role": "assistant", "content": content}
            body = _head(seen, "chat.completion") | {
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": _usage(step),
            }
        self._send(200, body | step.more, {})
        seen.ending = "answered"

    def _stream(self, seen: Seen, step: Step, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        seen.status = 200
        head = _head(seen, "chat.completion.chunk")
        for n in range(step.words):
            if n == step.cut_after:
                self._hang_up(seen)
                return
            delta = {"role": "assistant", "content": f"word{n} "}
            self._event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
            time.sleep(step.pause)
        self._event({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        if (body.get("stream_options") or {}).get("include_usage"):
            self._event({**head, "choices": [], "usage": _usage(step)})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")
        seen.ending = "answered"

    def _event(self, data: dict[str, Any]) -> None:
        self._chunk(b"data: %s\n\n" % json.dumps(data).encode())

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _send(self, status: int, body: dict[str, Any], headers: dict[str, str]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def _head(seen: Seen, kind: str) -> dict[str, Any]:
    return {"id": RESPONSE_ID, "object": kind, "created": 1_700_000_000, "model": seen.model}


def _text(words: int) -> str:
    return " ".join(f"word{n}" for n in range(words))


def _usage(step: Step) -> dict[str, Any]:
    return {
        "prompt_tokens": step.input_tokens,
        "completion_tokens": step.output_tokens,
        "total_tokens": step.input_tokens + step.output_tokens,
        "prompt_tokens_details": {"cached_tokens": step.cached_tokens},
    }
