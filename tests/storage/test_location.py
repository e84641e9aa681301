"""The files of a study are beside its study file, whatever characters their path has."""

from __future__ import annotations

from pathlib import Path

import pytest

from effllava_optuna.config.loading import load_config
from effllava_optuna.storage.connection import open_storage
from effllava_optuna.storage.location import locate_file
from effllava_optuna.storage.urls import file_of

STUDY = '[model]\npath = "digits-vlm"\n[task]\nname = "digits"\n'


NAMES = ("v?1", "v?", "a%41", "100%", "50%25", "a#b", "exp[1]", "v*", "a b", "a::b",
         "a@b:c", "\u00e9", "{x,y}", "{}", "{0}", "a{b", "{{b}}", "{SCHEMA_VERSION}")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "storage", ["", 'storage = "sqlite:///own.db"\n', 'storage = "sqlite:///own.db?timeout=3"\n']
)
def test_a_path_is_no_part_of_a_url(tmp_path: Path, name: str, storage: str) -> None:
    """SQLAlchemy takes what follows a question mark as options, and decodes percent signs; Optuna
    takes the URL as a template.
    """
    folder = tmp_path / name
    folder.mkdir()
    file = folder / f"{name}.toml"
    file.write_text(f'{STUDY}[study]\nname = "a"\n{storage}')
    location = locate_file(file, load_config(file))
    expected = folder / "own.db" if storage else file.with_suffix(".db")
    assert file_of(location.url) == expected
    open_storage(location.url, create=True).remove_session()
    assert expected.is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]
