"""What a study cannot use is refused before the search, in every split."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from effllava_optuna.calibration.inputs import study_inputs
from effllava_optuna.calibration.stage_callback import silent
from effllava_optuna.config.loading import load_config
from effllava_optuna.errors import TaskError
from effllava_optuna.surgery import LoadedModel, load
from effllava_optuna.tasks import Split
from tests.study_fixtures import ROWS_STUDY

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def digits() -> LoadedModel:
    return load("digits-vlm", device="cpu")


@pytest.mark.parametrize("picture", [True, False])
@pytest.mark.parametrize("words", [21, 60])
def test_a_long_prompt_in_any_split_is_refused_before_the_search(
    words: int, picture: bool, digits: LoadedModel, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = []
    for number in range(16):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / f"{number}.png")
        rows.append({"id": str(number), "image": f"{number}.png", "question": "q?", "answer": "3"})
    (tmp_path / "study.toml").write_text(ROWS_STUDY)
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    config = load_config(tmp_path / "study.toml")
    with study_inputs(config, digits) as inputs:
        drawn = {split: {s.id for s in inputs.task.samples(split)} for split in Split}
    number = int(min(drawn[Split.TEST]))
    rows[number]["question"] = "what is it? " * words
    if not picture:
        rows[number]["image"] = None
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    too_long = words == 60 or picture
    if too_long:
        place = rf"\(.*mine\.jsonl, line {number + 1}\)"
        with (
            pytest.raises(TaskError, match=rf"Sample '{number}' {place} has a prompt of \d+ tok"),
            study_inputs(config, digits) as inputs,
        ):
            inputs.check_final_samples(silent)
    else:
        with study_inputs(config, digits) as inputs:
            inputs.check_final_samples(silent)
            assert len(inputs.task.samples(Split.TEST)) == 4
