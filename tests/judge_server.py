"""A server with OpenAI's chat completions API, for tests."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def completion(text: str | None, model: str = "judge-2026-01-01") -> bytes:
    message = {"role": "assistant", "content": text}
    return json.dumps({"model": model, "choices": [{"index": 0, "message": message}]}).encode()


@dataclass(frozen=True)
class Response:
    """The response to one request.

    Attributes:
        status: HTTP status; 0: the connection is closed without a response.
        silent: Send nothing until the server closes.
        drip: Seconds between blanks that are sent instead of the body, without end; 0: none.
    """

    status: int = 200
    body: bytes = completion("0.5")
    headers: dict[str, str] = field(default_factory=dict)
    silent: bool = False
    drip: float = 0.0


@dataclass
class JudgeServer:
    """A server that sends ``responses`` one after the other, and repeats the last one."""

    responses: list[Response]
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def next(self) -> Response:
        return self.responses[min(len(self.requests), len(self.responses)) - 1]


@contextmanager
def serving(*responses: Response) -> Iterator[JudgeServer]:
    server = JudgeServer(list(responses))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            server.paths.append(self.path)
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            server.requests.append(
                json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            )
            response = server.next()
            if response.silent:
                server.closing.wait(10)
            if response.silent or not response.status:
                return
            self.send_response(response.status)
            for name, value in response.headers.items():
                self.send_header(name, value)
            if not response.drip:
                self.send_header("Content-Length", str(len(response.body)))
            self.end_headers()
            try:
                while response.drip and not server.closing.wait(response.drip):
                    self.wfile.write(b"\n")
            except OSError:
                return
            if not response.drip:
                self.wfile.write(response.body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        server.url = f"http://127.0.0.1:{http_server.server_address[1]}/v1"
        thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            http_server.shutdown()
            thread.join()
