"""A pool of policies of one cost, and their answers to many questions, asked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from _cases import Case
from _prefixes import prefix_batches, questions_of
from _records import RecordId
from _results import HERE
from _risks import static_risks
from _studies import evaluator_of

from effllava_optuna.policy import Policy
from effllava_optuna.study import loop
from effllava_optuna.surgery import running
from effllava_optuna.tasks import Scores

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from _prefixes import PrefixBatch
    from _records import Record
    from _studies import StudyRunner
    from numpy.typing import NDArray

    from effllava_optuna.study.evolution import Epochs
    from effllava_optuna.surgery import Basis, Loaded

    Floats = NDArray[np.float64]

POOL = RecordId("overfit", ("pool",))
PART = 32  # policies that are asked before their answers are written
# The search whose policies the pool is made around; its samples show other images.
AROUND = Case("pool", ("projector.steps=0", "quality.eta=0.0"))


@dataclass(frozen=True)
class Pool:
    """Answers of all policies to all questions.

    Attributes:
        hit: Shape ``(policies, questions)``: 1 where the answer is right.
        log: Log-probability of the right answer, of the same shape.
        unit: Shape ``(questions,)``: the four of digit images that a question is about.
        static: Forms of risk by name, shape ``(policies,)``.
        share: Keep ratios, shape ``(policies,)``.
    """

    hit: Floats
    log: Floats
    unit: NDArray[np.int64]
    static: Mapping[str, Floats]
    share: Floats

    @staticmethod
    def read(file: Path) -> Pool:
        """Read the arrays that `ask_pool` has written."""
        with np.load(file) as arrays:
            log = arrays["log"].astype(float)
            hit = np.unpackbits(arrays["hit"], axis=1)[:, : log.shape[1]].astype(float)
            static = {n.removeprefix("risk "): arrays[n] for n in arrays if n.startswith("risk ")}
            return Pool(hit, log, arrays["unit"].astype(int), static, arrays["share"])


def pool_file(runner: StudyRunner) -> Path:
    """Return the file of the answers: 4 MB, which only the smaller forms keep with the records."""
    return (HERE / "scratch" if runner.form.published else runner.form.folder) / "pool.npz"


def pool_record(runner: StudyRunner) -> Record:
    """Return how many policies and questions the pool has."""
    return runner.record(POOL, lambda: ask_pool(runner, pool_file(runner)))


def ensure_pool(runner: StudyRunner) -> Pool:
    """Read the answers of the pool, which is asked first if there are none."""
    file = pool_file(runner)
    if not file.is_file():
        pool_record(runner)
    if not file.is_file():  # the record is committed, the answers are not
        ask_pool(runner, file)
    return Pool.read(file)


def ask_pool(runner: StudyRunner, file: Path) -> dict[str, Any]:
    """Ask the pool all questions once, some policies at a time; write the answers to ``file``."""
    form = runner.form
    count, questions = form.pick(500, 48, 12), form.pick(4040, 780, 260)
    file.parent.mkdir(parents=True, exist_ok=True)
    with runner.opened("first", 0, AROUND) as epochs:
        loop.search(epochs)
        evaluator, basis = evaluator_of(epochs), epochs.basis_of(0)
        pool = pool_of(epochs, count)
        batches = prefix_batches(evaluator.loaded, questions_of(questions), 4)
        samples = [sample for batch in batches for sample in batch.batch.samples]
        parts = []
        for start in range(0, count, PART):
            part = file.with_name(f"{file.stem}-{start:03d}.npz")
            if not part.is_file():
                _ask_part(evaluator.loaded, basis, pool[start : start + PART], batches, part)
                print(f"pool: {min(start + PART, count)} of {count}", flush=True)
            parts.append(part)
        joined = {
            name: np.concatenate([np.load(part)[name] for part in parts])
            for name in ("hit", "log", "keep")
        }
        if not (joined["keep"] == [policy.keep for policy in pool]).all():
            raise SystemExit(f"{parts[0]} and others are of another pool: remove them.")
        arrays: dict[str, Any] = joined | {
            "share": np.array([policy.kept_share(evaluator.anatomy) for policy in pool]),
            "unit": np.unique([sample.unit for sample in samples], return_inverse=True)[1],
            **{f"risk {name}": x for name, x in static_risks(epochs, pool, 3).items()},
        }
        _save(file, arrays)
        for part in parts:
            part.unlink()
    fours = len({sample.unit for sample in samples})
    return {"policies": count, "questions": len(samples), "fours": fours}


def _ask_part(
    loaded: Loaded,
    basis: Basis,
    policies: Sequence[Policy],
    batches: Sequence[PrefixBatch],
    file: Path,
) -> None:
    """Write the answers of some policies."""
    scores = []
    for policy in policies:
        with running(loaded, basis, policy) as network:
            scores.append(Scores.joined([batch.answered(network) for batch in batches]))
    hit = np.packbits(np.array([one.hit > 0 for one in scores]), axis=1)
    log = np.array([np.maximum(one.log_probability, -20) for one in scores], np.float16)
    keep = np.array([policy.keep for policy in policies], np.int16)
    _save(file, {"hit": hit, "log": log, "keep": keep})


def _save(file: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays; a process that is killed leaves no incomplete ``file``."""
    draft = file.with_suffix(".draft")
    with draft.open("wb") as stream:
        np.savez_compressed(stream, **arrays)
    draft.replace(file)


def pool_of(epochs: Epochs, count: int, seed: int = 0) -> list[Policy]:
    """Draw policies whose cost is just within the budget, without measuring them.

    Half are random. The others are neighbours of policies that a search on samples of other
    images has ranked high, since a search has to choose among such policies.
    """
    rng = np.random.default_rng([seed, 77])
    evaluator, budget = evaluator_of(epochs), epochs.budget
    anatomy, widths = evaluator.anatomy, evaluator.bundle.widths
    levels = [widths[site.id] for site in anatomy.sites]

    def repaired(start: Sequence[int]) -> Policy:
        """Step down at random until the policy is affordable, then up while it stays so."""
        at = list(start)

        def policy() -> Policy:
            return Policy.of(anatomy, [row[i] for row, i in zip(levels, at, strict=True)])

        while not budget.allows(anatomy, policy()):
            able = [site for site, index in enumerate(at) if index]
            at[able[rng.integers(len(able))]] -= 1
        for site in rng.permutation(len(at)):
            while at[site] + 1 < len(levels[site]):
                at[site] += 1
                if not budget.allows(anatomy, policy()):
                    at[site] -= 1
                    break
        return policy()

    def near(policy: Policy) -> list[int]:
        at = [row.index(width) for row, width in zip(levels, policy.keep, strict=True)]
        for _ in range(rng.integers(1, 4)):
            site = rng.integers(len(at))
            moved = at[site] + int(rng.choice([-2, -1, 1, 2]))
            at[site] = min(max(moved, 0), len(levels[site]) - 1)
        return at

    pool: dict[Policy, None] = {}
    while len(pool) < count // 2:
        pool[repaired([int(rng.integers(len(row))) for row in levels])] = None
    ranked = sorted(evaluator.scored, key=lambda pair: -pair[1].probability.mean())
    parents = list(dict.fromkeys(policy for policy, _ in ranked))[: max(4, count // 16)]
    for _ in range(100 * count):
        if len(pool) >= count:
            break
        pool[repaired(near(parents[rng.integers(len(parents))]))] = None
    return list(pool)
