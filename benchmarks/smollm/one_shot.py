"""What is lost without any search? ``python benchmarks/smollm/one_shot.py``.

``smollm-vlm`` and its language model alone are pruned at once, with one width for all MLPs and one
number of attention groups: every importance with every compensation, at four keep ratios. The
first is calibrated on questions about pictures, the second on its own answers about words. Every
draw has its own calibration samples, test pictures, questions about words, and glosses; within a
draw all networks are measured on the same ones.

Every measurement leaves a record in ``results/smollm_one_shot.jsonl``, and is not repeated if it
has one. ``--tiny`` measures two networks, and publishes nothing.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
import torch
from _cases import Case
from _evidence import announce
from _means import markdown
from _network_measures import PICTURES, NetworkMeasures, TextMeasures
from _network_rows import accuracy_cell, gain_cell, gain_of, mean_cell
from _pretrained_form import LANGUAGE_MODEL, MODEL, TEXT, pretrained_form, publish_tables
from _records import RecordId
from _sentences import gains, paragraph, plural
from _shared_moments import SharedMoments
from _studies import StudyRunner, inputs_of

from effllava_optuna.calibration.calibration_run import calibration_folds, pruning_options
from effllava_optuna.policy import Kind, Policy
from effllava_optuna.surgery import (
    ContextOptions,
    WeightState,
    arranged,
    compensate_in_context,
    policy_network,
    weigh_tokens,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from _evidence import Form
    from _records import Record

    from effllava_optuna.policy import ComponentId, ModelStructure
    from effllava_optuna.surgery import CalibrationBatch, LoadedModel
    from effllava_optuna.surgery.importance.moments import TokenWeights

TITLE = "A pretrained model: importance and compensation"
QUESTION = "smollm_one_shot"
IMPORTANCES = ("magnitude", "wanda", "flap", "taylor", "obs")
IN_CONTEXT = "in context"
COMPENSATIONS = ("none", "bias", "least-squares", IN_CONTEXT)
_PASSES = (("none", "bias", "least-squares"), (IN_CONTEXT,))  # the slower one last
# By keep ratio: attention groups of three, and MLP channels of 1,536.
WIDTHS = {0.9: (3, 1312), 0.8: (3, 1120), 0.7: (3, 896), 0.5: (2, 672)}
DENSE = "dense"
_SAMPLES = 64
_QUOTED = 0.5  # keep ratio in the summary
_SECONDS = {False: 30.0, True: 120.0}  # of one core, for a record; True: in context


@dataclass(frozen=True, slots=True)
class Pruning:
    """How one network is pruned.

    Attributes:
        importance: Criterion of the ranking.
        compensation: One of `COMPENSATIONS`.
        ratio: Keep ratio, a key of `WIDTHS`.
    """

    importance: str
    compensation: str
    ratio: float

    def record_id(self, model: str, seed: int) -> RecordId:
        """Return the id of the record of a draw."""
        network = (self.importance, self.compensation, self.ratio)
        return RecordId(QUESTION, ("pruned", model, seed, *network))


def uniform_policy(structure: ModelStructure, ratio: float) -> Policy:
    """Return the policy of a keep ratio; see `WIDTHS`."""
    attention, mlp = WIDTHS[ratio]
    return Policy.of(
        structure,
        [mlp if component.kind is Kind.MLP else attention for component in structure.components],
    )


def dense_id(model: str, seed: int) -> RecordId:
    """Return the id of the record of the dense model."""
    return RecordId(QUESTION, (DENSE, model, seed, DENSE, DENSE, 1.0))


class OneShotDraw:
    """Prunes and measures the networks of one draw.

    Args:
        runner: Holds the records.
        model: Name of the model.
        seed: Seed of the draw.
    """

    def __init__(self, runner: StudyRunner, model: str, seed: int) -> None:
        self.runner, self.draw = runner, (model, seed)
        text = TEXT if model == LANGUAGE_MODEL else ()
        samples = f"task.proxy={runner.form.pick(_SAMPLES, 16, 8)}"
        case = Case("one shot", (samples, *text), QUESTION)
        self.config = runner.config(model, seed, case)
        with inputs_of(self.config, case) as inputs:
            self.loaded: LoadedModel = inputs.loaded
            self.folds = calibration_folds(inputs)
        pictures = runner.form.pick(PICTURES, 4, 2)
        self.measures = (
            TextMeasures(self.loaded, seed, pictures / PICTURES)
            if model == LANGUAGE_MODEL
            else NetworkMeasures(self.loaded, seed, pictures)
        )
        self._states: dict[tuple[str, str], WeightState] = {}
        self.policies = {ratio: uniform_policy(self.loaded.structure, ratio) for ratio in WIDTHS}

    def measure_dense(self) -> Record:
        """Return the record of the dense model."""
        return self.runner.record(dense_id(*self.draw), lambda: self.measures.figures(self.loaded))

    def measure(self, prunings: Sequence[Pruning]) -> None:
        """Measure networks that have no record."""
        for pruning in prunings:
            self.runner.record(pruning.record_id(*self.draw), partial(self._figures, pruning))

    @cached_property
    def moments(self) -> SharedMoments:
        """Collect what all networks are fitted with."""
        widths = {
            component.id: sorted({policy.widths[index] for policy in self.policies.values()})
            for index, component in enumerate(self.loaded.structure.components)
        }
        return SharedMoments(self.loaded, self.folds, widths)

    @cached_property
    def token_weights(self) -> Sequence[Mapping[ComponentId, TokenWeights]]:
        """Compute the weights of the tokens, which all networks in context share."""
        tokens = self.config.pruning.tokens
        return weigh_tokens(self.loaded, [self.loaded.handles], self.everything, tokens)

    @property
    def everything(self) -> list[CalibrationBatch]:
        """Return the calibration samples of all folds."""
        return [batch for fold in self.folds for batch in fold]

    def _figures(self, pruning: Pruning) -> dict[str, Any]:
        policy = self.policies[pruning.ratio]
        state = self._weight_state(pruning)
        with (
            arranged(self.loaded, state.ranking) as ready,
            policy_network(ready, state, policy) as network,
        ):
            return self.measures.figures(network)

    def _weight_state(self, pruning: Pruning) -> WeightState:
        """Rank and fit; the last state is kept, because policies of several ratios share it."""
        in_context = pruning.compensation == IN_CONTEXT
        key = pruning.importance, "least-squares" if in_context else pruning.compensation
        if key not in self._states:
            ranking = self.moments.ranking(key[0])
            self._states = {key: self.moments.weight_state(ranking, key[1])}
        state = self._states[key]
        return self._in_context(state, self.policies[pruning.ratio]) if in_context else state

    def _in_context(self, state: WeightState, policy: Policy) -> WeightState:
        """Fit the tables of one policy again, around it, on all samples."""
        (table,) = state.compensations
        ids = [component.id for component in self.loaded.structure.components]
        kept = {*zip(ids, policy.widths, strict=True)}
        own = {key: fit for key, fit in (table or {}).items() if key in kept}
        # One fold of all samples: the fit without it has no samples, and costs nothing.
        state = replace(state, compensations=(own, own), projectors=(None, None))
        options = ContextOptions(
            pruning_options(self.config), self.moments.damping, self.token_weights
        )
        fits = compensate_in_context(self.loaded, state, policy, [self.everything], options)
        return replace(state, compensations=fits)


def summary(rows: Mapping[tuple[Any, ...], Record], seeds: Sequence[int]) -> str:
    """Return the main figures: those of the model with pictures."""

    def of(importance: str, compensation: str, ratio: float) -> dict[int, Record]:
        keys = {seed: (MODEL, seed, importance, compensation, ratio) for seed in seeds}
        return {seed: rows[key] for seed, key in keys.items() if key in rows}

    dense = f"The dense `{MODEL}` has an accuracy of {accuracy_cell(of(DENSE, DENSE, 1.0))}."
    fitted = of("obs", "least-squares", _QUOTED)
    compared = {
        "no compensation": of("obs", "none", _QUOTED),
        "importance taylor": of("taylor", "least-squares", _QUOTED),
        "importance magnitude": of("magnitude", "least-squares", _QUOTED),
    }
    others = [
        (name, gain) for name, rows in compared.items() if (gain := gain_of(fitted, rows)).count
    ]
    if not others:
        return dense
    return paragraph(f"""
        {dense} Without a search and with {100 * _QUOTED:.0f} % of the weights, importance obs
        with least squares keeps {accuracy_cell(fitted)}. Its differences to the others are
        {gains(others)} ({plural(len(fitted), "draw")}).""")


def section(rows: Mapping[tuple[Any, ...], Record], seeds: Sequence[int]) -> str:
    """Format the page of the benchmark."""
    widths = "; ".join(
        f"{ratio:.0%}: {attention} of 3 attention groups, {mlp:,} of 1,536 MLP channels"
        for ratio, (attention, mlp) in WIDTHS.items()
    )
    draws = len({key[1] for key in rows})
    parts = [
        f"`{model}`:\n\n{_tables(model, rows, seeds)}"
        for model in (MODEL, LANGUAGE_MODEL)
        if any(key[0] == model for key in rows)
    ]
    text = "\n\n".join(parts)
    return f"""{summary(rows, seeds)}

