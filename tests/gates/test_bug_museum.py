"""Every exhibit of `docs/bug_museum.md` has a test, and every test it names is there."""

import ast
import re
from functools import cache

import pytest

from tests.gates.gate_sources import ROOT

TEXT = (ROOT / "docs" / "bug_museum.md").read_text(encoding="utf-8")
REFERENCE = re.compile(r"`([\w/.]+)::(test_\w+)`")
EXHIBITS = 24  # rows of the study this museum goes back to, see the page


def rows(text):
    """(bug, where, tests) of every row of every table."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| bug |", "| ---"))]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def file_of(name):
    """The file that a reference means."""
    return ROOT / name if name.startswith("tests/") else ROOT / "tests" / "modules" / f"test_bug_{name}.py"


@cache
def names_in(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def missing(text):
    """References that lead nowhere."""
    found = [(f"{name}::{test}", file_of(name), test) for name, test in REFERENCE.findall(text)]
    return [said for said, file, test in found if not file.is_file() or test not in names_in(file)]


@pytest.mark.parametrize("page", ["bug_museum.md", "details.md"])
def test_every_test_that_a_page_names_exists(page):
    assert missing((ROOT / "docs" / page).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("row", rows(TEXT), ids=lambda row: row[0][:60])
def test_every_exhibit_says_where_it_happened_and_has_a_test(row):
    bug, where, tests = row
    assert bug and where and REFERENCE.fullmatch(tests.split(", ")[0])


def test_the_museum_is_complete():
    assert len(rows(TEXT)) >= EXHIBITS
    named = {test for _, test in REFERENCE.findall(TEXT)}
    own = set((ROOT / "tests" / "modules").glob("test_bug_museum*.py"))
    assert len(own) >= 4
    assert set().union(*map(names_in, own)) <= named


@pytest.mark.parametrize(
    "text", ["`museum::test_that_nobody_wrote`", "`museum_of_art::test_x`", "`tests/nowhere.py::test_x`"]
)
def test_a_dead_reference_is_seen(text):
    assert missing(text) == [text.strip("`")]
