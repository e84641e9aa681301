"""Processors with a video part need a torchvision that fits torch; every message says which."""

from __future__ import annotations

import json
import os
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from effllava_optuna import load
from effllava_optuna.checkpoint_format import EMBEDDED
from effllava_optuna.errors import ModelError
from effllava_optuna.surgery import inspect_checkpoint
from effllava_optuna.torchvision_package import find_misfit, install_command
from tests.study_fixtures import command_line, invoke
from tests.surgery.families import FAMILIES

_STUDY = '[model]\npath = "model"\n[task]\nname = "digits"\n'
without_torchvision = pytest.mark.skipif(
    find_spec("torchvision") is not None, reason="torchvision is installed"
)
_PROCESSORS = {
    "qwen2_5_vl": {
        "processor_class": "Qwen2_5_VLProcessor", "image_processor_type": "Qwen2VLImageProcessor",
    },
    "qwen2_vl": {
        "processor_class": "Qwen2VLProcessor", "image_processor_type": "Qwen2VLImageProcessor",
    },
    "llava_onevision": {
        "processor_class": "LlavaOnevisionProcessor",
        "image_processor_type": "LlavaOnevisionImageProcessor",
    },
    "qwen3_vl": {
        "processor_class": "Qwen3VLProcessor", "image_processor_type": "Qwen2VLImageProcessor",
    },
}  # fmt: skip


def write_model(family: str, directory: Path) -> None:
    """Write a checkpoint without weights, whose processor has a video part."""
    directory.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((EMBEDDED / "digits-vlm" / name).read_bytes())
    FAMILIES[family].build().config.save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps(_PROCESSORS[family]))


def findings_about_torchvision(printed: str) -> list[dict[str, Any]]:
    findings = json.loads(printed)["findings"]
    return [finding for finding in findings if finding["detail"].startswith("torchvision ")]


@pytest.mark.parametrize(
    ("torch_version", "command"),
    [
        ("2.13.0+cpu", "torchvision==0.28.0 --index-url https://download.pytorch.org/whl/cpu"),
        ("2.9.1+cu128", "torchvision==0.24.1 --index-url https://download.pytorch.org/whl/cu128"),
        ("2.6.0", "torchvision==0.21.0"),
        ("3.1.0a0+git", "torchvision --index-url https://download.pytorch.org/whl/cpu"),
    ],
)
def test_the_torchvision_of_a_build_of_torch_is_named(torch_version: str, command: str) -> None:
    assert install_command(torch_version) == f"pip install {command}"


@without_torchvision
@pytest.mark.parametrize("family", _PROCESSORS)
def test_a_processor_with_a_video_part_needs_torchvision(family: str, tmp_path: Path) -> None:
    model, study = tmp_path / "model", tmp_path / "mine.toml"
    write_model(family, model)
    study.write_text(_STUDY)
    expected = (
        f"The processor of {str(model)!r} has a video part, and torchvision, which it needs, is "
        f"not installed. Run `{install_command()}`."
    )
    with pytest.raises(ModelError) as caught:
        load(model, device="cpu")
    assert str(caught.value) == expected
    checked = invoke("check", study, check=False)
    assert (checked.returncode, checked.stderr) == (2, f"{expected}\n")
    assert inspect_checkpoint(model).structure.components
    found = invoke("doctor", study, "-f", "json", check=False)
    assert found.returncode == 2
    (result,) = findings_about_torchvision(found.stdout)
    assert (result["state"], result["cure"]) == ("fault", f"Run `{install_command()}`.")


@without_torchvision
def test_a_model_without_video_needs_no_torchvision() -> None:
    found = invoke("doctor", "-f", "json", check=False)
    (result,) = findings_about_torchvision(found.stdout)
    assert result["state"] == "ok"
    assert "not installed" in result["detail"]


@pytest.fixture
def misfit(tmp_path: Path) -> Path:
    """A torchvision that raises when it is imported, as that of another build of torch does."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    (tmp_path / "torchvision-0.28.0.dist-info").mkdir()
    (tmp_path / "torchvision-0.28.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n"
    )
    return tmp_path


@without_torchvision
def test_a_torchvision_that_does_not_fit_torch_is_found(
    misfit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(misfit))
    assert find_misfit().startswith("torchvision 0.28.0 does not fit torch ")
    found = invoke("doctor", "-f", "json", check=False)
    assert found.returncode == 2
    (result,) = findings_about_torchvision(found.stdout)
    assert (result["state"], result["cure"]) == ("fault", f"Run `{install_command()}`.")


@without_torchvision
@pytest.mark.parametrize("words", [("inspect", "digits-vlm")])
def test_no_command_ends_in_a_traceback_if_torchvision_does_not_fit(
    words: tuple[str, ...], misfit: Path
) -> None:
    environment: dict[str, Any] = dict(os.environ)
    path = [str(misfit), str(Path(__file__).parents[1]), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path)
    done = subprocess.run(
        command_line(*words), capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("torchvision 0.28.0 does not fit torch ")
    assert install_command() in done.stderr
    assert "Traceback" not in done.stderr
