"""Check whether the artifacts that a study refers to exist and are intact."""

from __future__ import annotations

import hashlib
import re
from contextlib import closing
from typing import TYPE_CHECKING, Any

from optuna.artifacts.exceptions import ArtifactNotFound

from effllava_optuna.files import DRAFT_SUFFIX
from effllava_optuna.storage.artifact_store import DirectoryArtifactStore
from effllava_optuna.storage.control_study import control_study_name
from effllava_optuna.storage.integrity.check_result import CheckResult, listed
from effllava_optuna.storage.names import is_control_name
from effllava_optuna.storage.storage_internals import storage_of, study_id_of, trial_id_of

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

    from effllava_optuna.storage.artifact_store import ArtifactBackend

# System attributes of a study that name an artifact of the study or of a finished trial.
_STUDY_ATTRIBUTE = re.compile(r"(?:artifacts|dashboard:artifacts:(?P<trial>\d+)):(?P<name>.+)")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def check_artifacts(study: Study, backend: ArtifactBackend) -> list[CheckResult]:
    """Check that all artifacts of a study exist, are intact, and that no others lie there."""
    storage = storage_of(study)
    own_names = (study.study_name, control_study_name(study))
    references = _references(storage, own_names)
    missing, damaged = [], []
    for name, referrer in references.items():
        artifact = f"{name[:12]}... ({referrer})"
        try:
            with closing(backend.open_reader(name)) as file:
                intact = not _DIGEST.fullmatch(name) or _sha256(file) == name
            if not intact:
                damaged.append(artifact)
        except ArtifactNotFound:
            missing.append(artifact)
        except Exception as error:  # each backend has exceptions of its own
            missing.append(f"{artifact}: {error}")
    results = []
    if missing:
        cure = "Put the artifacts of the study back beside its database, under their name."
        results.append(CheckResult("artifacts", "fault", f"missing: {listed(missing)}", cure))
    if damaged:
        cure = "Restore them from a copy, or start a new study."
        results.append(CheckResult("artifacts", "fault", f"damaged: {listed(damaged)}", cure))
    if not results:
        results.append(CheckResult("artifacts", "ok", f"{len(references)} exist and are intact"))
    return results + _check_orphans(storage, backend)


def _check_orphans(storage: BaseStorage, backend: ArtifactBackend) -> list[CheckResult]:
    """Warn of artifacts in a directory that no study of the storage refers to."""
    if not isinstance(backend, DirectoryArtifactStore) or not backend.path.is_dir():
        return []
    files = [f.name for f in sorted(backend.path.iterdir()) if not f.name.endswith(DRAFT_SUFFIX)]
    references = _references(storage)
    orphans = [name for name in files if name not in references]
    if not orphans:
        return []
    detail = f"no study of this storage refers to {listed(orphans)} in {backend.path}"
    cure = "Remove them, unless another database shares the directory."
    return [CheckResult("orphans", "warning", detail, cure)]


def _references(
    storage: BaseStorage, study_names: tuple[str, ...] | None = None
) -> dict[str, str]:
    """Return each artifact that studies of a storage refer to, and the trial or study that does.

    Args:
        storage: The storage.
        study_names: Studies to read; None for all.
    """
    references = {}
    for study in storage.get_all_studies():
        if study_names is not None and study.study_name not in study_names:
            continue
        trials = storage.get_all_trials(study_id_of(study), deepcopy=False)
        referrers = {
            str(trial_id_of(trial)): f"trial {trial.number} of {study.study_name}"
            for trial in trials
        }
        for key in storage.get_study_system_attrs(study_id_of(study)):
            match = _STUDY_ATTRIBUTE.fullmatch(key)
            if match is not None:
                references[match["name"]] = referrers.get(match["trial"], study.study_name)
        is_control = is_control_name(study.study_name)
        for trial in trials:
            names = _artifacts_of(trial, is_control=is_control)
            references |= dict.fromkeys(names, referrers[str(trial_id_of(trial))])
    return references


def _artifacts_of(trial: FrozenTrial, *, is_control: bool) -> list[str]:
    prefix = "artifacts:"
    names = [key.removeprefix(prefix) for key in trial.system_attrs if key.startswith(prefix)]
    if is_control and "artifact" in trial.user_attrs:
        names.append(trial.user_attrs["artifact"])
    return names


def _sha256(file: Any) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()
