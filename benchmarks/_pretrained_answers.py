"""Whether a pretrained model agrees with the small ones, for LEARNED.md."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from _means import Mean, markdown
from _network_rows import gain_of
from _records import read_records
from _sentences import joined, plural

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from _claims import Claim
    from _records import Key, Record

    Records = Mapping[str, Mapping[Key, Record]]

_SEARCHES, _ONE_SHOT, _PROJECTOR = "smollm_searches", "smollm_one_shot", "smollm_projector"
QUESTIONS = (_ONE_SHOT, _SEARCHES, _PROJECTOR)
SPEEDUP, _RATIO = 2.2, 0.7
_DEFAULT, _FIXED = "the default search", "projector as it was loaded"


@dataclass(frozen=True, slots=True)
class Finding:
    """A comparison that was made on both kinds of model.

    Attributes:
        topic: The answer of LEARNED.md that it belongs to.
        text: What is compared, better one first.
        digits: What the claim about the digits models calls the other one; the better one is
            their default.
        question: File of the records of the pretrained model.
        better: What follows kind and draw in the key of a record.
        other: The same of the one it is compared with.
    """

    topic: str
    text: str
    digits: str
    question: str
    better: tuple[Any, ...]
    other: tuple[Any, ...]

    def digits_gain(self, claims: Iterable[Claim]) -> Mean | None:
        """Return the gain on the digits models; None if it was not measured."""
        gains = [claim.gain for claim in claims if claim.other == self.digits]
        if not gains:
            return None
        return Mean(-gains[0].value, -gains[0].high, -gains[0].low, gains[0].count)

    def pretrained_gain(self, records: Records) -> tuple[Mean, int]:
        """Return the gain on the pretrained model, and the number of draws that have both."""
        better, other = (
            {
                key[: -len(network)]: record
                for key, record in records[self.question].items()
                if key[-len(network) :] == network
                if "right" in record  # not of the language model alone
            }
            for network in (self.better, self.other)
        )
        return gain_of(better, other), len(better.keys() & other.keys())


def _search(other: str) -> Finding:
    keys = (_DEFAULT, SPEEDUP), (other, SPEEDUP)
    return Finding("search", f"the default search against {other}", other, _SEARCHES, *keys)


FINDINGS = (
    _search("uniform by kind"),
    _search("dynamic programming over residual curves"),
    _search("FLAP's global rank"),
    _search("NSGA-II, ours, alone"),
    _search("random"),
    Finding(
        "parts", "compensation by least squares against none", "compensation: none", _ONE_SHOT,
        ("obs", "least-squares", _RATIO), ("obs", "none", _RATIO),
    ),
    *(
        Finding(
            "parts", f"importance obs against {name}", f"importance: {name}", _ONE_SHOT,
            ("obs", "least-squares", _RATIO), (name, "least-squares", _RATIO),
        )
        for name in ("magnitude", "taylor")
    ),
    Finding(
        "projector", "the projector trained in the loop against not at all", "no update",
        _PROJECTOR,
        ("projector trained in the loop",), (_FIXED,),
    ),
    Finding(
        "risk", "structural risk against eta 0", "0", _PROJECTOR,
        (_FIXED,), ("without structural risk",),
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Comparison:
    """A finding with its figures.

    Attributes:
        finding: What is compared.
        small: The gain on the digits models.
        large: The gain on the pretrained model.
        draws: Number of draws of the latter.
    """

    finding: Finding
    small: Mean
    large: Mean
    draws: int

    @property
    def verdict(self) -> str:
        """Return whether both kinds of model agree."""
        return verdict(self.small, self.large)


def records_in(folder: Path) -> Records:
    """Read the records of the pretrained model, by question."""
    return {question: read_records(folder / f"{question}.jsonl") for question in QUESTIONS}


def comparisons_of(records: Records, claims: Sequence[Claim]) -> list[Comparison]:
    """Return what was compared on both kinds of model.

    Args:
        records: Those of the pretrained model.
        claims: The comparisons on the digits models.
    """
    comparisons = []
    for finding in FINDINGS:
        small, (large, draws) = finding.digits_gain(claims), finding.pretrained_gain(records)
        if small is not None and draws:
            comparisons.append(Comparison(finding, small, large, draws))
    return comparisons


def agreement_section(comparisons: Sequence[Comparison]) -> str:
    """Format what was compared on both kinds of model; empty if nothing was."""
    if not comparisons:
        return ""
    lines = [
        [each.finding.text, each.small.text("+"), each.large.text("+"), str(each.draws),
         each.verdict]
        for each in comparisons
    ]  # fmt: skip
    head = ["finding", "digits models", "pretrained model", "draws", "agree"]
    return f"""## Both kinds of model

On `smollm-vlm`, at a predicted speed-up of {SPEEDUP} (at lower ones less is decided), and without
a search where {100 * _RATIO:.0f} % of its weights are kept; its intervals are over pictures.
Two findings agree if both are decided with one sign, or neither is.

{markdown(head, lines)}

"""


def agreement_of(comparisons: Sequence[Comparison], topic: str) -> str:
    """Say in a sentence whether the pretrained model agrees about a topic."""
    verdicts = [each.verdict for each in comparisons if each.finding.topic == topic]
    if not verdicts:
        return "not measured."
    agreeing = sum(each.startswith("yes") for each in verdicts)
    text = f"agrees in {agreeing} of {plural(len(verdicts), 'comparison')}"
    others = sorted({each.strip("*") for each in verdicts if not each.startswith("yes")})
    if others:
        words = {"no": "of another sign"}
        text += f"; the rest is {joined([words.get(other, other) for other in others], ' or')}"
    return f"{text} (below)."


def few_samples(records: Records) -> str:
    """Say what fewer samples cost on the pretrained model."""
    fewer, reference = _of(records, "16 samples"), _of(records, _FIXED)
    gain = gain_of(fewer, reference)
    if not gain.count:
        return "not measured."
    return (
        "the gap was not measured; the choice of a search on 16 samples instead of 32 differs by "
        f"{gain.text('+')} in test accuracy ({plural(len(fewer), 'draw')})."
    )


def uncompensated_training(records: Records) -> str:
    """Say what training the projector gains on the pretrained model without compensation."""
    names = ("no compensation, projector trained in the loop", f"no compensation, {_FIXED}")
    trained, fixed = (_of(records, name) for name in names)
    gain = gain_of(trained, fixed)
    if not gain.count:
        return ""
    return f"Without compensation an update each epoch gains {gain.text('+')} there."


def _of(records: Records, name: str) -> dict[Any, Record]:
    """Return the records of a search about projector, risk or samples, by draw."""
    return {key[1]: record for key, record in records[_PROJECTOR].items() if key[2] == name}


def other_questions(records: Records) -> str:
    """Say what is left on the pretrained model of answers that the search has not seen."""
    kept = [
        record["agreement"]
        for key, record in records[_SEARCHES].items()
        if key[2:] == (_DEFAULT, SPEEDUP)
    ]
    if not kept:
        return "not measured."
    return (
        "searched for questions about pictures, a policy of the default search at a predicted "
        f"speed-up of {SPEEDUP} predicts {100 * statistics.mean(kept):.1f} % of the tokens of the "
        "dense model's answers about words."
    )


def verdict(small: Mean, large: Mean) -> str:
    """Say whether two differences agree: both decided with one sign, or both undecided."""
    if small.decided and large.decided:
        return "yes" if small.value * large.value > 0 else "**no**"
    if not small.decided and not large.decided:
        return "yes: undecided"
    return f"decided on the {'digits' if small.decided else 'pretrained'} model only"
