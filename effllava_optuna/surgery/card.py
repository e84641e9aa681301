"""The model card of an export."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.policy import SiteId
    from effllava_optuna.surgery.loaded import Loaded


@dataclass(frozen=True, slots=True)
class Metric:
    """A measured number.

    Attributes:
        name: What was measured, and on what.
        value: The number.
        low: Lower end of its 95 % interval; None: it has none.
        high: Upper end.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.3f}{interval}"


@dataclass(frozen=True, slots=True)
class Card:
    """What a study knows about an export.

    Attributes:
        data: The samples that calibration, search and training used.
        metrics: What was measured.
    """

    data: str = ""
    metrics: Sequence[Metric] = ()


def written(pruned: Loaded, card: Card, form: str) -> str:
    """Give the text of the card, in the format of the Hugging Face hub."""
    base = pruned.source if pruned.cut is None else pruned.cut.base
    task = "image-text-to-text" if hasattr(pruned.processor, "image_processor") else None
    lines = [
        "---",
        "library_name: transformers",
        *([f"pipeline_tag: {task}"] if task else []),
        f"base_model: {json.dumps(base)}",
        "base_model_relation: finetune",
        "tags: [effllava-optuna, pruned]",
        "---",
        "",
        f"# {base}, pruned",
        "",
        f"{pruned.model.num_parameters():,} parameters. Structured pruning: what was removed is "
        "gone, not zero.",
        "",
        "## How to load it",
        "",
        "```python",
        *(_LOADING[form] if task else map(_of_text, _LOADING[form])),
        "```",
        "",
    ]
    if card.metrics:
        lines += ["## Measured", "", "| what | value [95 % interval] |", "|---|---|"]
        lines += [f"| {metric.name} | {metric} |" for metric in card.metrics]
        lines.append("")
    if card.data:
        lines += ["## Data", "", card.data, ""]
    if pruned.cut is not None:
        lines += ["## Policy", "", "Units kept of those that there were, block by block.", ""]
        lines += _policy(pruned.cut.kept)
    return "\n".join(lines)


_LOADING: Mapping[str, Sequence[str]] = {
    "native": (
        "import effllava_optuna",
        "",
        'loaded = effllava_optuna.load_pruned("DIRECTORY")  # model and processor',
        "# or, without effllava_optuna: from_pretrained(DIRECTORY, trust_remote_code=True)",
    ),
    "portable": (
        "from transformers import AutoModelForImageTextToText, AutoProcessor",
        "",
        'model = AutoModelForImageTextToText.from_pretrained("DIRECTORY")',
        'processor = AutoProcessor.from_pretrained("DIRECTORY")',
    ),
}


def _of_text(line: str) -> str:
    """Turn a line about a vision-language model into one about a text decoder."""
    line = line.replace("AutoModelForImageTextToText", "AutoModelForCausalLM")
    return line.replace("AutoProcessor", "AutoTokenizer").replace("processor", "tokenizer")


def _policy(sites: Mapping[SiteId, tuple[int, int]]) -> list[str]:
    rows: dict[str, dict[str, str]] = defaultdict(dict)
    for site, (kept, width) in sites.items():
        place, _, kind = site.rpartition(".")
        rows[place][kind] = f"{kept} of {width}"
    kinds = list(dict.fromkeys(kind for row in rows.values() for kind in row))
    head = [f"| block | {' | '.join(kinds)} |", f"|{'---|' * (len(kinds) + 1)}"]
    return head + [
        f"| {place} | {' | '.join(row.get(kind, '') for kind in kinds)} |"
        for place, row in rows.items()
    ]
