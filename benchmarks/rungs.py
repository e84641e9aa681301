"""What does it save to stop policies early, and at what price? ``python benchmarks/rungs.py``.

For each seed the study of ``studies/quickstart.toml`` is run several times over one calibration:
every policy answers the whole proxy, or is stopped after a rung as soon as it is beaten. Then
each stopped policy answers everything after all, which says whether it was stopped rightly; and
some policies answer everything in rungs and at once, in turn, which says what rungs cost.

Seconds are CPU time of the process that measures (one thread), calibration, projectors and
storage aside. ``--tiny`` runs a smaller study of one seed in seconds, and writes nothing.
"""

from __future__ import annotations

import argparse
import time
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import torch
from _results import HERE, provenance, publish
from memory import Place, decoder
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from effllava_optuna import Loaded, narrowed
from effllava_optuna.objectives import answers, ask_crossed
from effllava_optuna.policy import Policy, front_of
from effllava_optuna.report import document
from effllava_optuna.study import loop, read_spec, storage
from effllava_optuna.study.artifacts import Folder, Vault
from effllava_optuna.study.calibrating import calibrate
from effllava_optuna.study.evolution import Epochs, silent
from effllava_optuna.study.facts import facts_of
from effllava_optuna.study.records import trials_of
from effllava_optuna.study.workbench import Beaten, Workbench
from effllava_optuna.surgery import Probe, Recipe, arranged, compensate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from effllava_optuna.study.bundle import Bundle
    from effllava_optuna.study.spec import StudySpec
    from effllava_optuna.study.workbench import Measured
    from effllava_optuna.surgery import Basis

SPEC = HERE.parent / "studies" / "quickstart.toml"
PRICED = 20  # policies
RUNGS = ("[]", "[16, 32, 48]", "[32]")
TINY = (
    "search.epochs=1", "search.generations=2", "search.population=8", "latency.repeats=1",
    "latency.warmup=0", "latency.batch=8", "latency.seconds=0.0", "latency.checks=2",
    "task.validation=40", "task.test=40",
    "report.finalists=1", "pruning.shares=[0.05, 0.2, 1.0]",
)  # fmt: skip


@dataclass
class Spent:
    """What was spent on measuring.

    Attributes:
        seconds: Of the CPU.
        samples: That were answered.
        stopped: Policies that were stopped.
    """

    seconds: float = 0.0
    samples: int = 0
    stopped: int = 0


class Metered(Workbench):
    """A workbench that counts what it spends."""

    def __init__(self, spec: StudySpec) -> None:
        super().__init__(spec)
        self.spent = Spent()

    def measure(self, policy: Policy, basis: Basis, bar: float | None = None) -> Measured:
        """Measure, and count."""
        began = time.process_time()
        try:
            found = super().measure(policy, basis, bar)
        except Beaten as beaten:
            self.spent.samples += beaten.samples
            self.spent.stopped += 1
            raise
        finally:
            self.spent.seconds += time.process_time() - began
        self.spent.samples += len(self.proxy)
        return found


def calibrated(spec: StudySpec) -> Bundle:
    """Calibrate once for all studies of a seed."""
    with Workbench(spec) as bench:
        return calibrate(bench, silent)


def run(spec: StudySpec, bundle: Bundle) -> dict[str, Any]:
    """Run a study to its end, and look what became of whoever was stopped."""
    study, bench = storage.create_study(InMemoryStorage(), spec), Metered(spec)
    with TemporaryDirectory() as place, bench:
        epochs = Epochs(study, bench, Vault(Folder(place)))
        epochs.ledger.publish(0, lambda: epochs.publication(bundle))
        epochs.open()
        study.sampler = epochs.sampler
        loop.search(epochs)
        spent, bench.spent = bench.spent, Spent()
        loop.conclude(epochs)
        chosen = study.user_attrs[storage.RESULTS]["chosen"]
        return {
            "trials": spec.search.trials,
            "stopped": spent.stopped,
            "samples": spent.samples,
            "seconds": round(spent.seconds, 2),
            **_prices(epochs),
            "after": _after(study),
            **_verdicts(epochs),
            "hypervolume": document(facts_of(study))["hypervolume"],
            "chosen": {
                key: chosen[key]
                for key in ("quality", "accuracy_validation", "accuracy_test", "latency_ms")
            },
        }


