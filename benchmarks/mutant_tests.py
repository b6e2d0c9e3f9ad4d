"""Which tests run which lines, and whether some of them pass: pytest in forks of this process."""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

PACKAGE = "rlhf_lightning"
QUICK = ["-q", "-n", "0", "-p", "no:cacheprovider", "--assert=plain"]
IS_FUNCTION = 1  # flag of code objects that do not run at import


class Ran(NamedTuple):
    """What a test did without a fault."""

    seconds: float
    lines: set[tuple[str, int]]  # of functions: file below the package, line


class Watch:
    """A pytest plugin that notes which lines of the package each test runs, and how long it takes."""

    def __init__(self, folder: Path) -> None:
        self.begins = f"{folder / PACKAGE}/"
        self.ran: dict[str, Ran] = {}
        self.failed: set[str] = set()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Note the lines of this test from here on."""
        lines: set[tuple[str, int]] = set()
        self.ran[nodeid] = Ran(time.perf_counter(), lines)

        def each_line(frame: Any, event: str, argument: Any) -> Any:
            lines.add((frame.f_code.co_filename[len(self.begins) :], frame.f_lineno))
            return each_line

        def each_call(frame: Any, event: str, argument: Any) -> Any:
            code = frame.f_code
            return each_line if code.co_flags & IS_FUNCTION and code.co_filename.startswith(self.begins) else None

        sys.settrace(each_call)
        threading.settrace(each_call)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """This test has ended."""
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
        self.ran[nodeid] = self.ran[nodeid]._replace(seconds=time.perf_counter() - self.ran[nodeid].seconds)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keep in mind what fails without a fault."""
        if report.failed:
            self.failed.add(report.nodeid)


class Only:
    """A pytest plugin that runs these tests, in this order."""

    def __init__(self, tests: list[str]) -> None:
        self.tests = tests

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Leave the others out."""
        known = {item.nodeid: item for item in items}
        items[:] = [known[test] for test in self.tests if test in known]


def watched(folder: Path, files: list[str], kept: Path) -> dict[str, Ran]:
    """What each test of these files runs; those that fail in the copy ``folder`` are named and left out.

    What is known is in the file ``kept``, under a hash of package and test, and only what has changed is run again.
    """
    shared = _hash([*(folder / PACKAGE).rglob("*.py"), *(folder / "tests/support").rglob("*.py")])
    keys = {file: shared + _hash([folder / file]) for file in files}
    known = pickle.loads(kept.read_bytes()) if kept.is_file() else {}  # noqa: S301 - written below
    missing = [file for file in files if keys[file] not in known]

    def watch() -> int:
        plugin = Watch(folder)
        pytest.main([*QUICK, *missing], plugins=[plugin])
        new: dict[str, dict[str, Ran | None]] = {keys[file]: {} for file in missing}
        for test, what in plugin.ran.items():
            new[keys[test.split("::")[0]]][test] = None if test in plugin.failed else what
        kept.parent.mkdir(exist_ok=True)
        kept.write_bytes(pickle.dumps({key: known[key] for key in keys.values() if key in known} | new))
        return 0

    if missing and _forked(folder, watch, limit=3600):
        raise SystemExit("the tests could not be run in a copy")
    known = pickle.loads(kept.read_bytes())  # noqa: S301 - as above
    found: dict[str, Ran | None] = {test: what for file in files for test, what in known[keys[file]].items()}
    for test in (test for test, what in found.items() if what is None):
        print(f"left out, as it fails without a fault: {test}", flush=True)
    return {test: what for test, what in found.items() if what is not None}


def _hash(files: list[Path]) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()[:12]


def choose(ran: dict[str, Ran], path: str, lines: Iterable[int], budget: float) -> list[str]:
    """The tests that run one of these lines, as many as fit into ``budget`` seconds.

    First comes one case of every test, then the others; among them first the file that is called like this one, then
    what is quick and runs hardly anything else. Where none runs the lines, as with what runs at import, all that run
    anything of the file are asked.
    """
    wanted = {(path, line) for line in lines}
    hits = [test for test, what in ran.items() if what.lines & wanted]
    hits = hits or [test for test, what in ran.items() if any(place == path for place, _ in what.lines)]

    def order(test: str) -> tuple[bool, float]:
        about = sum(place == path for place, _ in ran[test].lines) / len(ran[test].lines)
        return f"test_{Path(path).stem}.py" not in test, ran[test].seconds / about

    hits.sort(key=order)
    first = {test.split("[")[0]: test for test in reversed(hits)}
    chosen, spent = [], 0.0
    for test in sorted(hits, key=lambda test: first[test.split("[")[0]] != test):
        if spent + ran[test].seconds <= budget or not chosen:
            chosen.append(test)
            spent += ran[test].seconds
    return chosen


def passes(folder: Path, tests: list[str], limit: float) -> bool:
    """Whether these tests pass in a copy, all within ``limit`` seconds."""
    files = list(dict.fromkeys(test.split("::")[0] for test in tests))
    return _forked(folder, lambda: int(pytest.main(["-x", *QUICK, *files], plugins=[Only(tests)])), limit) == 0


def _forked(folder: Path, run: Any, limit: float) -> int:
    """Exit status of a silent fork of this process in ``folder``; -1 where it was ended after ``limit`` seconds."""
    process = os.fork()
    if not process:
        os.setpgid(0, 0)
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        os._exit(run())
    ends = time.monotonic() + limit
    while time.monotonic() < ends:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return -1
