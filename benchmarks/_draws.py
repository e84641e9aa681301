"""Draws of small proxy sets from the scores of the pool: the effect of choosing on few samples."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
from _means import mean
from _pool import ensure_pool
from _records import RecordId
from _risks import STATIC, drawn_risks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from _pool import Pool
    from _records import Record
    from _studies import StudyRunner
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Indices = NDArray[np.int64]

SAMPLES = (16, 32, 64, 128, 256)
ETAS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)  # accuracy per nat, or per deviation of a form
ETA = 0.02  # the default


def resampled_id(samples: int) -> RecordId:
    """Return the id of the record of draws of ``samples`` samples."""
    return RecordId("overfit", ("resample", samples))


def resampled(runner: StudyRunner, samples: int) -> Record:
    """Return the record of choices on draws of ``samples`` samples."""
    draws = runner.form.pick(300, 100, 10)

    def measure() -> dict[str, Any]:
        figures = resample(ensure_pool(runner), samples, draws)
        return {"samples": samples, "draws": draws} | figures

    return runner.record(resampled_id(samples), measure)


def resample(pool: Pool, samples: int, draws: int) -> dict[str, Any]:
    """Draw proxy sets of ``samples`` samples, and choose a policy on each in several ways."""
    rows: dict[str, list[Any]] = defaultdict(list)
    for draw in range(draws):
        rng = np.random.default_rng([samples, draw])
        inside, outside = halves(pool.groups, rng)
        proxy = rng.choice(inside, size=min(samples, len(inside)), replace=False)
        for name, figure in _figures_of_draw(pool, proxy, outside, rng).items():
            rows[name].append(figure)
    return summary(rows)


def _figures_of_draw(
    pool: Pool, proxy: Indices, test: Indices, rng: np.random.Generator
) -> dict[str, Any]:
    """Choose a policy on the proxy in several ways; return gaps and test accuracies."""
    hit, log = pool.hit[:, proxy], pool.log[:, proxy]
    expected_proxy, accuracy_proxy = np.exp(log).mean(1), hit.mean(1)
    expected_test = np.exp(pool.log[:, test]).mean(1)
    accuracy_test = pool.hit[:, test].mean(1)
    gap = accuracy_proxy - accuracy_test
    pick = int(expected_proxy.argmax())
    by_hits = int((accuracy_proxy + 1e-6 * expected_proxy).argmax())

    def test_of_pick(risk: Floats | float) -> float:
        return float(accuracy_test[(expected_proxy - risk).argmax()])

    paper = pool.static[STATIC[0]]
    default = test_of_pick(ETA * paper)
    figures: dict[str, Any] = {
        "gap of the pick": gap[pick],
        "gap of the pick, expected": expected_proxy[pick] - expected_test[pick],
        "gap, picked by hits": gap[by_hits],
        "gap of all": gap.mean(),
        "test of the pick": accuracy_test[pick],
        "test, picked by hits": accuracy_test[by_hits],
        "best on test": accuracy_test.max(),
        "instead none": accuracy_test[pick] - default,
    }
    top = np.argsort(-accuracy_proxy, kind="stable")[: max(4, len(gap) // 10)]
    for name, values in {**pool.static, **drawn_risks(hit, log, rng)}.items():
        scaled = standard(values)
        figures[f"top {name}"] = spearman(values[top], gap[top])
        figures[f"all {name}"] = spearman(values, gap)
        figures[f"eta {name}"] = [test_of_pick(eta * scaled) for eta in ETAS]
        # With the standard deviation of the default term.
        figures[f"instead {name}"] = test_of_pick(ETA * paper.std() * scaled) - default
    figures["eta in nats"] = [test_of_pick(eta * paper) for eta in ETAS]
    return figures


def summary(rows: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Average over draws, with intervals; for choices by eta, average the differences to eta 0.

    The best eta is chosen on the even draws and evaluated on the odd ones.
    """
    figures: dict[str, Any] = {}
    for name, values in rows.items():
        if not name.startswith("eta"):
            figures[name] = mean(values).parts
            continue
        gains = np.array(values)[:, 1:] - np.array(values)[:, :1]
        best = int(gains[::2].mean(0).argmax())
        figures[name] = {
            f"{eta:g}": mean(row).parts for eta, row in zip(ETAS[1:], gains.T, strict=True)
        }
        figures[name]["chosen"] = [ETAS[1 + best], *mean(gains[1::2, best]).parts]
    return figures


def halves(groups: NDArray[np.int64], rng: np.random.Generator) -> tuple[Any, Any]:
    """Split the groups into two random halves; return the indices of the samples of each."""
    shuffled = rng.permutation(np.unique(groups))
    first = np.isin(groups, shuffled[: len(shuffled) // 2])
    return np.flatnonzero(first), np.flatnonzero(~first)


def ranks(values: Floats) -> Floats:
    """Compute the ranks of values, from 1; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=np.float64)


def spearman(left: Floats, right: Floats) -> float:
    """Compute the rank correlation; 0 if one of the inputs is constant."""
    a, b = ranks(left), ranks(right)
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def standard(values: Floats) -> Floats:
    """Standardise values to mean 0 and standard deviation 1."""
    return np.asarray((values - values.mean()) / (values.std() or 1.0), dtype=np.float64)
