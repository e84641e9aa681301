"""Propose a study for a model and a task, from the model's configuration alone."""

from __future__ import annotations

import json
import math
import re
import textwrap
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effllava_optuna.errors import ModelError, SpecError
from effllava_optuna.policy import Kind
from effllava_optuna.study.estimate import H200, Machine, Shape, cpu, estimate, told
from effllava_optuna.study.spec import ROWS, SHARES, StudySpec

if TYPE_CHECKING:
    from effllava_optuna.policy import Site
    from effllava_optuna.surgery import Sketch

_LARGE = 1e9  # parameters, from which a model is for a GPU
_MANY = 2e7  # parameters, from which an operation takes all threads
_STEPS = (256, 128, 64, 32, 16, 8)  # MLP widths that matrix kernels like
_FEWEST_STEPS = 32  # of an MLP
_KEPT = {"digits-vlm": 0.225, "drawn-vlm": 0.6}  # of models of which we know what they bear
_COARSE = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # the tables of a large model are large


@dataclass(frozen=True, slots=True)
class Wish:
    """What a user asks a proposal for.

    Attributes:
        model: A directory, a hub id, or a model of the package.
        task: As ``task.name``.
        out: Where the study file will be.
        data: As ``task.data``, from where the user is.
        kept_share: The budget; None: ours, unless ``speedup`` is given.
        speedup: The budget.
    """

    model: str
    task: str
    out: Path
    data: str | None = None
    kept_share: float | None = None
    speedup: float | None = None


@dataclass(frozen=True, slots=True)
class Proposal:
    """A study file.

    Attributes:
        text: The file.
        spec: What it says.
        told: What it is about and needs, in a few lines.
    """

    text: str
    spec: StudySpec
    told: tuple[str, ...]


def propose(wish: Wish) -> Proposal:
    """Look at a model's configuration, and write a study that fits it.

    Raises:
        ModelError: There is no such model, or no task can be asked of it.
        SpecError: What is asked for is no study.
    """
    _refuse(wish)
    from effllava_optuna.surgery import sketch

    found = sketch(wish.model)
    if not found.sees:
        raise ModelError(
            f"{wish.model!r} takes no pictures, and tasks ask about pictures.",
            hint="Give a vision-language model, such as a LLaVA checkpoint, or digits-vlm.",
        )
    machine = _machine(found)
    shape = _shape(found, wish.task)
    first = _spec(wish, _tables(wish, found, shape, machine))
    need = estimate(first, shape, machine)
    tables = _tables(wish, found, shape, machine, table_gb=_room(need.table_gb))
    spec = _spec(wish, tables)
    lines = _told(wish, found, spec, told(estimate(spec, shape, machine), machine))
    text = _written(lines, tables)
    if StudySpec.of(_parsed(text), place=str(wish.out)) != spec:
        raise SpecError(f"{wish.model!r} cannot be written into a study file.")
    return Proposal(text, spec, lines)


def _refuse(wish: Wish) -> None:
    """Refuse what no look at the model can mend."""
    if wish.task == "qa" and wish.data is None:
        raise SpecError("Task 'qa' asks your own rows.", hint="Give --data FILE or DIRECTORY.")
    if wish.data is not None and wish.task not in ROWS:
        raise SpecError(
            f"--data is given, but task {wish.task!r} does not read rows.",
            hint=f"Use one of {', '.join(ROWS)}.",
        )
    for name in ("kept_share", "speedup"):
        value = getattr(wish, name)
        if value is not None and not math.isfinite(value):
            raise SpecError(f"--{name.replace('_', '-')} is {value}.", hint="Give a number.")
    _spec(wish, {"search": _budget(wish)})


def _spec(wish: Wish, tables: dict[str, dict[str, Any]]) -> StudySpec:
    document: dict[str, Any] = {
        "study": {"name": wish.out.stem},
        "model": {"path": wish.model},
        "task": {"name": wish.task},
    }
    for name, table in tables.items():
        document[name] = document.get(name, {}) | table
    return StudySpec.of(document, place="init")


def _budget(wish: Wish) -> dict[str, float]:
    if wish.kept_share is not None and wish.speedup is not None:
        raise SpecError("--kept-share and --speedup are both given.", hint="Give one of them.")
    if wish.speedup is not None:
        return {"speedup": wish.speedup}
    kept = wish.kept_share
    return {"kept_share": _KEPT.get(wish.model, 0.55) if kept is None else kept}


def _machine(found: Sketch) -> Machine:
    """Give what will run it: a GPU where there is one, or where nothing else could."""
    import torch

    if torch.cuda.is_available() or found.parameters >= _LARGE:
        return H200
    return cpu(1 if found.parameters < _MANY else torch.get_num_threads())


def _shape(found: Sketch, task: str) -> Shape:
    words = 12 if task == "digits" else 100
    shape = Shape(
        found.layers, found.hidden, found.inner, found.groups, 0.0, found.picture + words,
        2.0 * found.vision * found.patches,
    )  # fmt: skip
    rest = max(0.0, found.parameters - shape.prunable)
    return Shape(
        shape.layers, shape.hidden, shape.inner, shape.groups, rest, shape.tokens, shape.vision
    )


def _room(table_gb: float) -> float:
    """Give the least that the refit tables may take a round size above what they need."""
    return 1.0 if table_gb < 0.8 else float(math.ceil(1.15 * table_gb))


