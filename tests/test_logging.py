"""Our root logger."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from effllava_optuna import logging as ours

_logger = ours.get_logger("effllava_optuna.tests")


@pytest.fixture(autouse=True)
def _as_before() -> None:
    ours.set_verbosity(logging.INFO)


def test_messages_go_to_whatever_stderr_is(capsys: pytest.CaptureFixture[str]) -> None:
    _logger.info("seen")
    _logger.debug("unseen")
    told = capsys.readouterr().err
    assert told.startswith("[I ")
    assert told.endswith("] seen\n")


def test_verbosity_is_of_all_our_loggers(capsys: pytest.CaptureFixture[str]) -> None:
    ours.set_verbosity(logging.WARNING)
    _logger.info("unseen")
    ours.get_logger("elsewhere").warning("seen")
    assert capsys.readouterr().err.endswith("] seen\n")


def test_the_handler_can_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    ours.disable_default_handler()
    _logger.warning("unseen")
    ours.enable_default_handler()
    _logger.warning("seen")
    assert capsys.readouterr().err.count("\n") == 1


def test_messages_reach_pythons_root_if_they_shall() -> None:
    found: list[str] = []

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    listening = Listening()
    logging.getLogger().addHandler(listening)
    try:
        _logger.warning("kept")
        ours.enable_propagation()
        _logger.warning("handed on")
    finally:
        ours.disable_propagation()
        logging.getLogger().removeHandler(listening)
    assert found == ["handed on"]


def test_a_file_gets_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "log"
    ours.set_verbosity(logging.WARNING)
    with ours.written_to(file):
        assert not file.exists()
        assert ours.get_verbosity() == logging.WARNING
        _logger.debug("in the file")
        _logger.warning("in both")
    _logger.debug("in none")
    assert [line.partition("] ")[2] for line in file.read_text().splitlines()] == [
        "in the file", "in both"
    ]  # fmt: skip
    assert capsys.readouterr().err.count("\n") == 1
