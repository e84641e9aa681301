"""The scripts that compare studies run, and the pages show what was measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from docs import generate
from effllava_optuna.config.schema import StudyConfig
from effllava_optuna.study import load_config
from tests.conftest import page_of, rows, script

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "benchmarks" / "results"
SCRIPTS = ("overfit", "risk", "projector", "evolution", "ablation", "transfer", "agreement")


def value_of(config: StudyConfig, setting: str) -> Any:
    table, _, key = setting.partition(".")
    return getattr(getattr(config, table), key)


@pytest.fixture(scope="module")
def learned() -> tuple[Any, Any, Any]:
    """Return the module, a runner that only reads records, and all claims."""
    module, evidence = script("learned"), script("_evidence")
    models = {"first": evidence.EMBEDDED, "second": evidence.SECOND}
    form = evidence.Form(
        name="full", seeds=50, models=models, folder=RECORDS, published=False, report=True
    )
    runner = script("_studies").StudyRunner(form)
    return module, runner, module.all_claims(runner)


def test_the_page_of_what_was_learned_is_that_of_the_records(
    learned: tuple[Any, Any, Any],
) -> None:
    module, runner, claims = learned
    published = (ROOT / "benchmarks" / "LEARNED.md").read_text(encoding="utf-8")
    pictures = module.pictures(runner, claims)
    assert module.page(runner, claims, pictures) == published
    assert page_of(module.EVIDENCE) == module.evidence(claims).strip()
    for name, picture in pictures.items():
        assert (ROOT / "docs" / "images" / name).read_text(encoding="utf-8") == picture


def test_each_default_links_to_the_measurements_of_its_alternatives(
    learned: tuple[Any, Any, Any],
) -> None:
    module, _, claims = learned
    measured = {
        "search.sampler", "search.curves", "search.screening", "search.trust_region",
        "quality.eta", "quality.risk", "pruning.importance", "pruning.compensation",
        "pruning.in_context", "search.epochs",
    }  # fmt: skip
    assert measured <= set(module.DEFAULTS)
    config = load_config(ROOT / "studies" / "quickstart.toml")
    keys, page = "\n".join(generate.study_file()), f"\n{page_of(module.EVIDENCE)}"
    for setting, value in module.DEFAULTS.items():
        assert value_of(config, setting) == value, setting
        of_setting = [claim for claim in claims if claim.setting == setting]
        assert of_setting, setting
        assert all(claim.gain.count >= 5 for claim in of_setting), setting
        against = [claim.other for claim in of_setting if claim.verdict == "against the default"]
        assert not against, setting
        name = script("_pages").page_of(module.EVIDENCE).name
        assert f"[why](../tables/{name}#{setting.replace('.', '')})" in keys
        (section,) = re.findall(rf"\n## `{setting}`\n(.*?)(?=\n## |\Z)", page, re.DOTALL)
        for claim in of_setting:
            assert f"| {claim.other} | {claim.gain.text('+')} | {claim.gain.count} |" in section
            assert page_of(claim.section)


@pytest.mark.parametrize("name", SCRIPTS)
def test_published_tables_are_those_of_the_records(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    script(name).main(["--report", "--out", str(RECORDS)])
    announced, _, section = capsys.readouterr().out.partition("\n")
    assert announced.endswith(" for 0 records.")
    assert section.strip() == page_of(script(name).TITLE)


def test_the_readme_shows_figures_of_the_records(capsys: pytest.CaptureFixture[str]) -> None:
    script("evolution").main(["--report", "--out", str(RECORDS)])
    measured, _, _ = capsys.readouterr().out.partition("\nThe same with at most")
    by_method = {row[0]: row for row in rows(measured)}
    methods = ("dense", "the default", "allocate, residual curves", "uniform by kind", "uniform")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for label, column in (
        ("test accuracy, `digits-vlm`", 1), ("minus the search, two models", 4),
    ):  # fmt: skip
        cells = " | ".join(by_method[method][column] for method in methods)
        assert f"| {label} | {cells} |" in readme
    assert all(by_method[method][-1] == "20" for method in methods)


def test_a_page_says_how_many_of_its_records_are_from_a_gpu(
    capsys: pytest.CaptureFixture[str],
) -> None:
    evidence = script("_evidence")
    form = evidence.Form(name="tiny", seeds=1, models={}, folder=Path(), published=False)
    origin = {"cpu": "a CPU", "cores": 2, "torch": "2.13", "date": "today", "commit": "abc"}
    on_gpu = origin | {"gpu": "a GPU", "commit": "def"}

    def last_line(*origins: dict[str, Any]) -> str:
        evidence.publish(form, "Title", "Text.", origins)
        return capsys.readouterr().out.splitlines()[-1]

    cpu = "a CPU, 2 shared cores; torch 2.13; today."
    assert last_line(origin, on_gpu) == f"{cpu} 1 of 2 records: a GPU. Commits: abc, def."
    assert last_line(origin) == f"{cpu} Commits: abc."
    assert last_line(on_gpu).startswith("a GPU; ")


def test_a_verdict_needs_enough_pairs_and_an_interval_without_0() -> None:
    module, mean = script("_claims"), script("_means").Mean

    def verdict(*parts: float) -> str:
        claim: str = module.Claim("a.b", "c", mean(*parts), None, "d").verdict
        return claim

    nan = float("nan")
    assert verdict(0.1, nan, nan, 1) == "too few"
    assert verdict(0.1, 0.05, 0.15, 4) == "too few"
    assert verdict(0.1, -0.05, 0.25, 5) == "undecided"
    assert verdict(0.1, 0.05, 0.15, 5) == "against the default"
    assert verdict(-0.1, -0.15, -0.05, 5) == "for the default"
    assert verdict(0.001, 0.0005, 0.0015, 300) == "the same"


def test_a_picture_of_means_shows_each_with_its_interval() -> None:
    chart, mean = script("_chart"), script("_means").Mean
    rows = [("a < b", mean(0.1, 0.05, 0.15, 5)), ("one", mean(-0.1, float("nan"), 0.0, 1))]
    drawn = chart.forest("Title", "axis", rows)
    assert drawn == chart.forest("Title", "axis", rows)
    assert drawn.count("<circle") == 2
    assert drawn.count('stroke-width="2"') == 1
    assert "a &lt; b" in drawn
    assert "+0.100 [+0.050, +0.150]" in drawn
    left, right = (float(x) for x in re.findall(r'circle cx="([\d.]+)"', drawn)[::-1])
    assert left < right


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of all records; scripts share some."""
    return tmp_path_factory.mktemp("evidence")


