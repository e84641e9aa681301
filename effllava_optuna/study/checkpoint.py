"""Write the checkpoint of a trial: its policy, under its own basis."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from effllava_optuna.errors import StudyError
from effllava_optuna.objectives import LIKELIEST, ask
from effllava_optuna.policy import Policy
from effllava_optuna.study import storage
from effllava_optuna.study.calibrating import probe
from effllava_optuna.study.records import record_of
from effllava_optuna.surgery import (
    WHOLE,
    Basis,
    Card,
    Metric,
    export,
    export_onnx,
    projecting,
    refit_in_sequence,
    sliced,
)
from effllava_optuna.tasks import Split, encode

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from effllava_optuna.study.evolution import Epochs
    from effllava_optuna.surgery import Verified, VerifiedOnnx

    Form = Literal["native", "portable", "onnx"]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Shares of right answers of one network.

    Attributes:
        proxy: On the samples that it was fitted to.
        validation: On samples that neither fit nor search has seen.
    """

    proxy: float
    validation: float


@dataclass(frozen=True, slots=True)
class Written:
    """An export, and what fitting it in sequence did.

    Attributes:
        trial: Whose policy it is.
        verified: What a fresh process found in it.
        before: Under the basis of the trial; None: it was not fitted again.
        after: As it was written.
    """

    trial: int
    verified: Verified | VerifiedOnnx
    before: Accuracy | None = None
    after: Accuracy | None = None


def write_checkpoint(
    epochs: Epochs,
    number: int,
    place: str | Path,
    *,
    form: Form,
    overwrite: bool,
    sequential: bool = False,
) -> Written:
    """Export the policy of a trial with its own basis, and verify it.

    Args:
        epochs: Of the study.
        number: Of the trial.
        place: The directory; of ``onnx`` the file.
        form: ``native``, ``portable``, or ``onnx``: the language part alone.
        overwrite: Replace an earlier export.
        sequential: Fit the output matrices again, layer after layer on the proxy, and measure
            the policy before and after.

    Raises:
        StudyError: There is no such trial, or it was not measured.
        ExportError: The directory cannot be used, or the checkpoint does not come back.
    """
    trials = epochs.study.get_trials(deepcopy=False)
    if not 0 <= number < len(trials) or not record_of(trials[number]).measured:
        raise StudyError(
            f"Trial {number} of {epochs.study.study_name!r} was not measured.",
            hint="Choose a complete trial; `status` lists the front.",
        )
    trial = record_of(trials[number])
    own = epochs.basis(trial.basis)
    policy = Policy.of(epochs.bench.anatomy, trial.keep)
    basis = _in_sequence(epochs, policy, own) if sequential else own
    with projecting(epochs.bench.loaded, basis.projectors[WHOLE]) as loaded:
        pruned = sliced(loaded, policy, basis.order, basis.refits[WHOLE])
    if form == "onnx":
        verified: Verified | VerifiedOnnx = export_onnx(pruned, place, overwrite=overwrite)
    else:
        card = _card(epochs, number, sequential=sequential)
        verified = export(pruned, place, form=form, card=card, overwrite=overwrite)
    written = Written(number, verified)
    if sequential:
        before, after = (_measured(epochs, policy, each) for each in (own, basis))
        written = replace(written, before=before, after=after)
    facts = {"trial": number, "directory": str(place), "form": form}
    if written.before is not None and written.after is not None:
        facts |= {"before": asdict(written.before), "after": asdict(written.after)}
    epochs.study.set_user_attr(storage.EXPORTED, facts)
    return written


def _card(epochs: Epochs, number: int, *, sequential: bool) -> Card:
    """Tell what the report measured of a trial, as long as the export is what was measured."""
    spec, task = epochs.spec, epochs.bench.task
    data = (
        f"Calibration, search and projector training used {spec.task.proxy} samples of "
        f"{task.name} ({task.digest[:16]}). Validation chose; test was only measured."
    )
    results = epochs.study.user_attrs.get(storage.RESULTS)
    rows = [row for row in (results or {}).get("front", ()) if row["trial"] == number]
    if not rows or sequential:
        return Card(data)
    told = epochs.study.user_attrs.get(storage.TASK)
    rule = told["metric"]["report"] if told else LIKELIEST
    what = "accuracy" if rule == LIKELIEST else rule
    metrics = [
        Metric(f"{what}, {split}", rows[0][f"accuracy_{split}"], *_ends(rows[0], split))
        for split in ("validation", "test")
    ]
    dense = (results or {})["dense"]
    metrics += [
        Metric(f"{what} of the dense model, test", dense["accuracy_test"], *_ends(dense, "test")),
        Metric("speed-up, measured", rows[0]["speedup_measured"]),
        Metric("share of the prunable weights kept", rows[0]["kept_share"]),
    ]
    return Card(data, metrics)


def _ends(row: Mapping[str, Any], split: str) -> tuple[float, float]:
    low, high = row[f"accuracy_{split}_interval"]
    return low, high


def _in_sequence(epochs: Epochs, policy: Policy, basis: Basis) -> Basis:
    """Give the basis that fits ``policy`` alone, and nothing but the whole proxy."""
    bench = epochs.bench
    with projecting(bench.loaded, basis.projectors[WHOLE]) as loaded:
        refit = refit_in_sequence(
            loaded,
            policy,
            basis.order,
            [probe(batch) for batch in encode(loaded.processor, bench.proxy)],
            tokens=epochs.spec.pruning.tokens,
            damping=bench.bundle.damping,
            progress=lambda share: epochs.say("fitting in sequence", share),
        )
    digest = f"{basis.digest}-sequential"
    return Basis(digest, basis.order, (refit,), (basis.projectors[WHOLE],))


def _measured(epochs: Epochs, policy: Policy, basis: Basis) -> Accuracy:
    bench = epochs.bench
    mine = ask(bench.loaded, bench.proxy, fit=WHOLE, written=True)
    asked = (mine, bench.asked(Split.VALIDATION))
    proxy, validation = (float(bench.final(policy, basis, each).hit.mean()) for each in asked)
    return Accuracy(proxy, validation)
