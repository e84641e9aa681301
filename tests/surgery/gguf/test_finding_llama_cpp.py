"""Which llama.cpp is found, and what is said of a ``llama-server`` that does not run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from effllava_optuna import export_gguf
from effllava_optuna.errors import ExportError
from effllava_optuna.surgery.gguf.llama_cpp import VARIABLE, find_llama_cpp
from effllava_optuna.surgery.gguf.llama_server import LlamaServer
from effllava_optuna.surgery.gguf.node_package import NodePackage
from tests.surgery.gguf.pruned_decoders import KINDRED, pruned_decoder

VERSION = 'if [ "$1" = --version ]; then echo "version: 4711 (abc)" >&2; exit; fi\n'


def write_program(directory: Path, name: str, script: str = "") -> Path:
    program = directory / name
    program.write_text(f"#!/bin/sh\n{script}")
    program.chmod(0o755)
    return program


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory that is the path; the current one is empty."""
    directory, empty = tmp_path / "programs", tmp_path / "empty"
    directory.mkdir()
    empty.mkdir()
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}/bin")
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(empty)
    return directory


def write_package(directory: Path) -> Path:
    package = directory / "node_modules/@fugood/llama.node"
    package.mkdir(parents=True)
    (package / "package.json").write_text('{"version": "1.2"}')
    return directory


def test_none_is_found(programs: Path) -> None:
    write_program(programs, "llama-server", "exit 1")
    assert find_llama_cpp() is None


def test_the_server_on_the_path_is_found(programs: Path) -> None:
    program = write_program(programs, "llama-server", VERSION)
    assert find_llama_cpp() == LlamaServer(program, "llama-server 4711 (abc)")


def test_the_package_that_is_named_comes_first(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_program(programs, "llama-server", VERSION)
    write_program(programs, "node")
    named, here = write_package(tmp_path / "named"), write_package(tmp_path / "empty")
    assert isinstance(find_llama_cpp(), LlamaServer)
    monkeypatch.setenv(VARIABLE, str(named))
    assert find_llama_cpp() == NodePackage(named, "@fugood/llama.node 1.2")
    monkeypatch.setenv(VARIABLE, str(programs))
    assert find_llama_cpp() is None
    monkeypatch.delenv(VARIABLE)
    (programs / "llama-server").unlink()
    assert find_llama_cpp() == NodePackage(here, "@fugood/llama.node 1.2")


def test_the_error_of_a_server_is_told(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not read the variables that a user has for servers."""
    monkeypatch.setenv("LLAMA_API_KEY", "secret")
    script = """echo loading; echo "error: key '$LLAMA_API_KEY'" >&2; exit 1"""
    write_program(programs, "llama-server", VERSION + script)
    with pytest.raises(
        ExportError, match=r"llama-server 4711 \(abc\)\) does not run .*: error: key ''\."
    ):
        export_gguf(pruned_decoder(KINDRED["gpt-2"]), tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()
