"""Text of models on the page: Markdown as nodes, and no text that runs or leaves the page."""

import json

import pytest

from tests.people.page_world import Desk, a_browser, a_page, a_server
from tests.support.injections import INJECTIONS

PARTS = [list(INJECTIONS[at : at + 16]) for at in range(0, len(INJECTIONS), 16)]
SPOILT = [([{"role": "user", "content": each} for each in part], part) for part in PARTS]
OURS = {"DIV", "P", "H4", "H5", "H6", "UL", "OL", "LI", "BLOCKQUOTE", "PRE", "CODE", "STRONG", "EM", "S", "SPAN", "HR"}
# What lies in the texts of a page: the names of the elements, attributes that could run or load, and the words.
LOOK = """() => {
  const inside = [...document.querySelectorAll("#prompt *, .card .text *")];
  const attributes = [...document.querySelectorAll("body *")].flatMap((node) => node.getAttributeNames());
  return {
    tags: [...new Set(inside.map((node) => node.tagName))],
    attributes: [...new Set(attributes)],
    inner: [...new Set(inside.flatMap((node) => node.getAttributeNames()))],
    scripts: document.scripts.length + document.querySelectorAll("iframe, object, embed, base, svg, img, form").length,
    injected: window.injected,
    prompt: document.getElementById("prompt").textContent,
    answers: [...document.querySelectorAll(".card .text")].map((node) => node.textContent),
    body: document.body.textContent,
  };
}"""


@pytest.fixture(scope="module")
def browser():
    with a_browser() as started:
        yield started


@pytest.fixture(scope="module")
def sheet(browser, tmp_path_factory):
    """A page that can render any text."""
    with a_server(tmp_path_factory.mktemp("sheet"), SPOILT) as server, a_page(browser, server.url) as page:
        yield page


def bare(text):
    """Without the marks that Markdown takes away, and without spaces."""
    return "".join(each for each in text if not each.isspace() and each not in "\\`*_#>-[]()!")


def check(seen, prompt, answers):
    assert seen["injected"] is None
    assert set(seen["tags"]) <= OURS
    assert set(seen["inner"]) <= {"class", "tabindex", "role", "aria-label", "start", "dir"}
    assert not [
        name for name in seen["attributes"] if name.startswith("on") or name in {"src", "href", "style", "srcdoc"}
    ]
    assert seen["scripts"] == 2  # our script and our form
    for text in prompt:
        assert bare(text) in bare(seen["prompt"])
    for text in answers:
        assert any(bare(text) in bare(shown) for shown in seen["answers"]), text


