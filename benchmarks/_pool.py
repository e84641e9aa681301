"""A pool of policies of one cost, and their scores on many questions, measured once."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from _cases import EARLIER_FIXED, Case
from _counting import evaluator_of
from _prefixes import prefix_batches, questions_of
from _records import RecordId
from _results import HERE
from _risks import static_risks

from effllava_optuna.files import write_atomically
from effllava_optuna.policy import Policy
from effllava_optuna.search.runner import search
from effllava_optuna.surgery import policy_network
from effllava_optuna.tasks import Scores

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from _prefixes import PrefixBatch
    from _records import Record
    from _studies import StudyRunner
    from numpy.typing import NDArray

    from effllava_optuna.policy import CostModel, ModelStructure
    from effllava_optuna.search.session import SearchSession

    Floats = NDArray[np.float64]

POOL = RecordId("overfit", ("pool",))
PART = 32  # policies that are measured before their scores are written
# The search around whose policies the pool is drawn; its samples show other images.
SOURCE = Case("pool", (*EARLIER_FIXED.changes, "quality.eta=0.0"))


@dataclass(frozen=True)
class Pool:
    """Scores of all policies on all questions.

    Attributes:
        hit: Shape ``(policies, questions)``: 1 if the answer is right.
        log: Log-probability of the right answer, of the same shape.
        groups: Shape ``(questions,)``: the group of four digit images that a question is about.
        static: Forms of risk by name, shape ``(policies,)``.
        keep_ratio: Keep ratios, shape ``(policies,)``.
    """

    hit: Floats
    log: Floats
    groups: NDArray[np.int64]
    static: Mapping[str, Floats]
    keep_ratio: Floats

    @staticmethod
    def read(file: Path) -> Pool:
        """Read the arrays that `measure_pool` has written."""
        with np.load(file) as arrays:
            log = arrays["log"].astype(float)
            return Pool(
                hit=np.unpackbits(arrays["hit"], axis=1)[:, : log.shape[1]].astype(float),
                log=log,
                groups=arrays["groups"].astype(int),
                static={
                    name.removeprefix("risk "): arrays[name]
                    for name in arrays
                    if name.startswith("risk ")
                },
                keep_ratio=arrays["keep_ratio"],
            )


def pool_file(runner: StudyRunner) -> Path:
    """Return the file of the scores: 4 MB, which only the smaller forms store with the records."""
    return (HERE / "scratch" if runner.form.published else runner.form.folder) / "pool.npz"


def pool_record(runner: StudyRunner) -> Record:
    """Return the record with the numbers of policies and questions of the pool."""
    return runner.record(POOL, lambda: measure_pool(runner, pool_file(runner)))


def ensure_pool(runner: StudyRunner) -> Pool:
    """Read the scores of the pool; measure them first if they do not exist."""
    file = pool_file(runner)
    if not file.is_file():
        pool_record(runner)
    if not file.is_file():  # the record is committed, the scores are not
        measure_pool(runner, file)
    return Pool.read(file)


def measure_pool(runner: StudyRunner, file: Path) -> dict[str, Any]:
    """Score the pool on all questions, some policies at a time, and write ``file``."""
    form = runner.form
    count, question_count = form.pick(500, 48, 12), form.pick(4040, 780, 260)
    file.parent.mkdir(parents=True, exist_ok=True)
    with runner.open("first", 0, SOURCE) as session:
        search(session)
        pool = draw_pool(session, count)
        batches = prefix_batches(session.evaluator.loaded, questions_of(question_count), 4)
        samples = [sample for batch in batches for sample in batch.batch.samples]
        parts = _measure_parts(session, pool, batches, file)
        arrays: dict[str, Any] = {
            name: np.concatenate([np.load(part)[name] for part in parts])
            for name in ("hit", "log", "widths")
        }
        if not (arrays["widths"] == [policy.widths for policy in pool]).all():
            raise SystemExit(f"{parts[0]} and others belong to another pool. Remove them.")
        _, groups = np.unique([sample.group for sample in samples], return_inverse=True)
        arrays |= {"keep_ratio": np.array([policy.keep_ratio for policy in pool])}
        arrays |= {"groups": groups}
        arrays |= {
            f"risk {name}": values for name, values in static_risks(session, pool, 3).items()
        }
        _save(file, arrays)
        for part in parts:
            part.unlink()
    return {"policies": count, "questions": len(samples), "groups": len(set(groups.tolist()))}


def _measure_parts(
    session: SearchSession, pool: Sequence[Policy], batches: Sequence[PrefixBatch], file: Path
) -> list[Path]:
    """Write the scores of the pool in parts; parts that exist are not measured again."""
    parts = []
    for start in range(0, len(pool), PART):
        part = file.with_name(f"{file.stem}-{start:03d}.npz")
        if not part.is_file():
            _measure_part(session, pool[start : start + PART], batches, part)
            print(f"pool: {min(start + PART, len(pool))} of {len(pool)}", flush=True)
        parts.append(part)
    return parts


def _measure_part(
    session: SearchSession, policies: Sequence[Policy], batches: Sequence[PrefixBatch], file: Path
) -> None:
    """Write the scores of some policies."""
    loaded, weight_state = session.evaluator.loaded, session.epochs.epoch(0).weight_state
    scores = []
    for policy in policies:
        with policy_network(loaded, weight_state, policy) as network:
            scores.append(Scores.concatenate([batch.scores(network) for batch in batches]))
    hit = np.packbits(np.array([each.hit > 0 for each in scores]), axis=1)
    log = np.array([np.maximum(each.log_probability, -20) for each in scores], np.float16)
    widths = np.array([policy.widths for policy in policies], np.int16)
    _save(file, {"hit": hit, "log": log, "widths": widths})


def _save(file: Path, arrays: Mapping[str, Any]) -> None:
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_atomically(file, content.getvalue())


def draw_pool(session: SearchSession, count: int, seed: int = 0) -> list[Policy]:
    """Draw policies whose cost is just within the budget, without measuring them.

    Half are random. The others are neighbours of the policies that the search has ranked high,
    since a search has to choose among such policies.
    """
    rng = np.random.default_rng([seed, 77])
    evaluator = evaluator_of(session)
    structure, widths = evaluator.structure, evaluator.calibration.widths
    allowed = [widths[component.id] for component in structure.components]

    def fitted(levels: Sequence[int]) -> Policy:
        return _fit_to_budget(evaluator.structure, allowed, levels, session.costs, rng)

    pool: dict[Policy, None] = {}
    while len(pool) < count // 2:
        pool[fitted([int(rng.integers(len(row))) for row in allowed])] = None
    ranked = sorted(evaluator.scored, key=lambda pair: -pair[1].probability.mean())
    parents = list(dict.fromkeys(policy for policy, _ in ranked))[: max(4, count // 16)]
    for _ in range(100 * count):
        if len(pool) >= count:
            break
        pool[fitted(_neighbour(parents[rng.integers(len(parents))], allowed, rng))] = None
    return list(pool)


def _fit_to_budget(
    structure: ModelStructure,
    allowed: Sequence[Sequence[int]],
    levels: Sequence[int],
    costs: CostModel,
    rng: np.random.Generator,
) -> Policy:
    """Lower random levels until the policy is feasible, then raise levels as far as possible."""
    current = list(levels)

    def policy() -> Policy:
        widths = [row[level] for row, level in zip(allowed, current, strict=True)]
        return Policy.of(structure, widths)

    while not costs.allows(policy()):
        reducible = [index for index, level in enumerate(current) if level]
        current[reducible[rng.integers(len(reducible))]] -= 1
    for index in rng.permutation(len(current)):
        while current[index] + 1 < len(allowed[index]):
            current[index] += 1
            if not costs.allows(policy()):
                current[index] -= 1
                break
    return policy()


def _neighbour(
    policy: Policy, allowed: Sequence[Sequence[int]], rng: np.random.Generator
) -> list[int]:
    """Move one to three random components of a policy by one or two levels; return the levels."""
    levels = [row.index(width) for row, width in zip(allowed, policy.widths, strict=True)]
    for _ in range(rng.integers(1, 4)):
        index = int(rng.integers(len(levels)))
        moved = levels[index] + int(rng.choice([-2, -1, 1, 2]))
        levels[index] = min(max(moved, 0), len(allowed[index]) - 1)
    return levels
