"""An export is identified by its policy.json, whose format is checked: promise 10."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from effllava_optuna import load, load_pruned
from effllava_optuna.errors import ModelError
from effllava_optuna.export_target import is_export
from effllava_optuna.surgery.loading.policy_file import (
    pruning_record,
    read_policy,
    write_policy,
)

if TYPE_CHECKING:
    from pathlib import Path

# What effllava_optuna wrote before components, structures and importances had these names.
FORMAT_1: dict[str, Any] = {
    "format": 1,
    "form": "native",
    "base_model": "digits-vlm",
    "effllava_optuna": "0.1.0",
    "transformers": "5.18.0",
    "anatomy": "0123456789abcdef",
    "order": "obs",
    "sites": {"language.00.mlp": {"kept": 7, "of": 24}},
    "metrics": [],
}


@pytest.fixture
def of_format_1(checkpoint: Path, tmp_path: Path) -> Path:
    directory = shutil.copytree(checkpoint, tmp_path / "old")
    (directory / "policy.json").write_text(json.dumps(FORMAT_1))
    return directory


def test_an_export_of_an_older_version_is_refused_with_its_format_and_keys(
    of_format_1: Path,
) -> None:
    expected = (
        f"{of_format_1}/policy.json has format 1 with the keys 'anatomy', 'order', 'sites' of an "
        "older version; this version reads format 2. Export the checkpoint again, or use the "
        "version of effllava_optuna that wrote it."
    )
    for loader in (load, load_pruned):
        with pytest.raises(ModelError) as caught:
            loader(of_format_1, device="cpu")
        assert str(caught.value) == expected
    assert is_export(of_format_1)


def test_an_export_of_a_later_version_is_refused_with_its_format(of_format_1: Path) -> None:
    document = {"format": 3, "effllava_optuna": "9.0"}
    (of_format_1 / "policy.json").write_text(json.dumps(document))
    with pytest.raises(ModelError, match=r"policy\.json has format 3; this version reads format"):
        load(of_format_1, device="cpu")


@pytest.mark.parametrize("content", ["{", "[]", '{"format": "a policy of another program"}'])
def test_a_foreign_policy_file_is_ignored(of_format_1: Path, content: str) -> None:
    (of_format_1 / "policy.json").write_text(content)
    assert not is_export(of_format_1)
    with pytest.raises(ModelError):
        read_policy(of_format_1)
    assert load(of_format_1, device="cpu").pruning_record is None


def test_a_policy_is_read_as_it_was_written(tmp_path: Path) -> None:
    components = {"language.00.mlp": {"kept": 7, "of": 24}}
    document = {
        "base_model": "digits-vlm", "effllava_optuna": "0.1.0", "structure": "0123456789abcdef",
        "importance": "obs", "components": components,
    }  # fmt: skip
    write_policy(tmp_path, document)
    assert read_policy(tmp_path) == {"format": 2, **document}
    assert is_export(tmp_path)
    record = pruning_record(read_policy(tmp_path))
    assert record is not None
    assert (record.base_model, record.importance) == ("digits-vlm", "obs")
    assert dict(record.kept) == {"language.00.mlp": (7, 24)}
    assert pruning_record({"format": 2, "base_model": "digits-vlm"}) is None
