"""One self-contained HTML file: figures inside, no script, nothing fetched."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chopjax import __version__

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="chopjax">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{ --ink: #111; --paper: #fff; --faint: #555; --line: #ddd; --box: #f4f4f4; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e6e6e6; --paper: #181818; --faint: #aaa; --line: #444; --box: #262626; }}
}}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em;
  color: var(--ink); background: var(--paper); overflow-wrap: anywhere; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; margin: 1em 0; font-size: 14px; overflow-wrap: normal; }}
th, td {{ padding: .25em .7em; text-align: right; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; }}
th:first-child, td:first-child, .text td, .text th {{ text-align: left; }}
.text td {{ overflow-wrap: anywhere; }}
thead th {{ border-bottom: 2px solid var(--ink); }}
figure {{ margin: 1.5em 0; }}
figure img {{ max-width: 100%; background: #fff; padding: .5em; box-sizing: border-box; }}
figcaption, footer {{ color: var(--faint); }}
pre {{ background: var(--box); padding: .8em; font-size: 13px; white-space: pre-wrap; }}
@media print {{ body {{ max-width: none; }} figure, table {{ break-inside: avoid; }} }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
<footer><p>chopjax {version}</p></footer>
</body>
</html>
"""


def page(title: str, parts: Sequence[str]) -> str:
    """parts: from the functions below, in order."""
    return PAGE.format(title=html.escape(title), body="\n".join(parts), version=__version__)


def heading(text: str) -> str:
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def code(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"


def figure(svg: Path, caption: str) -> str:
    """A figure that was saved as SVG, with what it shows."""
    data = base64.b64encode(svg.read_bytes()).decode()
    return (
        f'<figure><img alt="{html.escape(caption)}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], text: bool = False) -> str:
    """text: the columns hold words and lists, not numbers."""

    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(f"<{tag}>{html.escape(value)}</{tag}>" for value in values)

    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    kind = ' class="text"' if text else ""
    return (
        f'<div class="wide"><table{kind}><thead><tr>{cells("th", header)}</tr></thead><tbody>\n'
        f"{body}\n</tbody></table></div>"
    )


def settings(values: Mapping[str, Any]) -> str:
    """Flat settings, one a row."""
    return table(
        ["setting", "value"], [[name, str(value)] for name, value in values.items()], text=True
    )
