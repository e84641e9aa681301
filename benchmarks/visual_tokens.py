"""How many image tokens does an answer need? ``python benchmarks/visual_tokens.py``.

Unpruned models read a share of the image tokens, selected by diversity, by pooling or at random:
accuracy on test questions, paired by picture, and the time of prefill and of one decoded token.
``smollm-vlm`` is measured if ``python benchmarks/smollm/build.py`` has made it.

Every measurement leaves a record in ``results/visual_tokens.jsonl``, and is not repeated if it has
one. ``--tiny`` measures one ratio on few questions, and publishes nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from _evidence import announce, parse_form, publish
from _means import markdown
from _network_rows import accuracy_cell, gain_cell, gain_of
from _records import RecordId
from _results import HERE
from _sentences import joined, paragraph
from _shapes import SHAPES
from _studies import StudyRunner, load_once
from draw_tasks import draw

from effllava_optuna.config.task_factory import make_task
from effllava_optuna.objectives import Stopwatch, Workload, encode_samples, groups_of
from effllava_optuna.objectives.accuracy import score_batch
from effllava_optuna.study import load_config
from effllava_optuna.surgery import reduced_tokens
from effllava_optuna.tasks import Scores, Split

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from _evidence import Form
    from _records import Record

    from effllava_optuna.surgery import LoadedModel
    from effllava_optuna.tasks import Sample

TITLE = "Fewer image tokens"
QUESTION = "visual_tokens"
RATIOS = (0.5, 0.33, 0.22, 0.11)
SELECTIONS = ("diversity", "pooling", "random")
WHOLE = ("all tokens", 1.0)
_DRAWS = 5
_SECONDS = 40.0  # of one core, for a record
_STUDIES = HERE.parent / "studies"
_PRETRAINED = HERE / "smollm" / "built" / "smollm-vlm"
_MODELS = {
    "digits-vlm": "quickstart", "drawn-vlm": "drawn-scienceqa", "smollm-vlm": "smollm-easyvqa",
}  # fmt: skip
_TEXT_TOKENS = 60  # of a prompt for LLaVA-1.5-7B
_SPEEDUP = 1.8


class TokenDraw:
    """Measures a model on the test questions of one draw.

    Args:
        form: How much is measured.
        model: Name of the model.
        seed: Seed of the draw.
    """

    def __init__(self, form: Form, model: str, seed: int) -> None:
        test = form.pick(1000 if model == "digits-vlm" else 240, 200, 40)
        self._folder = TemporaryDirectory()  # until the last picture is read
        changes = (f"study.seed={seed}", f"task.test={test}", *self._rows(model, seed))
        config = load_config(_STUDIES / f"{_MODELS[model]}.toml", changes)
        self.loaded: LoadedModel = load_once(str(config.model.path))
        samples = make_task(config).samples(Split.TEST)
        self.samples: Sequence[Sample] = [each for each in samples if each.image is not None]
        self.seconds = float(form.pick(90, 3, 0))

    def _rows(self, model: str, seed: int) -> tuple[str, ...]:
        """Draw the rows of a model whose study does not ship with them."""
        if model != "drawn-vlm":
            return ()
        draw(Path(self._folder.name), seed)
        return (f"task.data={json.dumps(f'{self._folder.name}/scienceqa')}",)

    @torch.inference_mode()
    def answers(self, selection: str, ratio: float) -> dict[str, Any]:
        """Count right answers by picture."""
        if (selection, ratio) == WHOLE:
            selection = SELECTIONS[0]
        right, asked = Counter[str](), Counter[str]()
        with reduced_tokens(self.loaded, ratio, selection=selection) as reduced:
            batches = encode_samples(reduced, self.samples, batch_size=16, generate=True)
            scores = Scores.concatenate([score_batch(reduced, batch) for batch in batches])
        for group, hit in zip(groups_of(batches), scores.hit, strict=True):
            right[group] += int(hit)
            asked[group] += 1
        groups = sorted(asked)
        return {"right": [right[each] for each in groups], "asked": [asked[e] for e in groups]}

    def times(self) -> dict[str, Any]:
        """Time all networks in turn; return their speed-up by phase over all tokens."""
        workload = Workload(batch=8, new_tokens=8, seconds=self.seconds)
        runs: dict[str, Callable[[], Mapping[str, float]]] = {}
        whole: Stopwatch | None = None
        for selection, ratio in (WHOLE, *product(SELECTIONS, RATIOS)):
            chosen = SELECTIONS[0] if (selection, ratio) == WHOLE else selection
            with reduced_tokens(self.loaded, ratio, selection=chosen) as reduced:
                stopwatch = Stopwatch(reduced, self.samples, workload)
            whole = whole or stopwatch
            runs[f"{selection} {ratio}"] = partial(self._run, stopwatch, ratio, chosen)
        (reference, *_) = runs
        timings = (whole or stopwatch).race(runs, reference)
        return {
            name: {phase: round(1 / timing.ratio, 3) for phase, timing in phases.items()}
            for name, phases in timings.items()
        }

    def _run(self, stopwatch: Stopwatch, ratio: float, selection: str) -> Mapping[str, float]:
        with reduced_tokens(self.loaded, ratio, selection=selection) as reduced:
            return stopwatch.decoder(reduced)


def record_id(model: str, seed: int, selection: str, ratio: float) -> RecordId:
    """Return the id of the record of a network."""
    return RecordId(QUESTION, ("answers", model, seed, selection, ratio))


def times_id(model: str) -> RecordId:
    """Return the id of the record of the times of a model."""
    return RecordId(QUESTION, ("times", model, 0, "all", 0.0))


def by_count(ratio: float) -> tuple[float, float, float]:
    """Count the operations of LLaVA-1.5-7B for one picture and one question.

    Args:
        ratio: Share of the image tokens that is read.

    Returns:
        Floating-point operations of tower, projector and prefill; they as a share of those with
        all tokens; and the largest keep ratio of the decoder's blocks with which they are 1.8
        times fewer.
    """
    shape = SHAPES["7b"]
    width, inner, blocks, _ = shape.vision
    patches, hidden = shape.picture_tokens + 1, shape.hidden
    tower = blocks * (2 * (4 * width**2 + 2 * width * inner) * patches + 4 * patches**2 * width)
    fixed = tower + 2 * (width * hidden + hidden**2) * shape.picture_tokens
    fixed += 2 * hidden * shape.vocabulary

    def prunable(share: float) -> float:
        tokens = _TEXT_TOKENS + round(share * shape.picture_tokens)
        weights = 4 * hidden**2 + 3 * hidden * shape.inner
        return shape.layers * (2 * weights * tokens + 4 * tokens**2 * hidden)

    dense = fixed + prunable(1.0)
    kept = (dense / _SPEEDUP - fixed) / prunable(ratio)
    operations = fixed + prunable(ratio)
    return operations, operations / dense, min(1.0, kept)


def summary(records: Mapping[tuple[Any, ...], Record], form: Form) -> str:
    """Return the main figures: the fewest tokens of each model."""

    def of(model: str, network: tuple[str, float]) -> dict[int, Record]:
        keys = {seed: ("answers", model, seed, *network) for seed in range(form.seeds)}
        return {seed: records[key] for seed, key in keys.items() if key in records}

    fewest = RATIOS[-1]
    parts: list[str] = []
    for model in [*form.models][::-1]:
        changes = [
            f"{gain.text('+')} ({selection})"
            for selection in ("diversity", "random")
            if (gain := gain_of(of(model, (selection, fewest)), of(model, WHOLE))).count
        ]
        if changes:
            subject = "that of `{}`" if parts else "the accuracy of `{}` changes"
            parts.append(f"{subject.format(model)} by {' and '.join(changes)}")
    if not parts:
        return ""
    start = f"With {100 * fewest:.0f} % of the image tokens"
    return paragraph(f"{start}, {joined(parts, ',')}.")


def section(records: Mapping[tuple[Any, ...], Record], form: Form) -> str:
    """Format the page of the benchmark."""
    parts = []
    for model in form.models:
        times = records.get(("times", model, 0, "all", 0.0), {})

        def of(network: tuple[str, float], model: str = model) -> dict[int, Record]:
            keys = {seed: ("answers", model, seed, *network) for seed in range(form.seeds)}
            return {seed: records[key] for seed, key in keys.items() if key in records}

        if not of(WHOLE):
            continue
        lines = []
        for selection, ratio in (WHOLE, *product(SELECTIONS, RATIOS)):
            rows, speed = of((selection, ratio)), times.get(f"{selection} {ratio}", {})
            lines.append(
                [
                    selection,
                    f"{ratio:.2f}",
                    accuracy_cell(rows),
                    "" if ratio == 1 else gain_cell(rows, of(WHOLE)),
                    *(f"{speed[phase]:.2f}" if speed else "-" for phase in ("prefill", "decode")),
                ]
            )
        head = ["selection", "kept", "accuracy", "minus all tokens", "prefill", "a decoded token"]
        draws = len(of(WHOLE))
        parts.append(f"`{model}` (draws: {draws}):\n\n{markdown(head, lines)}")
    counted = [
        [f"{ratio:.2f}", str(round(ratio * SHAPES["7b"].picture_tokens)),
         f"{operations / 1e12:.2f}", f"{share:.2f}", f"{keep:.2f}"]
        for ratio in (1.0, *RATIOS)
        for operations, share, keep in [by_count(ratio)]
    ]  # fmt: skip
    fewer = f"keep ratio for {_SPEEDUP} times fewer"
    head = ["kept", "image tokens", "TFLOPs", "share", fewer]
    text = "\n\n".join(parts)
    return f"""{summary(records, form)}

