"""Compare several studies: their settings, their results, and differences paired by seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import t as student_t

from effllava_optuna.report.text_table import (
    TableRow,
    TextTable,
    format_accuracy,
    format_interval,
    format_number,
    measure_of_split,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_LOCATIONS = {
    "study.name", "study.storage", "study.artifacts", "export.directory", "latency.table",
}  # fmt: skip
_SEEDS = ("study.seed", "task.seed")
_LEVEL = 0.95
_MAX_VALUE_LENGTH = 40  # characters
_COLUMNS = (
    "study", "seed", "dense", "uniform\nby kind", "chosen", "chosen minus\nuniform",
    "speed-up", "weights\nkept",
)  # fmt: skip


def compare_studies(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compare studies by their documents.

    Studies whose settings are equal except for seeds and locations are one variant. Variants are
    compared on the seeds that they share.

    Args:
        documents: The documents of the studies; the first one belongs to the first variant.

    Returns:
        ``differing_keys``: the keys of the study files that differ. ``studies``: the results of
        each study. ``variants``: the settings of each variant, with means and standard deviations
        over its studies. ``differences_to_first``: the difference in test accuracy between each
        other variant and the first one, paired by seed, with a 95 % t-interval.
    """
    differing_keys = _differing_keys([document["config"] for document in documents])
    settings: list[dict[str, Any]] = []
    variants: list[list[Mapping[str, Any]]] = []
    studies = []
    for document in documents:
        own_settings = {
            key: _value_at(document["config"], key) for key in sorted(differing_keys - {*_SEEDS})
        }
        if own_settings not in settings:
            settings.append(own_settings)
            variants.append([])
        index = settings.index(own_settings)
        variants[index].append(document)
        studies.append(_study_result(document, _variant_name(index)))
    return {
        "differing_keys": sorted(differing_keys),
        "studies": studies,
        "variants": [
            _variant_result(_variant_name(index), settings[index], members)
            for index, members in enumerate(variants)
        ],
        "differences_to_first": [
            _difference_to_first(variants[0], _variant_name(index), variants[index])
            for index in range(1, len(variants))
        ],
    }


def _variant_name(index: int) -> str:
    """Return A to Z, then numbers."""
    return chr(ord("A") + index) if index < 26 else f"variant {index + 1}"


def _differing_keys(configs: Sequence[Mapping[str, Any]]) -> set[str]:
    keys = {f"{table}.{key}" for config in configs for table in config for key in config[table]}
    return {
        key
        for key in keys - _LOCATIONS
        if any(_value_at(config, key) != _value_at(configs[0], key) for config in configs[1:])
    }


def _value_at(config: Mapping[str, Any], key: str) -> Any:
    table, _, name = key.partition(".")
    return config.get(table, {}).get(name)


