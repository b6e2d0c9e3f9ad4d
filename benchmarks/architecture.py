"""Draw the rooms of the package by layer, from its source, with what each says of itself.

    python -m benchmarks.architecture --out docs/images/architecture.svg

The same source gives the same file.
"""

from __future__ import annotations

import argparse
import ast
import textwrap
from html import escape
from pathlib import Path

from tests.gates.gate_layers import ROOMS
from tests.gates.gate_sources import ROOT

WIDTH, MARGIN, GAP, LETTER = 980, 16, 10, 6.1  # pixels; the last of a character of the small text

RULE = "A room imports rooms below it, or beside it where no circle comes of that; never one above."


def sentence(room: str) -> str:
    """What a room says of itself first; nothing where it is a file."""
    file = ROOT / "rlhf_lightning" / room / "__init__.py"
    told = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) if file.is_file() else None
    return (told or "").replace("\n", " ").replace("`", "").partition(". ")[0].rstrip(".")


def drawn() -> str:
    """An SVG picture: a row for each layer, the highest at the top."""
    parts, y = [], 40.0
    for number, rooms in reversed(list(enumerate(ROOMS))):
        shown = [room for room in rooms if sentence(room)]
        wide = (WIDTH - 3 * MARGIN - 20 - GAP * (len(shown) - 1)) / len(shown)
        texts = [textwrap.wrap(sentence(room), int((wide - 16) / LETTER)) for room in shown]
        high = 30 + 15 * max(map(len, texts))
        parts.append(f'<text x="{MARGIN}" y="{y + 20:g}" class="layer">{number}</text>')
        for place, (room, lines) in enumerate(zip(shown, texts, strict=True)):
            x = 2 * MARGIN + place * (wide + GAP)
            parts.append(f'<rect x="{x:g}" y="{y:g}" width="{wide:g}" height="{high:g}" rx="6"/>')
            parts.append(f'<text x="{x + 8:g}" y="{y + 18:g}" class="room">{room}</text>')
            parts += [
                f'<text x="{x + 8:g}" y="{y + 34 + 15 * n:g}">{escape(line)}</text>' for n, line in enumerate(lines)
            ]
        y += high + GAP
    style = (
        "text{font:12px sans-serif;fill:#333}.room{font-weight:bold;font-size:14px;fill:#123}.layer{fill:#888}"
        "rect{fill:#eef3fb;stroke:#3b6fb5}.page{fill:white;stroke:none}.down{stroke:#888;stroke-width:1.5}"
    )
    edge = WIDTH - 20
    return (
        "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y:g}" viewBox="0 0 {WIDTH} {y:g}">',
                f"<style>{style}</style>",
                f'<rect class="page" width="{WIDTH}" height="{y:g}"/>',
                f'<text x="{2 * MARGIN}" y="24">{RULE}</text>',
                f'<path class="down" d="M{edge},40 V{y - 16:g} m-5,-8 l5,8 l5,-8" fill="none"/>',
                *parts,
                "</svg>",
            ]
        )
        + "\n"
    )


def main() -> None:
    """Parse the command line and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="an SVG file")
    parser.parse_args().out.write_text(drawn(), encoding="utf-8")


if __name__ == "__main__":
    main()
