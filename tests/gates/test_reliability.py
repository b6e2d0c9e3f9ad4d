"""Every fault of `docs/reliability.md` has tests that carry its number, and every test named there exists."""

import ast
import re
from functools import cache

import pytest

from tests.gates.gate_sources import ROOT

TEXT = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
FAULTS = ROOT / "tests" / "faults"
CASES = range(1, 75)
ROW = re.compile(r"^\| (\d+) \| (.+) \| (.+) \| (.+) \|$", re.MULTILINE)
REFERENCE = re.compile(r"`([\w/.]+)::(test_\w+)`")
NAME = re.compile(r"test_case_(\d+)(?:_(and|to)_(\d+))?_")


def cases_of(name):
    """The numbers that the name of a test carries."""
    found = NAME.match(name)
    if not found:
        return set()
    first, last = int(found[1]), int(found[3] or found[1])
    return {first, last} if found[2] == "and" else set(range(first, last + 1))


@cache
def names_in(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def missing(text):
    """References that lead nowhere."""
    files = {
        name: ROOT / name if name.startswith("tests/") else FAULTS / f"test_{name}.py"
        for name, _ in REFERENCE.findall(text)
    }
    return [f"{n}::{t}" for n, t in REFERENCE.findall(text) if not files[n].is_file() or t not in names_in(files[n])]


def test_every_test_that_the_page_names_exists():
    assert missing(TEXT) == []


def test_every_case_has_a_row_with_a_test_of_its_number():
    rows = {int(number): tests for number, *_, tests in ROW.findall(TEXT)}
    assert sorted(rows) == list(CASES)
    without = [n for n, tests in rows.items() if not any(n in cases_of(t) for _, t in REFERENCE.findall(tests))]
    assert without == [], f"no test in the table for the cases {without}"


def test_every_case_has_a_test_among_the_faults():
    names = set().union(*(names_in(file) for file in FAULTS.glob("test_*.py")))
    covered = set().union(*map(cases_of, names))
    assert sorted(set(CASES) - covered) == [], "cases without a test function test_case_NN_..."
    assert covered <= set(CASES)


@pytest.mark.parametrize("text", ["`checkpoint::test_that_nobody_wrote`", "`nowhere::test_x`"])
def test_a_dead_reference_is_seen(text):
    assert missing(text) == [text.strip("`")]


def test_numbers_are_read_from_names():
    assert cases_of("test_case_19_to_21_x") == {19, 20, 21} and cases_of("test_case_15_and_52_x") == {15, 52}
    assert cases_of("test_case_07_x") == {7} and cases_of("test_x") == set()
