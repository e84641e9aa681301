"""Whether what is stored of a study is whole: trials, control study, artifacts, export."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import optuna
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.trial import TrialState

from effllava_optuna.errors import EffllavaError
from effllava_optuna.files import DRAFT
from effllava_optuna.policy import Anatomy
from effllava_optuna.samplers import counted, lost_among, reap, slot_of
from effllava_optuna.study import storage
from effllava_optuna.study.artifacts import Folder, store_for
from effllava_optuna.study.ledger import Ledger, dead_attempts, published
from effllava_optuna.study.target import export_directory, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna import Study
    from optuna.storages import BaseStorage

    from effllava_optuna.study.artifacts import Store
    from effllava_optuna.study.spec import StudySpec
    from effllava_optuna.study.target import Target

State = Literal["ok", "warning", "fault"]
_BUSY = 5.0  # seconds to wait for who writes
_STALE = 3600.0  # seconds without a write, after which a draft is of a killed process
# A study's own artifacts, and those of its trials that had ended before they got them.
_OF_STUDY = re.compile(r"(?:artifacts|dashboard:artifacts:(?P<trial>\d+)):(?P<name>.+)")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAMED = 3  # things in one line


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        check: Its name.
        state: ``ok``, ``warning`` or ``fault``.
        found: What there is.
        cure: What to do; nothing where all is well.
    """

    check: str
    state: State
    found: str
    cure: str = ""


def examine_storage(target: Target) -> list[Finding]:
    """Look whether the storage opens, is whole and can be written, without changing it."""
    try:
        file = storage.file_of(target.url)
    except EffllavaError as error:
        return [Finding("storage", "fault", error.message, error.hint)]
    if file is not None and not file.exists():
        if target.file is not None:
            return [Finding("storage", "ok", f"{target.name!r} has not been begun", "")]
        return [
            Finding("storage", "fault", f"{file}: there is no such database.", "Name another.")
        ]
    if storage.sqlite_file(target.url) is not None and file is not None:
        found = _sqlite(file)
        if found.state == "fault":
            return [found]
    try:
        opened = storage.open_storage(target.url)
    except EffllavaError as error:
        return [Finding("storage", "fault", error.message, error.hint)]
    findings = [Finding("storage", "ok", f"{shown(target.url)} opens and can be written")]
    if file is not None and not os.access(file, os.W_OK):
        cure = "Give yourself the right to write, or only read with `status` and `report`."
        findings = [Finding("storage", "warning", f"{file} cannot be written", cure)]
    backend: Any = getattr(opened, "_backend", None)
    if isinstance(backend, optuna.storages.RDBStorage):
        now, head = backend.get_current_version(), backend.get_head_version()
        cure = "" if now == head else f"optuna storage upgrade --storage {shown(target.url)}"
        state: State = "ok" if now == head else "fault"
        findings.append(Finding("schema", state, f"{now}; this Optuna writes {head}", cure))
    return findings


