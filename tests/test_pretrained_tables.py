"""The scripts of benchmarks/smollm, without the pretrained model: questions, adapters, tables."""

from __future__ import annotations

import re
import statistics
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from effllava_optuna.calibration.calibration_run import calibration_batch
from effllava_optuna.policy import Kind
from effllava_optuna.surgery import PruningOptions, rank_and_compensate, table_tensors
from tests.conftest import rows, script

if TYPE_CHECKING:
    from collections.abc import Iterator

    from effllava_optuna.surgery import LoadedModel
    from effllava_optuna.tasks import Batch

_FOLDER = Path(__file__).parents[1] / "benchmarks" / "smollm"


def _smollm(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(_FOLDER))
    return script(name)


def _row(right: list[int], asked: list[int], **figures: Any) -> dict[str, Any]:
    return {"right": right, "asked": asked, "perplexity": 30.0, "agreement": 0.5} | figures


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("is there a blue shape?", "yes"), ("is there a red shape?", "no"),
        ("does the image not contain a blue shape?", "no"), ("is no circle present?", "yes"),
        ("is a triangle present?", "yes"), ("is there not a triangle?", "no"),
    ],
)  # fmt: skip
def test_the_answer_follows_from_colour_and_shape(
    text: str, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    balanced, packages = (
        _smollm(name, monkeypatch) for name in ("_balanced_questions", "_packages")
    )
    seen = packages.COLOURS.index("blue"), packages.SHAPES.index("triangle")
    assert balanced.answer_to(text, *seen) == answer


def test_half_of_the_questions_are_about_what_the_picture_shows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    balanced, packages = (
        _smollm(name, monkeypatch) for name in ("_balanced_questions", "_packages")
    )
    image, unknown = Path("0.png"), Path("1.png")
    names = (*packages.COLOURS, *packages.SHAPES)
    asked = [packages.Question(f"is there a {name} shape?", "no", unknown) for name in names]
    asked.append(packages.Question("what color is the shape?", "blue", image))
    draws = balanced.BalancedQuestions(asked, {image: (1, 2), unknown: (-1, 0)})
    assert [*draws.seen] == [image]
    first, *others = draws.drawn(image, 6, np.random.default_rng(0))
    assert first.answer == "blue"
    assert [question.answer for question in others] == ["no", "yes"] * 3


def test_merged_adapters_compute_what_peft_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    adapters = _smollm("_adapters", monkeypatch)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    adapted, merged = LlamaModel(config).eval(), LlamaModel(config).eval()
    merged.load_state_dict(adapted.state_dict())
    ids = torch.arange(8)[None]
    with torch.no_grad():
        before = adapted(ids).last_hidden_state
        generator = torch.Generator().manual_seed(0)
        for weight in adapters.add_adapters(adapted):
            weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
        tensors = adapters.adapter_tensors(adapted)
        expected = adapted(ids).last_hidden_state
        adapters.merge_adapters(merged, tensors)
        assert len(tensors) == 2 * 7 * config.num_hidden_layers
        assert (merged(ids).last_hidden_state - expected).abs().max() < 1e-5
        assert (before - expected).abs().max() > 1e-3


def test_shared_moments_fit_what_each_importance_fits_alone(
    tiny: LoadedModel, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared_moments = _smollm("_shared_moments", monkeypatch)
    folds = [[calibration_batch(batch)], [calibration_batch(batch.select(torch.arange(4)))]]
    widths = {c.id: [c.width // 2, c.width] for c in tiny.structure.components}
    shared = shared_moments.SharedMoments(tiny, folds, widths)
    for importance in ("wanda", "obs"):
        for compensation in ("bias", "least-squares"):
            options = PruningOptions(importance=importance, compensation=compensation)
            alone = rank_and_compensate(tiny, folds, widths, options)
            state = shared.weight_state(shared.ranking(importance), compensation)
            for component, units in alone.ranking.units.items():
                assert np.array_equal(units, state.ranking.units[component])
            tensors, expected = (
                table_tensors(state.compensations),
                table_tensors(alone.compensations[:1]),
            )
            compared = [
                name
                for name in expected
                if compensation == "bias"
                or any(alone.damping[c] == shared.damping[c] for c in alone.damping if c in name)
            ]
            assert compared
            for name in compared:
                assert (tensors[name] - expected[name]).abs().max() < 1e-5


def test_differences_are_paired_by_picture() -> None:
    cells = script("_network_rows")
    asked = [4] * 6
    better, worse = _row([4, 4, 3, 4, 2, 4], asked), _row([1, 2, 1, 2, 0, 1], asked)
    gain = cells.gain_cell({0: better}, {0: worse})
    assert gain.startswith("**+0.583 [+0.")
    assert gain.endswith("]**")
    both = cells.gain_cell({0: better, 1: worse}, {0: worse, 1: better})
    assert both.startswith("+0.000 [-0.")
    assert cells.gain_cell({}, {}) == cells.accuracy_cell({}) == "-"
    assert cells.accuracy_cell({0: better}).startswith("0.875 [0.")
    other = worse | {"perplexity": 50.0}
    assert cells.mean_cell({0: better, 1: other}, "perplexity") == "40 (30 to 50)"
    assert cells.mean_cell({0: better | {"perplexity": 12345.6}}, "perplexity") == "12,300"


def test_draws_that_only_one_network_has_do_not_count() -> None:
    cells, asked = script("_network_rows"), [4, 4]
    rows = {1: _row([4, 2], asked), 2: _row([0, 0], asked)}
    others = {0: _row([4, 4], asked), 1: _row([2, 1], asked)}
    gain = cells.gain_of(rows, others)
    assert gain.value == 3 / 8
    assert gain.count == 2
    assert cells.gain_of({0: rows[1]}, {1: rows[1]}).count == 0


def test_the_table_of_one_shot_pruning_has_what_was_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one_shot = _smollm("one_shot", monkeypatch)
    records = {
        ("smollm-vlm", seed, *pruning.record_id("", 0).key[3:]): _row([3, 2], [4, 4])
        for seed in range(2)
        for pruning in map(one_shot.Pruning, ("obs", "obs"), ("none", "least-squares"), (0.5, 0.5))
    }
    records["smollm-vlm", 1, "obs", "least-squares", 0.5] = _row([4, 4], [4, 4])
    for model in ("smollm-vlm", "smollm2"):
        records[model, 0, "dense", "dense", 1.0] = _row([4, 4], [4, 4])
    table = rows(one_shot.section(records, range(2)))
    assert not any(row[:2] == ["obs", "bias"] for row in table)
    assert {row[0] for row in table} == {"obs", "obs, least-squares minus obs, none"}
    accuracy = next(row for row in table if row[:2] == ["obs", "least-squares"])
    assert accuracy[2:5] == ["-", "-", "-"]
    assert accuracy[5].startswith("0.812 [")
    gain = next(row for row in table if row[0] == "obs, least-squares minus obs, none")
    assert gain[4].startswith("+0.188 [")


def test_the_table_of_searches_compares_with_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    searches, evidence = _smollm("searches", monkeypatch), script("_evidence")
    form = evidence.Form("full", 1, {}, Path(), published=False)
    found = {"measured": 1.5, "keep_ratio": 0.6, "evaluations": 48}
    records = {
        (0, "dense", 1.0): _row([4, 4], [4, 4]),
        (0, "the default search", 1.5): _row([4, 3], [4, 4], **found),
        (0, "uniform", 1.5): _row([2, 2], [4, 4], **found),
    }
    table = rows(searches.section(records, form))
    (uniform,) = (row for row in table if row[0] == "uniform")
    assert uniform[1] == "1"
    assert uniform[3] == "**-0.375 [-0.500, -0.250]**"
    names = ["dense", "a constant answer", "the default search", "uniform"]
    assert [row[0] for row in table] == names


def test_layer_dropping_removes_the_least_influential_blocks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    layer_dropping, cases = _smollm("_layer_dropping", monkeypatch), script("_cases")
    form = replace(script("_evidence").parse_form("", ["--tiny"]), folder=tmp_path)
    with script("_studies").StudyRunner(form).open("first", 0, cases.FIXED) as session:
        dropping = layer_dropping.LayerDropping(session)
        (encoded, *_) = session.evaluator.proxy.likelihood
        inputs, model = encoded.batch.inputs, dropping.loaded.model
        blocks = [block.module for block in dropping.loaded.blocks]
        with torch.no_grad():
            states = model(**inputs, output_hidden_states=True).hidden_states
        cosines = torch.nn.functional.cosine_similarity(states[0], states[1], dim=-1)
        influence = float((1 - cosines)[inputs["attention_mask"].bool()].mean())
        policy = dropping.policy(1)
        with dropping.network(policy) as network, torch.no_grad():
            narrow = network.model(**inputs).logits
        with torch.no_grad():
            dense = model(**inputs).logits
    assert sorted(dropping.order) == [*range(len(blocks))]
    assert 0 < influence < 2
    assert [
        w
        for c, w in zip(policy.structure.components, policy.widths, strict=True)
        if c.kind is Kind.BLOCK
    ].count(0) == 1
    assert (narrow - dense).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("small", "large", "verdict"),
    [
        ((0.1, 0.05, 0.2), (0.2, 0.1, 0.3), "yes"),
        ((0.1, 0.05, 0.2), (-0.2, -0.3, -0.1), "**no**"),
        ((0.0, -0.1, 0.1), (0.1, -0.1, 0.3), "yes: undecided"),
        ((0.1, 0.05, 0.2), (0.1, -0.1, 0.3), "decided on the digits model only"),
        ((0.0, -0.1, 0.1), (0.2, 0.1, 0.3), "decided on the pretrained model only"),
    ],
)
def test_two_findings_agree_if_both_are_decided_with_one_sign(
    small: tuple[float, ...], large: tuple[float, ...], verdict: str
) -> None:
    answers, means = script("_pretrained_answers"), script("_means")
    assert answers.verdict(means.Mean(*small, 5), means.Mean(*large, 3)) == verdict


def test_findings_compare_the_draws_that_both_methods_have(tmp_path: Path) -> None:
    answers, claims = script("_pretrained_answers"), script("_claims")
    limit = answers.SPEEDUP
    keys = [("network", seed, name, limit) for seed in (0, 1) for name in ("random", "uniform")]
    keys = [("network", 0, "the default search", limit), *keys]
    figures = {key: _row([4, 2], [4, 4]) for key in keys}
    figures["network", 0, "random", limit] = _row([1, 0], [4, 4])
    script("_records").add_records(tmp_path / "smollm_searches.jsonl", figures)
    gain = script("_means").Mean(-0.07, -0.1, -0.04, 10)
    records = answers.records_in(tmp_path)
    assert answers.agreement_section(answers.comparisons_of(records, [])) == ""
    claim = claims.Claim("search.sampler", "random", gain, None, "s")
    comparisons = answers.comparisons_of(records, [claim])
    table = rows(answers.agreement_section(comparisons))
    assert answers.agreement_of(comparisons, "search") == "agrees in 1 of 1 comparison (below)."
    assert answers.agreement_of(comparisons, "risk") == "not measured."
    finding = ["the default search against random", "+0.070 [+0.040, +0.100]"]
    assert table == [[*finding, "+0.625 [+0.500, +0.750]", "1", "yes"]]


def test_every_finding_has_its_claim_about_the_digits_models() -> None:
    answers, evidence, records = (
        script(name) for name in ("_pretrained_answers", "_evidence", "_results")
    )
    models = {"first": evidence.EMBEDDED, "second": evidence.SECOND}
    form = evidence.Form("full", 50, models, records.RESULTS, published=False, report=True)
    claims = script("_claims").all_claims(script("_studies").StudyRunner(form))
    for finding in answers.FINDINGS:
        gain = finding.digits_gain(claims)
        assert gain is not None, finding.text
        assert gain.count >= 5


@pytest.mark.parametrize("name", ["engines", "exported_speed"])
def test_speed_on_a_cpu_is_measured_on_no_other_device(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    searches = _smollm("searches", monkeypatch)
    assert searches.pretrained_form("", ["--report", "--device", "cuda"]).device == "cuda"
    with pytest.raises(SystemExit):
        _smollm(name, monkeypatch).main(["--report", "--device", "cuda"])
    assert "unrecognized arguments: --device cuda" in capsys.readouterr().err


def test_the_readme_quotes_the_search_of_image_tokens_and_widths() -> None:
    records = script("_records").read_records(script("_results").RESULTS / "smollm_tokens.jsonl")
    network = script("_network_rows")

    def of(method: str, speedup: float) -> dict[int, Any]:
        rows = {seed: records["network", seed, method, speedup] for seed in range(5)}
        return {seed: row for seed, row in rows.items() if not row.get("unreachable")}

    def mean(rows: dict[int, Any], field: str) -> float:
        assert len(rows) == 5
        return float(statistics.mean(row[field] for row in rows.values()))

    def accuracy(rows: dict[int, Any]) -> str:
        return f"{network.accuracy_of(rows)[0]:.3f}"

    text = " ".join((_FOLDER.parents[1] / "README.md").read_text(encoding="utf-8").split())
    both, widths, dense = of("both", 1.8), of("widths alone", 1.8), of("dense", 1.0)
    assert (
        f"together keep an accuracy of {accuracy(both)} (dense: {accuracy(dense)}) at "
        f"{mean(both, 'measured'):.2f} times the speed, with {100 * mean(both, 'keep_ratio'):.0f} "
        f"% of the weights; widths alone {accuracy(widths)} at {mean(widths, 'measured'):.2f} "
        f"times, with {100 * mean(widths, 'keep_ratio'):.0f} % (not decided)" in text
    )
    assert not network.gain_of(widths, both).decided
    perplexities = [mean(rows, "perplexity") for rows in (both, widths, dense)]
    assert "perplexity {:,.0f} and {:,.0f} (dense: {:.0f})".format(*perplexities) in text
    fastest = of("both", 2.5)
    reached = f"reach {mean(fastest, 'measured'):.2f} times: {accuracy(fastest)}"
    assert f"Only together they {reached}." in text
    assert not of("widths alone", 2.5)
    assert not of("image tokens alone", 2.5)
    alone = of("image tokens alone", 1.8)
    assert {row["image_tokens"] for row in alone.values()} == {22}
    fewer = f"with 22 % of them {mean(alone, 'measured'):.1f} times the speed"
    assert f"Image tokens alone: {fewer}, and no loss" in text
    assert network.gain_of(alone, dense).value >= 0
    # Records are rounded to 0.001.
    assert mean(alone, "perplexity") == pytest.approx(mean(dense, "perplexity"), abs=1e-3)


def test_the_picture_of_searches_is_that_of_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    searches = _smollm("searches", monkeypatch)
    tables = searches.SearchTables(searches.pretrained_form("", ["--report"]))
    records = {each.key[1:]: row for each, row in tables.runner.existing(tables.ids()).items()}
    drawn = searches.picture(records, tables.form)
    assert searches.PICTURE.read_text(encoding="utf-8") == drawn
    measured = sum(
        (method, speedup) == key[1:] and key[0] == 0
        for key in records
        for method in searches._DRAWN
        for speedup in searches.SPEEDUPS
    )
    assert drawn.count("<circle") == 2 * measured


def test_curves_share_a_legend_and_stay_in_their_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    curves = _smollm("_curves", monkeypatch)
    points = [curves.Point(1.5, 0.5, 0.25, 1.0), curves.Point(3.0, 1.0, 1.0, 1.0)]
    panel = curves.Panel("title", "x", "y", {"a < b": points}, ("dense", 0.9))
    drawn = curves.draw_panels("Title", [panel, panel])
    assert drawn.count("a &lt; b") == 1
    places = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)]
    (first, second), (third, fourth) = places[:2], places[2:]
    assert first[0] < second[0] < third[0] < fourth[0]
    assert first[1] > second[1]
    assert (first[1], second[1]) == (third[1], fourth[1])


def test_the_readme_quotes_the_speed_in_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = _smollm("engines", monkeypatch)
    records = script("_records").read_records(engines.RESULTS / "smollm_engines.jsonl")
    rounds = [record for (_, model, _), record in records.items() if model == engines.MODEL]
    assert len(rounds) == engines.ROUNDS
    prefill, decode = (
        [
            f"{np.median(engines.speedups(rounds, name, engines.PROGRAMMING, '1', phase)):.2f}"
            for name in ("transformers", "vLLM", "llama.cpp")
        ]
        for phase in ("prefill", "decode")
    )
    text = " ".join((_FOLDER.parents[1] / "README.md").read_text(encoding="utf-8").split())
    first = f"{prefill[0]} times the tokens per second of the dense model in transformers"
    assert f"{first}, {prefill[1]} in vLLM and {prefill[2]} in llama.cpp" in text
    assert "generated {}, {} and {} times".format(*decode) in text


def test_the_page_of_recovery_quotes_the_durations(monkeypatch: pytest.MonkeyPatch) -> None:
    recovered = _smollm("recovered", monkeypatch)
    every = script("_records").read_records(recovered.RESULTS / "smollm_recovery.jsonl")
    records = [record for (_, draw, _), record in every.items() if draw == 0]
    seconds = [record["recovery"]["seconds"] for record in records]
    text = " ".join((_FOLDER.parents[1] / "docs" / "recovery.md").read_text("utf-8").split())
    assert {record["provenance"]["threads"] for record in records} == {1}
    assert {record["recovery"]["held_out"][-1][0] for record in records} == {100}
    assert f"took {min(seconds):.0f} to {max(seconds):.0f} s (`recovery.seconds` of draw 0" in text
    assert f"{max(record['cpu_s'] for record in records):,.0f} s of CPU time in all" in text


def test_the_page_of_serving_quotes_the_shares_of_the_ideal_speedup(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engines = _smollm("engines", monkeypatch)
    records = script("_records").read_records(engines.RESULTS / "smollm_engines.jsonl")
    shares: dict[str, list[float]] = {"prefill": [], "decode": []}
    for model in (engines.LANGUAGE_MODEL, engines.MODEL):
        rounds = [record for (_, other, _), record in records.items() if other == model]
        costs = rounds[0]["costs"]
        for engine, by_name in rounds[0]["rates"].items():
            for name, batch, phase in product(costs, by_name[engines.DENSE], shares):
                ratio = np.median(engines.speedups(rounds, engine, name, batch, phase))
                if name != engines.DENSE:
                    shares[phase].append(ratio * costs[name][phase] / costs["dense"][phase])
    first, last = (f"{100 * min(each):.0f} to {100 * max(each):.0f} %" for each in shares.values())
    page = (_FOLDER.parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")
    text = " ".join(page.split())
    assert f"{first} of the ideal speed-up of the prefill" in text
    assert f"{last} of that of decoding" in text


def test_the_dense_model_answers_before_a_policy_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Policies are compared with its answers, also if the first thing measured is a policy."""
    module = _smollm("_pretrained_search", monkeypatch)
    running: list[str] = []
    answered_while: list[list[str]] = []

    @contextmanager
    def policy_network(*_: Any) -> Iterator[None]:
        running.append("a policy")
        yield
        running.clear()

    class Measures:
        def __init__(self, *_: Any) -> None:
            answered_while.append([*running])

        def figures(self, _: Any) -> dict[str, float]:
            return {"agreement": float(len(running))}

        def accuracy(self, *_: Any) -> float:
            return float(len(running))

    monkeypatch.setattr(module, "policy_network", policy_network)
    monkeypatch.setattr(module, "NetworkMeasures", Measures)
    monkeypatch.setattr(module, "load_once", lambda *_: None)
    monkeypatch.setattr(module, "measured_speedup", lambda *_: 1.5)
    latency = SimpleNamespace(dense_total_ms=3.0, predict=lambda _: 2.0)
    evaluator = SimpleNamespace(loaded=None, calibration=SimpleNamespace(latency=latency))
    monkeypatch.setattr(module, "evaluator_of", lambda _: evaluator)
    policy = SimpleNamespace(widths=(1, 2), keep_ratio=0.5)
    form = SimpleNamespace(models={module.MODEL: ""}, device="cpu", pick=max)
    runner = SimpleNamespace(form=form)
    first, second = (module.PretrainedDraw(runner, seed) for seed in range(2))
    assert first.policy_figures(None, policy, None)["agreement"] == 1
    assert second.validation(None, policy, None) == 1
    assert answered_while == [[], []]


def test_the_gain_in_context_is_what_the_page_about_the_method_says() -> None:
    """With half of the weights: agreement with the dense answers about words."""
    records = script("_records").read_records(_FOLDER.parent / "results/smollm_one_shot.jsonl")

    def agreement(*network: str) -> float:
        return float(
            np.mean(
                [
                    records["pruned", "smollm2", seed, *network, 0.5]["agreement"]
                    for seed in range(3)
                ]
            )
        )

    def gain(importance: str) -> int:
        fitted = agreement(importance, "in context") - agreement(importance, "least-squares")
        return round(100 * fitted)

    gains = sorted(map(gain, ("wanda", "flap", "taylor", "obs")))
    page = " ".join((_FOLDER.parents[1] / "docs/method.md").read_text(encoding="utf-8").split())
    assert (
        f"dense answers about words is {gains[0]} to {gains[-1]} points higher, and "
        f"{gain('magnitude')} under the bad ranking by magnitude" in page
    )
