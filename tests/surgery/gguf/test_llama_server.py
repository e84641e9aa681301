"""The server of llama.cpp over HTTP, by the commands and the request of docs/serving.md."""

from __future__ import annotations

import ast
import base64
import json
import os
import shutil
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from effllava_optuna import export_gguf
from effllava_optuna.surgery.gguf.llama_server import PROGRAM
from tests.surgery.export.engine_server import BLOCKS, page_command, serving
from tests.surgery.export.pretrained_model import BUILT, PICTURES, greedy_answer, pruned_smollm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from effllava_optuna.surgery import LoadedModel

pytestmark = [
    pytest.mark.llama_cpp,
    pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"{PROGRAM} is not on the path"),
    pytest.mark.skipif(not (BUILT / "smollm-vlm").is_dir(), reason="smollm-vlm is not built"),
]


@pytest.fixture
def small() -> LoadedModel:
    """A pruned model."""
    return pruned_smollm()


@pytest.fixture
def server(small: LoadedModel, tmp_path: Path) -> Iterator[str]:
    """Start the server by the page's command, on a free port; return its address."""
    export_gguf(small, tmp_path / "small.gguf", kind="f32")
    exact = ["--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off"]
    environment = {name: os.environ[name] for name in ("PATH", "HOME")}
    with serving([*page_command(PROGRAM), *exact], tmp_path, environment) as address:
        yield address


def request_of_the_page() -> dict[str, Any]:
    """Return the arguments with which the page's program asks about a picture."""
    (program,) = [block.text for block in BLOCKS if block.language == "python"]
    (call,) = [
        node
        for node in ast.walk(ast.parse(program))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("completions.create")
    ]
    picture = base64.b64encode(PICTURES[0].read_bytes()).decode()
    return {
        str(each.arg): eval(ast.unparse(each.value), {"picture": picture})
        for each in call.keywords
    }


def test_a_question_about_a_picture_is_answered_over_http(small: LoadedModel, server: str) -> None:
    content = request_of_the_page()
    request = urllib.request.Request(
        f"{server}/v1/chat/completions",
        json.dumps(content).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        answered = json.load(response)["choices"][0]["message"]["content"]
    (message,) = content["messages"]
    answer = greedy_answer(small, message["content"][1]["text"], content["max_tokens"])
    assert answer
    assert answered.strip() == answer
