"""Image tokens or widths, or both? ``python benchmarks/smollm/token_searches.py``.

``smollm-vlm`` at predicted speed-ups from 1.5 to 4: the default search over widths alone, fewer
image tokens alone, and the default search over both. Every network is timed as a whole, and
measured on questions about pictures, which the search was for, and on text, which it was not.

Every measurement leaves a record in ``results/smollm_tokens.jsonl``, and is not repeated if it has
one. ``--tiny`` measures one speed-up, and publishes nothing.
"""

from __future__ import annotations

import statistics
import sys
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
from _cases import Case
from _counting import evaluator_of
from _fields import KEEP_RATIO
from _means import markdown
from _network_rows import accuracy_cell, gain_cell, mean_cell
from _pretrained_form import MODEL, measure_and_publish, pretrained_form
from _pretrained_search import PretrainedDraw
from _records import RecordId
from _sentences import joined, paragraph, plural
from _studies import StudyRunner

from effllava_optuna.errors import ConfigError
from effllava_optuna.policy import IMAGE_TOKENS, Policy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from _evidence import Form
    from _records import Record

TITLE = "A pretrained model: image tokens and widths"
QUESTION = "smollm_tokens"
SPEEDUPS = (1.8, 2.5, 1.5, 4.0)  # in the order in which they are measured
SHARES = (1.0, 0.5, 0.33, 0.22, 0.11)
BOTH, WIDTHS_ALONE, TOKENS_ALONE = METHODS = ("both", "widths alone", "image tokens alone")
DENSE = "dense"
_UNREACHABLE = "unreachable"  # the field of a record: no policy is so fast
_TOKENS, _MEASURED = "image_tokens", "measured"
_FIXED = ("projector.steps=0",)
_DRAWS = 5
_SECONDS = 250.0  # of one core, for a record


def record_id(seed: int, method: str, speedup: float) -> RecordId:
    """Return the id of a record."""
    return RecordId(QUESTION, ("network", seed, method, speedup))


def case_of(speedup: float, method: str, shares: Sequence[float] = SHARES) -> Case:
    """Return the study of a method at a speed-up."""
    tokens = () if method == WIDTHS_ALONE else (f"pruning.visual_tokens={[*shares]}",)
    return Case(f"{speedup:g}", (*_FIXED, f"search.speedup={speedup}", *tokens), QUESTION)


class TokenTables:
    """Measures the methods, and keeps the records.

    Args:
        form: How much is measured.
    """

    def __init__(self, form: Form) -> None:
        self.form, self.runner = form, StudyRunner(form)
        self.speedups = SPEEDUPS[: form.pick(len(SPEEDUPS), 1, 1)]
        self.shares = SHARES[:: form.pick(1, 1, len(SHARES) - 1)]

    def ids(self) -> list[RecordId]:
        """Return the ids of all records of the form."""
        return [
            record_id(seed, method, speedup)
            for seed in range(self.form.seeds)
            for method, speedup in ((DENSE, 1.0), *product(METHODS, self.speedups))
        ]

    def measure(self) -> None:
        """Measure what has no record, one draw after the other."""
        for seed in range(self.form.seeds):
            draw = PretrainedDraw(self.runner, seed)
            self.runner.record(record_id(seed, DENSE, 1.0), draw.dense)
            for speedup in self.speedups:
                for method, measure in (
                    (TOKENS_ALONE, self._tokens_alone),
                    (BOTH, self._searched),
                    (WIDTHS_ALONE, self._searched),
                ):
                    self.runner.record(
                        record_id(seed, method, speedup), partial(measure, draw, speedup, method)
                    )

    def _searched(self, draw: PretrainedDraw, speedup: float, method: str) -> dict[str, Any]:
        """Search within the speed-up, and measure the choice."""
        try:
            figures = draw.searched(case_of(speedup, method, self.shares))
        except ConfigError:  # the narrowest policy is slower
            return {_UNREACHABLE: True}
        if method == WIDTHS_ALONE:
            return figures
        return figures | {_TOKENS: figures["widths"][0]}

    def _tokens_alone(self, draw: PretrainedDraw, speedup: float, method: str) -> dict[str, Any]:
        """Measure the dense widths with the most image tokens that are fast enough."""
        case = case_of(speedup, method, self.shares)
        try:
            with self.runner.open(MODEL, draw.seed, case) as session:
                structure = evaluator_of(session).structure
                allowed = evaluator_of(session).calibration.widths[IMAGE_TOKENS.id]
                policies = [Policy.of(structure, {IMAGE_TOKENS.id: width}) for width in allowed]
                fast = [policy for policy in policies if session.costs.allows(policy)]
                if fast:
                    weight_state = session.epochs.epoch(0).weight_state
                    figures = draw.policy_figures(session, fast[-1], weight_state)
                    return figures | {_TOKENS: fast[-1].widths[0]}
        except ConfigError:
            pass
        return {_UNREACHABLE: True}


