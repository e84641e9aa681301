"""The root logger of the package."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from effllava_optuna import logging as ours

_logger = ours.get_logger("effllava_optuna.tests")


@pytest.fixture(autouse=True)
def _as_before() -> None:
    ours.set_verbosity(logging.INFO)


def test_messages_go_to_the_present_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    _logger.info("seen")
    _logger.debug("unseen")
    output = capsys.readouterr().err
    assert output.startswith("[I ")
    assert output.endswith("] seen\n")


def test_verbosity_holds_for_all_loggers_of_the_package(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours.set_verbosity(logging.WARNING)
    _logger.info("unseen")
    ours.get_logger("elsewhere").warning("seen")
    assert capsys.readouterr().err.endswith("] seen\n")


def test_the_default_handler_can_be_disabled(capsys: pytest.CaptureFixture[str]) -> None:
    ours.disable_default_handler()
    _logger.warning("unseen")
    ours.enable_default_handler()
    _logger.warning("seen")
    assert capsys.readouterr().err.count("\n") == 1


def test_messages_reach_pythons_root_logger_if_propagation_is_enabled() -> None:
    messages: list[str] = []

    class Recorder(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    recorder = Recorder()
    logging.getLogger().addHandler(recorder)
    try:
        _logger.warning("kept")
        ours.enable_propagation()
        _logger.warning("passed on")
    finally:
        ours.disable_propagation()
        logging.getLogger().removeHandler(recorder)
    assert messages == ["passed on"]


def test_a_log_file_contains_messages_of_all_levels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "log"
    ours.set_verbosity(logging.WARNING)
    with ours.logging_to_file(file):
        assert not file.exists()
        assert ours.get_verbosity() == logging.WARNING
        _logger.debug("in the file")
        _logger.warning("in both")
    _logger.debug("in none")
    assert [line.partition("] ")[2] for line in file.read_text().splitlines()] == [
        "in the file", "in both"
    ]  # fmt: skip
    assert capsys.readouterr().err.count("\n") == 1
