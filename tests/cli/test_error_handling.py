"""Errors of a server that is asked over the network are one line, as all others are."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from effllava_optuna.cli.error_handling import one_line_errors

RpcError: Any = importlib.import_module("grpc").RpcError
Unavailable: Any = type(
    "Unavailable", (RpcError,), {"details": lambda _: "failed to connect to all addresses"}
)


def test_a_server_that_is_gone_is_named_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    @one_line_errors
    def command() -> None:
        raise Unavailable

    with pytest.raises(SystemExit, match="2"):
        command()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("The database failed: failed to connect to all addresses. ")


def test_a_study_that_the_server_does_not_have_was_deleted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The client of Optuna's proxy raises an empty KeyError for it."""

    @one_line_errors
    def command() -> None:
        try:
            raise Unavailable
        except RpcError as error:
            raise KeyError from error

    with pytest.raises(SystemExit, match="2"):
        command()
    assert capsys.readouterr().err.startswith("The study was deleted while this command worked")


def test_other_missing_keys_are_faults_of_the_program() -> None:
    @one_line_errors
    def command() -> None:
        raise KeyError("width")

    with pytest.raises(KeyError, match="width"):
        command()
