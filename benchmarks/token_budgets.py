"""Image tokens or widths, or both, on small models? ``python benchmarks/token_budgets.py``.

``digits-vlm`` and ``drawn-vlm`` at predicted speed-ups from 1.5 to 4: the default search over
widths alone, the most image tokens that are fast enough with all weights, and the default search
over both. ``benchmarks/smollm/token_searches.py`` does the same with a pretrained model.

Every measurement leaves a record in ``results/token_budgets.jsonl``, and is not repeated if it has
one. ``--tiny`` measures one speed-up of one model, and publishes nothing.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from _cases import Case, study_id
from _counting import evaluator_of
from _evidence import announce, parse_form, publish
from _fields import KEEP_RATIO, WIDTHS
from _means import difference, markdown, mean
from _outcome import measure_choice, outcome
from _records import RecordId
from _results import HERE
from _sentences import paragraph, plural
from _studies import StudyRunner
from draw_tasks import draw

from effllava_optuna.errors import ConfigError
from effllava_optuna.policy import IMAGE_TOKENS, Policy
from effllava_optuna.search.runner import search

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from _evidence import Form
    from _records import Record

    Choices = Mapping[int, Record]  # by draw

TITLE = "Image tokens and widths of small models"
QUESTION = "token_budgets"
SPEEDUPS = (1.8, 2.5, 1.5, 4.0)  # in the order in which they are measured
SHARES = {"digits-vlm": (1.0, 0.5, 0.25), "drawn-vlm": (1.0, 0.5, 0.33, 0.22, 0.11)}
BOTH, WIDTHS_ALONE, TOKENS_ALONE = METHODS = ("both", "widths alone", "image tokens alone")
DENSE = "dense"
_STUDIES = {"digits-vlm": "quickstart", "drawn-vlm": "drawn-scienceqa"}
_TOKENS = "image_tokens"  # per cent of those of the dense model
_UNREACHABLE = "unreachable"  # the field of a record: no policy is so fast
_QUOTED = SPEEDUPS[0]
_DRAWS = 5
_SECONDS = 40.0  # of one core, for a record


def case_of(model: str, method: str, speedup: float) -> Case:
    """Return the study of a method at a speed-up."""
    tokens = (f"pruning.visual_tokens={[*SHARES[model]]}",) if method != WIDTHS_ALONE else ()
    changes = ("projector.steps=0", f"search.speedup={speedup}", *tokens)
    return Case(f"{method} {speedup:g}", changes, QUESTION)


def choice_id(model: str, seed: int, method: str, speedup: float) -> RecordId:
    """Return the id of the record of the choice of a method."""
    if method in (BOTH, WIDTHS_ALONE):
        return study_id(model, seed, case_of(model, method, speedup))
    return RecordId(QUESTION, ("policy", model, seed, f"{method} {speedup:g}"))


class TokenBudgets:
    """Measures the methods on one model, and keeps the records.

    Args:
        form: How much is measured.
        model: Name of the model.
        rows: Folder for the rows of a model whose task does not generate its samples.
    """

    def __init__(self, form: Form, model: str, rows: Path) -> None:
        own: tuple[str, ...] = ()
        if model == "drawn-vlm" and not form.report:
            draw(rows, 0)
            own = (f"task.data={json.dumps(str(rows / 'scienceqa'))}",)
        self.form = replace(
            form,
            models={model: model},
            config=HERE.parent / "studies" / f"{_STUDIES[model]}.toml",
            common=own if model == "drawn-vlm" else ("task.test=1000",),
        )
        self.model, self.runner = model, StudyRunner(self.form)
        self.networks = (
            (DENSE, 1.0), *product(METHODS, SPEEDUPS[: form.pick(len(SPEEDUPS), 1, 1)])
        )  # fmt: skip

    def ids(self) -> list[RecordId]:
        """Return the ids of all records of the model."""
        return [
            choice_id(self.model, seed, *network)
            for seed, network in product(range(self.form.seeds), self.networks)
        ]

    def measure(self, seed: int) -> None:
        """Measure what a draw has no record of."""
        for method, speedup in self.networks:
            each = choice_id(self.model, seed, method, speedup)
            if method in (BOTH, WIDTHS_ALONE):
                self.runner.record(each, partial(self._searched, seed, method, speedup))
            else:
                self.runner.record(each, partial(self._dense_widths, seed, method, speedup))

    def _searched(self, seed: int, method: str, speedup: float) -> dict[str, Any]:
        """Search within the speed-up; return the figures of the choice."""
        try:
            with self.runner.open(
                self.model, seed, case_of(self.model, method, speedup)
            ) as opened:
                search(opened)
                chosen = outcome(opened)["chosen"]
        except ConfigError:  # the narrowest policy is slower
            return {_UNREACHABLE: True}
        tokens = {} if method == WIDTHS_ALONE else {_TOKENS: chosen[WIDTHS][0]}
        return {"chosen": chosen | tokens}

    def _dense_widths(self, seed: int, method: str, speedup: float) -> dict[str, Any]:
        """Measure all weights with the most image tokens that are fast enough."""
        with suppress(ConfigError):  # no policy at all is so fast
            case = case_of(self.model, method, speedup)
            with self.runner.open(self.model, seed, case) as opened:
                evaluator = evaluator_of(opened)
                weight_state = opened.epochs.epoch(0).weight_state
                allowed = evaluator.calibration.widths[IMAGE_TOKENS.id]
                policies = [
                    Policy.of(evaluator.structure, {IMAGE_TOKENS.id: width}) for width in allowed
                ]
                fast = [each for each in policies if opened.costs.allows(each)]
                if method == DENSE:
                    fast = [Policy.dense(evaluator.structure)]
                if fast:
                    figures = measure_choice(evaluator, fast[-1], weight_state)
                    return {"chosen": figures | {_TOKENS: fast[-1].widths[0]}}
        return {_UNREACHABLE: True}


def summary(of: Callable[[str, str, float], Choices]) -> str:
    """Return the main figures, from the choices of a method on a model at a speed-up."""
    sentences = []
    for model in _STUDIES:
        both = _tests(of(model, BOTH, _QUOTED))
        alone = _tests(of(model, WIDTHS_ALONE, _QUOTED))
        if both and alone:
            dense = mean([*_tests(of(model, DENSE, 1.0)).values()]).text()
            sentences.append(
                f"`{model}` (dense: {dense}) has {mean([*both.values()]).text()} if both are "
                f"searched ({plural(len(both), 'draw')}); widths alone change this by "
                f"{difference(alone, both).text('+')}."
            )
    return paragraph(f"Test accuracy at a predicted speed-up of {_QUOTED}: {' '.join(sentences)}")


def section(records: Mapping[RecordId, Record], form: Form) -> str:
    """Format the page of the benchmark."""

    def of(model: str, method: str, speedup: float) -> Choices:
        ids = {seed: choice_id(model, seed, method, speedup) for seed in range(form.seeds)}
        return {seed: records[each] for seed, each in ids.items() if each in records}

    head = ["method", "draws", "test accuracy", "minus both", "image tokens, %", "weights kept"]
    parts = []
    for model, speedup in product(_STUDIES, sorted(SPEEDUPS)):
        both = _tests(of(model, BOTH, speedup))
        lines = []
        for method in METHODS:
            rows = of(model, method, speedup)
            tests = _tests(rows)
            if not tests:
                lines += [[method, str(len(rows)), "not reached", "", "", ""]] if rows else []
                continue
            choices = [rows[seed]["chosen"] for seed in tests]
            lines.append([
                method, str(len(tests)), mean([*tests.values()]).text(),
                "" if method == BOTH else difference(tests, both).text("+"),
                _range([choice.get(_TOKENS, 100) for choice in choices], ".0f"),
                _range([choice[KEEP_RATIO] for choice in choices], ".2f"),
            ])  # fmt: skip
        if lines:
            dense = mean([*_tests(of(model, DENSE, 1.0)).values()]).text()
            name = f"`{model}` (dense: {dense}), predicted speed-up {speedup:g}"
            parts.append(f"{name}:\n\n{markdown(head, lines)}")
    text = "\n\n".join(parts)
    shares = "; ".join(
        f"{', '.join(f'{100 * share:.0f}' for share in each)} % (`{model}`)"
        for model, each in SHARES.items()
    )
    return f"""{summary(of)}