Generated by `python benchmarks/visual_tokens.py`; do not edit. Figures:
[results](../results/{QUESTION}.jsonl).

Unpruned models that read a share of the image tokens, selected at the output of the projector.
Accuracy on test questions with 95 % intervals (bootstrap over pictures), differences paired by
picture, in bold where 0 is outside. Speed-ups over all tokens, of projector and decoder with the
selection, without the vision tower: prefill of 8 prompts, and one decoded token, in turn on one
core.

{text}

LLaVA-1.5-7B by count, one picture and {_TEXT_TOKENS} tokens of text: floating-point operations of
vision tower, projector and prefill (a multiplication and an addition are two), their share of
those with all image tokens, and the largest share of the decoder's blocks that may stay for
{_SPEEDUP} times fewer operations.

{markdown(head, counted)}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what has no record, and write the section."""
    form = parse_form(__doc__, arguments, draws=_DRAWS)
    tiny = form.name == "tiny"
    names = [
        name
        for name in _MODELS
        if name != _PRETRAINED.name or ((form.report or _PRETRAINED.is_dir()) and not tiny)
    ]
    form = replace(form, models={name: name for name in names})
    runner = StudyRunner(form)
    torch.set_num_threads(1)
    networks = [WHOLE, *product(SELECTIONS, RATIOS[: form.pick(4, 4, 1)])]
    ids = [
        *(times_id(model) for model in names),
        *(record_id(m, s, *n) for s, m, n in product(range(form.seeds), names, networks)),
    ]
    announce(runner.missing(ids), _SECONDS)
    for seed, model in product(range(form.seeds), names) if not form.report else ():
        of_draw = [record_id(model, seed, *network) for network in networks]
        if runner.missing([*of_draw, times_id(model)]):
            draw = TokenDraw(form, model, seed)
            for network, each in zip(networks, of_draw, strict=True):
                runner.record(each, partial(draw.answers, *network))
            runner.record(times_id(model), draw.times)
    records = {each.key: record for each, record in runner.existing(ids).items()}
    origins = [record["provenance"] for record in records.values()]
    publish(form, TITLE, section(records, form), origins)


if __name__ == "__main__":
    main()
