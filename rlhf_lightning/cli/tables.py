"""Tables on the screen."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_lightning.console.display import plain
from rlhf_lightning.console.streams import say


def show_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on the screen; a name in brackets is no markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold")
    for name in headings:
        table.add_column(Text(plain(name)), overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    console = Console(highlight=False, force_terminal=False)
    with console.capture() as shown:
        console.print(table)
    say(shown.get().rstrip())