def _sqlite(file: Path) -> Finding:
    """Ask SQLite whether a file is whole, and whether it can be written now."""
    cure = "Restore it from a copy, or start a new study."
    try:
        place = f"{file.absolute().as_uri()}?mode=rw"
        if not os.access(file, os.W_OK):
            place = f"{file.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(place, uri=True, timeout=_BUSY)) as connection:
            (told,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
            if told != "ok":
                return Finding("storage", "fault", f"{file}: {told}", cure)
            if place.endswith("rw"):
                connection.execute("BEGIN IMMEDIATE")
                connection.rollback()
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            cure = "End the process that holds it, or wait."
        return Finding("storage", "fault", f"{file}: {error}", cure)
    except sqlite3.DatabaseError as error:
        return Finding("storage", "fault", f"{file}: {error}", cure)
    return Finding("storage", "ok", f"{file} is whole")


def examine_study(target: Target) -> list[Finding]:
    """Look whether all that belongs to a study is there, without changing it."""
    try:
        study = storage.open_study(storage.open_storage(target.url), target.name)
        spec = storage.spec_of(study)
    except EffllavaError as error:
        if target.file is not None and "There is no study" in error.message:
            return [Finding("study", "ok", f"{target.name!r} has not been begun")]
        return [Finding("study", "fault", error.message, error.hint)]
    findings = [_spec(target, spec), _anatomy(study)]
    control = control_of(study)
    findings += _control(study, control)
    findings.append(_lost("trials of ended processes", _numbers(_lost_trials(study))))
    findings.append(_duplicates(study))
    try:
        findings += _artifacts(study, store_for(target.url, spec))
    except EffllavaError as error:
        findings.append(Finding("artifacts", "fault", error.message, error.hint))
    findings += _export(study, spec, target)
    left = leftovers(target, spec)
    findings.append(
        Finding("leftovers", "warning", f"{_some([str(one) for one in left])}", _REPAIR)
        if left
        else Finding("leftovers", "ok", "no unfinished files")
    )
    return findings


_REPAIR = "Repair it with `doctor --repair`."


def _spec(target: Target, spec: StudySpec) -> Finding:
    changed = None if target.spec is None else storage.difference(spec, target.spec)
    if changed is None:
        return Finding("study", "ok", f"{target.name!r}, {spec.search.trials} trials planned")
    cure = "Put the file back, or give a new study another study.name."
    return Finding("study", "fault", changed, cure)


def _anatomy(study: Study) -> Finding:
    document = study.user_attrs.get(storage.ANATOMY)
    if document is None:
        return Finding("anatomy", "warning", "not noted yet", "Continue with `resume`.")
    try:
        sites = Anatomy.from_json(document).sites
    except (EffllavaError, KeyError, TypeError, ValueError, AttributeError) as error:
        return Finding("anatomy", "fault", f"cannot be read: {error}", "Start a new study.")
    return Finding("anatomy", "ok", f"{len(sites)} sites")


def control_of(study: Study) -> Study | None:
    """Open the control study of a study, if there is one; none is made."""
    name = storage.control_name(study.study_name)
    try:
        return optuna.load_study(
            storage=study._storage, study_name=name, sampler=optuna.samplers.RandomSampler()
        )
    except KeyError:
        return None


def _control(study: Study, control: Study | None) -> list[Finding]:
    if control is None:
        if study.get_trials(deepcopy=False):
            cure = "Restore it from a copy of the database, or start a new study."
            return [Finding("control study", "fault", "is missing", cure)]
        cure = "Continue with `resume`."
        return [Finding("control study", "warning", "not there yet", cure)]
    from effllava_optuna.study.bundle import FORMAT

    epochs = published(control)
    if not epochs:
        cure = "Continue with `resume`: it calibrates again."
        return [Finding("control study", "warning", "nothing is published yet", cure)]
    last = min(len(epochs), storage.spec_of(study).search.epochs)
    findings = [Finding("control study", "ok", f"{last} epochs are published")]
    form = epochs[0].user_attrs.get("bundle", {}).get("format", 1)
    told = f"format {form}; this version reads {FORMAT}"
    if form == FORMAT:
        findings.append(Finding("calibration", "ok", told))
    else:
        cure = "Go on with the version that began the study, or begin a new one."
        findings.append(Finding("calibration", "fault", told, cure))
    dead = [attempt.number for attempt in dead_attempts(control)]
    return [*findings, _lost("attempts of ended processes", dead)]


def _lost_trials(study: Study) -> list[optuna.trial.FrozenTrial]:
    return lost_among(study, study.get_trials(deepcopy=False))


def _numbers(trials: list[optuna.trial.FrozenTrial]) -> list[int]:
    return [trial.number for trial in trials]


def _lost(check: str, numbers: list[int]) -> Finding:
    if not numbers:
        return Finding(check, "ok", "none is left running")
    return Finding(check, "warning", f"left running: {_some(list(map(str, numbers)))}", _REPAIR)


def _duplicates(study: Study) -> Finding:
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    kept = {trial.number for trial in counted(study.get_trials(deepcopy=False)).values()}
    more = [t.number for t in trials if slot_of(t) is not None and t.number not in kept]
    if not more:
        return Finding("duplicates", "ok", "every slot was measured once")
    found = f"measured twice: {_some(list(map(str, more)))}"
    return Finding("duplicates", "warning", found, "Nothing to do: the lowest number counts.")


def referred(backend: BaseStorage, name: str | None = None) -> dict[str, str]:
    """Give every artifact that studies of a storage refer to, and who does.

    Args:
        backend: The storage.
        name: Of a study: only what it and its control study refer to.
    """
    mine = None if name is None else (name, storage.control_name(name))
    found = {}
    for study in backend.get_all_studies():
        if mine is not None and study.study_name not in mine:
            continue
        trials = backend.get_all_trials(study._study_id, deepcopy=False)
        who = {str(t._trial_id): f"trial {t.number} of {study.study_name}" for t in trials}
        for key in backend.get_study_system_attrs(study._study_id):
            if (named := _OF_STUDY.fullmatch(key)) is not None:
                found[named["name"]] = who.get(named["trial"], study.study_name)
        for trial in trials:
            names = _named_in(trial.system_attrs)
            if study.study_name.endswith(storage.control_name("")):
                names += [trial.user_attrs["artifact"]] if "artifact" in trial.user_attrs else []
            found |= dict.fromkeys(names, who[str(trial._trial_id)])
    return found


def _named_in(attrs: Mapping[str, Any]) -> list[str]:
    return [key.removeprefix("artifacts:") for key in attrs if key.startswith("artifacts:")]


def _artifacts(study: Study, store: Store) -> list[Finding]:
    names = referred(study._storage, study.study_name)
    missing, damaged = [], []
    for name, who in names.items():
        try:
            with closing(store.open_reader(name)) as file:
                whole = not _DIGEST.fullmatch(name) or _sha256(file) == name
            if not whole:
                damaged.append(f"{name[:12]}... ({who})")
        except ArtifactNotFound:
            missing.append(f"{name[:12]}... ({who})")
        except Exception as error:  # each store has a family of its own
            missing.append(f"{name[:12]}... ({who}): {error}")
    findings = []
    if missing:
        cure = "Put the artifacts of the study back beside its database, under their name."
        findings.append(Finding("artifacts", "fault", f"missing: {_some(missing)}", cure))
    if damaged:
        cure = "Restore them from a copy, or start a new study."
        findings.append(Finding("artifacts", "fault", f"damaged: {_some(damaged)}", cure))
    if not findings:
        findings.append(Finding("artifacts", "ok", f"{len(names)} are there, and whole"))
    if isinstance(store, Folder) and store.path.is_dir():
        files = [f.name for f in sorted(store.path.iterdir()) if not f.name.endswith(DRAFT)]
        known = referred(study._storage)
        orphans = [name for name in files if name not in known]
        if orphans:
            cure = "Remove them, unless another database shares the folder."
            told = f"nobody here refers to {_some(orphans)} in {store.path}"
            findings.append(Finding("orphans", "warning", told, cure))
    return findings


def _sha256(file: Any) -> str:
    content = hashlib.sha256()
    while chunk := file.read(1 << 20):
        content.update(chunk)
    return content.hexdigest()


def _export(study: Study, spec: StudySpec, target: Target) -> list[Finding]:
    directory = export_directory(spec, target.file)
    if directory is None or storage.RESULTS not in study.user_attrs:
        return []
    if export_stands(study, spec, directory):
        return [Finding("export", "ok", f"{directory} is whole")]
    found = f"{directory} is missing, damaged, or of another policy"
    return [Finding("export", "warning", found, "Write it again with `resume`.")]


def export_stands(study: Study, spec: StudySpec, directory: Path) -> bool:
    """Tell whether the chosen policy's checkpoint is in a directory, and whole."""
    from effllava_optuna.surgery.seal import check_seal, read_policy

    chosen: Any = study.user_attrs.get(storage.CHOSEN)
    try:
        document = read_policy(directory)
        check_seal(directory)
        kept = tuple(site["kept"] for site in document["sites"].values())
        keep = tuple(study.get_trials(deepcopy=False)[chosen].user_attrs["keep"])
    except (EffllavaError, KeyError, TypeError, IndexError, AttributeError):
        return False  # none was chosen, or this is no export of ours
    return document.get("form") == spec.form and kept == keep


def leftovers(target: Target, spec: StudySpec) -> list[Path]:
    """Find what a process that was killed has left half written beside a study."""
    drafts: list[Path] = []
    try:
        store = store_for(target.url, spec)
    except EffllavaError:
        store = None
    if isinstance(store, Folder) and store.path.is_dir():
        drafts += store.path.glob(f".*{DRAFT}")
    directory = export_directory(spec, target.file)
    if directory is not None and directory.absolute().parent.is_dir():
        scratch = directory.absolute().parent.glob(f".{directory.name}-*")
        drafts += (folder for folder in scratch if folder.is_dir())
    if spec.latency.table is not None:
        table = Path(spec.latency.table).absolute()
        drafts += table.parent.glob(f".{table.name}.*{DRAFT}")
    if target.file is not None:
        beside = target.file.absolute()
        drafts += beside.parent.glob(f".{beside.name}.*{DRAFT}")
    return sorted(draft for draft in drafts if _stale(draft))


def _stale(place: Path) -> bool:
    """Tell whether nobody has written into a file or folder for long."""
    within = [] if place.is_symlink() else place.rglob("*")
    try:
        return all(time.time() - one.lstat().st_mtime > _STALE for one in (place, *within))
    except OSError:
        return False


def repair(target: Target) -> list[str]:
    """Mend what can be mended without a risk, and say what was done.

    Trials and attempts of ended processes are failed, as `resume` would; what was left half
    written is removed. Nothing that a trial refers to is touched.

    Raises:
        StudyError: There is no such study.
    """
    study = storage.open_study(storage.open_storage(target.url), target.name)
    done = [f"failed trial {number}: its process has ended" for number in reap(study)]
    if control_of(study) is not None:
        ledger = Ledger(study._storage, study.study_name)
        done += [f"failed attempt {n} of the control study: its process has ended"
                 for n in ledger.reap()]  # fmt: skip
    for place in leftovers(target, storage.spec_of(study)):
        try:
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            else:
                place.unlink()
        except OSError as error:
            done.append(f"could not remove {place}: {error.strerror}")
        else:
            done.append(f"removed {place}: nobody is writing it any more")
    return done


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