def test_no_injection_runs_in_prompts_answers_flags_and_notes(browser, tmp_path):
    everywhere = {"flags": INJECTIONS[::4], "question": INJECTIONS[0]}
    everywhere |= {"rating": (1, 7), "rating_label": INJECTIONS[16]}
    with a_server(tmp_path, SPOILT, **everywhere) as server, a_page(browser, server.url) as page:
        desk = Desk(page, INJECTIONS[1])
        moves = []
        page.on("framenavigated", lambda frame: moves.append(frame.url))
        for number in range(len(SPOILT)):
            prompt, answers = SPOILT[desk.item - 1]
            seen = page.evaluate(LOOK)
            check(seen, [turn["content"] for turn in prompt], answers)
            for text in (*everywhere["flags"], everywhere["question"], everywhere["rating_label"], INJECTIONS[1]):
                assert text.strip() in seen["body"]
            if number < 2:
                page.click(".card .text")
                page.click("#plain")
                check(page.evaluate(LOOK), [], answers)
                page.click("#plain")
            page.fill("#note", "\n".join(answers))
            page.check(f".card[data-place='0'] .flags label:nth-child({number + 2}) input")
            desk.press("Escape", *"asdfghjklqwerty", "Enter")
            desk.wait(number + 1)
        assert page.evaluate("window.injected") is None
        assert moves == []
    kept = server.judgements()
    assert [each.note for each in kept] == ["\n".join(PARTS[each.item - 1]) for each in kept]
    assert [each.annotator for each in kept] == [INJECTIONS[1]] * len(SPOILT)
    assert {flag for each in kept for flags in each.flags for flag in flags} == set(INJECTIONS[::4][: len(SPOILT)])


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("one\ntwo\n\nthree", [["P", "one\ntwo"], ["P", "three"]]),
        ("# Title #\ntext", [["H4", "Title"], ["P", "text"]]),
        ("###### deep", [["H6", "deep"]]),
        ("- a\n- b\n  - c", [["UL", ["LI", ["P", "a"]], ["LI", ["P", "b"], ["UL", ["LI", ["P", "c"]]]]]]),
        ("3. a\n4. b", [["OL", ["LI", ["P", "a"]], ["LI", ["P", "b"]]]]),
        ("> a\n> b", [["BLOCKQUOTE", ["P", "a\nb"]]]),
        ("a\n\n---\n\nb", [["P", "a"], ["HR"], ["P", "b"]]),
        (
            "```python\nif a:\n\n    b  # *c*\n```\nafter",
            [["PRE", ["SPAN", "python"], ["CODE", "if a:\n\n    b  # *c*"]], ["P", "after"]],
        ),
        ("```\ncut off", [["PRE", ["CODE", "cut off"]]]),
        ("~~~\n```\n~~~", [["PRE", ["CODE", "```"]]]),
        ("- a\n\n  ```\n  x\n    y\n  ```", [["UL", ["LI", ["P", "a"], ["PRE", ["CODE", "x\n  y"]]]]]),
        ("**a** and *b* `c*d*`", [["P", ["STRONG", "a"], " and ", ["EM", "b"], " ", ["CODE", "c*d*"]]]),
        ("***a*** ~~b~~", [["P", ["STRONG", ["EM", "a"]], " ", ["S", "b"]]]),
        ("*a **b** c*", [["P", ["EM", "a ", ["STRONG", "b"], " c"]]]),
        ("__init__ and a_b_c", [["P", ["STRONG", "init"], " and a_b_c"]]),
        ("2*3*4 and 2 * 3 * 4", [["P", "2*3*4 and 2 * 3 * 4"]]),
        ("a ** b and `c", [["P", "a ** b and `c"]]),
        (r"\*a\* \d", [["P", r"*a* \d"]]),
        ("``a ` b``", [["P", ["CODE", "a ` b"]]]),
        ("[a](https://b.example/c)!", [["P", ["SPAN", "a", ["SPAN", " (https://b.example/c)"]], "!"]]),
        ("![a](b.png)", [["P", ["SPAN", "a", ["SPAN", " (b.png)"]]]]),
        ("a[0](x) b]", [["P", "a", ["SPAN", "0", ["SPAN", " (x)"]], " b]"]]),
        ("<b>a</b> &amp;", [["P", "<b>a</b> &amp;"]]),
        ("a\r\nb\rc", [["P", "a\nb\nc"]]),
        ("", []),
    ],
)
def test_markdown_becomes_nodes(sheet, text, nodes):
    tree = """async (text) => {
      const { markdown } = await import("/static/markdown.js");
      const tree = (node) => (node.nodeType === 3 ? node.data : [node.tagName, ...[...node.childNodes].map(tree)]);
      return [...markdown(text).childNodes].map(tree);
    }"""
    assert sheet.evaluate(tree, text) == nodes


@pytest.mark.parametrize(
    "text",
    [
        *("*" * 50_000, "*a " * 30_000, "**a *b " * 15_000, "***a" * 15_000, "a*" * 30_000, "_a_b" * 20_000),
        *("`" * 50_000, "`a ``b " * 15_000, "```" + "a" * 50_000 + "`", "[" * 50_000, "[a](" * 20_000),
        *("> " * 20_000 + "a", "- " * 20_000 + "a", "- a\n" * 10_000, "  - a\n\n" * 5_000),
        *(" " * 50_000 + "- a", "#" + " " * 50_000 + "x", "- - - -" + " " * 50_000 + "x"),
        *("\n" * 50_000, "\\" * 50_000),
    ],
    ids=lambda text: json.dumps(text[:8]),
)
def test_no_text_takes_long_to_render(sheet, text):
    seconds = """async (text) => {
      const { markdown } = await import("/static/markdown.js");
      const start = performance.now();
      markdown(text);
      return (performance.now() - start) / 1000;
    }"""
    assert sheet.evaluate(seconds, text) < 1
