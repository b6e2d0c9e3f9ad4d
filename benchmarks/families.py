"""Every kind of language model that the installed transformers knows, made tiny and tried: docs/models.md.

    python -m benchmarks.families --only llama,gemma3 --out docs/models_matrix.md

Each family runs in a process of its own with a time limit, so that a crash ends one row only. A cell is ``ok``, a
refusal (the library says in one sentence that it will not, and why), ``WRONG``, ``CRASH`` or ``TIMEOUT``.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import re
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from benchmarks.families_cells import CELLS
from benchmarks.families_tiny import CAUSAL, VARIANTS, VISION, write_tiny
from benchmarks.families_world import World, Wrong
from rlhf_lightning.errors import RLHFError

OK, REFUSED, WRONG, CRASH, TIMEOUT, NOT_MADE = "ok", "refused", "WRONG", "CRASH", "TIMEOUT", "not made"


class Cell(NamedTuple):
    """What came of one check."""

    state: str
    detail: str = ""


def try_family(kind: str, folder: Path, cells: Iterable[str]) -> dict[str, Cell]:
    """All cells of one family, in this process."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write_tiny(kind, folder / "model")
    except Exception as error:
        return {"made": Cell(NOT_MADE, _reason(error))}
    world = World(kind, folder)
    return {name: try_cell(world, name) for name in cells}


def try_cell(world: World, name: str) -> Cell:
    """One cell."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Cell(OK, CELLS[name](world))
    except RLHFError as error:
        return Cell(REFUSED, str(error).replace(str(world.folder), "FOLDER").replace(f"{world.folder.parent}/", ""))
    except Wrong as wrong:
        return Cell(WRONG, str(wrong))
    except Exception as error:
        return Cell(CRASH, _reason(error))


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _child(kind: str, cells: list[str], send: Connection) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        send.send(try_family(kind, Path(folder), cells))


def in_child(kind: str, cells: list[str], limit: float) -> dict[str, Cell]:
    """The same in a process of its own, which is ended after ``limit`` seconds."""
    receive, send = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_child, args=(kind, cells, send))
    child.start()
    send.close()
    try:
        found = receive.recv() if receive.poll(limit) else {"made": Cell(TIMEOUT, f"{limit:.0f} s")}
    except EOFError:
        found = {"made": Cell(CRASH, "the process died")}
    child.kill()
    child.join()
    return found


def table(results: Mapping[str, Mapping[str, Cell]], cells: list[str]) -> str:
    """Counts and the matrix in Markdown, then the reasons of all that is not ``ok``."""
    lines = ["# All families", "", "Output of `make families`; what is compared: [models](models.md).", ""]
    lines += [f"transformers {transformers.__version__}, torch {torch.__version__}: {json.dumps(counts(results))}", ""]
    lines += [f"| family | {' | '.join(cells)} |", f"|---|{'---|' * len(cells)}"]
    reasons: dict[str, dict[str, list[str]]] = {}
    for kind, row in results.items():
        shown = []
        for name, cell in row.items():
            if cell.state != OK:
                reasons.setdefault(_general(kind, cell), {}).setdefault(kind, []).append(name)
            short = {OK: "ok", REFUSED: "–"}.get(cell.state, cell.state)
            shown.append(f"{short} (unpacked)" if "unpacked" in cell.detail else short)
        if "made" not in row:
            lines.append(f"| {kind} | {' | '.join(shown)} |")
    for why, kinds in reasons.items():
        who = (f"{kind} ({', '.join(names)})" if len(names) < len(cells) else kind for kind, names in kinds.items())
        lines += ["", f"**{why}** {', '.join(who)}"]
    return "\n".join(lines) + "\n"


def _general(kind: str, cell: Cell) -> str:
    """A reason without the names of one family."""
    why = re.sub(r"\w+(ForCausalLM|LMHeadModel|ForConditionalGeneration)", "CLASS", cell.detail)
    name = re.escape(kind.split("/")[0])
    why = re.sub(rf"(?<![A-Za-z]){name}(?![a-z])", "TYPE", why)
    return f"{cell.state}: {why}:"


def counts(results: Mapping[str, Mapping[str, Cell]]) -> dict[str, Any]:
    """How many cells came out how, and how many families in all."""
    states = Counter(cell.state for row in results.values() for cell in row.values())
    tried = [kind for kind, row in results.items() if "made" not in row]
    whole = [kind for kind in tried if all(cell.state == OK for cell in results[kind].values())]
    return {"families": len(results), "tried": len(tried), "ok in every cell": len(whole), "cells": dict(states)}


def main() -> None:
    """Parse the command line, try, write, and fail where a number was wrong or something crashed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names of families, with commas")
    parser.add_argument("--cells", default=",".join(CELLS), help="names of checks, with commas")
    parser.add_argument("--limit", type=float, default=120, help="seconds for one family")
    parser.add_argument("--out", type=Path, help="a Markdown file to write")
    parser.add_argument("--json", type=Path, help="a file for all details")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    for name in ("rlhf_lightning", "lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    cells = options.cells.split(",")
    results = {}
    for kind in options.only.split(",") if options.only else [*CAUSAL, *VARIANTS, *VISION]:
        began = time.time()
        row = results[kind] = in_child(kind, cells, options.limit)
        bad = {name: cell for name, cell in row.items() if cell.state not in (OK, REFUSED, NOT_MADE)}
        print(
            f"{kind} {time.time() - began:.1f} s", *(f"{n}: {c.state} {c.detail}" for n, c in bad.items()), flush=True
        )
        if options.json:  # after each, since the whole takes an hour
            options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(counts(results)))
    if options.out:
        options.out.write_text(table(results, cells), encoding="utf-8")
    states = {cell.state for row in results.values() for cell in row.values()}
    raise SystemExit(1 if states & {WRONG, CRASH, TIMEOUT} else 0)


if __name__ == "__main__":
    main()
