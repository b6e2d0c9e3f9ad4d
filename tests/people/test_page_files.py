"""Rules about the files of the pages, as `tests/gates` has them for Python."""

import re

import pytest

from tests.gates.gate_sources import PACKAGE

PAGE = PACKAGE / "people" / "page"
SCRIPTS, HTML, STYLES = (sorted(PAGE.glob(f"*.{kind}")) for kind in ("js", "html", "css"))
# What takes a text for markup or for code, and what a policy without inline scripts and styles would refuse.
UNSAFE = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|setHTML|srcdoc"
    r"|\beval\(|new Function|setTimeout\(\s*[\"'`]|javascript:|cssText|setAttribute\(\s*[\"']style|\.href\s*="
)
INLINE = re.compile(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=", re.IGNORECASE)
ELSEWHERE = re.compile(r"(?:https?:)?//(?!www\.w3\.org/2000/svg)[a-z0-9-]+\.[a-z]", re.IGNORECASE)


def faults(text, pattern):
    return [found.group() for found in pattern.finditer(text)]


def test_there_are_pages():
    assert {"label.html", "lead.html"} <= {path.name for path in HTML}
    assert len(SCRIPTS) > 5


@pytest.mark.parametrize("path", [*SCRIPTS, *HTML, *STYLES], ids=lambda path: path.name)
def test_files_of_the_pages_stay_small_and_ask_nobody_else(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    assert max(map(len, text.splitlines())) <= 120
    assert faults(text, ELSEWHERE) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_take_no_text_for_markup_or_code(path):
    assert faults(path.read_text(), UNSAFE) == []


@pytest.mark.parametrize("path", HTML, ids=lambda path: path.name)
def test_pages_have_no_inline_scripts_or_styles_and_every_file_they_name_is_there(path):
    text = path.read_text()
    assert faults(text, INLINE) == []
    named = re.findall(r'(?:href|src)="/static/([^"]+)"', text)
    assert named
    assert [name for name in named if not (PAGE / name).is_file()] == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_imports_of_scripts_are_there_and_make_no_circle(path):
    seen, waiting = set(), [path]
    while waiting:
        for name in re.findall(r'^import .* from "\./([^"]+)";$', waiting.pop().read_text(), re.MULTILINE):
            assert (PAGE / name).is_file()
            assert name != path.name
            if name not in seen:
                seen.add(name)
                waiting.append(PAGE / name)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("node.innerHTML = text", UNSAFE),
        ('node.insertAdjacentHTML("beforeend", text)', UNSAFE),
        ("eval(text)", UNSAFE),
        ('setTimeout("go()", 1)', UNSAFE),
        ('node.setAttribute("style", text)', UNSAFE),
        ("<script>go()</script>", INLINE),
        ('<script type="module">go()</script>', INLINE),
        ('<p style="color: red">', INLINE),
        ('<p onclick="go()">', INLINE),
        ('import "https://cdn.example/x.js"', ELSEWHERE),
        ("url(//cdn.example/x.png)", ELSEWHERE),
    ],
)
def test_the_rules_see_what_is_wrong(text, pattern):
    assert faults(text, pattern) != []