def _step(inner: int) -> int:
    return next((s for s in _STEPS if inner % s == 0 and inner // s >= _FEWEST_STEPS), 1)


def _tables(
    wish: Wish, found: Sketch, shape: Shape, machine: Machine, *, table_gb: float = 8.0
) -> dict[str, dict[str, Any]]:
    """Choose what the study file shall say."""
    large = found.parameters >= _LARGE
    genes = len(_sites(found))
    task: dict[str, Any] = {"name": wish.task}
    if wish.data is not None:
        task["data"] = _beside(wish.data, wish.out)
    task |= {"proxy": 64, "validation": 500, "test": 2000}
    order = {"order": "taylor"} if large else {}  # obs takes time with the cube of a width
    pruning: dict[str, Any] = order | {
        "shares": list(_COARSE if large else SHARES),
        "multiple_of": _step(found.inner),
        "table_gb": table_gb,
    }
    # As many prompts at once as fill a machine, and no more.
    batch = 8 if large else max(1, min(64, 4096 // shape.tokens))
    population = 20 if genes <= 20 else 32
    search = {"epochs": 3, "generations": 4 if genes <= 40 else 5, "population": population}
    model = {"path": wish.model, "dtype": "bfloat16" if machine is H200 else "auto"}
    return {
        "model": model,
        "task": task,
        "pruning": pruning,
        "latency": {"batch": batch},
        "search": search | _budget(wish),
        "projector": {"elites": 3 if genes <= 20 else 4},
        "report": {"finalists": 5 if genes <= 20 else 8},
        "export": {"directory": f"{wish.out.stem}.pruned"},
    }


def _sites(found: Sketch) -> list[Site]:
    """Give what a study cuts that says no more: heads and channels of the decoder."""
    sites = found.parts.anatomy.sites
    return [site for site in sites if site.tower == "language" and site.kind is not Kind.BLOCK]


def _beside(data: str, out: Path) -> str:
    """Name data that is here as the study file will find it."""
    place = Path(data)
    if not place.exists():
        return data  # on the hub
    here, there = place.resolve(), out.absolute().parent.resolve()
    return f"./{here.relative_to(there)}" if here.is_relative_to(there) else str(here)


_WIDE = 26  # columns before a comment
_COMMENTS = {
    ("model", "path"): "a directory or a hub id",
    ("model", "dtype"): "auto: as it was saved, but float32 on a CPU",
    ("task", "data"): "a file or directory beside this file, or a hub id",
    ("task", "proxy"): "samples that calibration, search and projector training may use",
    ("task", "validation"): "at most so many, which choose among the finalists",
    ("task", "test"): "at most so many, which are only reported",
    ("pruning", "order"): "obs, the default, takes time with the cube of a width",
    ("pruning", "shares"): "of each site's width; the widths that are timed and fitted",
    ("pruning", "multiple_of"): "MLP widths that matrix kernels like",
    ("pruning", "table_gb"): "what the refit tables may take, calibration included",
    ("latency", "batch"): "prompts at once, of which the prefill is timed",
    ("search", "population"): "epochs x generations x population policies in all",
    ("search", "kept_share"): "a policy may keep at most this share of the prunable weights",
    ("search", "speedup"): "every policy is so much faster than the dense model, by the table",
    ("projector", "elites"): "it is trained for so many policies of an epoch",
    ("report", "finalists"): "of the front, measured on validation and test",
    ("export", "directory"): "where `run` writes the chosen checkpoint, beside this file",
}


def _told(wish: Wish, found: Sketch, spec: StudySpec, needs: str) -> tuple[str, ...]:
    mine = _sites(found)
    prunable = sum(site.width * site.unit_params for site in mine)
    return (
        f"{wish.model} on {wish.task}: {found.parameters:,} parameters, of which the search may "
        f"cut {prunable:,}, at {len(mine)} sites (one gene each) of {found.layers} blocks.",
        f"{spec.search.trials} policies; needs {needs}: an estimate by a cost model, not "
        "measured.",
    )


def _written(lines: tuple[str, ...], tables: dict[str, dict[str, Any]]) -> str:
    words = [textwrap.wrap(_commented(line), 95) for line in lines]
    parts = [f"# {line}" for wrapped in words for line in wrapped]
    parts.append("# All else has a default; `check` says whether the file is right.")
    for name, table in tables.items():
        parts += ["", f"[{name}]"]
        for key, value in table.items():
            comment = _COMMENTS.get((name, key))
            line = f"{key} = {_value(value)}"
            if comment is None:
                parts.append(line)
            elif len(line) > _WIDE:
                parts += [f"# {comment}", line]
            else:
                parts.append(f"{line:<{_WIDE}} # {comment}")
    return "\n".join(parts) + "\n"


def _commented(line: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f]", " ", line)


def _value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text.replace("\x7f", "\\u007f")


def _parsed(text: str) -> dict[str, Any]:
    try:
        text.encode()
        found = tomllib.loads(text)
    except (UnicodeEncodeError, tomllib.TOMLDecodeError) as error:
        raise SpecError(
            "A name cannot be written into a study file.", hint="Use names in Unicode."
        ) from error
    found.setdefault("study", {"name": Path(str(found["export"]["directory"])).stem})
    return found
