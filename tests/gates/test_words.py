import re

import pytest

from tests.gates.gate_sources import ROOT, project_files

# Assembled so that this file does not contain what it looks for.
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:" + "|".join(["work", "opt", "root", "home", "mnt", "Users"]) + r")/\w")
LEFTOVER = re.compile("|".join(["FIX" + "ME", "X" + "XX", "<<<<" + "<<<", ">>>>" + ">>>"]))
TEXT = {".py", ".yaml", ".yml", ".toml", ".md", ".txt", ".cfg", ".sh", ".json", ".jsonl", ""}


def lines_matching(pattern):
    for path in project_files():
        if path.suffix not in TEXT or path.name == "LICENSE":
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if pattern.search(line):
                yield f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"


@pytest.mark.parametrize("pattern", [MACHINE_PATH, LEFTOVER], ids=["machine paths", "leftovers"])
def test_files_hold_no(pattern):
    assert list(lines_matching(pattern)) == []


def test_the_gate_sees_a_machine_path():
    assert MACHINE_PATH.search("path: /" + "opt/wheels")
    assert not MACHINE_PATH.search("https://github.com/a/home/b or runs/work/x")


def test_no_large_file_is_under_version_control():
    assert [p for p in project_files() if p.stat().st_size > 2_000_000] == []