def _after(study: optuna.Study) -> dict[str, int]:
    """Count who was stopped after how many samples."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))
    after = [trial.user_attrs["rung"] for trial in trials]
    return {str(rung): after.count(rung) for rung in sorted(set(after))}


def _verdicts(epochs: Epochs) -> dict[str, int]:
    """Let whoever was stopped answer everything; count those that were wronged.

    Returns:
        ``wrong``: as good as the rival after all; ``missed``: none of the epoch's front dominates
        them.
    """
    trials = epochs.study.get_trials(deepcopy=False)
    fronts: dict[int | None, Any] = {}
    wrong = missed = 0
    for record in trials_of(epochs.study):
        if not record.stopped:
            continue
        if record.epoch not in fronts:
            mine = [other for other in trials_of(epochs.study) if other.epoch == record.epoch]
            fronts[record.epoch] = front_of(mine)
        policy = Policy.of(epochs.bench.anatomy, record.keep)
        full = epochs.bench.measure(policy, epochs.basis(record.basis))
        rival = trials[trials[record.number].user_attrs["rival"]]
        wrong += full.quality >= rival.values[0]
        missed += not any(
            other.quality >= full.quality and other.latency_ms <= full.latency_ms
            for other in fronts[record.epoch]
        )
    return {"wrong": wrong, "missed": missed}


def _prices(epochs: Epochs) -> dict[str, float]:
    """Let policies answer everything at once and in rungs, in turn; give median CPU times."""
    bench, basis = epochs.bench, epochs.basis_of(0)
    rungs, whole = bench.rungs, (ask_crossed(bench.loaded, bench.proxy, bench.spec.pruning.folds),)
    some = [trial for trial in trials_of(epochs.study) if trial.measured][:PRICED]
    took: dict[str, list[float]] = {"ms_at_once": [], "ms_in_rungs": []}
    for trial in some:
        policy = Policy.of(bench.anatomy, trial.keep)
        for name, asked in (("ms_at_once", whole), ("ms_in_rungs", rungs)):
            began = time.process_time()
            for rung in asked:
                answers(bench.loaded, basis, policy, rung)
            took[name].append(1e3 * (time.process_time() - began))
    return {name: round(float(np.median(times)), 1) for name, times in took.items()}


@contextmanager
def one_thread() -> Iterator[None]:
    """Let an operation take one thread, as the studies here do by themselves."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def mid_size(hidden: int = 512, layers: int = 8, tokens: int = 32) -> dict[str, float]:
    """Let a decoder with random weights read 64 prompts at once and in rungs, cross-fitted."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(8192, (32, tokens), generator=generator)
    loaded = Loaded.of(decoder(hidden, layers, Place()), None, "mid-size")
    widths = {site.id: (site.width // 2, site.width) for site in loaded.anatomy.sites}
    seen = {"input_ids": ids[:2], "attention_mask": torch.ones_like(ids[:2])}
    folds = [[Probe(seen)], [Probe({name: part.flip(1) for name, part in seen.items()})]]
    table = compensate(loaded, folds, widths, Recipe("magnitude", "least-squares"))
    policy = Policy.uniform(loaded.anatomy, keep={"attn": 0.5, "mlp": 0.5})
    took: dict[str, list[float]] = {"ms_at_once": [], "ms_in_rungs": []}
    with (
        one_thread(),
        arranged(loaded, table.order) as ready,
        torch.inference_mode(),
    ):
        for _ in range(5):
            for name, rungs in (("ms_at_once", 1), ("ms_in_rungs", 4)):
                began = time.process_time()
                for rung, fit in product(range(rungs), (1, 2)):
                    batch = ids[rung * 32 // rungs : (rung + 1) * 32 // rungs]
                    with narrowed(ready, policy, table.order, table.refits[fit]) as network:
                        network.model(input_ids=batch)
                took[name].append(1e3 * (time.process_time() - began))
    found = {name: round(float(np.median(times)), 1) for name, times in took.items()}
    return found | {"parameters": loaded.model.num_parameters(), "tokens": tokens}


def runs_of(seed: int, changes: tuple[str, ...], rungs: tuple[str, ...]) -> list[dict[str, Any]]:
    """Run the studies of a seed: one for each choice of rungs, over one calibration."""
    specs = [
        read_spec(SPEC, (f"study.seed={seed}", *changes, f"search.rungs={told}")) for told in rungs
    ]
    bundle = calibrated(specs[0])
    return [{"seed": seed, "rungs": list(spec.search.rungs)} | run(spec, bundle) for spec in specs]


def paired(rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Put beside each run with rungs the one of its seed without."""
    without = {row["seed"]: row for row in rows if not row["rungs"]}
    found = [(without[row["seed"]], row) for row in rows if row["rungs"]]
    return sorted(found, key=lambda pair: (len(pair[1]["rungs"]), pair[1]["seed"]))