VARIANTS = [
    "no update",
    "one update after the search",
    "update each epoch (the default)",
    "no compensation, no update",
    "no compensation, update each epoch",
]
METHODS = ["dense", "the default", "NSGA-II, ours, alone", "uniform by kind", "uniform"]


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("overfit", ["16", "32", "64", "128", "256"]),
        (
            "risk",
            ["weight norm (paper)", "compensated norm", "sum of norms", "sharpness", "margin"],
        ),
        ("evolution", METHODS),
        ("projector", VARIANTS),
        ("ablation", ["the default", "cross-fitting: none"]),
        ("transfer", ["all kinds", "one digit", "prefill of 64"]),
        ("agreement", ["labels", "no labels"]),
    ],
)
@pytest.mark.benchmarks
@pytest.mark.usefixtures("unchanged")
def test_a_tiny_form_measures_its_records_once(
    name: str, first: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--tiny", "--out", str(folder)]
    threads = torch.get_num_threads()
    try:
        script(name).main(arguments)
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert re.match(r"About [\d.]+ hours of one core for \d+ records\.", printed)
    assert [row[0] for row in rows(printed)][: len(first)] == first
    assert "support no claim about" in printed
    records = {file: file.read_bytes() for file in folder.glob("*.jsonl")}
    assert folder / f"{name}.jsonl" in records
    script(name).main(arguments)
    again = capsys.readouterr().out
    assert " for 0 records." in again
    assert again.partition("Generated")[2] == printed.partition("Generated")[2]
    assert {file: file.read_bytes() for file in folder.glob("*.jsonl")} == records


def test_a_shared_prefix_changes_no_answer() -> None:
    from effllava_optuna import Policy, load, rank_units
    from effllava_optuna.objectives import encode_samples, score_policy
    from effllava_optuna.surgery import WeightState, arranged, policy_network
    from effllava_optuna.tasks import Scores

    prefixes = script("_prefixes")
    loaded = load("digits-vlm", device="cpu")
    ranking, policy = rank_units(loaded), Policy.uniform(loaded.structure, ratio=0.5)
    weight_state = WeightState("plain", ranking, (None,), (None,))
    samples = prefixes.questions_of(520)
    with arranged(loaded, ranking) as ready:
        plain = encode_samples(ready, samples)
        expected = score_policy(ready, weight_state, policy, plain)
        batches = prefixes.prefix_batches(ready, samples, 4)
        with policy_network(ready, weight_state, policy) as network:
            scores = Scores.concatenate([batch.scores(network) for batch in batches])
    scored = [sample.id for batch in batches for sample in batch.batch.samples]
    index_of = {sample_id: index for index, sample_id in enumerate(scored)}
    same = [index_of[sample.id] for item in plain for sample in item.batch.samples]
    assert len({sample.group for sample in samples}) == 65
    np.testing.assert_allclose(scores.log_probability[same], expected.log_probability, atol=1e-3)


def test_draws_and_test_share_no_images() -> None:
    groups = np.repeat(np.arange(9), 5)
    inside, outside = script("_draws").halves(groups, np.random.default_rng(0))
    assert len(inside) + len(outside) == 45
    assert not set(groups[inside]) & set(groups[outside])


def test_only_a_risk_that_predicts_the_gap_is_correlated_with_it() -> None:
    pool, draws, risks = script("_pool"), script("_draws"), script("_risks")
    rng = np.random.default_rng(0)
    skill = 0.7 + 0.2 * rng.random((80, 1))
    hit = (rng.random((80, 1000)) < skill).astype(float)
    log = np.log(np.where(hit > 0, 0.9, 0.1))
    noise = rng.random(80)
    forms = dict.fromkeys(risks.STATIC, noise) | {"compensated norm": -skill[:, 0]}
    scores = pool.Pool(
        hit=hit, log=log, groups=np.arange(1000) // 10, static=forms, keep_ratio=noise
    )
    figures = draws.resample(scores, 32, 60)
    assert figures["gap of the pick"][1] > 0  # the pick was lucky on the proxy
    assert figures["gap of all"][1] < 0 < figures["gap of all"][2]
    assert figures["top compensated norm"][1] > 0.2
    assert abs(figures["top sum of norms"][0]) < 0.15
    assert figures["eta compensated norm"]["0.05"][1] > 0


def test_an_interval_is_that_of_students_t() -> None:
    mean = script("_means").mean([1.0, 2.0, 3.0])
    assert mean.value == 2
    assert mean.high - mean.value == pytest.approx(4.303 / 3**0.5)
    assert script("_means").mean([1.0]).text() == "1.000 (one)"
