"""Put one small fault at a time into the code and see whether the fast tests of its room notice: `make mutants`.

    python -m benchmarks.mutants --room optim --sample 20 --seed 1

The faults go into a temporary copy. Each run is a fork of this process, which has loaded the slow libraries before.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = "rlhf_lightning"
ONLINE = ["modules/test_ppo.py", "modules/test_algorithms.py", "modules/test_scales.py", "modules/test_resampling.py"]
LABELLED = ["modules/test_preference.py", "modules/test_unpaired.py"]
TEXT = ["modules/test_sft_and_reward.py", "modules/test_schedules.py"]
TESTS = {  # the longest beginning of a path decides; the doctests of the file itself come first
    "modules/": ONLINE,
    "modules/automatic.py": TEXT,
    "modules/base.py": TEXT,
    "modules/sft.py": TEXT,
    "modules/reward.py": TEXT,
    "modules/dpo.py": LABELLED,
    "modules/kto.py": LABELLED,
    "modules/offline.py": LABELLED,
    "modules/formulas.py": ["modules/test_formulas.py"],
    "training/": ["modules/test_by_length.py", "modules/test_ppo.py"],
    "training/random_state.py": ["modules/test_random_state.py", "modules/test_resume.py"],
    "training/resume_checks.py": ["modules/test_resume.py", "modules/test_lora.py"],
    "scoring/": ["scoring"],
    "rollout/": ["rollout"],
    "optim/": ["optim", "modules/test_schedules.py"],
}
SLOW = ("lightning.pytorch", "peft", "pytest", "transformers.models.llama.modeling_llama")
ROOMS = ("modules", "training", "scoring", "rollout", "optim")
LIMIT = 120.0  # seconds; a mutant that runs for longer is seen
OTHER = {
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "amin": "amax", "amax": "amin", "any": "all", "all": "any", "sum": "mean"}


class Mutant(NamedTuple):
    """One fault: characters ``start`` to ``end`` of a file replaced."""

    path: Path  # below the package
    line: int
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
        for place in range(len(node.keywords)):
            dropped = copy.copy(node)
            dropped.keywords = node.keywords[:place] + node.keywords[place + 1 :]
            yield dropped
    elif isinstance(node, ast.Return) and node.value is not None:
        yield ast.Return(ast.Constant(None))
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield ast.Pass()


def looked_at(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below but annotations, defaults (held to the YAML by other tests), decorators, and what is said in
    errors and warnings."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "defaults", "kw_defaults", "decorator_list"):
            continue
        if isinstance(node, ast.AnnAssign) and name == "value" and isinstance(value, ast.Constant):
            continue  # the default of a field
        for child in value if isinstance(value, list) else [value]:
            called = child.func if isinstance(child, ast.Call) else None
            says = isinstance(called, ast.Attribute) and called.attr in ("warning", "warn", "info")
            if (
                isinstance(child, ast.AST)
                and not isinstance(child, (ast.Raise, ast.Assert, ast.JoinedStr))
                and not says
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
            if isinstance(new, (ast.BoolOp, ast.UnaryOp)):
                text = f"({text})"
            start, end = place(old.lineno, old.col_offset), place(old.end_lineno, old.end_col_offset)  # type: ignore[attr-defined]
            yield Mutant(path, old.lineno, start, end, text)  # type: ignore[attr-defined]


def tests_of(path: Path) -> list[str]:
    """What is run for a file, relative to the copy."""
    known = max((begin for begin in TESTS if str(path).startswith(begin)), key=len)
    return [f"{PACKAGE}/{path}", *(f"tests/{test}" for test in TESTS[known])]


def passes(folder: Path, tests: list[str]) -> bool:
    """Whether the tests pass in a copy, in a fork of this process."""
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        import pytest

        quick = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--assert=plain"]
        os._exit(int(pytest.main([*quick, *tests])))
    ends = time.monotonic() + LIMIT
    while time.monotonic() < ends:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def main() -> None:
    """Run a sample of the mutants and print those that no test saw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--room", choices=ROOMS, help="only this room; all by default")
    parser.add_argument("--sample", type=int, default=100, help="mutants that are tried; 0 tries all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="try no other after so long")
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    for name in SLOW:
        importlib.import_module(name)
    files = [p for room in ROOMS if given.room in (None, room) for p in sorted((ROOT / PACKAGE / room).rglob("*.py"))]
    sources = {file.relative_to(ROOT / PACKAGE): file.read_text() for file in files}
    found = [mutant for path, source in sources.items() for mutant in mutants_of(path, source)]
    chosen = random.Random(given.seed).sample(found, min(given.sample or len(found), len(found)))
    survivors, tried, start = [], 0, time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "copy"
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__", "outputs"))
        for tests in {tuple(tests_of(mutant.path)[1:]) for mutant in chosen}:
            if not passes(folder, list(tests)):
                print(f"left out: without a fault, these tests do not pass here: {' '.join(tests)}", flush=True)
                chosen = [mutant for mutant in chosen if tuple(tests_of(mutant.path)[1:]) != tests]
        for mutant in chosen:
            if time.monotonic() - start > given.seconds:
                break
            target, source = folder / PACKAGE / mutant.path, sources[mutant.path]
            target.write_text(mutant.apply(source))
            tried += 1
            if passes(folder, tests_of(mutant.path)):
                survivors.append(mutant)
                print(mutant.shown(source), flush=True)
            target.write_text(source)
    seen = tried - len(survivors)
    print(f"{seen} of {tried} seen ({seen / max(tried, 1):.0%}); {len(found)} mutants in {len(files)} files")


if __name__ == "__main__":
    main()