Generated by `python benchmarks/smollm/one_shot.py`; do not edit. Figures:
[results](../results/{QUESTION}.jsonl).

Pruned at once, the same widths in all 30 blocks ({widths}). Draws of {_SAMPLES} calibration
samples, and of the pictures, words and glosses that networks are measured on: {draws}.
`{MODEL}` is calibrated on questions about pictures, `{LANGUAGE_MODEL}` on its own answers about
words. All importances of a draw share the moments, and the damping that is chosen under the
ranking of obs. "In context": tables of least squares, fitted again around the policy. Accuracies
have 95 % intervals (bootstrap over pictures), differences are paired by picture; other figures are
means over draws. {_minutes(rows)}

{text}
"""


def _minutes(rows: Mapping[tuple[Any, ...], Record]) -> str:
    """Say how long networks in context took, by model."""
    times: dict[str, list[float]] = {}
    for key, record in rows.items():
        if IN_CONTEXT in key:
            times.setdefault(key[0], []).append(record["cpu_s"] / 60)
    if not times:
        return ""
    medians = [f"{statistics.median(each):.1f} (`{model}`)" for model, each in times.items()]
    return (
        "A network in context took so many minutes of one core, with its measurement (median): "
        f"{', '.join(medians)}."
    )


def _tables(model: str, rows: Mapping[tuple[Any, ...], Record], seeds: Sequence[int]) -> str:
    """Format the tables of one model."""

    def of(*key: Any) -> dict[int, Record]:
        return {seed: rows[model, seed, *key] for seed in seeds if (model, seed, *key) in rows}

    head = [f"keep {ratio:.0%}" for ratio in WIDTHS]
    cells: dict[str, Callable[[Mapping[int, Record]], str]] = {
        "Accuracy on questions about pictures": accuracy_cell,
        "Perplexity of glosses": partial(mean_cell, field="perplexity"),
        "Agreement with the dense model's answers about words": partial(
            mean_cell, field="agreement"
        ),
    }
    tables = []
    for title, cell in [*cells.items()][model == LANGUAGE_MODEL :]:
        lines = [
            [importance, compensation, *(cell(of(importance, compensation, r)) for r in WIDTHS)]
            for importance, compensation in product(IMPORTANCES, COMPENSATIONS)
            if any(of(importance, compensation, ratio) for ratio in WIDTHS)
        ]
        table = markdown(["importance", "compensation", *head], lines)
        tables.append(f"{title}; dense {cell(of(DENSE, DENSE, 1.0))}:\n\n{table}")
    if model == LANGUAGE_MODEL:
        return "\n\n".join(tables)
    compared = [
        *((i, "least-squares", i, "none") for i in IMPORTANCES),
        *((i, "least-squares", "obs", "least-squares") for i in IMPORTANCES if i != "obs"),
        *((i, IN_CONTEXT, i, "least-squares") for i in IMPORTANCES),
    ]
    lines = [
        [
            f"{importance}, {compensation} minus {other}, {without}",
            *(gain_cell(of(importance, compensation, r), of(other, without, r)) for r in WIDTHS),
        ]
        for importance, compensation, other, without in compared
        if any(of(importance, compensation, ratio) for ratio in WIDTHS)
    ]
    return "\n\n".join([*tables, markdown(["difference in accuracy", *head], lines)])


def prunings_of(form: Form) -> list[Pruning]:
    """Return what is measured."""
    if form.name == "tiny":
        return [Pruning(importance, "bias", 0.8) for importance in ("magnitude", "wanda")]
    return [Pruning(*each) for each in product(IMPORTANCES, COMPENSATIONS, WIDTHS)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what has no record, and write the section."""
    form = pretrained_form(__doc__, arguments)
    runner, prunings = StudyRunner(form), prunings_of(form)
    torch.set_num_threads(1)
    draws = [*product(form.models, range(form.seeds))]
    ids = [
        each
        for draw in draws
        for each in (dense_id(*draw), *(pruning.record_id(*draw) for pruning in prunings))
    ]
    slow = runner.missing([each for each in ids if IN_CONTEXT in each.key])
    missing = runner.missing(ids)
    seconds = (missing - slow) * _SECONDS[False] + slow * _SECONDS[True]
    announce(missing, seconds / max(1, missing))
    for names, (model, seed) in product(_PASSES, draws) if not form.report else ():
        waiting = [
            pruning
            for pruning in prunings
            if pruning.compensation in names and runner.missing([pruning.record_id(model, seed)])
        ]
        if waiting or runner.missing([dense_id(model, seed)]):
            draw = OneShotDraw(runner, model, seed)
            draw.measure_dense()
            for importance in IMPORTANCES:
                draw.measure([pruning for pruning in waiting if pruning.importance == importance])
    seeds = range(form.seeds)
    publish_tables(runner, TITLE, ids, lambda records: section(records, seeds))


if __name__ == "__main__":
    main()