def _seeds(document: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(_value_at(document["config"], key) for key in _SEEDS)


def _study_result(document: Mapping[str, Any], variant: str) -> dict[str, Any]:
    difference = next(
        (
            comparison
            for comparison in document["comparisons"]
            if (comparison["baseline"], comparison["split"]) == ("uniform_by_kind", "test")
        ),
        None,
    )
    seed, task_seed = _seeds(document)
    return {
        "study": document["study"],
        "variant": variant,
        "seed": seed,
        "task_seed": task_seed,
        "measure": measure_of_split(document, "test"),
        "trials": document["trials"]["complete"] + document["trials"]["pruned"],
        "dense": document["dense"],
        "uniform_by_kind": document["uniform_by_kind"],
        "chosen": document["chosen"],
        "difference_to_uniform_by_kind": difference,
        "hypervolume": document["hypervolume"][-1] if document["hypervolume"] else None,
    }


def _variant_result(
    name: str, settings: Mapping[str, Any], members: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    chosen = [document["chosen"] for document in members if document["chosen"] is not None]
    result: dict[str, Any] = {
        "variant": name,
        "settings": dict(settings),
        "studies": len(members),
        "finished": len(chosen),
    }
    for key in ("accuracy_test", "gap", "speedup_measured"):
        values = [row[key] for row in chosen if row[key] is not None]
        result[key] = round(float(np.mean(values)), 6) if values else None
        deviation = round(float(np.std(values, ddof=1)), 6) if len(values) > 1 else None
        result[f"{key}_sd"] = deviation
    return result


def _accuracy_by_seed(members: Sequence[Mapping[str, Any]]) -> dict[tuple[Any, ...], float]:
    """Return the test accuracy of the chosen policy of each finished study, by its seeds."""
    return {
        _seeds(document): float(document["chosen"]["accuracy_test"])
        for document in members
        if document["chosen"] is not None
    }


def _difference_to_first(
    first: Sequence[Mapping[str, Any]], name: str, other: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Compute the difference of a variant to the first one on the seeds that both have."""
    first_accuracies, other_accuracies = _accuracy_by_seed(first), _accuracy_by_seed(other)
    differences = [
        other_accuracies[seeds] - accuracy
        for seeds, accuracy in first_accuracies.items()
        if seeds in other_accuracies
    ]
    mean = round(float(np.mean(differences)), 6) if differences else None
    result = {"variant": name, "seeds": len(differences), "difference": mean}
    if mean is None or len(differences) < 2:
        return result | {"interval": None}
    error = float(np.std(differences, ddof=1)) / len(differences) ** 0.5
    half = float(student_t.ppf((1 + _LEVEL) / 2, len(differences) - 1)) * error
    return result | {"interval": [round(mean - half, 6), round(mean + half, 6)]}


def comparison_tables(comparison: Mapping[str, Any]) -> list[TextTable]:
    """Build the table of studies and, if there are several variants, that of their settings.

    Args:
        comparison: The result of `compare_studies`.
    """
    rows, variants = [], comparison["variants"]
    for study in comparison["studies"]:
        task_seed = "" if study["task_seed"] is None else f", {study['task_seed']}"
        seeds = f"{study['seed']}{task_seed}"
        variant = f", variant {study['variant']}" if len(variants) > 1 else ""
        name = f"{study['study']}\n{study['trials']} trials{variant}"
        rows.append(TableRow((name, seeds, *_result_cells(study))))
    measures = " or ".join(dict.fromkeys(study["measure"] for study in comparison["studies"]))
    title = f"Studies, with their {measures} on test"
    studies = TextTable(_COLUMNS, rows, title=title, notes=_notes(comparison))
    if len(variants) == 1:
        return [studies]
    settings = [
        TableRow((key, *(_shortened(variant["settings"][key]) for variant in variants)))
        for key in variants[0]["settings"]
    ]
    columns = ("key", *(variant["variant"] for variant in variants))
    return [studies, TextTable(columns, settings, title="Settings of the variants")]


def _result_cells(study: Mapping[str, Any]) -> list[str]:
    def accuracy(row: Mapping[str, Any] | None) -> str:
        return "-" if row is None else format_accuracy(row, "test")

    chosen, comparison = study["chosen"] or {}, study["difference_to_uniform_by_kind"]
    difference = "-"
    if comparison is not None:
        interval = format_interval(comparison["interval"], "+.3f", separator=" ")
        difference = f"{comparison['difference']:+.3f}\n{interval}"
    return [
        accuracy(study["dense"]),
        accuracy(study["uniform_by_kind"]),
        accuracy(study["chosen"]),
        difference,
        format_number(chosen.get("speedup_measured"), ".2f"),
        format_number(chosen.get("keep_ratio"), ".1%"),
    ]


def _shortened(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= _MAX_VALUE_LENGTH else f"{text[: _MAX_VALUE_LENGTH - 3]}..."


def _gap(variant: Mapping[str, Any]) -> str:
    """Format the gap; empty if the accuracies on proxy and test are not comparable."""
    if variant["gap_sd"] is None:
        return ""
    return f"gap {variant['gap']:+.3f} (sd {variant['gap_sd']:.3f}), "


def _notes(comparison: Mapping[str, Any]) -> list[str]:
    """Describe each variant of several finished studies, and its difference to the first."""
    notes = [
        f"Variant {variant['variant']}: {variant['finished']} studies, chosen on test "
        f"{variant['accuracy_test']:.3f} (sd {variant['accuracy_test_sd']:.3f}), "
        f"{_gap(variant)}measured speed-up "
        f"{variant['speedup_measured']:.2f} (sd {variant['speedup_measured_sd']:.2f})."
        for variant in comparison["variants"]
        if variant["finished"] > 1
    ]
    for pair in comparison["differences_to_first"]:
        prefix = f"{pair['variant']} minus A: "
        if pair["difference"] is None:
            notes.append(f"{prefix}no seed of which both have a finished study.")
        elif pair["interval"] is None:
            notes.append(f"{prefix}{pair['difference']:+.3f} on test, from one seed only.")
        else:
            notes.append(
                f"{prefix}{pair['difference']:+.3f} {format_interval(pair['interval'], '+.3f')} "
                f"on test, paired by {pair['seeds']} seeds."
            )
    notes.append(
        "[..]: 95 % intervals, over samples within a study and over seeds between variants. "
        "Latencies of different machines are not comparable; speed-up: measured."
    )
    return notes
