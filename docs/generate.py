"""Generate the reference pages from the code when mkdocs builds the site (a hook of mkdocs)."""

from __future__ import annotations

import inspect
import os
import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from mkdocs.structure.files import File

from effllava_optuna.cli import PROGRAM
from effllava_optuna.cli.program import main
from effllava_optuna.config.schema import StudyConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
EVIDENCE = BENCHMARKS / "tables" / "the-evidence-for-each-default.md"
PACKAGES = (
    "effllava_optuna",
    "effllava_optuna.study",
    "effllava_optuna.samplers",
    "effllava_optuna.policy",
    "effllava_optuna.surgery",
    "effllava_optuna.tasks",
    "effllava_optuna.objectives",
    "effllava_optuna.training",
    "effllava_optuna.allocation",
    "effllava_optuna.report",
)


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add the tables of the benchmarks to the site, one page for each."""
    for file in sorted(EVIDENCE.parent.glob("*.md")):
        content = _with_links_of_the_site(file)
        files.append(File.generated(config, f"tables/{file.name}", content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace what is between ``<!-- generated: NAME -->`` and ``<!-- end -->``.

    It says where the text is, to a reader of the file itself.
    """

    def generated(found: re.Match[str]) -> str:
        return "\n".join(GENERATORS[found[1]]())

    return re.sub(r"<!-- generated: (.+?) -->\n.*?<!-- end -->", generated, markdown, flags=re.S)


def commands() -> Iterator[str]:
    """Generate one section for each command, in alphabetical order."""
    for verb, command in sorted(main.commands.items()):
        context = click.Context(command, info_name=f"{PROGRAM} {verb}")
        usage = command.get_usage(context).removeprefix("Usage: ")
        description, _, example = inspect.cleandoc(command.help or "").partition("\b\n")
        yield f"\n## {verb}\n"
        yield f"{_escaped(description).strip()}\n"
        yield f"```text\n{usage}\n```\n"
        options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
        if options:
            yield "| option | what it does |\n|---|---|"
            for option in options:
                names, help_text = option.get_help_record(context) or ("", "")
                yield f"| {_cell(f'`{names}`')} | {_cell(_escaped(help_text))} |"
        if example:
            lines = [line.strip() for line in example.splitlines()[1:] if line.strip()]
            yield "\n```sh\n" + "\n".join(lines) + "\n```\n"


def study_file() -> Iterator[str]:
    """Generate one section for each table of a study file; measured defaults link to figures."""
    schema = StudyConfig.model_json_schema()
    measured = re.findall(r"^## `([a-z_.]+)`$", EVIDENCE.read_text(encoding="utf-8"), re.MULTILINE)
    for table, field in schema["properties"].items():
        properties = _resolved(field, schema)
        yield f"\n## [{table}]\n"
        description = inspect.cleandoc(properties["description"])
        description = re.sub(rf"^``\[{table}\]``: ", "", description)
        yield f"{description[:1].upper()}{description[1:]}\n"
        yield "| key | type | default |\n|---|---|---|"
        required = properties.get("required", ())
        for key, value in properties["properties"].items():
            nested = _resolved(value, schema)
            if "properties" in nested:
                for nested_key, nested_value in nested["properties"].items():
                    yield f"| `{key}.{nested_key}` | {_cell(_type(nested_value))} | not set |"
                continue
            default = "**required**" if key in required else _default(value)
            if (table, key) == ("study", "name"):  # set by `load_config`
                default = "name of the file"
            if (name := f"{table}.{key}") in measured:
                default += f" ([why](../tables/{EVIDENCE.name}#{name.replace('.', '')}))"
            yield f"| `{key}` | {_cell(_type(value))} | {_cell(default)} |"


def python() -> Iterator[str]:
    """Generate one section for each package, with an entry for each of its public names."""
    seen: set[int] = set()
    for name in PACKAGES:
        package = import_module(name)
        entries = []
        for public in package.__all__:
            value = getattr(package, public)
            defined_in_package = str(getattr(value, "__module__", "")).startswith(PACKAGES[0])
            if defined_in_package and hasattr(value, "__qualname__") and id(value) not in seen:
                seen.add(id(value))
                entries.append(f"::: {value.__module__}.{value.__qualname__}\n")
        if entries:
            yield f"\n## {name}\n"
            yield from entries


def results() -> Iterator[str]:
    """Generate the page of benchmarks/RESULTS.md."""
    yield _with_links_of_the_site(BENCHMARKS / "RESULTS.md")


def learned() -> Iterator[str]:
    """Generate the page of benchmarks/LEARNED.md."""
    yield _with_links_of_the_site(BENCHMARKS / "LEARNED.md")


def _with_links_of_the_site(file: Path) -> str:
    """Return a page of the results; links to files off the site become text."""

    def link(found: re.Match[str]) -> str:
        text, target, anchor = found.groups()
        path = (file.parent / target).resolve() if target else file
        folder = ROOT / "docs" / ("tables" if file.parent != BENCHMARKS else "")
        if path.is_relative_to(ROOT / "docs"):
            place = path
        elif path.name in ("RESULTS.md", "LEARNED.md") or path.parent == EVIDENCE.parent:
            name = path.name if path.parent == EVIDENCE.parent else path.name.lower()
            place = ROOT / "docs" / path.parent.relative_to(BENCHMARKS) / name
        else:
            return text
        return f"[{text}]({os.path.relpath(place, folder)}{anchor or ''})"

    text = file.read_text(encoding="utf-8")
    return re.sub(r"\[([^\]]+)\]\((?!http)([^)#]*)(#[^)]*)?\)", link, text)


def _resolved(field: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    reference = field.get("$ref") or (field.get("allOf") or [{}])[0].get("$ref")
    return dict(schema["$defs"][reference.rpartition("/")[2]] if reference else field)


def _type(value: Mapping[str, Any]) -> str:
    """Describe the type and the bounds that a JSON schema allows."""
    if "anyOf" in value:
        return " or ".join(_type(v) for v in value["anyOf"] if v.get("type") != "null")
    if "enum" in value or "const" in value:
        return ", ".join(f"`{word}`" for word in value.get("enum", [value.get("const")]))
    kind = {"number": "number", "integer": "integer", "boolean": "`true`, `false`"}.get(
        str(value.get("type")), "string"
    )
    if value.get("type") == "array":
        item, comma, bounds_of_items = _type(value["items"]).partition(",")
        kind = f"list of {item}s{comma}{bounds_of_items}"
    elif value.get("type") == "object":
        kind = "table of strings"
    bounds = [
        f"{sign} {value[name]:,}"
        for name, sign in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "below"),
        )
        if name in value
    ]
    names = re.match(r"\^\(([\w\-|]+)\|\[A-Za", value.get("pattern", ""))
    if names:
        return ", ".join(f"`{name}`" for name in names[1].split("|")) + ", or `module:function`"
    if value.get("pattern", "").startswith("^[A-Za-z_]"):
        return "`module:function`"
    return ", ".join([kind, *bounds])


def _default(value: Mapping[str, Any]) -> str:
    default = value.get("default")
    if default is None:
        return "not set"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default!r}`".replace("'", '"')


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _escaped(text: str) -> str:
    return re.sub(r"([*_])", r"\\\1", text).replace("<", "&lt;")


GENERATORS: dict[str, Callable[[], Iterator[str]]] = {
    "commands": commands,
    "study file": study_file,
    "python": python,
    "results": results,
    "learned": learned,
}
