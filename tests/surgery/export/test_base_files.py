"""Exports keep the licence and the tags of the base model, and files that older engines read."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import metadata_load

from effllava_optuna import export, load, rank_units, sliced
from effllava_optuna.errors import ExportError
from effllava_optuna.export_target import CHECKSUMS_FILE
from effllava_optuna.policy import Policy
from effllava_optuna.surgery import build_example_inputs
from effllava_optuna.surgery.export.base_files import base_tags, copy_base_files
from effllava_optuna.surgery.export.comparison import write_expected
from effllava_optuna.surgery.export.verification import main
from tests.hub_cache import downloaded

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from effllava_optuna.surgery import LoadedModel

pytestmark = pytest.mark.exports

README = """---
license: other
license_name: llama3
license_link: LICENSE
language: ["no", en]
pipeline_tag: image-to-text
---
# A model
"""
KEPT = {
    "LICENSE": "Do good.", "Notice.txt": "By us.", "USE_POLICY.md": "No harm.",
    "vocab.json": '{"a": 1}', "merges.txt": "#version: 0.2\n",
    "preprocessor_config.json": '{"image_processor_type": "CLIPImageProcessor"}',
}  # fmt: skip
LEFT = {
    "license.py": "import os", "license.bin": "weights", "model.py": "import os",
    "model.gguf": "weights", "notes.txt": "private", "training_args.bin": "pickle",
}  # fmt: skip


@pytest.fixture(scope="module")
def base(make_llava: Callable[..., LoadedModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a licence and the files of an older version of transformers."""
    directory = tmp_path_factory.mktemp("base") / "checkpoint"
    dense = make_llava()
    dense.model.save_pretrained(directory)
    dense.processor.save_pretrained(directory)
    for name, content in {**KEPT, **LEFT, "README.md": README}.items():
        (directory / name).write_text(content)
    (directory / "special_tokens_map.json").write_text('{"eos_token": "of another model"}')
    (directory / "license.d").mkdir()
    return directory


@pytest.fixture(scope="module")
def small(base: Path) -> LoadedModel:
    dense = load(base, device="cpu")
    policy = Policy.uniform(dense.structure, ratio=0.5)
    return sliced(dense, policy, rank_units(dense, importance="magnitude"))


@pytest.fixture(scope="module", params=["native", "portable"])
def exported(
    small: LoadedModel, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    directory = tmp_path_factory.mktemp("exports") / "export"
    assert export(small, directory, form=request.param).generation_equal
    return directory


def names_in(directory: Path) -> set[str]:
    return {file.name for file in directory.iterdir()}


def test_an_export_keeps_the_licence_and_the_files_of_older_engines(exported: Path) -> None:
    for name, content in KEPT.items():
        assert (exported / name).read_text() == content
    assert not names_in(exported) & {*LEFT, "license.d"}
    assert set(KEPT) <= set(json.loads((exported / CHECKSUMS_FILE).read_text()))
    tags = metadata_load(exported / "README.md")
    assert tags is not None
    assert tags["license"] == "other"
    assert tags["license_name"] == "llama3"
    assert tags["language"] == ["no", "en"]
    assert tags["pipeline_tag"] == "image-to-text"
    assert tags["library_name"] == "transformers"


def test_the_special_tokens_are_those_of_the_processor(exported: Path, small: LoadedModel) -> None:
    tokens = json.loads((exported / "special_tokens_map.json").read_text())
    assert tokens["eos_token"] == small.processor.tokenizer.eos_token


def test_an_export_is_a_base_as_well(exported: Path, base: Path, tmp_path: Path) -> None:
    copy_base_files(str(exported), None, tmp_path)
    assert names_in(tmp_path) == {"LICENSE", "Notice.txt", "USE_POLICY.md"}
    assert base_tags(str(exported)) == base_tags(str(base)) != {}


def test_what_an_export_has_is_not_replaced(
    base: Path, small: LoadedModel, tmp_path: Path
) -> None:
    (tmp_path / "vocab.json").write_text("of the export")
    copy_base_files(str(base), small.processor, tmp_path)
    assert (tmp_path / "vocab.json").read_text() == "of the export"
    assert (tmp_path / "LICENSE").read_text() == KEPT["LICENSE"]


def test_without_a_processor_only_licences_are_copied(base: Path, tmp_path: Path) -> None:
    copy_base_files(str(base), None, tmp_path)
    assert names_in(tmp_path) == {"LICENSE", "Notice.txt", "USE_POLICY.md"}


@pytest.mark.parametrize("readme", ["", "# A model", "---\n: : [\n---\n", "---\n- a\n---\n", None])
def test_a_base_without_readable_tags_has_none(tmp_path: Path, readme: str | None) -> None:
    if readme is not None:
        (tmp_path / "README.md").write_text(readme)
    assert base_tags(str(tmp_path)) == {}
    assert base_tags(str(tmp_path / "removed")) == {}
    assert base_tags("nobody/nothing") == {}


def test_a_download_of_the_hub_is_a_base_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = downloaded("vlm", tmp_path, monkeypatch)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "LICENSE").write_text("Do good.")
    copy_base_files("someone/vlm", None, tmp_path)
    assert (tmp_path / "LICENSE").read_text() == "Do good."


def test_a_file_that_changes_the_processor_is_refused(
    exported: Path, small: LoadedModel, tmp_path: Path
) -> None:
    """As a file of the base that the new version of transformers prefers."""
    changed = shutil.copytree(exported, tmp_path / "changed")
    config = json.loads((changed / "processor_config.json").read_text())
    config["image_processor"]["image_mean"] = [0.1, 0.2, 0.3]
    (changed / "processor_config.json").write_text(json.dumps(config))
    inputs = build_example_inputs(small.processor)
    write_expected(small.model, small.model, inputs, tmp_path, is_example=True)
    with pytest.raises(ExportError, match="the pixel_values of an example differ"):
        main(str(changed), str(tmp_path), "cpu", "float32")
