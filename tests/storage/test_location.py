"""The files of a study are beside its study file, whatever characters their path has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from effllava_optuna.config.loading import load_config
from effllava_optuna.errors import ConfigError
from effllava_optuna.storage.connection import open_storage
from effllava_optuna.storage.location import locate_file
from effllava_optuna.storage.studies import create_study
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


def test_the_cure_of_a_study_that_began_with_other_settings_selects_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(STUDY)
    begun = load_config(file, ("search.population=30",))
    url = locate_file(file, begun).url
    create_study(open_storage(url, create=True), begun)
    with pytest.raises(ConfigError, match=r"search\.population is 20 in the file") as caught:
        locate_file(file, load_config(file)).open()
    words = re.search(r"use --storage (\S+) --study-name (\S+) instead", str(caught.value))
    assert words is not None
    assert words.groups() == (url, "mine")
