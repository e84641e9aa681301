"""Write LEARNED.md and its pictures from the records: ``python benchmarks/learned.py``.

The questions are answered in words (`_answers.py`), and each default of the quickstart study is
compared with its alternatives (`_claims.py`): the interval of the difference decides. Nothing is
measured.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import _answers
import ablation
import evolution
import overfit
import projector
import risk
import transfer
from _chart import forest
from _claims import DEFAULTS, REASONS, all_claims
from _draws import ETAS, SAMPLES, resampled
from _evidence import CAVEAT, EMBEDDED, SECOND, Form
from _means import Mean, markdown
from _pretrained_answers import agreement_section
from _results import HERE, RESULTS
from _studies import StudyRunner

from effllava_optuna.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from _claims import Claim

IMAGES = HERE.parent / "docs" / "images"
_MANY = 1000  # draws: more than any script makes


def table_of(setting: str, claims: Sequence[Claim]) -> str:
    """Format the comparisons with a default, and what follows from them."""
    of_setting = [claim for claim in claims if claim.setting == setting]
    against = [claim.other for claim in of_setting if claim.verdict == "against the default"]
    lines = [
        [
            claim.other,
            claim.gain.text("+"),
            str(claim.gain.count),
            claim.verdict,
            f"{claim.cost:.1f}" if claim.cost else "-",
            claim.section,
        ]
        for claim in of_setting
    ]
    head = [
        "alternative", "gain in test accuracy", "pairs", "verdict",
        "CPU of the search, times the default's", "section of the results",
    ]  # fmt: skip
    verdict = (
        f"Decided against it: {_answers.joined(against)}."
        if against
        else "Nothing is decided against it."
    )
    title = f"`{setting}`" if setting in DEFAULTS else setting.capitalize()
    text = _answers.paragraph(f"{_introduction(setting, verdict)} {REASONS.get(setting, '')}")
    return f"### {title}\n\n{text}\n\n{markdown(head, lines)}"


def _introduction(setting: str, verdict: str) -> str:
    """Return the sentences that name a default, and the verdict about it."""
    if setting not in DEFAULTS:
        return verdict
    return f"The default: `{setting} = {json.dumps(DEFAULTS[setting])}`. {verdict}"


def pictures(runner: StudyRunner, claims: Sequence[Claim]) -> dict[str, str]:
    """Draw the pictures, by the name of their file."""

    def of(section: str) -> list[tuple[str, Mean]]:
        return [(claim.other, claim.gain) for claim in claims if claim.section == section]

    gaps = [
        (f"{size} samples", Mean(*record["gap of the pick"]))
        for size in SAMPLES
        if (record := resampled(runner, size))
    ]
    axis = "test accuracy minus that of the default, 95 % intervals"
    return {
        "evidence-fitting.svg": forest(
            "Proxy minus test accuracy of the best of 500 policies",
            "accuracy, 95 % intervals", gaps,
        ),
        "evidence-search.svg": forest(
            "Instead of the default search, at one budget", axis, of(evolution.TITLE)
        ),
        "evidence-projector.svg": forest(
            "Instead of training the projector each epoch", axis, of(projector.TITLE)
        ),
        "evidence-parts.svg": forest(
            "Instead of each part of the default", axis, of(ablation.TITLE)
        ),
    }  # fmt: skip


def answers(runner: StudyRunner, claims: Sequence[Claim], files: Collection[str]) -> str:
    """Format the questions with their answers, and the pictures that are among ``files``."""
    questions = (
        (
            "Does choosing on 64 samples overfit the policy?",
            "fitting", overfit.TITLE, _answers.overfitting(runner),
        ),
        (
            "Does the structural-risk term help?",
            "risk", risk.TITLE, _answers.structural_risk(runner),
        ),
        (
            "Does training the projector inside the loop help?",
            "projector", projector.TITLE, _answers.projector_training(runner),
        ),
        (
            "Does evolution help?",
            "search", evolution.TITLE, _answers.evolutionary_search(runner, claims),
        ),
        (
            "What does each part contribute?",
            "parts", ablation.TITLE, _answers.parts(claims),
        ),
        (
            "Does it transfer?",
            "transfer", transfer.TITLE, _answers.transfer_between(runner),
        ),
    )  # fmt: skip
    parts = []
    for number, (question, name, section, answer) in enumerate(questions, 1):
        file = f"evidence-{name}.svg"
        picture = f"\n\n![{question}](../docs/images/{file})" if file in files else ""
        link = f"Figures: [{section}](RESULTS.md#{section.lower().replace(' ', '-')})."
        parts.append(f"### {number}. {question}\n\n{answer.strip()}\n\n{link}{picture}")
    return "\n\n".join(parts)


def page(runner: StudyRunner, claims: Sequence[Claim], files: Collection[str]) -> str:
    """Format the page; ``files`` are the names of the pictures."""
    settings = dict.fromkeys(claim.setting for claim in claims)
    tables = "\n\n".join(table_of(setting, claims) for setting in settings)
    etas = ", ".join(f"{eta:g}" for eta in ETAS)
    return f"""# What we learned

Generated by `python benchmarks/learned.py` from `benchmarks/results`; do not edit.
{CAVEAT}

Differences are in test accuracy, paired by draw of the proxy and seed of the search (and by model,
if there are two: the embedded one, and one trained from other random weights on other batches),
with 95 % intervals; those of the pool are over draws of the proxy from one set of images. A
difference is called decided if its interval does not contain 0, and "the same" if the interval is
within half a point of 0. Many comparisons are made: some of those that are decided are so by
chance. A default is changed only if something is decided against it. The figures about choosing
on few samples, the pool of policies and transfer are from before the search began with an
allocation, and before the importance became `obs`: their sections of the results say so.

## Six questions

{answers(runner, claims, files)}

{agreement_section(runner.form.folder, claims)}## The evidence for each default

These eta were tried: {etas}.

{tables}
"""


def main() -> None:
    """Write the page and its pictures."""
    models = {"first": EMBEDDED, "second": SECOND}
    form = Form(
        name="full", seeds=_MANY, models=models, folder=RESULTS, published=False, report=True
    )
    runner = StudyRunner(form)
    claims = all_claims(runner)
    drawn = pictures(runner, claims)
    text = page(runner, claims, drawn)
    write_atomically(HERE / "LEARNED.md", text)
    for name, picture in drawn.items():
        write_atomically(IMAGES / name, picture)
    print(text)


if __name__ == "__main__":
    main()
