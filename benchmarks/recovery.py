"""How much accuracy does recovery after pruning regain? ``python benchmarks/recovery.py``.

The embedded model, every component pruned to half its units, with the ranking and the
least-squares compensation that a study calibrates. Then the answers of the dense model are
distilled into it: into the projector or into adapters, from the 64 proxy samples of the study or
from new samples of the scans that trained the model. Accuracy on validation and test before and
after, for a few seeds.

Leaves ``benchmarks/results/recovery.json`` and a page in ``benchmarks/tables``.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from _fields import IMPORTANCE
from _means import difference, markdown, mean
from _pages import put_page
from _results import HERE, provenance, write_figures
from _sentences import gains, paragraph, plural

from effllava_optuna import Policy, sliced
from effllava_optuna.calibration.calibration_run import calibrate
from effllava_optuna.calibration.inputs import study_inputs
from effllava_optuna.calibration.stage_callback import silent
from effllava_optuna.evaluation.checkpoint_recovery import measure_accuracy
from effllava_optuna.study import load_config
from effllava_optuna.surgery import FULL_FIT
from effllava_optuna.tasks import Split
from effllava_optuna.tasks.data.digits import TrainingDigits
from effllava_optuna.training import LoraAdaptation, ProjectorAdaptation, recover

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from effllava_optuna.surgery import LoadedModel
    from effllava_optuna.tasks import Task
    from effllava_optuna.training import Adaptation

TITLE = "Recovery after pruning"
CONFIG = HERE.parent / "studies" / "quickstart.toml"
WIDTH_RATIO = 0.5
SPLITS = (Split.VALIDATION, Split.TEST)
ADAPTATIONS: dict[str, Adaptation] = {
    "projector": ProjectorAdaptation(),
    "lora": LoraAdaptation(),
}


def accuracies(task: Task, loaded: LoadedModel) -> dict[str, Any]:
    """Return the accuracy on validation and test, with intervals."""
    figures: dict[str, Any] = {}
    for split in SPLITS:
        accuracy, interval = measure_accuracy(loaded, task.samples(split))
        figures |= {f"{split}": accuracy, f"{split}_interval": interval}
    return figures


def measure(seed: int, new_samples: int) -> list[dict[str, Any]]:
    """Prune the model of a seed, and recover it in each way."""
    config = load_config(CONFIG, (f"study.seed={seed}",))
    with study_inputs(config, device="cpu") as inputs:
        loaded, task = inputs.loaded, inputs.task
        calibration = calibrate(inputs, inputs.stopwatch(), silent)
        policy = Policy.uniform(loaded.structure, ratio=WIDTH_RATIO)

        def pruned_model() -> LoadedModel:
            table = calibration.compensations[FULL_FIT]
            return sliced(loaded, policy, calibration.ranking, table)

        rows = [
            {"seed": seed, "what": "dense"} | accuracies(task, loaded),
            {"seed": seed, "what": "pruned"} | accuracies(task, pruned_model()),
        ]
        data = {
            "proxy": inputs.proxy.samples,
            "fresh": TrainingDigits(seed=seed, proxy=new_samples).samples(Split.PROXY),
        }
        for part, adaptation in ADAPTATIONS.items():
            for name, samples in data.items():
                pruned = pruned_model()
                recovered = recover(pruned, loaded, samples, adaptation)
                row = {"seed": seed, "what": part, "data": name, "recovery": asdict(recovered)}
                rows.append(row | accuracies(task, pruned))
                change = f"{rows[1]['test']:.3f} -> {rows[-1]['test']:.3f}"
                print(part, name, recovered.steps, change)
    return rows


def summary(by_name: Mapping[str, Sequence[Mapping[str, Any]]], importance: str) -> str:
    """Return the main figures, from the rows by name of the model."""
    before, *_ = (rows for name, rows in by_name.items() if name.startswith("pruned"))
    by_seed = {row["seed"]: row["test"] for row in before}
    words = {"lora": "adapters", "proxy": "the proxy samples", "fresh": "new samples"}
    compared = [
        (
            " trained on ".join(words.get(word, word) for word in name.split(", ")),
            difference({row["seed"]: row["test"] for row in rows}, by_seed),
        )
        for name, rows in by_name.items()
        if not name.startswith("pruned")
    ]
    return paragraph(f"""
        With {100 * WIDTH_RATIO:.0f} % of the units of every component, ranked by importance
        `{importance}`, the model has a test accuracy of {mean(list(by_seed.values())).text()}
        ({plural(len(by_seed), "seed")}). Differences to it: {gains(compared)}.""")


def section(figures: Mapping[str, Any], new_samples: int) -> str:
    """Format the page of the benchmark."""
    names = {"dense": "dense", "pruned": "pruned, before recovery"}
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for row in figures["rows"]:
        name = names.get(row["what"]) or f"{row['what']}, {row['data']}"
        by_name.setdefault(name, []).append(row)
    origin = figures["provenance"]
    before = {row["seed"]: row["test"] for row in by_name[names["pruned"]]}
    lines = []
    for name, rows_of_name in by_name.items():
        tests = [row["test"] for row in rows_of_name]
        gains = [row["test"] - before[row["seed"]] for row in rows_of_name]
        steps = [str(row["recovery"]["steps"]) for row in rows_of_name if "recovery" in row]
        spread = f"{np.std(gains, ddof=1):.3f}" if len(gains) > 1 else "one seed"
        lines.append(
            [
                name,
                " / ".join(f"{test:.3f}" for test in tests),
                f"{np.mean(tests):.3f}",
                f"{np.mean(gains):+.3f} ({spread})",
                ", ".join(steps) or "-",
            ]
        )
    return f"""{summary(by_name, figures[IMPORTANCE])}

Generated by `python benchmarks/recovery.py`; do not edit. Figures:
[results](../results/recovery.json).

The embedded digits model, every component at {WIDTH_RATIO:.0%} of its units, ranked by
importance `{figures[IMPORTANCE]}`, with least-squares compensation from 64 proxy samples. Then the
answers of the dense model are distilled, by their divergence at the answering position, into the
projector or into adapters (`lora`) of rank 8 that are merged; from the same 64 samples (`proxy`)
or from {new_samples:,} samples of the scans that trained the model (`fresh`). Every fifth group is
held out and chooses the number of steps, zero included. Test accuracy on 2,000 questions by seed
({", ".join(map(str, before))}); gain over the pruned model, with its standard deviation over the
seeds. One small model: this says nothing about larger ones.

{markdown(["model", "test, by seed", "mean", "gain", "steps chosen"], lines)}

{origin["cpu"]}; torch {origin["torch"]}; {origin["date"]}.
"""


def main() -> None:
    """Measure, and write the results after each seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fresh", type=int, default=2000, help="number of new samples")
    options = parser.parse_args()
    rows = list[dict[str, Any]]()
    config = load_config(CONFIG)
    figures = {"provenance": provenance(), IMPORTANCE: config.pruning.importance, "rows": rows}
    for seed in range(options.seeds):
        rows += measure(seed, options.fresh)
        write_figures("recovery", figures)
        put_page(TITLE, section(figures, options.fresh))
    print(section(figures, options.fresh))


if __name__ == "__main__":
    main()
