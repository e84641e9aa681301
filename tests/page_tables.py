"""Tables of docs/ that tests generate: compared with the page, or written to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.study_fixtures import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence


def check_table(page: str, name: str, rows: Sequence[str], *, write: bool) -> None:
    """Compare rows with the table of a page, or write them there.

    Args:
        page: Name of the page.
        name: Of the table; it is between ``<!-- name: how it is written -->`` and
            ``<!-- end of name -->``.
        rows: Its lines.
        write: Whether to write it: ``--write-tables`` is given.
    """
    file = ROOT / "docs" / f"{page}.md"
    head, begin, after = file.read_text(encoding="utf-8").partition(f"<!-- {name}: ")
    how, end_of_comment, rest = after.partition(" -->\n")
    documented, end, tail = rest.partition(f"\n<!-- end of {name} -->")
    assert end, f"{file} has no table {name}"
    table = "\n".join(rows)
    if write:
        parts = (head, begin, how, end_of_comment, table, end, tail)
        file.write_text("".join(parts), encoding="utf-8")
    else:
        assert documented == table
