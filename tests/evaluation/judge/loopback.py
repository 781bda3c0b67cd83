"""A judge on 127.0.0.1 that says what a test wants: answers, errors, silence, rubbish."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


@dataclass
class Reply:
    """What the server does with one request."""

    body: str
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    stall_s: float = 0.0
    drop: bool = False  # close the connection without a word


def says(text: str | None, **facts: Any) -> Reply:
    """A well-formed completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    return Reply(json.dumps({"model": "judge-2026", "choices": [choice | facts], "usage": usage}))


def prompt_of(body: Body) -> str:
    return str(body["prompt"]) if "prompt" in body else body["messages"][0]["content"]


class Loopback(ThreadingHTTPServer):
    """Replies by `script(body, attempt)`, attempt 1, 2, ... of the same prompt; keeps what it was asked and when."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, script: Callable[[Body, int], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = script
        self.bodies: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.attempts: Counter[str] = Counter()
        self.closing = threading.Event()
        self.lock = threading.Lock()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_: Any) -> None:
        """A client that has hung up is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Loopback

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.headers.append(dict(self.headers) | {"path": self.path})
            self.server.times.append(time.monotonic())
            self.server.attempts[prompt_of(body)] += 1
            attempt = self.server.attempts[prompt_of(body)]
        reply = self.server.script(body, attempt)
        self.server.closing.wait(reply.stall_s)
        if reply.drop:
            self.close_connection = True
            return
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body.encode())))
        self.end_headers()
        self.wfile.write(reply.body.encode())

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def serving(script: Callable[[Body, int], Reply]) -> Iterator[Loopback]:
    """A server for the body of a with statement."""
    server = Loopback(script)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
