"""A damaged or missing file of a checkpoint is named, at the first command that reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from effllava_optuna import load
from effllava_optuna.errors import ModelError
from effllava_optuna.surgery import inspect_checkpoint
from tests.study_fixtures import invoke

if TYPE_CHECKING:
    from collections.abc import Callable

_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 13\n"


@pytest.fixture
def model(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny LLaVA in the directory ``model``, which a test changes."""
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text('[model]\npath = "model"\n[task]\nname = "digits"\n')
    return shutil.copytree(checkpoint, tmp_path / "model")


def assert_refused(message: str, *functions: Callable[..., object]) -> None:
    checked = invoke("check", "mine.toml", check=False)
    assert (checked.returncode, checked.stdout) == (2, "")
    assert message in checked.stderr
    assert len(checked.stderr.splitlines()) == 1
    for function in functions:
        with pytest.raises(ModelError) as caught:
            function(Path("model"))
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
        assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"<!DOCTYPE html>", "config.json is no valid JSON (JSONDecodeError: Exp"),
        ("config.json", b"null", "config.json is no valid JSON (it has no object at the top)"),
        ("processor_config.json", b"[]", "processor_config.json is no valid JSON (it has no obj"),
        ("tokenizer_config.json", b"[]", "tokenizer_config.json is no valid JSON (it has no obj"),
        ("tokenizer.json", b'{"model": {', "tokenizer.json is no valid JSON (JSONDecodeError"),
        ("tokenizer.json", _POINTER, "tokenizer.json is a pointer of Git LFS instead of the fil"),
        ("generation_config.json", b"{", "generation_config.json is no valid JSON (JSONDecodeErr"),
        ("generation_config.json", b"\xef\xbb\xbf{}", "generation_config.json is no valid JSON"),
        ("preprocessor_config.json", b"\xff\xfe", "preprocessor_config.json is no valid JSON (U"),
        ("chat_template.json", b"[]", "chat_template.json is no valid JSON (it has no object at"),
        ("chat_template.jinja", b"\xff\xfe{\0", "chat_template.jinja is no text in UTF-8 (Unico"),
        ("model.safetensors.index.json", b"[]", "model.safetensors.index.json is no valid JSON"),
    ],
)
def test_a_damaged_document_is_named(name: str, content: bytes, message: str, model: Path) -> None:
    (model / name).write_bytes(content)
    assert_refused(message, load, inspect_checkpoint)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_POINTER, "model.safetensors is a pointer of Git LFS instead of the file."),
        (b"", "model.safetensors is no safetensors file."),
        (b"<html>" * 99, "model.safetensors is no safetensors file."),
    ],
)
def test_damaged_weights_are_named(content: bytes, message: str, model: Path) -> None:
    (model / "model.safetensors").write_bytes(content)
    assert_refused(message, load)
    assert inspect_checkpoint(model).structure.components  # reads the configuration alone


def test_weights_that_are_cut_short_are_named(model: Path) -> None:
    weights = model / "model.safetensors"
    size = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert_refused(f"model.safetensors has {size - 1000} of {size} bytes.", load)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "model.safetensors.index.json has no weight_map."),
        ({"weight_map": None}, "model.safetensors.index.json has no weight_map."),
        ({"weight_map": {}}, "model.safetensors.index.json has no weight_map."),
        ({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}},
         "2.safetensors, which model.safetensors.index.json names, is missing."),
    ],
)  # fmt: skip
def test_a_missing_shard_is_named(index: dict[str, object], message: str, model: Path) -> None:
    (model / "model.safetensors").rename(model / "1.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(message, load)


def test_shards_are_read_by_their_index(model: Path) -> None:
    import safetensors.torch

    weights = safetensors.torch.load_file(model / "model.safetensors")
    names = sorted(weights)
    shards = {"1.safetensors": names[::2], "2.safetensors": names[1::2]}
    for shard, keys in shards.items():
        part = {name: weights[name] for name in keys}
        safetensors.torch.save_file(part, model / shard, {"format": "pt"})
    (model / "model.safetensors").unlink()
    owners = {name: shard for shard, keys in shards.items() for name in keys}
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": owners}))
    invoke("check", "mine.toml")
    assert load(model, device="cpu").structure.components
    (model / "2.safetensors").write_bytes(_POINTER)
    assert_refused("2.safetensors is a pointer of Git LFS", load)
