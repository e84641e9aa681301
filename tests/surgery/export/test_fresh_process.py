"""What the verifying process prints does not decide whether an export is written."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from effllava_optuna.errors import ExportError
from effllava_optuna.surgery.export.fresh_process import verify_in_fresh_process

if TYPE_CHECKING:
    from pathlib import Path

    from effllava_optuna.surgery import LoadedModel


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "utf-16", ""])
def test_a_message_in_any_encoding_is_read(
    tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    """A path in it may have letters that the locale of this process does not decode."""
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit('keine Größe für 模型')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    with pytest.raises(ExportError, match="fresh process: SystemExit: keine Größe für 模型"):
        verify_in_fresh_process(tiny, tmp_path, tmp_path)
