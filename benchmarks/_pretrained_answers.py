"""Whether a pretrained model agrees with the small ones: the last question of LEARNED.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from _means import Mean, markdown
from _network_rows import gain_of
from _records import read_records

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
        text: What is compared, better one first.
        digits: What the claim about the digits models calls the other one; the better one is
            their default.
        question: File of the records of the pretrained model.
        better: What follows kind and draw in the key of a record.
        other: The same of the one it is compared with.
    """

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
    return Finding(f"the default search against {other}", other, _SEARCHES, *keys)


FINDINGS = (
    _search("uniform by kind"),
    _search("dynamic programming over residual curves"),
    _search("FLAP's global rank"),
    _search("NSGA-II, ours, alone"),
    _search("random"),
    Finding(
        "compensation by least squares against none", "compensation: none", _ONE_SHOT,
        ("obs", "least-squares", _RATIO), ("obs", "none", _RATIO),
    ),
    *(
        Finding(
            f"importance obs against {name}", f"importance: {name}", _ONE_SHOT,
            ("obs", "least-squares", _RATIO), (name, "least-squares", _RATIO),
        )
        for name in ("magnitude", "taylor")
    ),
    Finding(
        "the projector trained in the loop against not at all", "no update", _PROJECTOR,
        ("projector trained in the loop",), (_FIXED,),
    ),
    Finding(
        "structural risk against eta 0", "0", _PROJECTOR,
        (_FIXED,), ("without structural risk",),
    ),
)  # fmt: skip


def agreement_section(folder: Path, claims: Sequence[Claim]) -> str:
    """Format what was compared on both kinds of model; empty if nothing was.

    Args:
        folder: Holds the records of the pretrained model.
        claims: The comparisons on the digits models.
    """
    records = {question: read_records(folder / f"{question}.jsonl") for question in QUESTIONS}
    lines = []
    for finding in FINDINGS:
        small, (large, draws) = finding.digits_gain(claims), finding.pretrained_gain(records)
        if small is not None and draws:
            row = [finding.text, small.text("+"), large.text("+"), str(draws)]
            lines.append([*row, verdict(small, large)])
    if not lines:
        return ""
    head = ["finding", "digits models", "pretrained model", "draws", "agree"]
    return f"""## A pretrained model

The same comparisons on `smollm-vlm`, whose language model is SmolLM2-135M-Instruct: at a predicted
speed-up of {SPEEDUP}, and without a search where {_RATIO:.0%} of its weights are kept. Differences
are in test accuracy; on the pretrained model their intervals are over pictures. Two findings agree
if both are decided with one sign, or neither is.

{markdown(head, lines)}

Figures: the sections of [RESULTS.md](RESULTS.md) that begin with "A pretrained model".

"""


def verdict(small: Mean, large: Mean) -> str:
    """Say whether two differences agree: both decided with one sign, or both undecided."""
    if small.decided and large.decided:
        return "yes" if small.value * large.value > 0 else "**no**"
    if not small.decided and not large.decided:
        return "yes: undecided"
    return f"decided on the {'digits' if small.decided else 'pretrained'} model only"
