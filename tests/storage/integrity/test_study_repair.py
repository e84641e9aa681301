"""Which files are those of a study that a killed process has left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from effllava_optuna.config.loading import load_config
from effllava_optuna.storage.integrity.study_repair import unfinished_files
from effllava_optuna.storage.location import StudyLocation

STUDY = """
[model]
path = "digits-vlm"
[task]
name = "digits"
[latency]
table = "NAME.json"
[export]
directory = "NAME.pruned"
"""


@pytest.mark.parametrize(
    ("name", "other"), [("exp[1]", "exp1"), ("v*", "v2"), ("v?", "v2"), ("**", "v2")]
)
def test_the_name_of_a_study_is_no_pattern(tmp_path: Path, name: str, other: str) -> None:
    drafts = []
    for study in (name, other):
        drafts.append([tmp_path / f".{study}.toml.0.part", tmp_path / f".{study}.json.0.part"])
        for draft in drafts[-1]:
            draft.write_text("half")
            os.utime(draft, (0, 0))
        exported = tmp_path / f".{study}.pruned-0a_b1c2d"
        exported.mkdir()
        os.utime(exported, (0, 0))
        drafts[-1].append(exported)
    file = tmp_path / f"{name}.toml"
    file.write_text(STUDY.replace("NAME", name))
    config = load_config(file)
    url = f"sqlite:///{tmp_path / 'a.db'}"
    location = StudyLocation(url, config.study.name or "", "", config, file)
    assert unfinished_files(location, config) == sorted(drafts[0])