def summary(rows: Mapping[str, Mapping[int, Record]], dense: Mapping[int, Record]) -> str:
    """Return the main figures.

    Args:
        rows: Records by method, at the first of the `SPEEDUPS`; those that reach it.
        dense: Records of the dense model.
    """

    def figures(method: str) -> str:
        of_method = rows[method]
        mean = {
            field: statistics.mean(row[field] for row in of_method.values())
            for field in (_MEASURED, KEEP_RATIO, "perplexity")
        }
        tokens = "" if method == WIDTHS_ALONE else (
            f"{statistics.mean(row[_TOKENS] for row in of_method.values()):.0f} % of the image "
            "tokens, "
        )  # fmt: skip
        draws = "" if len(of_method) == len(dense) else f", {plural(len(of_method), 'draw')}"
        gain = gain_cell(of_method, rows[BOTH]).replace("*", "")
        return (
            f"{accuracy_cell(of_method)} ({f'{gain} to both, ' * (method != BOTH)}measured "
            f"{mean[_MEASURED]:.2f}, {tokens}{100 * mean[KEEP_RATIO]:.0f} % of the weights, "
            f"perplexity {mean['perplexity']:,.0f}{draws})"
        )

    names = {
        BOTH: "a search over image tokens and widths keeps an accuracy of",
        WIDTHS_ALONE: "a search over widths alone",
        TOKENS_ALONE: "fewer image tokens alone",
    }
    reached = [f"{name} {figures(each)}" for each, name in names.items() if rows[each]]
    start = f"At a predicted speed-up of {SPEEDUPS[0]:g}, {joined(reached)}." if reached else ""
    return paragraph(f"""
        {start} Dense: {accuracy_cell(dense)}, perplexity
        {statistics.mean(row["perplexity"] for row in dense.values()):.0f}
        ({plural(len(dense), "draw")}).""")


def section(records: Mapping[tuple[Any, ...], Record], form: Form) -> str:
    """Format the page of the benchmark."""

    def of(method: str, speedup: float) -> dict[int, Record]:
        keys = {seed: (seed, method, speedup) for seed in range(form.seeds)}
        return {seed: records[key] for seed, key in keys.items() if key in records}

    def reached(method: str, speedup: float) -> dict[int, Record]:
        rows = of(method, speedup)
        return {seed: row for seed, row in rows.items() if not row.get(_UNREACHABLE)}

    fields = (_MEASURED, _TOKENS, KEEP_RATIO, "perplexity", "agreement")
    head = [
        "method", "draws", "accuracy", "minus both", "measured speed-up", "image tokens, %",
        "weights kept", "perplexity", "agreement",
    ]  # fmt: skip
    dense = of(DENSE, 1.0)
    parts = []
    for speedup in sorted(SPEEDUPS):
        lines = []
        for method in METHODS:
            rows = reached(method, speedup)
            if rows:
                lines.append([
                    method, str(len(rows)), accuracy_cell(rows),
                    "" if method == BOTH else gain_cell(rows, reached(BOTH, speedup)),
                    *(
                        "100" if field == _TOKENS and method == WIDTHS_ALONE
                        else mean_cell(rows, field)
                        for field in fields
                    ),
                ])  # fmt: skip
            elif of(method, speedup):
                draws = str(len(of(method, speedup)))
                lines.append([method, draws, "not reached", *[""] * (len(head) - 3)])
        if lines:
            parts.append(f"Predicted speed-up {speedup:g}:\n\n{markdown(head, lines)}")
    text = "\n\n".join(parts)
    shares = ", ".join(f"{100 * share:.0f}" for share in SHARES)
    return f"""{summary({method: reached(method, SPEEDUPS[0]) for method in METHODS}, dense)}

Generated by `python benchmarks/smollm/token_searches.py`; do not edit. Figures:
[results](../results/{QUESTION}.jsonl).

`smollm-vlm`, the settings of `benchmarks/smollm/tables.toml` (32 proxy samples), the projector as
it was loaded. Policies keep {shares} % of 64 image tokens, selected by diversity; with
all of them, the prompt that is timed has 80 tokens. *Image tokens alone* keeps all weights. Dense:
accuracy {accuracy_cell(dense)}, perplexity {mean_cell(dense, "perplexity")}. Speed-ups are of the
prefill of one prompt on one core, measured in turn with the dense model that reads all image
tokens. Accuracies have 95 % intervals (bootstrap over pictures), differences are paired by
picture, in bold where 0 is outside; other figures are means over draws with their range.
Perplexity of glosses of WordNet, and agreement with the dense model's answers to questions about
words: the search has seen only questions about pictures.

{text}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what has no record, and write the section."""
    tables = TokenTables(pretrained_form(__doc__, arguments, _DRAWS))
    measure_and_publish(tables, TITLE, _SECONDS, section)


if __name__ == "__main__":
    main()
