"""The order and the widths of what optuna-dashboard shows of a study, as a stylesheet.

The dashboard draws the figures of a study below its own charts, in an order that differs from
start to start, and always in two columns. The selectors are those of version 0.21; in a version
with other elements they select nothing, and its own order remains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_FIRST = ("front_by_epoch", "sensitivity", "width_ratios", "proxy_and_test")
_PAGE = 'main > .MuiBox-root:has([id^="user-defined-plot:"])'
_STYLE = (
    f"""
{_PAGE} {{ flex-flow: row wrap; }}
{_PAGE} > * {{ flex: 1 1 calc(100% - 32px); order: 1; }}
{_PAGE} > .MuiGrid-container {{ display: contents; }}
{_PAGE} > .MuiGrid-container > * {{ order: 2; padding: 8px 16px; }}
{_PAGE} > .MuiGrid-container > :has([id^="user-defined-plot:"]) {{ order: 0; }}
"""
    + "".join(
        f'{_PAGE} > .MuiGrid-container > :has([id="user-defined-plot:{name}"]) '
        f"{{ order: {index - len(_FIRST)}; }}\n"
        for index, name in enumerate(_FIRST)
    )
    + f"""
@media (max-width: 1100px) {{
  {_PAGE} > .MuiGrid-container > * {{ flex: 1 1 100%; max-width: 100%; }}
}}
main {{ min-width: 0; }}
main table:not([class]) {{ border-collapse: collapse; }}
main table:not([class]) :is(th, td) {{ padding: 2px 3px; }}
main code, main code * {{ white-space: pre-wrap !important; overflow-wrap: anywhere; }}
"""
)


def with_stylesheet(application: Any) -> Any:
    """Return a WSGI application whose pages have the stylesheet; all else is passed through.

    Args:
        application: The WSGI application of optuna-dashboard.
    """

    def styled(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if not environ["PATH_INFO"].startswith("/dashboard"):
            response: Iterable[bytes] = application(environ, start_response)
            return response
        started: list[Any] = []
        parts = application(environ, lambda *arguments: started.extend(arguments))
        page = b"".join(parts)
        if hasattr(parts, "close"):
            parts.close()
        longer = page.replace(b"</head>", f"<style>{_STYLE}</style></head>".encode(), 1)
        status, headers, *error = started
        headers = [
            (name, str(int(value) + len(longer) - len(page)))
            if name.lower() == "content-length"
            else (name, value)
            for name, value in headers
        ]
        start_response(status, headers, *error)
        return [longer]

    return styled
