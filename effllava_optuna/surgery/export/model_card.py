"""Render the model card of an exported checkpoint."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from effllava_optuna.processors import takes_pictures
from effllava_optuna.surgery.export.base_files import base_tags

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.policy import ComponentId
    from effllava_optuna.surgery.structure.loaded_model import LoadedModel


@dataclass(frozen=True, slots=True)
class CardMetric:
    """One measurement on a model card.

    Attributes:
        name: The quantity and its data, such as ``accuracy, test``.
        value: The measured number.
        low: Lower end of the 95 % interval; None if there is no interval.
        high: Upper end of the interval.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.3f}{interval}"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The parts of a model card that come from a study.

    Attributes:
        data: Description of the samples that calibration, search and training used.
        metrics: The measurements.
    """

    data: str = ""
    metrics: Sequence[CardMetric] = ()


@dataclass(frozen=True, slots=True)
class EngineSupport:
    """What is known about an export in vLLM.

    Attributes:
        obstacle: Why vLLM cannot build it; empty: it can.
        verified: Engines that returned the tokens of transformers, with their versions.
    """

    obstacle: str = ""
    verified: Sequence[str] = ()


def render_model_card(
    pruned: LoadedModel, card: ModelCard, form: str, engines: EngineSupport | None = None
) -> str:
    """Return the text of the model card, in the format of the Hugging Face hub.

    Args:
        pruned: The model, as it is in memory.
        card: What comes from a study.
        form: ``native`` or ``portable``.
        engines: What is known about it in vLLM; None: nothing.
    """
    base = pruned.base_name
    task = "image-text-to-text" if takes_pictures(pruned.processor) else None
    tags = ({"pipeline_tag": json.dumps(task)} if task else {}) | base_tags(pruned.source)
    dtype = str(pruned.export_dtype).removeprefix("torch.")
    lines = [
        "---",
        "library_name: transformers",
        *(f"{name}: {value}" for name, value in tags.items()),
        f"base_model: {json.dumps(base)}",
        "base_model_relation: finetune",
        "tags: [effllava-optuna, pruned]",
        "---",
        "",
        f"# {base}, pruned",
        "",
        f"{pruned.model.num_parameters():,} parameters in {dtype}. Structured pruning: the "
        "removed units are not in the checkpoint.",
        "",
        "## How to load it",
        "",
        "```python",
        *(_LOADING[form] if task else map(_for_text_model, _LOADING[form])),
        "```",
        "",
        "## How to serve it",
        "",
        *_serving(form, engines or EngineSupport()),
        "",
    ]
    if pruned.visual_tokens is not None:
        reduction = pruned.visual_tokens
        lines += [
            "## Image tokens",
            "",
            f"{reduction.ratio:.0%} of the image tokens of a picture are read, selected by "
            f"{reduction.selection} at the output of the projector. The processor of this "
            "checkpoint inserts as many.",
            "",
        ]
    if card.metrics:
        lines += ["## Measured", "", "| quantity | value [95 % interval] |", "|---|---|"]
        lines += [f"| {metric.name} | {metric} |" for metric in card.metrics]
        lines.append("")
        if pruned.model.dtype != pruned.export_dtype:
            computed = str(pruned.model.dtype).removeprefix("torch.")
            lines += [f"Measured in {computed}, before the weights were rounded to {dtype}.", ""]
    if card.data:
        lines += ["## Data", "", card.data, ""]
    if (record := pruned.pruning_record) is not None:
        lines += ["## Policy", "", "Units kept in each block, of those in the base model.", ""]
        lines += _policy_table(record.kept)
    return "\n".join(lines)


_LOADING: Mapping[str, Sequence[str]] = {
    "native": (
        "import effllava_optuna",
        "",
        'loaded = effllava_optuna.load_pruned("DIRECTORY")  # model and processor',
        "",
        "# or, without effllava_optuna:",
        "from transformers import AutoModelForImageTextToText, AutoProcessor",
        "",
        "model = AutoModelForImageTextToText.from_pretrained(",
        '    "DIRECTORY", trust_remote_code=True',
        ")",
        'processor = AutoProcessor.from_pretrained("DIRECTORY", trust_remote_code=True)',
    ),
    "portable": (
        "from transformers import AutoModelForImageTextToText, AutoProcessor",
        "",
        'model = AutoModelForImageTextToText.from_pretrained("DIRECTORY")',
        'processor = AutoProcessor.from_pretrained("DIRECTORY")',
    ),
}


def _serving(form: str, engines: EngineSupport) -> list[str]:
    """Return what is known about this export in inference engines."""
    run = "It was not run in an engine."
    if engines.verified:
        names = ", ".join(engines.verified).replace("vllm", "vLLM")
        run = f"Verified in {names}: the same greedy tokens as in transformers."
    if form == "portable":
        return [
            "Engines load it as they load the base model. Layers are padded with zeros to one",
            "width for each tower and kind, or to the dense width: this form cannot carry a width",
            f"for each layer, added biases, or fewer image tokens. {run}",
        ]
    if engines.obstacle:
        return [f"vLLM cannot build it: {engines.obstacle}. {run}"]
    return [
        "```sh",
        "python -m vllm.entrypoints.openai.api_server --model DIRECTORY --trust-remote-code",
        "```",
        "",
        "The build of vLLM for CPUs runs this command, too; it has no working `vllm serve`.",
        "It has what the Transformers backend of vLLM reads: a class for the part without the",
        f"output layer, and the attention heads of each layer. {run}",
    ]


def _for_text_model(line: str) -> str:
    """Convert a line for a vision-language model into one for a text decoder."""
    line = line.replace("AutoModelForImageTextToText", "AutoModelForCausalLM")
    return line.replace("AutoProcessor", "AutoTokenizer").replace("processor", "tokenizer")


def _policy_table(widths: Mapping[ComponentId, tuple[int, int]]) -> list[str]:
    """Format the kept and dense widths as a Markdown table, one row per block."""
    rows: dict[str, dict[str, str]] = defaultdict(dict)
    for component, (kept, width) in widths.items():
        block, _, kind = component.rpartition(".")
        rows[block][kind] = f"{kept} of {width}"
    kinds = list(dict.fromkeys(kind for row in rows.values() for kind in row))
    head = [f"| block | {' | '.join(kinds)} |", f"|{'---|' * (len(kinds) + 1)}"]
    return head + [
        f"| {block} | {' | '.join(row.get(kind, '') for kind in kinds)} |"
        for block, row in rows.items()
    ]
