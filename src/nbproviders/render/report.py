"""One self-contained HTML page: readable for years, with no script and no request to anywhere."""

from __future__ import annotations

import html
from collections.abc import Sequence

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em;
  color: #1c1c1c; background: #fff; }
h1 { font-size: 1.5em; margin: 0 0 .2em; } h2 { font-size: 1.15em; margin: 1.8em 0 .4em; }
p.about { color: #595959; margin: 0 0 1em; }
tbody tr:nth-child(even) { background: #f5f5f5; }
summary { cursor: pointer; }
div.wide { overflow-x: auto; }
@media (prefers-color-scheme: dark) {
  body { color: #e4e4e4; background: #181818; } p.about { color: #aaa; }
  tbody tr:nth-child(even) { background: #232323; }
}
@media print { body { max-width: none; margin: 0; } }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, about: str, sections: Sequence[tuple[str, str]]) -> str:
    """Return a whole HTML document.

    Parameters
    ----------
    title, about
        Text, escaped here.
    sections
        Headings, escaped here, each with a body that is HTML already.
    """
    body = "".join(
        f'<section><h2>{html.escape(head)}</h2><div class="wide">{content}</div></section>'
        for head, content in sections
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>"
        f'<body><main><h1>{html.escape(title)}</h1><p class="about">{html.escape(about)}</p>'
        f"{body}</main></body></html>\n"
    )
