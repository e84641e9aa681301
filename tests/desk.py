"""A server that speaks the protocol of OpenAI's chat completions, for tests."""

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
class Answer:
    """What the server says to one request.

    Attributes:
        status: 0 hangs up without a word.
        silent: Says nothing until the server closes.
        drip: Seconds between blanks that come in place of the body and never end.
    """

    status: int = 200
    body: bytes = completion("0.5")
    headers: dict[str, str] = field(default_factory=dict)
    silent: bool = False
    drip: float = 0.0


@dataclass
class Desk:
    """A server that says ``answers`` one after the other, the last one for ever."""

    answers: list[Answer]
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def next(self) -> Answer:
        return self.answers[min(len(self.asked), len(self.answers)) - 1]


@contextmanager
def serving(*answers: Answer) -> Iterator[Desk]:
    desk = Desk(list(answers))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            desk.paths.append(self.path)
            desk.headers.append({name.lower(): value for name, value in self.headers.items()})
            desk.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            answer = desk.next()
            if answer.silent:
                desk.closing.wait(10)
            if answer.silent or not answer.status:
                return
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if not answer.drip:
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            try:
                while answer.drip and not desk.closing.wait(answer.drip):
                    self.wfile.write(b"\n")
            except OSError:
                return
            if not answer.drip:
                self.wfile.write(answer.body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        desk.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield desk
        finally:
            desk.closing.set()
            server.shutdown()
            thread.join()
