"""Summaries that the commands print: of a calibration, a search, an export and a recovery."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from effllava_optuna.evaluation.checkpoint_recovery import RecoveryReport
    from effllava_optuna.search.session import SearchSession
    from effllava_optuna.search.trial_export import ExportedTrial
    from effllava_optuna.surgery import VerifiedAnyForm, VerifiedExport, VerifiedGgufExport

_MAX_LATENCY_ERROR = 0.2  # mean relative error of a latency table, above which it is doubtful
_MIN_SPEEDUP = 1.5  # of the narrowest policy, below which pruning hardly pays


def calibration_summary(session: SearchSession) -> str:
    """Return the values of the dense model, the errors of the latency table, and warnings."""
    from effllava_optuna.storage.names import TASK

    calibration, structure = session.evaluator.calibration, session.evaluator.structure
    dense, latency = calibration.dense, calibration.latency
    measure = session.config.quality.measure
    metric = session.study.user_attrs[TASK]["metric"]["search"]
    lines = [
        f"dense model: {dense.parameters:,} parameters, proxy {measure} {dense.accuracy:.3f} "
        f"({metric}), {dense.latency_ms:.1f} ms; {len(structure.components)} prunable components "
        f"have {structure.parameters / dense.parameters:.0%} of the parameters",
        f"latency table: mean error {latency.error:.1%} on {len(latency.errors)} random policies "
        f"that were timed as a whole (rounds: {latency.rounds}); compensation tables: "
        f"{dense.memory_mb:.1f} MB",
    ]
    if latency.error > _MAX_LATENCY_ERROR:
        lines.append(
            "warning: the error of the latency table is large, because the machine was busy or "
            "the workload is too short; use an idle machine or increase latency.seconds"
        )
    if latency.launched:
        lines.append(
            f"warning: {' and '.join(latency.launched)} could not be captured as a CUDA graph: "
            "the latency table includes the time to launch kernels"
        )
    if calibration.effective_tokens:
        tokens = sorted(calibration.effective_tokens.values())
        lines.append(
            f"token weights: each component is fitted as if to {tokens[0]:.0f} to "
            f"{tokens[-1]:.0f} tokens of equal weight"
        )
    if calibration.damping:
        dampings = sorted(calibration.damping.values())
        lines.append(f"damping of the compensation tables: {dampings[0]:g} to {dampings[-1]:g}")
    speedup = dense.latency_ms / latency.predict(calibration.narrowest)
    if speedup < _MIN_SPEEDUP:
        lines.append(
            f"warning: the narrowest policy is only {speedup:.2f}x faster: fixed costs dominate "
            "this workload; use a larger latency.batch or longer prompts"
        )
    return "\n".join(lines)


def search_summary(session: SearchSession, finished: int) -> str:
    """Return progress and best quality after ``finished`` trials."""
    from optuna.trial import TrialState

    from effllava_optuna.storage.names import REASON
    from effllava_optuna.storage.trial_records import effective_records

    records = effective_records(session.study)
    trials = session.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    failed = sum(REASON in trial.user_attrs for trial in trials)
    best = max((record.quality for record in records if record.eligible), default=float("nan"))
    failures = f", {failed} failed" if failed else ""
    return f"{finished}/{session.config.search.trials} trials{failures}, best quality {best:.4f}"


def form_summary(name: str, verified: VerifiedAnyForm) -> str:
    """Return where an export is, and its verification."""
    from effllava_optuna.surgery import VerifiedGgufExport, VerifiedOnnxExport

    if isinstance(verified, VerifiedOnnxExport):
        kept = verified.visual_tokens
        selected = "" if kept == 1 else f"; not in it: the selection of {kept:.0%} of image tokens"
        return (
            f"language part of {name} exported to {verified.path}: "
            f"{verified.parameters:,} parameters; in onnxruntime logits differ by "
            f"{verified.logit_difference:.1e}{selected}"
        )
    if isinstance(verified, VerifiedGgufExport):
        files = " and ".join(filter(None, (verified.path, verified.pictures)))
        return (
            f"{name} exported to {files}: architecture {verified.architecture}, "
            f"{verified.size / 2**20:.0f} MiB; {_gguf_summary(verified)}"
        )
    padding = f" ({verified.padded:.0%} of them padding)" if verified.padded else ""
    return (
        f"{name} exported to {verified.directory}: {verified.parameters:,} parameters{padding} in "
        f"{verified.dtype}; {_reload_summary(verified)}"
    )


def export_summary(exported: ExportedTrial) -> str:
    """Return where an export is, its verification, and the effect of fitting it in sequence."""
    line = form_summary(f"trial {exported.trial}", exported.verified)
    before, after = exported.before, exported.after
    if before is None or after is None:
        return line
    return (
        f"{line}\nfitted in sequence: {exported.measures['proxy']} {before.proxy:.3f} -> "
        f"{after.proxy:.3f} on the proxy set, which it was fitted to, and "
        f"{exported.measures['validation']} {before.validation:.3f} -> {after.validation:.3f} on "
        "the validation set"
    )


def _gguf_summary(verified: VerifiedGgufExport) -> str:
    """Return what llama.cpp made of an export."""
    if verified.engine is None:
        return (
            "not verified: llama.cpp was not found (no llama-server on the path, and "
            "EFFLLAVA_LLAMA_NODE names no package of it)"
        )
    text = f"{verified.tokens} greedy tokens in llama.cpp ({verified.engine}) as in transformers"
    if verified.class_last:
        text += (
            "; but it misplaces the class embedding of CLIP towers (its issue 25814), and reads "
            "pictures somewhat differently"
        )
    return text


def recovery_summary(report: RecoveryReport) -> str:
    """Return what a recovery changed, on samples that it was not trained on."""
    recovery, verified = report.recovery, report.verified
    accuracies = [
        f"{accuracy:.3f} [{low:.3f}, {high:.3f}]"
        for accuracy, (low, high) in (report.before, report.after)
    ]
    return (
        f"{recovery.steps} steps on {recovery.samples} samples, {recovery.weights:,} weights: "
        f"divergence from the dense model {recovery.before:.3f} -> {recovery.after:.3f} nats on "
        "held-out samples\n"
        f"validation {report.measure} {' -> '.join(accuracies)}\n"
        f"written to {verified.directory} in {verified.dtype}; {_reload_summary(verified)}"
    )


def _reload_summary(verified: VerifiedExport) -> str:
    engines = f", in {', '.join(verified.engines)}, too" if verified.engines else ""
    return (
        f"reloaded in a fresh process: logits differ by {verified.logit_difference:.1e}, same "
        f"generation: {'yes' if verified.generation_equal else 'no'}{engines}"
    )
