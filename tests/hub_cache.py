"""What the client of the hub stores when it has downloaded a repository."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def downloaded(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use ``place`` as the cache, and return the directory of its files of ``someone/name``."""
    monkeypatch.chdir(place)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place))
    repository = place / f"models--someone--{name}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123")
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    return snapshot
