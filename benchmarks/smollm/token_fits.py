"""May rankings and curves see all image tokens? ``python benchmarks/smollm/token_fits.py``.

``smollm-vlm`` with fewer image tokens and narrowed by the same ratio everywhere: units are ranked
and output matrices fitted on all image tokens, as a study does once for all policies, or on those
that the network reads. And the policies that dynamic programming allocates over the residual
curves of all image tokens, or over those of the share that they read, as a study does.

Every measurement leaves a record in ``results/smollm_token_fits.jsonl``, and is not repeated if it
has one. ``--tiny`` measures one network of each kind, and publishes nothing.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
import torch
from _cases import Case
from _counting import evaluator_of
from _evidence import announce
from _fields import KEEP_RATIO
from _means import markdown
from _network_rows import accuracy_cell, gain_cell, gain_of, mean_cell
from _pretrained_form import MODEL, pretrained_form, publish_tables
from _pretrained_search import PretrainedDraw
from _records import RecordId
from _sentences import gains, paragraph, plural
from _studies import StudyRunner, inputs_of

from effllava_optuna.allocation import allocation_front, residual_curves
from effllava_optuna.calibration.calibration import widths_of
from effllava_optuna.calibration.calibration_run import calibration_folds, pruning_options
from effllava_optuna.objectives.encoded_proxy import EncodedProxy
from effllava_optuna.policy import IMAGE_TOKENS, Policy
from effllava_optuna.surgery import (
    WeightState,
    policy_network,
    rank_and_compensate,
    reduced_tokens,
)
from effllava_optuna.tasks import Split

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from _evidence import Form
    from _means import Mean
    from _records import Record

    from effllava_optuna.calibration.inputs import StudyInputs
    from effllava_optuna.surgery import LoadedModel

TITLE = "A pretrained model: image tokens of the fit"
QUESTION = "smollm_token_fits"
NETWORKS = tuple(product((0.33, 0.11), (0.5, 0.7)))  # image tokens, and MLP channels
ALL, READ = FITS = ("all image tokens", "those that are read")
SHARES = (0.22, 0.11, 0.33)  # in the order in which they are measured
SPEEDUP = 2.5  # predicted, of the policies that are allocated
_ESTIMATED = "estimated"
_CASE = Case("fits", ("search.speedup=1.5", "projector.steps=0"), QUESTION)
_SECONDS = 200.0  # of one core, for a record


def record_id(seed: int, tokens: float, kept: float, fit: str) -> RecordId:
    """Return the id of the record of a network."""
    return RecordId(QUESTION, ("network", seed, tokens, kept, fit))


def fitted(inputs: StudyInputs, loaded: LoadedModel) -> WeightState:
    """Rank the units and fit the tables on the image tokens that a model reads."""
    config = inputs.config
    proxy = EncodedProxy.of(
        loaded, inputs.task.samples(Split.PROXY), config.pruning.folds, generate=False
    )
    seen = replace(inputs, loaded=loaded, proxy=proxy)
    ranked = rank_and_compensate(
        loaded,
        calibration_folds(seen),
        widths_of(inputs.loaded, config),
        pruning_options(config),
    )
    projectors = (None,) * len(ranked.compensations)
    return WeightState("fitted", ranked.ranking, ranked.compensations, projectors)


def narrowed_policy(inputs: StudyInputs, kept: float) -> Policy:
    """Return the policy that keeps a share of all MLP channels, and all attention groups."""
    widths = widths_of(inputs.loaded, inputs.config)
    mlps = {c.id: kept * c.width for c in inputs.structure.components if c.kind == "mlp"}
    nearest = {
        mlp: min(widths[mlp], key=lambda width: abs(width - goal)) for mlp, goal in mlps.items()
    }
    return Policy.of(inputs.structure, nearest)


def measured(
    runner: StudyRunner, draw: PretrainedDraw, tokens: float, kept: float, fit: str
) -> dict[str, Any]:
    """Fit, narrow, and measure a network."""
    measures = draw.measures
    with inputs_of(runner.config(MODEL, draw.seed, _CASE), _CASE) as inputs:
        whole = inputs.loaded
        with reduced_tokens(whole, tokens) if fit == READ else nullcontext(whole) as seen:
            state = fitted(inputs, seen)
        policy = narrowed_policy(inputs, kept)
        with (
            reduced_tokens(whole, tokens) as reduced,
            policy_network(reduced, state, policy) as network,
        ):
            return measures.figures(network)


def allocation_case(form: Form) -> Case:
    """Return the study whose policies are allocated."""
    speedup = 1.2 if form.name == "tiny" else SPEEDUP
    # The shares of token_searches.py: a process that runs both calibrates once.
    shares = "pruning.visual_tokens=[1.0, 0.5, 0.33, 0.22, 0.11]"
    return Case("curves", (f"search.speedup={speedup}", "projector.steps=0", shares), QUESTION)


def policy_id(seed: int, tokens: float, curves: str) -> RecordId:
    """Return the id of the record of an allocated policy."""
    return RecordId(QUESTION, ("policy", seed, tokens, curves))


def allocated(
    runner: StudyRunner, draw: PretrainedDraw, tokens: float, seen: str
) -> dict[str, Any]:
    """Allocate widths over the curves of some image tokens, and measure the policy."""
    width = round(100 * tokens)
    with runner.open(MODEL, draw.seed, allocation_case(runner.form)) as session:
        calibration, epoch = evaluator_of(session).calibration, session.epochs.epoch(0)
        space, costs = epoch.space, session.costs.at(width)
        own, whole = (
            residual_curves(space, residuals) | {IMAGE_TOKENS.id: {width: 0.0}}
            for residuals in (calibration.reduced_residuals[width], calibration.residuals)
        )
        curves = whole if seen == ALL else own
        (policy,) = allocation_front(space, curves, costs, [session.costs.limit or 0.0])
        estimated = sum(own[gene.name][policy.widths[gene.components[0]]] for gene in space.genes)
        figures = draw.policy_figures(session, policy, epoch.weight_state)
    return figures | {_ESTIMATED: round(estimated, 6)}


def summary(records: Mapping[tuple[Any, ...], Record], form: Form) -> str:
    """Return the main figures."""

    def changes(cases: Iterable[tuple[float, ...]]) -> list[tuple[str, Mean]]:
        found = [
            (
                f"{100 * case[0]:.0f} %",
                gain_of(*(_rows(records, form, *case, seen) for seen in (READ, ALL))),
            )
            for case in cases
        ]
        return [(name, gain) for name, gain in found if gain.count]

    fits = [gain for _, gain in changes(NETWORKS)]
    once = "A study ranks units and fits output matrices once, on all image tokens."
    if values := [gain.value for gain in fits]:
        decided = sum(gain.decided for gain in fits)
        once += (
            f" On those that are read, accuracies change by {min(values):+.3f} to "
            f"{max(values):+.3f} ({decided} of {plural(len(fits), 'network')} decided)."
        )
    policies = gains(changes((tokens,) for tokens in sorted(SHARES)))
    return paragraph(f"""
        {once} Residual curves of a share change those of allocated policies by {policies}.""")


def section(records: Mapping[tuple[Any, ...], Record], form: Form) -> str:
    """Format the page of the benchmark."""
    lines = [
        [
            f"{tokens:.2f}",
            f"{kept:.1f}",
            seen,
            *_cells(records, form, (tokens, kept), seen),
        ]
        for (tokens, kept), seen in product(NETWORKS, FITS)
        if _rows(records, form, tokens, kept, seen)
    ]
    measured = ["draws", "accuracy", "minus all", "perplexity", "agreement"]
    head = ["image tokens", "MLP channels", "fitted on", *measured]
    policies = [
        [
            f"{tokens:.2f}",
            seen,
            *_cells(records, form, (tokens,), seen),
            mean_cell(rows, KEEP_RATIO),
            mean_cell(rows, _ESTIMATED),
        ]
        for tokens, seen in product(sorted(SHARES, reverse=True), FITS)
        if (rows := _rows(records, form, tokens, seen))
    ]
    policy_head = ["image tokens", "curves of", *measured, "weights kept", "estimated loss"]
    return f"""{summary(records, form)}

