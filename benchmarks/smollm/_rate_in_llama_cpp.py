"""Time batches in llama.cpp: ``_rate_in_llama_cpp.py GGUF REQUESTS``.

Rows are requests to ``llama-server``, all at the same time. If there is a file for pictures, it is
loaded, too.
"""

from __future__ import annotations

import base64
import io
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _engine_requests import Requests, Row, seconds_of

from effllava_optuna.export_target import pictures_file
from effllava_optuna.surgery.gguf.engine_answers import PICTURE_MARK
from effllava_optuna.surgery.gguf.llama_server import find_llama_server

if TYPE_CHECKING:
    from collections.abc import Sequence

_ROWS = 16  # at most


def main() -> None:
    """Answer lines with the number of rows of a batch."""
    model, requests = Path(sys.argv[1]), Requests.read(Path(sys.argv[2]))
    server = find_llama_server()
    if server is None:
        raise SystemExit("llama-server is not on the path.")
    files = [model, *(file for file in [pictures_file(model)] if file.exists())]
    context = _ROWS * (requests.length + requests.new + 16)
    words = ["--threads", "1", "--parallel", str(_ROWS), "--ctx-size", str(context)]
    with server.serve(files, words) as port, ThreadPoolExecutor(_ROWS) as pool:

        def post(content: dict[str, Any]) -> None:
            server.post(port, "/completion", content)

        def run(rows: Sequence[Row], new: int) -> float:
            settings = {"n_predict": new, "ignore_eos": True, "cache_prompt": False}
            contents = [{"prompt": prompt_of(row), **settings} for row in rows]
            return seconds_of(lambda: list(pool.map(post, contents)))

        requests.answer("llama.cpp", run)


def prompt_of(row: Row) -> Any:
    """Return a prompt in the form of the server."""
    if row.picture is None:
        return row.tokens
    stream = io.BytesIO()
    row.picture.save(stream, "PNG")
    text = row.text.replace("<image>", PICTURE_MARK)
    return {
        "prompt_string": text, "multimodal_data": [base64.b64encode(stream.getvalue()).decode()]
    }  # fmt: skip


if __name__ == "__main__":
    main()
