"""Between two epochs: compensation tables in the context of the incumbent, kept if they pay."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from effllava_optuna.calibration.calibration_run import calibration_folds, pruning_options
from effllava_optuna.errors import ModelError
from effllava_optuna.logging import get_logger
from effllava_optuna.policy import Policy
from effllava_optuna.surgery import ContextOptions, compensate_in_context

if TYPE_CHECKING:
    from collections.abc import Sequence

    from effllava_optuna.calibration.stage_callback import StageCallback
    from effllava_optuna.search.evaluator import Evaluator
    from effllava_optuna.surgery import CompensationTable, WeightState

_logger = get_logger(__name__)
_STAGE = "fitting in context"
_LOWEST_LOG_PROBABILITY = -100.0  # of an answer, as in the values of trials


@dataclass(frozen=True, slots=True)
class HeldOutScore:
    """Cross-fitted scores on the proxy set, averaged over samples and elites.

    Attributes:
        loss: Mean answer loss, in nats.
        accuracy: Fraction of right answers.
    """

    loss: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class ContextTrial:
    """A comparison of the tables of an epoch with those in the context of its incumbent.

    Attributes:
        before: Scores with the tables of the epoch.
        after: Scores with the new tables.
        seconds: Duration.
    """

    before: HeldOutScore
    after: HeldOutScore
    seconds: float

    @property
    def kept(self) -> bool:
        """Return whether the new tables are kept: their loss is lower."""
        return self.after.loss < self.before.loss

    def facts(self) -> dict[str, Any]:
        """Return what is published."""
        return {"kept": self.kept, **asdict(self)}


def try_context(
    evaluator: Evaluator,
    first: WeightState,
    tables: Sequence[CompensationTable | None],
    elites: Sequence[Policy],
    report_stage: StageCallback,
) -> tuple[WeightState, ContextTrial | None]:
    """Fit the tables in the context of the incumbent, and keep them if the elites gain by it.

    The projector is trained afterwards, for the tables that are kept: so it is trained once, for
    the networks that the next epoch measures.

    Args:
        evaluator: The model and the encoded proxy set.
        first: The weight state of epoch 0, with the projector as it was loaded. The digest of
            the result depends on it and on the tables that are kept, not on those between.
        tables: The tables of the epoch.
        elites: The elites that the projector will be trained for, the incumbent first.
        report_stage: Called with the current stage and its finished share.

    Returns:
        The weight state with the tables that are kept, and the comparison. None if nothing was
        compared: ``pruning.in_context`` is false, the incumbent is the dense policy, whose context
        the tables have already, or the tables cannot be fitted.
    """
    config = evaluator.config
    incumbent = elites[0].with_all_tokens()  # as the samples are encoded
    present = first.with_compensations(tables)
    if not config.pruning.in_context or incumbent == Policy.dense(evaluator.structure):
        return present, None
    started = time.monotonic()
    report_stage(_STAGE, 0.0)
    try:
        fitted = compensate_in_context(
            evaluator.loaded,
            present,
            incumbent,
            calibration_folds(evaluator.inputs),
            ContextOptions(pruning_options(config), evaluator.calibration.damping),
            lambda share: report_stage(_STAGE, share),
        )
    except ModelError as error:  # after hours of search: the epoch goes on with its tables
        _logger.warning(f"pruning.in_context: {error}")
        return present, None
    new = first.with_compensations(fitted)
    report_stage("comparing compensation tables", 0.0)
    before, after = (_held_out_score(evaluator, state, elites) for state in (present, new))
    compared = ContextTrial(before, after, round(time.monotonic() - started, 3))
    return (new if compared.kept else present), compared


def _held_out_score(
    evaluator: Evaluator, weight_state: WeightState, elites: Sequence[Policy]
) -> HeldOutScore:
    """Score the elites on the proxy set, each sample by the fit that has not seen it."""
    batches = evaluator.proxy.likelihood
    scores = [evaluator.score(elite, weight_state, batches) for elite in elites]
    losses = [
        -np.maximum(score.log_probability, _LOWEST_LOG_PROBABILITY).mean() for score in scores
    ]
    return HeldOutScore(
        float(np.mean(losses)), float(np.mean([score.hit.mean() for score in scores]))
    )