Generated by `python benchmarks/token_budgets.py`; do not edit. Figures:
[results](../results/{QUESTION}.jsonl).

The studies `quickstart.toml` and `drawn-scienceqa.toml`, their projector as it was loaded, within
predicted speed-ups. Policies may read a share of the image tokens, selected by diversity:
{shares}. *Image tokens alone* keeps all weights. Means over draws
with 95 % intervals (Student's t), differences over the draws that both have; image tokens and
weights of the
choices with their range. `drawn-vlm` has the same test questions in every draw.

{text}
"""


def _tests(rows: Choices) -> dict[int, float]:
    """Return the test accuracy of the choices of draws in which there is one."""
    return {seed: row["chosen"]["test"] for seed, row in rows.items() if "chosen" in row}


def _range(values: Sequence[float], form: str) -> str:
    """Format the mean of values, and their range if they differ."""
    middle, low, high = (f"{each:{form}}" for each in (np.mean(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what has no record, and write the section."""
    form = parse_form(__doc__, arguments, draws=_DRAWS)
    torch.set_num_threads(1)
    models = [*_STUDIES][: form.pick(2, 1, 1)]
    with TemporaryDirectory() as folder:
        budgets = [TokenBudgets(form, model, Path(folder)) for model in models]
        announce(sum(each.runner.missing(each.ids()) for each in budgets), _SECONDS)
        for seed, each in product(range(form.seeds), () if form.report else budgets):
            each.measure(seed)
    records = {
        key: row for each in budgets for key, row in each.runner.existing(each.ids()).items()
    }
    if not records:
        raise SystemExit("There are no records yet; run this without --report.")
    publish(form, TITLE, section(records, form), [row["provenance"] for row in records.values()])


if __name__ == "__main__":
    main()
