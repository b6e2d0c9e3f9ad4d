"""What goes with a release: versions that agree, a site without dead ends, a picture of the code as it is."""

import re

import pytest
import yaml

import rlhf_lightning
from benchmarks import architecture, distribution
from tests.gates.gate_sources import PACKAGE, ROOT

DOCS = ROOT / "docs"
NOT_SHOWN = {"private_api", "console", "cli", "rules", "network"}  # of no use to who writes a program


def pages(node):
    """The files of a part of the navigation."""
    if isinstance(node, str):
        return [node]
    return [page for part in (node.values() if isinstance(node, dict) else node) for page in pages(part)]


@pytest.fixture(scope="module")
def navigation():
    return pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])


def test_version_changelog_and_citation_agree():
    assert set(distribution.versions().values()) == {rlhf_lightning.__version__}


def test_every_page_is_in_the_navigation_once(navigation):
    assert sorted(navigation) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


def test_every_module_of_the_package_has_its_place_in_the_reference():
    shown = {
        name
        for page in (DOCS / "reference").glob("*.md")
        for name in re.findall(r"^::: (\S+)$", page.read_text(), re.M)
    }
    there = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py" and re.search(r"^(class|def) [^_]", path.read_text(), re.M)
        and path.relative_to(PACKAGE).parts[0] not in NOT_SHOWN | {"signals.py"}
        and "isolation" not in path.parts and "project" not in path.parts
    }  # fmt: skip
    assert shown == there


@pytest.mark.parametrize("name", [name for name in rlhf_lightning.__all__ if name != "__version__"])
def test_every_public_name_leads_to_its_description(name):
    line = next(line for line in (DOCS / "reference/index.md").read_text().splitlines() if f"[`{name}`]" in line)
    page, place = re.search(r"\]\((\w+\.md)#(\S+?)\)", line).groups()
    assert f"::: {place.rpartition('.')[0]}\n" in (DOCS / "reference" / page).read_text() + "\n"
    assert place.rpartition(".")[0] == getattr(rlhf_lightning, name).__module__


def test_the_picture_is_drawn_from_the_code():
    assert (DOCS / "images/architecture.svg").read_text() == architecture.drawn()


def test_messages_of_the_questions_are_messages_of_the_code():
    table = (DOCS / "faq.md").read_text().partition("## By message")[2].partition("\n## ")[0]
    messages = re.findall(r"^\| `(.+?)` \|", table, re.M)
    source = " ".join(" ".join(re.sub(r'"\s*f?"', "", path.read_text()).split()) for path in PACKAGE.rglob("*.py"))
    assert len(messages) >= 8
    assert [part for message in messages for part in message.split(" ... ") if part not in source] == []


def test_workflows_call_the_targets_of_the_makefile():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    runs = [line for path in (ROOT / ".github/workflows").glob("*.yml")
            for line in re.findall(r"run: make (\w+)", path.read_text())]  # fmt: skip
    assert {"test", "docs", "dist"} <= set(runs) <= targets
