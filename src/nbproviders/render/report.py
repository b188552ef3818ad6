"""One self-contained HTML page: readable for years, with no script and no request to anywhere."""

from __future__ import annotations

import contextlib
import html
import secrets
from collections.abc import Sequence
from pathlib import Path

from nbproviders.errors import ConfigurationError
from nbproviders.render.tables import visible

_STYLE = """
:root { color-scheme: light dark; --jp-border-color2: #d8d8d8; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em;
  color: #1c1c1c; background: #fff; }
h1 { font-size: 1.5em; margin: 0 0 .2em; } h2 { font-size: 1.15em; margin: 1.8em 0 .4em; }
p.about { color: #595959; margin: 0 0 1em; }
tbody tr:nth-child(even) { background: #f5f5f5; }
figure { margin: 0 0 1.4em; } figure svg { max-width: 100%; height: auto; }
summary { cursor: pointer; }
div.wide { overflow-x: auto; }
@media (prefers-color-scheme: dark) {
  :root { --jp-border-color2: #3c3c3c; }
  body { color: #e4e4e4; background: #181818; } p.about { color: #aaa; }
  tbody tr:nth-child(even) { background: #232323; }
}
@media print {
  :root { color-scheme: light; --jp-border-color2: #d8d8d8; }
  body { max-width: none; margin: 0; color: #000; background: #fff; }
  tbody tr:nth-child(even) { background: #f5f5f5; }
  tr, figure { break-inside: avoid; }
  details::details-content { content-visibility: visible; height: auto; }
}
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def page(title: str, about: str, sections: Sequence[tuple[str, str]]) -> str:
    """Return a whole HTML document.

    Parameters
    ----------
    title, about
        Text, escaped here.
    sections
        Headings, escaped here, each with a body that is HTML already.
    """
    title, about = html.escape(visible(title)), html.escape(visible(about))
    body = "".join(
        f'<section><h2>{html.escape(visible(head))}</h2><div class="wide">{content}</div></section>'
        for head, content in sections
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head>"
        f'<body><main><h1>{title}</h1><p class="about">{about}</p>'
        f"{body}</main></body></html>\n"
    )


def write(path: str | Path, text: str, encoding: str = "utf-8") -> Path:
    r"""Write a file whole or not at all, making its folders, and return its path.

    What cannot be encoded (half a surrogate pair, as a model may write) is spelt ``\ud800``.

    Raises
    ------
    ConfigurationError
        If it cannot be written.
    """
    place = Path(path).expanduser()
    target = place.resolve()  # a link stays a link
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # newline="": a carriage return inside an answer stays one
        with draft.open("x", encoding=encoding, errors="backslashreplace", newline="") as file:
            file.write(text)
        draft.replace(target)
    except OSError as error:
        raise ConfigurationError(
            f"{place} cannot be written: {error.strerror or error}.",
            hint="Name a file in a folder that you may write to.",
        ) from None
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
    return place
