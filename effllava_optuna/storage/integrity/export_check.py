"""Check whether an export is the checkpoint of the chosen policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import EffllavaError
from effllava_optuna.storage.integrity.check_result import CheckResult
from effllava_optuna.storage.names import CHOSEN, RESULTS

if TYPE_CHECKING:
    from pathlib import Path

    from optuna import Study

    from effllava_optuna.config.schema import StudyConfig
    from effllava_optuna.storage.location import StudyLocation


def check_export(study: Study, config: StudyConfig, location: StudyLocation) -> list[CheckResult]:
    """Check the export of a finished study."""
    directory = location.export_directory(config)
    if directory is None or RESULTS not in study.user_attrs:
        return []
    if export_is_valid(study, config, directory):
        return [CheckResult("export", "ok", f"{directory} is complete")]
    detail = f"{directory} is missing, damaged, or of another policy"
    return [CheckResult("export", "warning", detail, "Write it again with `resume`.")]


def export_is_valid(study: Study, config: StudyConfig, directory: Path) -> bool:
    """Return whether a directory has the undamaged checkpoint of the chosen policy."""
    from effllava_optuna.surgery.loading.checksums import check_checksums
    from effllava_optuna.surgery.loading.policy_file import read_policy

    chosen: Any = study.user_attrs.get(CHOSEN)
    try:
        document = read_policy(directory)
        check_checksums(directory)
        exported = tuple(component["kept"] for component in document["components"].values())
        widths = tuple(study.get_trials(deepcopy=False)[chosen].user_attrs["widths"])
    except (EffllavaError, KeyError, TypeError, IndexError, AttributeError):
        return False  # no policy was chosen, or the directory is not an export of this package
    return document.get("form") == config.form and exported == widths
