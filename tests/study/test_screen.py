"""What the terminal says when a study is stopped."""

from __future__ import annotations

import pytest

from effllava_optuna.study.screen import Screen


def tell() -> None:
    """What happens in Optuna where Ctrl-C falls into the telling of a trial."""
    try:
        raise KeyboardInterrupt
    finally:
        raise UnboundLocalError("cannot access local variable 'updated_state'")


def test_ctrl_c_is_told_wherever_it_falls(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped, Screen("small.toml"):
        tell()
    assert stopped.value.code == 130
    told = capsys.readouterr().out
    assert "continue with: python -m effllava_optuna.study resume small.toml" in told


def test_other_errors_are_no_interruption() -> None:
    with pytest.raises(ZeroDivisionError), Screen("small.toml"):
        raise ZeroDivisionError