def summary(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """Say what the pairs of one choice of rungs say together."""

    def more(key: str) -> float:
        return float(sum(on[key] for _, on in pairs) / sum(off[key] for off, _ in pairs) - 1)

    def total(key: str) -> int:
        return sum(on[key] for _, on in pairs)

    ahead = np.array(
        [on["chosen"]["accuracy_test"] - off["chosen"]["accuracy_test"] for off, on in pairs]
    )
    dearer = np.median([on["ms_in_rungs"] / on["ms_at_once"] for _, on in pairs])
    spread = f" (standard deviation {ahead.std(ddof=1):.3f})" if len(ahead) > 1 else ""
    return (
        f"- Rungs {pairs[0][1]['rungs']}: {total('stopped')} of {total('trials')} policies were "
        f"stopped, which spared {-more('samples'):.1%} of all answers; CPU seconds: "
        f"{more('seconds'):+.1%}. To ask a policy everything takes {dearer:.2f} times as long in "
        f"rungs as at once. Of the stopped, {total('wrong')} were as good as their rival after "
        f"all, and {total('missed')} would have been on the front of their epoch. Test accuracy "
        f"of the choice, with rungs minus without: {ahead.mean():+.3f}{spread}."
    )


HEAD = """\
| seed | rungs | stopped (after) | answers spared | CPU s without, with \
| ms a policy, at once, in rungs | wrong | front missed | chosen on test without, with |
|---|---|---|---|---|---|---|---|---|"""


def line(off: dict[str, Any], on: dict[str, Any]) -> str:
    """Write a pair as a line of the table."""
    after = ", ".join(f"{count} after {rung}" for rung, count in on["after"].items())
    return (
        f"| {on['seed']} | {on['rungs']} | {on['stopped']} of {on['trials']} ({after}) "
        f"| {1 - on['samples'] / off['samples']:.1%} | {off['seconds']:.1f}, {on['seconds']:.1f} "
        f"| {on['ms_at_once']}, {on['ms_in_rungs']} | {on['wrong']} | {on['missed']} "
        f"| {off['chosen']['accuracy_test']:.3f}, {on['chosen']['accuracy_test']:.3f} |"
    )


def section(found: dict[str, Any]) -> str:
    """Write the section of RESULTS.md."""
    pairs, large, origin = paired(found["rows"]), found["mid_size"], found["provenance"]
    choices = list(dict.fromkeys(str(on["rungs"]) for _, on in pairs))
    lines = [line(off, on) for off, on in pairs]
    sums = [summary([pair for pair in pairs if str(pair[1]["rungs"]) == told]) for told in choices]
    return f"""Generated by `python benchmarks/rungs.py`; do not edit. Figures:
[results](results/rungs.json).

The quickstart study ({found["proxy"]} proxy samples, `search.confidence = {found["confidence"]}`)
with and without rungs, over the same calibration. The first generation of each epoch is never
stopped. Stopped policies change what is bred next, so the searches go different ways.

{HEAD}
{chr(10).join(lines)}

{chr(10).join(sums)}

Whoever was stopped was measured in full afterwards. On this model rungs cost more than they save:
its batches take hardly longer than they take to begin. A decoder of {large["parameters"]:,}
parameters with random weights reads 64 prompts of {large["tokens"]} tokens in
{large["ms_at_once"]:.0f} ms at once, and in {large["ms_in_rungs"]:.0f} ms in four rungs, each
narrowed and cross-fitted: there, rungs pay where they spare more than
{large["ms_in_rungs"] / large["ms_at_once"] - 1:.0%} of the answers.

{origin["cpu"]}, one thread; torch {origin["torch"]}; {origin["date"]}."""


def main(arguments: list[str] | None = None) -> None:
    """Run the pairs, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    changes, seeds = (TINY, 1) if options.tiny else ((), options.seeds)
    print("About 20 s." if options.tiny else f"About {6 * seeds} minutes.", flush=True)
    spec = read_spec(SPEC, changes)
    found = {
        "provenance": provenance(),
        "proxy": spec.task.proxy,
        "confidence": spec.search.confidence,
        "mid_size": mid_size(64, 1, 8) if options.tiny else mid_size(),
        "rows": [
            row
            for seed in range(seeds)
            for row in runs_of(seed, changes, RUNGS[: 3 - options.tiny])
        ],
    }
    if options.tiny:
        print(section(found))
    else:
        publish("rungs", "Stopping policies early", found, section(found))


if __name__ == "__main__":
    main()
