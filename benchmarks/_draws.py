"""Proxy draws from the answers of the pool: what a choice on few samples gains and loses."""

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

SAMPLES = (16, 32, 64, 128, 256)
ETAS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)  # accuracy per nat, or per deviation of a form
ETA = 0.02  # the default


def resampled_id(samples: int) -> RecordId:
    """Return the place of the record of draws of some size."""
    return RecordId("overfit", ("resample", samples))


def resampled(runner: StudyRunner, samples: int) -> Record:
    """Return what a choice on draws of ``samples`` samples gains and loses."""
    draws = runner.form.pick(300, 100, 10)

    def measure() -> dict[str, Any]:
        figures = resample(ensure_pool(runner), samples, draws)
        return {"samples": samples, "draws": draws} | figures

    return runner.record(resampled_id(samples), measure)


def resample(pool: Pool, samples: int, draws: int) -> dict[str, Any]:
    """Draw proxies of ``samples`` samples, and choose a policy on each in several ways."""
    rows: dict[str, list[Any]] = defaultdict(list)
    for draw in range(draws):
        rng = np.random.default_rng([samples, draw])
        inside, outside = halves(pool.unit, rng)
        proxy = rng.choice(inside, size=min(samples, len(inside)), replace=False)
        hit, log = pool.hit[:, proxy], pool.log[:, proxy]
        score, test = np.exp(log).mean(1), pool.hit[:, outside].mean(1)
        expected = np.exp(pool.log[:, outside]).mean(1)
        on_proxy = hit.mean(1)
        gap = on_proxy - test
        pick, by_hits = int(score.argmax()), int((on_proxy + 1e-6 * score).argmax())
        rows["gap of the pick"].append(on_proxy[pick] - test[pick])
        rows["gap of the pick, expected"].append(score[pick] - expected[pick])
        rows["gap, picked by hits"].append(on_proxy[by_hits] - test[by_hits])
        rows["gap of all"].append(gap.mean())
        rows["test of the pick"].append(test[pick])
        rows["test, picked by hits"].append(test[by_hits])
        rows["best on test"].append(test.max())
        top = np.argsort(-on_proxy, kind="stable")[: max(4, len(gap) // 10)]
        forms = {**pool.static, **drawn_risks(hit, log, rng)}
        paper = pool.static[STATIC[0]]
        default = test[(score - ETA * paper).argmax()]
        rows["instead none"].append(test[pick] - default)
        for name, values in forms.items():
            rows[f"top {name}"].append(spearman(values[top], gap[top]))
            rows[f"all {name}"].append(spearman(values, gap))
            scaled = standard(values)
            rows[f"eta {name}"].append([test[(score - eta * scaled).argmax()] for eta in ETAS])
            alike = score - ETA * paper.std() * scaled  # spread as the default's term is
            rows[f"instead {name}"].append(test[alike.argmax()] - default)
        rows["eta in nats"].append([test[(score - eta * paper).argmax()] for eta in ETAS])
    return summary(rows)


def summary(rows: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Average over draws, with intervals; of picks by eta, average the differences to eta 0.

    An eta that is chosen by the even draws is judged by the odd ones.
    """
    figures: dict[str, Any] = {}
    for name, values in rows.items():
        if not name.startswith("eta"):
            figures[name] = mean(values).parts
            continue
        ahead = np.array(values)[:, 1:] - np.array(values)[:, :1]
        best = int(ahead[::2].mean(0).argmax())
        figures[name] = {
            f"{eta:g}": mean(row).parts for eta, row in zip(ETAS[1:], ahead.T, strict=True)
        }
        figures[name]["chosen"] = [ETAS[1 + best], *mean(ahead[1::2, best]).parts]
    return figures


def halves(units: NDArray[np.int64], rng: np.random.Generator) -> tuple[Any, Any]:
    """Deal the units into two halves; return the indices of the questions of each."""
    every = rng.permutation(np.unique(units))
    first = np.isin(units, every[: len(every) // 2])
    return np.flatnonzero(first), np.flatnonzero(~first)


def ranks(values: Floats) -> Floats:
    """Rank values from 1; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=np.float64)


def spearman(left: Floats, right: Floats) -> float:
    """Correlate ranks; 0 where one of both does not vary."""
    a, b = ranks(left), ranks(right)
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def standard(values: Floats) -> Floats:
    """Scale to mean 0 and standard deviation 1."""
    return np.asarray((values - values.mean()) / (values.std() or 1.0), dtype=np.float64)