Generated by `python benchmarks/smollm/token_fits.py`; do not edit. Figures:
[results](../results/{QUESTION}.jsonl).

`smollm-vlm` with a share of its 64 image tokens and of all MLP channels, the settings of
`benchmarks/smollm/tables.toml`. Units are ranked and output matrices fitted on all image tokens,
as a study does once for all its policies, or on those that the network reads. Accuracies have 95 %
intervals (bootstrap over pictures), differences are paired by picture, in bold where 0 is outside.
Text has no image tokens: perplexity and agreement say how much of it the fit preserves.

{markdown(head, lines)}

Policies that read a share of the image tokens, at a predicted speed-up of {SPEEDUP:g}. Dynamic
programming allocates their widths over the residual curves of all image tokens, or over those of
the share, as a study does. The estimated loss is the sum of the latter, in squared logits. Ranking
and fits are those of all image tokens.

{markdown(policy_head, policies)}
"""


def _rows(
    records: Mapping[tuple[Any, ...], Record], form: Form, *case: float | str
) -> dict[int, Record]:
    keys = {seed: (seed, *case) for seed in range(form.seeds)}
    return {seed: records[key] for seed, key in keys.items() if key in records}


def _cells(
    records: Mapping[tuple[Any, ...], Record], form: Form, case: tuple[float, ...], seen: str
) -> list[str]:
    rows = _rows(records, form, *case, seen)
    return [
        str(len(rows)),
        accuracy_cell(rows),
        "" if seen == ALL else gain_cell(rows, _rows(records, form, *case, ALL)),
        mean_cell(rows, "perplexity"),
        mean_cell(rows, "agreement"),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what has no record, and write the section."""
    form = pretrained_form(__doc__, arguments)
    torch.set_num_threads(1)
    runner = StudyRunner(form)
    networks = NETWORKS[: form.pick(len(NETWORKS), 1, 1)]
    shares = SHARES[: form.pick(len(SHARES), 1, 1)]
    ids = [
        *(
            record_id(seed, *network, fit)
            for seed, network, fit in product(range(form.seeds), networks, FITS)
        ),
        *(policy_id(*each) for each in product(range(form.seeds), shares, FITS)),
    ]
    announce(runner.missing(ids), _SECONDS)
    for seed in () if form.report else range(form.seeds):
        draw = PretrainedDraw(runner, seed)
        for network, fit in product(networks, FITS):
            runner.record(
                record_id(seed, *network, fit), partial(measured, runner, draw, *network, fit)
            )
        for tokens, seen in product(shares, FITS):
            runner.record(
                policy_id(seed, tokens, seen), partial(allocated, runner, draw, tokens, seen)
            )
    publish_tables(runner, TITLE, ids, lambda records: section(records, form))


if __name__ == "__main__":
    main()
