"""The server of vLLM over HTTP, by the commands and the program of docs/serving.md."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from effllava_optuna.surgery.export import vllm_program
from effllava_optuna.surgery.export.checkpoint_files import size_plan, write_checkpoint
from effllava_optuna.vllm_package import VARIABLE, engine_environment
from tests.surgery.export.engine_server import BLOCKS, page_command, serving
from tests.surgery.export.pretrained_model import BUILT, PICTURES, greedy_answer, pruned_smollm

if TYPE_CHECKING:
    from collections.abc import Iterator

PYTHON = os.environ.get(VARIABLE, "")
HERE = "http://localhost:8000"  # of the page
SMALL = ("--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "4")

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not PYTHON, reason=f"{VARIABLE} names no Python with vLLM"),
    pytest.mark.skipif(not (BUILT / "smollm-vlm").is_dir(), reason="smollm-vlm is not built"),
]


def environment(folder: Path) -> dict[str, str]:
    """Return environment variables with which every Python declares torchvision's operators."""
    program = Path(shutil.copy(vllm_program.__file__, folder)).stem
    (folder / "sitecustomize.py").write_text(
        f"import {program}\n{program}.declare_torchvision_operators()\n"
    )
    settings = vllm_program.SETTINGS | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    added = {
        "PYTHONPATH": str(folder),
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(folder / "m"),
    }
    return engine_environment(PYTHON) | settings | added


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with ``mine.pruned`` and ``picture.png``, as a reader of the page has one."""
    (tmp_path / "python").mkdir()
    small = pruned_smollm(image_tokens=0.33)
    write_checkpoint(small, tmp_path / "mine.pruned", size_plan(small))
    shutil.copy(PICTURES[0], tmp_path / "picture.png")
    return tmp_path


@pytest.fixture
def server(place: Path) -> Iterator[str]:
    """Start the server by the page's command, on a free port; return its address."""
    command = [PYTHON, *page_command("vllm/bin/python", "-m")[1:], *SMALL]
    with serving(command, place, environment(place / "python")) as address:
        yield address


def test_a_question_about_a_picture_is_answered_over_http(place: Path, server: str) -> None:
    (client,) = [block.text for block in BLOCKS if block.language == "python"]
    assert HERE in client
    run = subprocess.run(
        [PYTHON, "-c", client.replace(HERE, server)], cwd=place, capture_output=True, text=True,
        check=False, env=engine_environment(PYTHON),
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    small = pruned_smollm(image_tokens=0.33)
    question = "what color is the shape?"
    assert question in client
    answer = greedy_answer(small, question, 10)
    assert answer
    assert run.stdout.strip() == answer
