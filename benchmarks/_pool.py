"""A pool of policies of one cost, asked once: their answers, and proxy draws taken from them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from _evidence import Case, Lab, bench_of
from _means import mean
from _results import HERE

from effllava_optuna.objectives import answers, ask, risk, risk_table
from effllava_optuna.policy import Policy
from effllava_optuna.study import loop
from effllava_optuna.surgery import WHOLE, Basis, look, narrowed, read_into, running
from effllava_optuna.tasks import Digits, Scores, Split, encode
from effllava_optuna.tasks.digits import ask as ask_about
from effllava_optuna.tasks.digits import scans
from effllava_optuna.tasks.scoring import weighed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from effllava_optuna.study.evolution import Epochs
    from effllava_optuna.surgery import Loaded, Seen
    from effllava_optuna.tasks import Batch, Sample
    from effllava_optuna.tasks.digits import Scans

    Floats = NDArray[np.float64]

SAMPLES = (16, 32, 64, 128, 256)
ETAS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)  # accuracy per nat, or per deviation of a form
NOISE = 0.2  # of a weight, as a share of the deviation of its matrix
STATIC = ("weight norm (paper)", "refit norm", "sum of norms", "sharpness")
DRAWN = ("margin", "bootstrap variance", "chance (a random number)")
ETA = 0.02  # the default
PART = 32  # policies of the pool that are asked before they are written down
# The search whose policies the pool is made around: on samples of other images.
AROUND = Case("pool", ("projector.steps=0", "quality.eta=0.0"))


def pool_of(epochs: Epochs, count: int, seed: int = 0) -> list[Policy]:
    """Draw policies whose cost is just within the budget; nothing is asked of them.

    Half are random; half are neighbours of those that a search found good on samples of other
    images, as it is among such that a search has to choose.
    """
    rng = np.random.default_rng([seed, 77])
    bench, budget = bench_of(epochs), epochs.budget
    anatomy, widths = bench.anatomy, bench.bundle.widths
    levels = [widths[site.id] for site in anatomy.sites]

    def repaired(start: Sequence[int]) -> Policy:
        """Step down at random until it is affordable, then up while it stays so."""
        at = list(start)

        def now() -> Policy:
            return Policy.of(anatomy, [row[i] for row, i in zip(levels, at, strict=True)])

        while not budget.allows(anatomy, now()):
            able = [site for site, index in enumerate(at) if index]
            at[able[rng.integers(len(able))]] -= 1
        for site in rng.permutation(len(at)):
            while at[site] + 1 < len(levels[site]):
                at[site] += 1
                if not budget.allows(anatomy, now()):
                    at[site] -= 1
                    break
        return now()

    def near(policy: Policy) -> list[int]:
        at = [row.index(width) for row, width in zip(levels, policy.keep, strict=True)]
        for _ in range(rng.integers(1, 4)):
            site = rng.integers(len(at))
            moved = at[site] + int(rng.choice([-2, -1, 1, 2]))
            at[site] = min(max(moved, 0), len(levels[site]) - 1)
        return at

    found: dict[Policy, None] = {}
    while len(found) < count // 2:
        found[repaired([int(rng.integers(len(row))) for row in levels])] = None
    known = sorted(bench.scored, key=lambda pair: -pair[1].probability.mean())
    parents = list(dict.fromkeys(policy for policy, _ in known))[: max(4, count // 16)]
    for _ in range(100 * count):
        if len(found) >= count:
            break
        found[repaired(near(parents[rng.integers(len(parents))]))] = None
    return list(found)


def norms_of(network: Loaded) -> float:
    """Sum the Frobenius norms of the decoder's matrices, as they are now."""
    return sum(
        float(handle.linear(name).weight.double().norm())
        for handle in network.handles
        for name in (*handle.inputs, handle.output)
    )


