"""Put one small fault at a time into the code and see whether a fast test notices: `make mutants`.

    python -m benchmarks.mutants --rooms optim --sample 20 --seed 1

The faults go into a temporary copy. First all tests run once without a fault, and it is noted which lines each of them
runs; then every fault costs only the tests that run its line. Each run is a fork of this process, which has loaded the
slow libraries before.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks.mutant_tests import PACKAGE, Ran, choose, passes, watched

ROOT = Path(__file__).parents[1]
TESTS = ("modules", "training", "scoring", "rollout", "optim")  # and the doctests of the rooms
FAULTS = ("numerics", "memory", "degenerate", "reward_functions", "tokenizers")  # what tests/faults has in this process
LONG = ("test_exact_optimum.py", "test_invariances.py")  # not asked
SLOW = ("lightning.pytorch", "peft", "pytest", "transformers.models.llama.modeling_llama")
ROOMS = ("modules", "training", "scoring", "rollout", "optim")
BUDGET = 90.0  # seconds of tests for one mutant, as they took while their lines were noted
LIMIT = 120.0  # seconds; a mutant that runs for longer is seen
OTHER = {
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
UNSEEN = ("strict", "why", "device")  # arguments: a check, the text of an error, and what needs a second device
NAMES = {"min": "max", "max": "min", "amin": "amax", "amax": "amin", "any": "all", "all": "any", "sum": "mean"}


class Mutant(NamedTuple):
    """One fault: characters ``start`` to ``end`` of a file replaced."""

    path: Path  # below the package
    line: int  # first and last
    last: int
    start: int
    end: int
    text: str

    def apply(self, source: str) -> str:
        """The source with the fault."""
        return source[: self.start] + self.text + source[self.end :]

    def shown(self, source: str) -> str:
        """Where it is, and the line before and after."""
        before, after = (text.splitlines()[self.line - 1].strip() for text in (source, self.apply(source)))
        return f"{self.path}:{self.line}\n    - {before}\n    + {after}"


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """What a node is replaced by."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in OTHER:
        yield ast.Compare(node.left, [OTHER[type(node.ops[0])](), *node.ops[1:]], node.comparators)
    elif isinstance(node, ast.BinOp) and type(node.op) in OTHER:
        yield ast.BinOp(node.left, OTHER[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(OTHER[type(node.op)](), node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.Invert, ast.USub)):
        yield node.operand
    elif isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
        yield ast.Constant(not node.value if isinstance(node.value, bool) else 2 * node.value or 1)
    elif isinstance(node, ast.Attribute) and node.attr in NAMES:
        yield ast.Attribute(node.value, NAMES[node.attr], node.ctx)
    elif isinstance(node, ast.Name) and node.id in NAMES and isinstance(node.ctx, ast.Load):
        yield ast.Name(NAMES[node.id], node.ctx)
    elif isinstance(node, ast.Call):
        for place in (i for i, keyword in enumerate(node.keywords) if keyword.arg not in UNSEEN):
            dropped = copy.copy(node)
            dropped.keywords = node.keywords[:place] + node.keywords[place + 1 :]
            yield dropped
    elif isinstance(node, ast.Return) and node.value is not None:
        yield ast.Return(ast.Constant(None))
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield ast.Pass()


def looked_at(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below but annotations, defaults (held to the YAML by other tests), decorators, what is said in
    errors and warnings, asserts, and the arguments in `UNSEEN`."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "defaults", "kw_defaults", "decorator_list"):
            continue
        if isinstance(node, ast.AnnAssign) and name == "value" and isinstance(value, ast.Constant):
            continue  # the default of a field
        for child in value if isinstance(value, list) else [value]:
            called = child.func if isinstance(child, ast.Call) else None
            says = isinstance(called, ast.Attribute) and called.attr in ("warning", "warn", "info")
            unseen = isinstance(child, ast.keyword) and child.arg in UNSEEN
            if (
                isinstance(child, ast.AST)
                and not isinstance(child, (ast.Raise, ast.Assert, ast.JoinedStr))
                and not says
                and not unseen
            ):
                yield child
                yield from looked_at(child)


def mutants_of(path: Path, source: str) -> Iterator[Mutant]:
    """All faults of a file."""
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    place = lambda line, column: len(source.encode()[: starts[line - 1] + column].decode())  # noqa: E731
    for node in looked_at(ast.parse(source)):
        conditions = [node.test] if isinstance(node, (ast.If, ast.IfExp)) else []
        for old, new in [(node, new) for new in variants(node)] + [(c, ast.UnaryOp(ast.Not(), c)) for c in conditions]:
            text = ast.unparse(new)
            if text == ast.unparse(old):
                continue  # return None
            if isinstance(new, (ast.BoolOp, ast.UnaryOp)):
                text = f"({text})"
            start, end = place(old.lineno, old.col_offset), place(old.end_lineno, old.end_col_offset)  # type: ignore[attr-defined]
            yield Mutant(path, old.lineno, old.end_lineno, start, end, text)  # type: ignore[attr-defined]


def try_room(room: str, folder: Path, ran: Mapping[str, Ran], sample: int, seed: int) -> str:
    """Try some mutants of a room in the copy ``folder`` and print those that no test saw; returns the score."""
    files = sorted((folder / PACKAGE / room).rglob("*.py"))
    sources = {file.relative_to(folder / PACKAGE): file.read_text() for file in files}
    found = [mutant for path, source in sources.items() for mutant in mutants_of(path, source)]
    chosen = random.Random(seed).sample(found, min(sample or len(found), len(found)))
    seen, start = 0, time.monotonic()
    for mutant in chosen:
        target, source = folder / PACKAGE / mutant.path, sources[mutant.path]
        target.write_text(mutant.apply(source))
        tests = choose(ran, str(mutant.path), range(mutant.line, mutant.last + 1), BUDGET)
        if tests and not passes(folder, tests, LIMIT):
            seen += 1
        else:
            print(f"{mutant.shown(source)}\n    {len(tests)} tests run it", flush=True)
        target.write_text(source)
    score = (
        f"{room}: {seen} of {len(chosen)} seen ({seen / max(len(chosen), 1):.0%}) in {time.monotonic() - start:.0f} s"
    )
    return f"{score}; {len(found)} mutants in {len(files)} files"


def main() -> None:
    """Run a sample of the mutants and print those that no test saw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rooms", default=",".join(ROOMS), help="names with commas")
    parser.add_argument("--sample", type=int, default=20, help="mutants of each room that are tried; 0 tries all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    for name in SLOW:
        importlib.import_module(name)
    rooms = given.rooms.split(",")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "copy"
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__", "outputs", "runs"))
        files = [file for room in TESTS for file in (folder / "tests" / room).rglob("test_*.py")]
        files += [folder / "tests/faults" / f"test_{name}.py" for name in FAULTS]
        files += [file for room in ROOMS for file in (folder / PACKAGE / room).rglob("*.py")]
        asked = [str(file.relative_to(folder)) for file in sorted(files) if file.name not in LONG]
        ran = watched(folder, asked, ROOT / "runs/mutants")
        print(f"{len(ran)} tests take {sum(what.seconds for what in ran.values()):.0f} s", flush=True)
        for room in rooms:
            print(try_room(room, folder, ran, given.sample, given.seed), flush=True)


if __name__ == "__main__":
    main()
