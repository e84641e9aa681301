"""Pages that are made from the code when the site is built (a hook of mkdocs)."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from effllava_optuna.study.cli import main
from effllava_optuna.study.spec import StudySpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ROOT = Path(__file__).parents[1]
LEARNED = ROOT / "benchmarks" / "LEARNED.md"
PACKAGES = (
    "effllava_optuna",
    "effllava_optuna.study",
    "effllava_optuna.samplers",
    "effllava_optuna.policy",
    "effllava_optuna.surgery",
    "effllava_optuna.tasks",
    "effllava_optuna.objectives",
    "effllava_optuna.hooks",
    "effllava_optuna.baselines",
    "effllava_optuna.report",
)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put what is generated where a page asks for it: ``<!-- generated: commands -->``."""
    for name, make in MAKERS.items():
        marker = f"<!-- generated: {name} -->"
        if marker in markdown:
            markdown = markdown.replace(marker, "\n".join(make()))
    return markdown


def commands() -> Iterator[str]:
    """Give a section to each verb, in the order of the alphabet."""
    for verb, command in sorted(main.commands.items()):
        context = click.Context(command, info_name=f"python -m effllava_optuna.study {verb}")
        usage = command.get_usage(context).removeprefix("Usage: ")
        text, _, example = inspect.cleandoc(command.help or "").partition("\b\n")
        yield f"\n## {verb}\n"
        yield f"{_escaped(text).strip()}\n"
        yield f"```text\n{usage}\n```\n"
        options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
        if options:
            yield "| option | what it does |\n|---|---|"
            for option in options:
                names, told = option.get_help_record(context) or ("", "")
                yield f"| {_cell(f'`{names}`')} | {_cell(_escaped(told))} |"
        if example:
            lines = [line.strip() for line in example.splitlines()[1:] if line.strip()]
            yield "\n```sh\n" + "\n".join(lines) + "\n```\n"


def study_file() -> Iterator[str]:
    """Give a section to each table of a study file; defaults lead to what was measured of them."""
    schema = StudySpec.model_json_schema()
    measured = re.findall(r"^### `([a-z.]+)`$", LEARNED.read_text(encoding="utf-8"), re.MULTILINE)
    for table, field in schema["properties"].items():
        properties = _resolved(field, schema)
        yield f"\n## [{table}]\n"
        text = re.sub(rf"^``\[{table}\]``: ", "", inspect.cleandoc(properties["description"]))
        yield f"{text[:1].upper()}{text[1:]}\n"
        yield "| key | type | default |\n|---|---|---|"
        needed = properties.get("required", ())
        for key, value in properties["properties"].items():
            inner = _resolved(value, schema)
            if "properties" in inner:
                for part, below in inner["properties"].items():
                    yield f"| `{key}.{part}` | {_cell(_type(below))} | not given |"
                continue
            default = "**needed**" if key in needed else _default(value)
            if (table, key) == ("study", "name"):  # `read_spec` gives it
                default = "that of the file"
            if (name := f"{table}.{key}") in measured:
                default += f" ([why](../learned.md#{name.replace('.', '')}))"
            yield f"| `{key}` | {_cell(_type(value))} | {_cell(default)} |"


def python() -> Iterator[str]:
    """Give a section to each package, and an entry to each of its public names."""
    seen: set[int] = set()
    for name in PACKAGES:
        package = import_module(name)
        entries = []
        for public in package.__all__:
            thing = getattr(package, public)
            ours = str(getattr(thing, "__module__", "")).startswith("effllava_optuna")
            if ours and hasattr(thing, "__qualname__") and id(thing) not in seen:
                seen.add(id(thing))
                entries.append(f"::: {thing.__module__}.{thing.__qualname__}\n")
        if entries:
            yield f"\n## {name}\n"
            yield from entries


def results() -> Iterator[str]:
    """Give benchmarks/RESULTS.md; its links to records stay in the repository."""
    text = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    yield re.sub(r"\[([^\]]+)\]\((?!http|#)[^)]+\)", r"\1", text)


def learned() -> Iterator[str]:
    """Give benchmarks/LEARNED.md, whose sections are those of the page of results."""
    yield (
        LEARNED.read_text(encoding="utf-8")
        .replace("(RESULTS.md", "(results.md")
        .replace("(../docs/", "(")
    )


def _resolved(field: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    where = field.get("$ref") or (field.get("allOf") or [{}])[0].get("$ref")
    return dict(field) if where is None else dict(schema["$defs"][where.rpartition("/")[2]])


def _type(value: Mapping[str, Any]) -> str:
    """Say in words what a JSON schema allows."""
    if "anyOf" in value:
        return " or ".join(_type(v) for v in value["anyOf"] if v.get("type") != "null")
    if "enum" in value or "const" in value:
        return ", ".join(f"`{word}`" for word in value.get("enum", [value.get("const")]))
    kind = {"number": "number", "integer": "whole number", "boolean": "`true`, `false`"}.get(
        str(value.get("type")), "text"
    )
    if value.get("type") == "array":
        kind = f"list of {_type(value['items'])}"
    elif value.get("type") == "object":
        kind = "table of texts"
    bounds = [
        f"{sign} {value[name]:g}"
        for name, sign in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "below"),
        )
        if name in value
    ]
    words = re.match(r"\^\(([\w\-|]+)\|\[A-Za", value.get("pattern", ""))
    if words:
        return ", ".join(f"`{word}`" for word in words[1].split("|")) + ", or `module:function`"
    if value.get("pattern", "").startswith("^[A-Za-z_]"):
        return "`module:function`"
    return ", ".join([kind, *bounds])


def _default(value: Mapping[str, Any]) -> str:
    default = value.get("default")
    if default is None:
        return "not given"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default!r}`".replace("'", '"')


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _escaped(text: str) -> str:
    return re.sub(r"([*_])", r"\\\1", text).replace("<", "&lt;")


MAKERS: dict[str, Callable[[], Iterator[str]]] = {
    "commands": commands,
    "study file": study_file,
    "python": python,
    "results": results,
    "learned": learned,
}
