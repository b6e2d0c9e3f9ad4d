"""The report as one HTML file that can be sent to someone: its figures are inside."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import markdown

_IMAGE = re.compile(r'src="(figures/[\w-]+\.png)"')
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: 1rem 0 }
td, th { border-bottom: 1px solid #ddd; padding: .3rem .7rem; vertical-align: top }
img { max-width: 100% } pre { background: #f4f4f4; padding: .7rem; overflow-x: auto }
"""


def page(text: str, folder: Path) -> str:
    """The Markdown of a report as HTML.

    Args:
        text: in which everything that others wrote is escaped, see `rlhf_lightning.console.display.markdown`.
        folder: of the report, where its figures are.
    """
    body = markdown.markdown(text, extensions=["tables", "fenced_code"])
    body = _IMAGE.sub(lambda found: f'src="{_inside(folder / found[1])}"', body)
    title = next((line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")), "Report")
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def _inside(image: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(image.read_bytes()).decode()}"