def noisy(basis: Basis, loaded: Loaded, seed: int) -> tuple[Basis, dict[Any, torch.Tensor]]:
    """Give the basis and the input matrices with noise in all weights."""
    generator = torch.Generator().manual_seed(seed)

    def shaken(weight: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(weight.shape, generator=generator)
        return weight + NOISE * float(weight.std()) * noise

    refits = tuple(
        None
        if refit is None or number
        else {
            key: replace(fitted, weight=shaken(fitted.weight))
            for key, fitted in refit.items()
            if fitted.weight is not None
        }
        for number, refit in enumerate(basis.refits)
    )
    inputs = {
        (handle.site.id, name): shaken(handle.linear(name).weight.detach())
        for handle in loaded.handles
        for name in handle.inputs
    }
    return replace(basis, refits=refits), inputs


def sharpness(epochs: Epochs, pool: Sequence[Policy], times: int) -> Floats:
    """Give how much noise in the weights adds to the loss on the calibration samples."""
    bench, basis = bench_of(epochs), epochs.basis_of(0)
    asked = ask(bench.loaded, bench.proxy)

    def losses(under: Basis) -> Floats:
        found = [answers(bench.loaded, under, policy, asked).log_probability for policy in pool]
        return np.asarray(-np.maximum(np.array(found), -20).mean(1))

    calm, rough = losses(basis), []
    for seed in range(times):
        shaken, inputs = noisy(basis, bench.loaded, seed)
        before = {}
        for handle in bench.loaded.handles:
            for name in handle.inputs:
                weight = handle.linear(name).weight
                before[handle.site.id, name] = weight.detach().clone()
                weight.data.copy_(inputs[handle.site.id, name])
        try:
            rough.append(losses(shaken))
        finally:
            for handle in bench.loaded.handles:
                for name in handle.inputs:
                    handle.linear(name).weight.data.copy_(before[handle.site.id, name])
    return np.asarray(np.mean(rough, axis=0) - calm)


def static_risks(epochs: Epochs, pool: Sequence[Policy], times: int) -> dict[str, Floats]:
    """Give the forms of risk that do not depend on a draw, by policy."""
    bench, basis = bench_of(epochs), epochs.basis_of(0)
    refit = basis.refits[WHOLE]
    sums = []
    for policy in pool:
        with narrowed(bench.loaded, policy, basis.order, refit) as network:
            sums.append(norms_of(network))
    # Norms are taken of the model as it came: arranged, rows have other places.
    arranged_order = replace(
        basis.order, units={site: np.arange(len(u)) for site, u in basis.order.units.items()}
    )
    table = risk_table(
        bench.loaded, arranged_order, bench.bundle.widths, form="refit", refit=refit
    )
    return {
        STATIC[0]: np.array([bench.risk(policy) for policy in pool]),
        STATIC[1]: np.array([risk(policy, bench.loaded, table) for policy in pool]),
        STATIC[2]: np.array(sums),
        STATIC[3]: sharpness(epochs, pool, times),
    }


@dataclass(frozen=True)
class Sheet:
    """Pictures with several questions each: what comes before the question is read once.

    Attributes:
        pictures: The part of the prompt that the questions of a picture share.
        tails: Shape ``(questions, tokens)``: the rest of each prompt, padded on the right.
        ends: Shape ``(questions,)``: where each tail ends.
        shown: Shape ``(questions,)``: the picture of each.
        batch: The questions, for scoring.
    """

    pictures: Seen
    tails: torch.Tensor
    ends: torch.Tensor
    shown: torch.Tensor
    batch: Batch

    @torch.inference_mode()
    def answered(self, network: Loaded) -> Scores:
        """Let a network answer."""
        _, cache = read_into(network, self.pictures)
        cache.batch_select_indices(self.shown)
        found = network.model(
            input_ids=self.tails, past_key_values=cache, logits_to_keep=self.tails.shape[1]
        )
        rows = torch.arange(len(self.tails))
        return Scores.of([weighed(found.logits[rows, self.ends - 1][:, None], self.batch)])


def sheets_of(loaded: Loaded, samples: Sequence[Sample], each: int) -> list[Sheet]:
    """Put samples on sheets; each picture has ``each`` samples, one behind the other."""
    found = []
    for start in range(0, len(samples), 52 * each):
        mine = samples[start : start + 52 * each]
        place = {sample.id: index for index, sample in enumerate(mine)}
        (batch,) = encode(loaded.processor, mine, batch_size=len(mine))  # which sorts them
        here = torch.tensor([place[sample.id] for sample in batch.samples])
        real = batch.inputs["attention_mask"].bool()
        rows = [row[mask] for row, mask in zip(batch.inputs["input_ids"], real, strict=True)]
        shared = 0
        while all(len(row) > shared + 1 and row[shared] == rows[0][shared] for row in rows):
            shared += 1
        tails = [row[shared:] for row in rows]
        ends = torch.tensor([len(tail) for tail in tails])
        padded = torch.zeros((len(tails), int(ends.max())), dtype=torch.long)
        for line, tail in zip(padded, tails, strict=True):
            line[: len(tail)] = tail
        first = here.argsort()[::each]  # rows of a question about each picture
        prefix = torch.stack([rows[row][:shared] for row in first.tolist()])
        inputs = {
            "input_ids": prefix,
            "attention_mask": torch.ones_like(prefix),
            "pixel_values": batch.inputs["pixel_values"][first],
        }
        found.append(Sheet(look(loaded, inputs), padded, ends, here // each, batch))
    return found


def questions_of(count: int, each: int = 4) -> list[Sample]:
    """Draw ``each`` questions about every picture of fours that no proxy of seed 0 has shown."""
    task = Digits(seed=0, validation=count * 25 // 65 // each, test=count * 40 // 65 // each)
    _, held_out = scans()
    rng = np.random.default_rng(20)
    made = []
    for sample in (*task.samples(Split.VALIDATION), *task.samples(Split.TEST)):
        digits = digits_of(sample, held_out)
        for number in range(each):
            question, answer = ask_about(digits, rng)
            told = f"{sample.id}-{number}"
            made.append(replace(sample, id=told, question=question, answer=answer))
    return made


def digits_of(sample: Sample, pool: Scans) -> NDArray[np.int64]:
    """Read from a picture which digits it shows."""
    pixels = np.asarray(sample.picture())[:, :, 0]
    tiles = pixels.reshape(2, 16, 2, 16).transpose(0, 2, 1, 3).reshape(4, 16, 16)[:, ::2, ::2]
    known = (pool.pixels * 255).round().astype(np.uint8)
    return np.array([pool.labels[(known == tile).all((1, 2)).argmax()] for tile in tiles])


def ask_pool(lab: Lab, place: Path) -> dict[str, Any]:
    """Ask the pool everything once, a part of it at a time; write one file of arrays."""
    form = lab.form
    count, questions = form.pick(500, 48, 12), form.pick(4040, 780, 260)
    with lab.opened("first", 0, AROUND) as epochs:
        loop.search(epochs)
        bench, basis = bench_of(epochs), epochs.basis_of(0)
        pool = pool_of(epochs, count)
        sheets = sheets_of(bench.loaded, questions_of(questions), 4)
        samples = [sample for sheet in sheets for sample in sheet.batch.samples]
        parts = []
        for start in range(0, count, PART):
            part = place.with_name(f"{place.stem}-{start:03d}.npz")
            if not part.is_file():
                scores = []
                for policy in pool[start : start + PART]:
                    with running(bench.loaded, basis, policy) as network:
                        scores.append(Scores.joined([s.answered(network) for s in sheets]))
                hits = np.packbits(np.array([mine.hit > 0 for mine in scores]), axis=1)
                logs = np.array([np.maximum(s.log_probability, -20) for s in scores], np.float16)
                kept = np.array([policy.keep for policy in pool[start : start + PART]], np.int16)
                with part.with_suffix(".draft").open("wb") as file:
                    np.savez_compressed(file, hit=hits, log=logs, keep=kept)
                part.with_suffix(".draft").replace(part)
                print(f"pool: {start + len(scores)} of {count}", flush=True)
            parts.append(part)
        joined = {
            name: np.concatenate([np.load(part)[name] for part in parts])
            for name in ("hit", "log", "keep")
        }
        if not (joined["keep"] == [policy.keep for policy in pool]).all():
            raise SystemExit(f"{parts[0]} and others are of another pool: remove them.")
        arrays: dict[str, Any] = joined | {
            "share": np.array([policy.kept_share(bench.anatomy) for policy in pool]),
            "unit": np.unique([sample.unit for sample in samples], return_inverse=True)[1],
            **{f"risk {name}": x for name, x in static_risks(epochs, pool, 3).items()},
        }
        with place.open("wb") as file:
            np.savez_compressed(file, **arrays)
        for part in parts:
            part.unlink()
    fours = len({sample.unit for sample in samples})
    return {"policies": count, "questions": len(samples), "fours": fours}


@dataclass(frozen=True)
class Pool:
    """Answers of all policies to all questions.

    Attributes:
        hit: Shape ``(policies, questions)``.
        log: Log-probability of the right answer, of the same shape.
        unit: Shape ``(questions,)``: the four of digit images.
        static: Forms of risk by name, shape ``(policies,)``.
        share: Kept shares.
    """

    hit: Floats
    log: Floats
    unit: NDArray[np.int64]
    static: Mapping[str, Floats]
    share: Floats

    @staticmethod
    def read(place: Path) -> Pool:
        """Read a file of `ask_pool`."""
        with np.load(place) as found:
            log = found["log"].astype(float)
            hit = np.unpackbits(found["hit"], axis=1)[:, : log.shape[1]].astype(float)
            static = {n.removeprefix("risk "): found[n] for n in found if n.startswith("risk ")}
            return Pool(hit, log, found["unit"].astype(int), static, found["share"])


def halves(units: NDArray[np.int64], rng: np.random.Generator) -> tuple[Any, Any]:
    """Deal the units in two halves; give the questions of each."""
    every = rng.permutation(np.unique(units))
    first = np.isin(units, every[: len(every) // 2])
    return np.flatnonzero(first), np.flatnonzero(~first)


def drawn_risks(hit: Floats, log: Floats, rng: np.random.Generator) -> dict[str, Floats]:
    """Give the forms of risk that a draw itself tells, by policy.

    ``margin``: the share of samples that were answered right, but barely (probability below
    0.6). ``bootstrap variance``: of the mean probability of the right answer.
    """
    chance = np.exp(log)
    return {
        DRAWN[0]: ((hit > 0) & (chance < 0.6)).mean(1),
        DRAWN[1]: chance.var(axis=1, ddof=1) / chance.shape[1],
        DRAWN[2]: rng.random(len(hit)),
    }


def ranks(values: Floats) -> Floats:
    """Rank values from 1; equals share the mean of their ranks."""
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
    """Scale to mean 0 and deviation 1."""
    return np.asarray((values - values.mean()) / (values.std() or 1.0), dtype=np.float64)


def resample(pool: Pool, samples: int, draws: int) -> dict[str, Any]:
    """Take proxy draws of some size; give what choosing on them does, draw by draw."""
    rows: dict[str, list[Any]] = defaultdict(list)
    for draw in range(draws):
        rng = np.random.default_rng([samples, draw])
        inside, outside = halves(pool.unit, rng)
        mine = rng.choice(inside, size=min(samples, len(inside)), replace=False)
        hit, log = pool.hit[:, mine], pool.log[:, mine]
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
    """Give means with intervals; of picks by eta, the differences to eta 0.

    An eta that is chosen by the even draws is judged by the odd ones.
    """
    found: dict[str, Any] = {}
    for name, values in rows.items():
        if not name.startswith("eta"):
            found[name] = mean(values).parts
            continue
        ahead = np.array(values)[:, 1:] - np.array(values)[:, :1]
        best = int(ahead[::2].mean(0).argmax())
        found[name] = {
            f"{eta:g}": mean(row).parts for eta, row in zip(ETAS[1:], ahead.T, strict=True)
        }
        found[name]["chosen"] = [ETAS[1 + best], *mean(ahead[1::2, best]).parts]
    return found


def resampled(lab: Lab, samples: int) -> dict[str, Any]:
    """Give what choosing on draws of some size does."""
    draws = lab.form.pick(300, 100, 10)

    def make() -> dict[str, Any]:
        return {"samples": samples, "draws": draws} | resample(ensure_pool(lab), samples, draws)

    return lab.unit(f"resample-{samples}", make)


def pool_file(lab: Lab) -> Path:
    """Say where the answers of the pool lie: 4 MB, beside the results only if they are small."""
    return (HERE / "scratch" if lab.form.published else lab.form.folder) / "pool.npz"


def ensure_pool(lab: Lab) -> Pool:
    """Read the pool; ask it first, if there is none."""
    place = pool_file(lab)
    if not place.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        lab.unit("risk-pool", lambda: ask_pool(lab, place))
    return Pool.read(place)
