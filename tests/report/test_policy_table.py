"""The table of policies, its notes, and the summary."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from effllava_optuna.report import policy_table, status_lines, study_document
from effllava_optuna.report.policy_table import detail_notes
from tests.report.study_samples import (
    CALIBRATION,
    CONFIG,
    facts,
    finished,
    text_of,
    two_epochs,
    width_of,
)

if TYPE_CHECKING:
    from effllava_optuna.policy import ModelStructure
    from effllava_optuna.report import StudyFacts

HITS = {
    "dense": [1] * 40,
    "uniform_by_kind": [1] * 10 + [0] * 30,
    "7": [1] * 20 + [0] * 20,
}


def printed(study: StudyFacts) -> str:
    return text_of(policy_table(study_document(study)))


def test_the_chosen_policy_is_marked_and_compared(structure: ModelStructure) -> None:
    table = policy_table(study_document(finished(structure, HITS)))
    assert [row.cells[0] for row in table.rows] == [
        "dense", "uniform\nby kind", "trial 7\n(chosen)",
    ]  # fmt: skip
    assert [row.emphasized for row in table.rows] == [False, False, True]
    assert "0.500\n[0.000 1.000]" in table.rows[-1].cells
    notes = "\n".join(table.notes)
    assert "the best uniform-by-kind policy: difference +0.250 [" in notes


def test_the_summary_names_the_chosen_policy(structure: ModelStructure) -> None:
    _, chosen = status_lines(study_document(finished(structure, HITS, opened=0)))
    assert chosen.startswith("Trial 7 was chosen: 2.00 times as fast as the dense model, with ")
    assert "On test it loses 50.0 points of accuracy [" in chosen
    assert chosen.endswith("]: 0.500 instead of 1.000.")


def test_the_summary_says_what_was_gained(structure: ModelStructure) -> None:
    hits = {**HITS, "dense": [1] * 10 + [0] * 30}
    _, chosen = status_lines(study_document(finished(structure, hits, opened=0)))
    assert "On test it gains 25.0 points of accuracy [" in chosen
    assert chosen.endswith("]: 0.500 instead of 0.250.")


@pytest.mark.parametrize(
    ("search", "missed"),
    [
        ({"speedup": 1.99}, ""),
        ({"speedup": 2.25}, " The speed-up is less than search.speedup = 2.25 (predicted: 2.00)."),
        ({"latency_ms": 5.0}, ""),
        (
            {"latency_ms": 4.5},
            " Timed as a whole, it takes 5.0 ms, more than search.latency_ms = 4.5 (predicted: "
            "5.0).",
        ),
        ({"keep_ratio": 0.1}, ""),
    ],
)
def test_the_summary_says_that_a_budget_is_missed(
    structure: ModelStructure, search: dict[str, float], missed: str
) -> None:
    document = study_document(finished(structure, HITS))
    chosen = document["chosen"] | {"latency_ms": 5.0, "latency_ms_measured": 5.0}
    document |= {"config": {"search": search}, "chosen": chosen, "front": [chosen]}
    _, line = status_lines(document)
    assert line.endswith(f"instead of 1.000.{missed}{' No finalist meets it.' if missed else ''}")
    assert line.count("2.00 times as fast") == 1


@pytest.mark.parametrize(
    ("search", "option"),
    [({"speedup": 2.25}, "--speedup 2.25"), ({"latency_ms": 4.5}, "--latency-ms 4.5")],
)
def test_a_missed_budget_ends_with_the_command_that_picks_by_it(
    structure: ModelStructure, search: dict[str, float], option: str
) -> None:
    document = study_document(finished(structure, HITS))
    chosen = document["chosen"] | {"latency_ms_measured": 5.0}
    other = chosen | {"trial": 9, "latency_ms_measured": 4.0, "speedup_measured": 2.5}
    document |= {"config": {"search": search}, "chosen": chosen, "front": [chosen, other]}
    _, line, command = status_lines(document, "a.toml")
    assert line.endswith(" The best finalist that meets it:")
    assert "`" not in line
    assert command == f"effllava-optuna pick a.toml {option}"


@pytest.mark.parametrize(
    ("search", "after", "said"),
    [
        ({"latency_ms": 90.0}, 11.6, True), ({"latency_ms": 90.0}, 8.4, True),
        ({"latency_ms": 90.0}, 11.4, False), ({"speedup": 1.5}, 11.6, False),
    ],
)  # fmt: skip
def test_the_summary_says_that_the_dense_model_took_another_time(
    structure: ModelStructure, search: dict[str, float], after: float, said: bool
) -> None:
    document = study_document(finished(structure, HITS))
    dense = document["dense"] | {"latency_ms": 10.0, "latency_ms_measured": after}
    *_, line = status_lines(document | {"config": {"search": search}, "dense": dense})
    assert (" The dense model took 10.0 ms in calibration, by which" in line) == said
    assert (f"and {after:.1f} ms at the end" in line) == said


def test_the_table_is_as_narrow_as_a_terminal(structure: ModelStructure) -> None:
    document = study_document(finished(structure, HITS))
    billions = {"parameters": 6_738_415_616, "latency_ms": 12345.6, "latency_ms_measured": 12345.6}
    rows = {name: document[name] | billions for name in ("dense", "uniform_by_kind", "chosen")}
    table = policy_table(document | rows | {"front": [rows["chosen"]]})
    assert len(table.columns) == 8
    assert "6.74B" in table.rows[0].cells
    assert width_of(table) <= 100


def test_the_headings_name_the_measure_and_what_is_predicted(structure: ModelStructure) -> None:
    columns = policy_table(study_document(finished(structure, HITS))).columns
    assert columns[1:5] == (
        "accuracy\non proxy", "accuracy\non validation", "accuracy\non test",
        "speed-up\n(predicted)",
    )  # fmt: skip
    mixed = study_document(finished(structure, HITS, measures={"proxy": "agreement"}))
    assert policy_table(mixed).columns[1:3] == ("agreement\non proxy", "accuracy\non validation")


def test_the_status_says_that_a_study_is_not_calibrated(structure: ModelStructure) -> None:
    for study, said in ((facts(structure), True), (two_epochs(structure), False)):
        (line,) = status_lines(study_document(study))
        assert ("; it is not calibrated yet" in line) == said


def test_the_status_has_no_line_but_progress_and_conclusion(structure: ModelStructure) -> None:
    assert len(status_lines(study_document(two_epochs(structure)))) == 1
    assert len(status_lines(study_document(finished(structure, HITS)))) == 2


def test_a_study_under_way_has_no_values_on_test(structure: ModelStructure) -> None:
    assert "The search is not over" in printed(facts(structure, calibration=CALIBRATION))


def test_the_notes_have_one_error_of_the_latency_table(structure: ModelStructure) -> None:
    text = printed(facts(structure, calibration=CALIBRATION))
    assert "off by 3.0% on average for the latency of 2 random policies." in text
    study = finished(structure, HITS)
    assert study.results is not None
    for row in study.results["front"]:
        row["speedup_measured"] = 0.9 * row["speedup_predicted"]
    document = study_document(study)
    assert document["latency_table"]["finalists_error"] == pytest.approx(0.1)
    text = printed(study)
    assert "off by 10.0% on average for the speed-up of the 1 finalist." in text
    assert "random" not in text
    assert "the predicted latency of 2 random policies" in " ".join(detail_notes(document))


def test_the_notes_describe_the_timed_workload(structure: ModelStructure) -> None:
    study = facts(structure, calibration=CALIBRATION)
    assert "8 prompts of 640 tokens and 16 new tokens, in bfloat16 on a card." in printed(study)
    assert "timed" not in printed(study)


def details(study: StudyFacts) -> str:
    return "\n".join(detail_notes(study_document(study)))


def test_the_details_describe_how_the_latency_table_was_measured(
    structure: ModelStructure,
) -> None:
    text = details(facts(structure, calibration=CALIBRATION))
    assert "Each width was timed" not in text  # how often is not known of older tables
    assert "launch" not in text
    assert "an earlier study" not in text
    latency = CALIBRATION["latency"]
    for rounds, words in ((1, "1 time."), (6, "6 times.")):
        timed = CALIBRATION | {"latency": latency | {"rounds": rounds}}
        again = details(facts(structure, calibration=timed))
        assert f"Each width was timed {words}" in again
    latency = CALIBRATION["latency"] | {"launched": ["vision"]}
    config = CONFIG | {"latency": {"table": "tables.json"}}
    study = facts(structure, calibration=CALIBRATION | {"latency": latency}, config=config)
    text = details(study)
    assert "It includes the time to launch kernels: vision." in text
    assert "comes from tables.json: an earlier study" in text


def test_the_details_have_the_corrections_of_timed_fronts(structure: ModelStructure) -> None:
    update = dict(two_epochs(structure).updates[0]) | {"latency_factor": 0.82}
    assert "multiplies" not in details(two_epochs(structure, updates=[update]))  # was not timed
    timed = two_epochs(structure, updates=[update | {"latency_errors": [0.1, 0.2]}])
    assert "multiplies predicted savings by what these runs saved of them: 0.82." in details(timed)


def test_the_details_have_the_hypervolume_with_its_unit(structure: ModelStructure) -> None:
    study = facts(structure, calibration=CALIBRATION)
    assert "Hypervolume by epoch (accuracy x ms, " in details(study)
    assert detail_notes(study_document(facts(structure))) == []
